"""Small trained additions to a model (LoRA and its kin)."""
