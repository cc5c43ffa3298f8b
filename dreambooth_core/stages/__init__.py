"""The jobs, each from its settings to its result."""
