"""Our page among the WebUI's settings: what it offers, and what was chosen there."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

SECTION = ("dreambooth", "Dreambooth")
CATEGORY = "training"
PREFIX = "dreambooth_"
"""The WebUI keeps all settings in one list; ours begin with this."""


@dataclass(kw_only=True)
class HostSettings:
    """What a person sets once for the WebUI, not for each model."""

    models_folder: str = control(
        "",
        "Folder of models in training",
        "Empty is models/dreambooth. Models already made stay where they are. The option"
        " --dreambooth-models-path goes before this.",
        kind="new_folder",
    )
    generation_while_training: bool = control(
        False,
        "Allow making pictures while a job runs",
        "Needs memory for both. Otherwise txt2img, img2img, changing the checkpoint and merging"
        " wait in the queue until the job ends.",
    )
    unload_model: bool = control(
        True,
        "Unload the WebUI's checkpoint before a job",
        "Frees its memory for training. It is loaded again when it is needed.",
    )
