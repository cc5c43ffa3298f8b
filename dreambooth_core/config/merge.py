"""The settings of merging checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import MAX_SEED
from dreambooth_core.config.control import REQUIRED, control
from dreambooth_core.config.new_file import checkpoint_format, file_called, folder_below

WEIGHTED_SUM = "weighted_sum"
ADD_DIFFERENCE = "add_difference"
DARE = "dare"
OF_A_DIFFERENCE = (ADD_DIFFERENCE, DARE)
"""Methods that need a third model, whose difference to the second they add."""


@dataclass(kw_only=True)
class MergeConfig:
    """Write a checkpoint made of two or three others."""

    name: str = file_called("new checkpoint file")
    method: str = control(
        ADD_DIFFERENCE,
        "Method",
        "add_difference is A + (B - C) x M: what B learnt since C is added to A. dare adds only a "
        "random part of the difference, made larger so that its mean stays, which disturbs A "
        "less. weighted_sum is A x (1 - M) + B x M, a mixture of two.",
        choices=(ADD_DIFFERENCE, DARE, WEIGHTED_SUM),
    )
    primary: str = control(
        REQUIRED,
        "Target (model A)",
        "The checkpoint to start from. What is not merged is taken from it: noise schedule, side "
        "yaml, and tensors that the others lack.",
        kind="checkpoint",
    )
    secondary: str = control(
        REQUIRED,
        "Trained checkpoint (model B)",
        "The checkpoint to mix in; for add_difference and dare the trained one.",
        kind="checkpoint",
    )
    tertiary: str = control(
        "",
        "Source of B (model C)",
        "For add_difference and dare: the checkpoint that B was trained from.",
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
    density: float = control(
        0.5,
        "Density",
        "For dare: the share of the difference's numbers that is added, each of them divided by "
        "this. 1 is add_difference.",
        minimum=0.05,
        maximum=1.0,
        step=0.05,
    )
    seed: int = control(
        420420,
        "Seed",
        "For dare: decides which numbers those are. The same seed gives the same file.",
        minimum=0,
        maximum=MAX_SEED,
        step=1,
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
    )
    dtype: str = checkpoint_format("A")
    subfolder: str = folder_below("checkpoints")
