"""The scripts that made the assets of the world: networks, judge, subjects, and their gate."""
