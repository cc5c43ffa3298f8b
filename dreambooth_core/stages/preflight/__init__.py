"""What is looked at before a training starts; nothing here needs torch or numpy."""
