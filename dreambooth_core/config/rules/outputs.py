"""Rules of what a run writes: LoRA, EMA weights and previews."""

from __future__ import annotations

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import Problem


def check_lora(config: TrainConfig) -> list[Problem]:
    """Return what does not go with a LoRA."""
    lora, problems = config.lora, []
    if not lora.enabled:
        return []
    if config.saving.dtype == "source":
        problems.append(
            Problem(
                "saving.dtype",
                "is source, but a LoRA has no source whose number format it could keep.",
                "Choose fp16, bf16 or fp32.",
            )
        )
    if lora.conv_rank and not config.unet.train:
        problems.append(
            Problem(
                "lora.conv_rank",
                "is set, but only the UNet has convolutions and unet.train is off.",
                "Set it to 0, or switch on unet.train.",
            )
        )
    return problems


def check_ema_keys(config: TrainConfig) -> list[Problem]:
    """Return that there is no running average to write, if so."""
    if not config.saving.ema_keys or (config.ema.enabled and not config.lora.enabled):
        return []
    why = "a LoRA has no place for it" if config.lora.enabled else "EMA is switched off"
    remedy = "Switch off ema_keys, or train a whole model with EMA switched on."
    return [Problem("saving.ema_keys", f"asks for the running average, but {why}.", remedy)]


def check_preview_prompts(config: TrainConfig) -> list[Problem]:
    """Return that previews are wanted of nothing, if so."""
    previews = config.previews
    prompts = previews.prompts + [p for c in config.concepts for p in c.sample_prompts]
    if any(p.strip() for p in prompts) or not (previews.every_epochs or previews.every_steps):
        return []
    return [
        Problem(
            "previews.prompts",
            "are empty, but previews are asked for.",
            "Say what to draw, or give a concept sample prompts.",
        )
    ]
