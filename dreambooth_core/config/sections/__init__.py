"""The groups of training settings. Each default, range, unit and help text is written here once."""
