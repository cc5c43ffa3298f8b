"""From picture files to batches of latents, prompts and weights."""
