"""What stands on each tab; the controls themselves come from the schema."""
