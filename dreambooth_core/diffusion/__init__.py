"""Diffusion formulas as pure tensor functions: no I/O, no configuration objects."""
