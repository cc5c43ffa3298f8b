"""Settings: their one definition, their JSON form and their checks. Standard library only."""
