"""The page as a person uses it: in a headless Chromium."""
