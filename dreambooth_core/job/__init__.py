"""Jobs: folders, events, commands and the worker process. Standard library only."""
