"""What the machine that a worker runs on cannot do."""

from __future__ import annotations

from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.job.machine import note_unavailable
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.optim import eight_bit
from dreambooth_core.stages.device import resolve_device


def look_at_machine(workspace: Workspace) -> None:
    """Note for the page which choices cannot be used on the device that trainings get here."""
    found: dict[str, dict[str, str]] = {}
    device = resolve_device()
    reason = eight_bit.why_not(device)
    if reason:
        found["optimizer.name"] = dict.fromkeys(EIGHT_BIT_OPTIMIZERS, reason)
    if device.type != "cuda":
        found["precision.attention"] = {"xformers": "needs a GPU"}
        found["precision.mixed_precision"] = {"fp16": "needs a GPU"}
    note_unavailable(workspace, found)
