"""The page: tabs and the run panel, the same in a WebUI and alone."""
