"""The settings of merging checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import SAVE_DTYPE_CHOICES
from dreambooth_core.config.control import REQUIRED, control

WEIGHTED_SUM = "weighted_sum"
ADD_DIFFERENCE = "add_difference"


@dataclass(kw_only=True)
class MergeConfig:
    """Write a checkpoint made of two or three others."""

    name: str = control(
        REQUIRED, "File name", "What the new checkpoint file is called.", kind="file_name"
    )
    method: str = control(
        ADD_DIFFERENCE,
        "Method",
        "add_difference is A + (B - C) x M: what B learnt since C is added to A. weighted_sum is "
        "A x (1 - M) + B x M, a mixture of two.",
        choices=(ADD_DIFFERENCE, WEIGHTED_SUM),
    )
    primary: str = control(
        REQUIRED,
        "Model A",
        "The checkpoint to start from. What is not merged is taken from it: noise schedule, side "
        "yaml, and tensors that the others lack.",
        kind="checkpoint",
    )
    secondary: str = control(
        REQUIRED,
        "Model B",
        "The checkpoint to mix in; for add_difference the trained one.",
        kind="checkpoint",
    )
    tertiary: str = control(
        "",
        "Model C",
        "For add_difference: the checkpoint that B was trained from.",
        kind="checkpoint",
    )
    multiplier: float = control(
        1.0,
        "Multiplier (M)",
        "How much of B goes in: 0 is A alone, 1 is all of B, or of its difference.",
        minimum=0.0,
        maximum=2.0,
        step=0.05,
    )
    vae: str = control(
        "merge",
        "VAE",
        "merge treats the VAE as the WebUI's merger does, like all other weights; keep takes the "
        "one of A.",
        choices=("merge", "keep"),
    )
    arithmetic: str = control(
        "webui",
        "Arithmetic",
        "webui computes in the checkpoints' own number formats and gives what the WebUI's merger "
        "gives, bit for bit; fp32 loses nothing to rounding in between.",
        choices=("webui", "fp32"),
        advanced=True,
    )
    dtype: str = control(
        "fp16",
        "Saved number format",
        "fp16 is half the size of fp32 and what most checkpoints use; source keeps each "
        "tensor as it is in A.",
        choices=SAVE_DTYPE_CHOICES,
    )
    subfolder: str = control(
        "",
        "Subfolder",
        "A folder below the WebUI's checkpoints folder to write into.",
        kind="file_name",
    )
