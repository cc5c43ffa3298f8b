"""Rules of what of the networks is trained and read."""

from __future__ import annotations

import json

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.optimizer import SCHEDULE_FREE_OPTIMIZERS
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.workspace import Workspace

FAMILY_WITH_CLIP_SKIP = "sd1"


def check_unet_parts(config: TrainConfig) -> list[Problem]:
    """Return settings of the UNet's training that the rest leaves without effect or sense."""
    unet, problems = config.unet, []
    for field, is_set, usual in (
        ("unet.parts", unet.parts != "all", "Set it to all"),
        ("unet.freeze_spectral_norm", unet.freeze_spectral_norm, "Switch it off"),
    ):
        if is_set and not unet.train:
            problems.append(
                Problem(field, "is set, but unet.train is off.", f"{usual}, or switch that on.")
            )
        if is_set and config.lora.enabled:
            problems.append(
                Problem(
                    field,
                    "is for training the whole model, but a LoRA is trained.",
                    f"{usual}, or train no LoRA.",
                )
            )
    if unet.freeze_spectral_norm and config.optimizer.name in SCHEDULE_FREE_OPTIMIZERS:
        problems.append(
            Problem(
                "unet.freeze_spectral_norm",
                f"is set, but {config.optimizer.name} keeps the weights at three places at once.",
                "Switch it off, or choose another optimizer.",
            )
        )
    if unet.freeze_spectral_norm and config.precision.weights == "bf16":
        problems.append(
            Problem(
                "unet.freeze_spectral_norm",
                "is set, but weights in bf16 cannot hold so small a correction.",
                "Set precision.weights to fp32, or switch it off.",
            )
        )
    return problems


def check_clip_skip(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return that the model's text encoder has no such layer, if so."""
    if workspace is None or config.text_encoder.clip_skip == 1:
        return []
    model = workspace.model(config.model)
    try:
        if model.read_info().family != FAMILY_WITH_CLIP_SKIP:
            return []
        path = model.component("text_encoder") / "config.json"
        layers = int(json.loads(path.read_text(encoding="utf-8"))["num_hidden_layers"])
    except (InputError, OSError, ValueError, KeyError):
        return []  # what is wrong with the model is told elsewhere
    if config.text_encoder.clip_skip <= layers:
        return []
    words = (
        f"is {config.text_encoder.clip_skip}, but this model's text encoder has {layers} layers."
    )
    return [Problem("text_encoder.clip_skip", words, f"Use {layers} or less.")]
