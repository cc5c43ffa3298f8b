"""What several settings offer to choose from."""

from __future__ import annotations

SAMPLERS = ("ddim", "euler", "euler_a", "dpm++_2m", "unipc")
SAVE_DTYPE_CHOICES = ("fp16", "bf16", "fp32", "source")
MAX_SEED = 2**32 - 1
