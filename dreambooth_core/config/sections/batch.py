"""What goes into a step."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control


@dataclass(kw_only=True)
class BatchSection:
    """How many pictures go into a step."""

    batch_size: int = control(
        1,
        "Batch size",
        "Instance images per forward pass. More is steadier and faster per image on a GPU, and "
        "needs more memory.",
        minimum=1,
        maximum=100,
        step=1,
        unit="images",
    )
    class_batch_size: int = control(
        0,
        "Class batch size",
        "Class images per forward pass, in training and when they are generated. "
        "0 uses the batch size.",
        minimum=0,
        maximum=100,
        step=1,
        unit="images",
    )
    gradient_accumulation_steps: int = control(
        1,
        "Gradient accumulation steps",
        "Adds up the gradients of this many batches before one step. It works like a batch that "
        "many times larger without needing the memory: every image counts the same, also where "
        "an epoch's last step has fewer. Steps are counted in updates, not in batches.",
        minimum=1,
        maximum=100,
        step=1,
        unit="batches",
    )
    gradient_checkpointing: bool = control(
        True,
        "Gradient checkpointing",
        "Computes parts of the network twice instead of keeping them: much less memory, "
        "about a quarter slower, the same result.",
        source="Chen et al. 2016 (arXiv 1604.06174)",
    )
    set_to_none: bool = control(
        True,
        "Set gradients to none when zeroing",
        "Gives the gradients' memory back between two steps. Off keeps it, filled with zeros; the "
        "result is the same.",
        advanced=True,
    )
    max_grad_norm: float = control(
        1.0,
        "Gradient clipping",
        "Scales a step's gradient down when its norm is larger than this, so that one odd picture "
        "cannot throw training off. 0 switches it off.",
        minimum=0.0,
        maximum=128.0,
        step=0.1,
        advanced=True,
        source="Pascanu et al. 2012 (arXiv 1211.5063)",
    )
