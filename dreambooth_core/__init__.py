"""DreamBooth training for Stable Diffusion: create, train, sample, save and compare models."""

__version__ = "0.1.0"
