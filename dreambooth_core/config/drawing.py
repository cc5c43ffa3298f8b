"""The settings of jobs that draw pictures."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import MAX_SEED, SAMPLERS
from dreambooth_core.config.control import REQUIRED, control


@dataclass(kw_only=True)
class SampleConfig:
    """Make pictures with a model or a saved checkpoint."""

    model: str = control(REQUIRED, "Model", "The name of the model to draw with.", kind="model")
    checkpoint: str = control(
        "",
        "Checkpoint",
        "A saved checkpoint of the model to draw with. Empty takes the newest training state, "
        "or the model as it was created.",
        kind="checkpoint",
    )
    prompts: list[str] = control([], "Prompts", "What to draw.", kind="prompt")
    negative_prompt: str = control(
        "", "Negative prompt", "What the pictures should not show.", kind="prompt"
    )
    width: int = control(
        0,
        "Width",
        "The pictures' width. 0 takes what the model was made for.",
        minimum=0,
        maximum=2048,
        step=8,
        unit="pixels",
    )
    height: int = control(
        0,
        "Height",
        "The pictures' height. 0 takes what the model was made for.",
        minimum=0,
        maximum=2048,
        step=8,
        unit="pixels",
    )
    steps: int = control(
        25,
        "Sampling steps",
        "Denoising steps per picture. More takes longer; beyond 30 little changes.",
        minimum=1,
        maximum=500,
        step=1,
        unit="steps",
    )
    cfg_scale: float = control(
        7.0,
        "CFG scale",
        "How closely pictures follow the prompt. 1 does not push at all.",
        minimum=1.0,
        maximum=30.0,
        step=0.5,
    )
    sampler: str = control("dpm++_2m", "Sampler", "The method that denoises.", choices=SAMPLERS)
    seed: int = control(
        420420,
        "Seed",
        "The first picture's seed; each further one takes the next.",
        minimum=0,
        maximum=MAX_SEED,
        step=1,
    )
    count: int = control(
        1,
        "Pictures per prompt",
        "How many pictures to make of each prompt.",
        minimum=1,
        maximum=1000,
        step=1,
        unit="pictures",
    )
    batch_size: int = control(
        4,
        "Batch size",
        "Pictures drawn at the same time. Faster on a GPU; the pictures stay the same.",
        minimum=1,
        maximum=100,
        step=1,
        unit="pictures",
    )
    output: str = control(
        "",
        "Output folder",
        "Where the pictures go. Empty is the model's samples folder.",
        kind="new_folder",
    )
    use_ema: bool = control(
        True,
        "Use EMA weights",
        "Draws with the running average, if the training state has one.",
    )


@dataclass(kw_only=True)
class CompareConfig:
    """Draw the same pictures with several checkpoints, side by side on one sheet."""

    model: str = control(REQUIRED, "Model", "The model whose checkpoints to compare.", kind="model")
    checkpoints: list[str] = control(
        [],
        "Checkpoints",
        "The checkpoints and LoRA files to compare; a LoRA is put into the model at strength 1. "
        "None given compares all saved ones of the model. The model as it was created is always "
        "the first.",
        kind="checkpoint",
    )
    prompts: list[str] = control(
        [],
        "Prompts",
        "What to draw. None given takes prompts with the instance token, in a new setting and of "
        "the class alone, from the last run's concepts.",
        kind="prompt",
    )
    negative_prompt: str = control(
        "", "Negative prompt", "What the pictures should not show.", kind="prompt"
    )
    seeds_per_prompt: int = control(
        2,
        "Pictures per prompt",
        "How many pictures each checkpoint draws of each prompt; all draw from the same seeds.",
        minimum=1,
        maximum=100,
        step=1,
        unit="pictures",
    )
    seed: int = control(
        420420,
        "Seed",
        "The first picture's seed; each further one takes the next.",
        minimum=0,
        maximum=MAX_SEED,
        step=1,
    )
    steps: int = control(
        25,
        "Sampling steps",
        "Denoising steps per picture.",
        minimum=1,
        maximum=500,
        step=1,
        unit="steps",
    )
    cfg_scale: float = control(
        7.0,
        "CFG scale",
        "How closely pictures follow the prompt. 1 does not push at all.",
        minimum=1.0,
        maximum=30.0,
        step=0.5,
    )
    sampler: str = control("dpm++_2m", "Sampler", "The method that denoises.", choices=SAMPLERS)
    subject: str = control(
        "",
        "Subject to measure",
        "For the built-in small world only: the subject whose likeness is measured in each "
        "picture. Empty measures nothing.",
    )
    output: str = control(
        "",
        "Output folder",
        "Where the sheet and its numbers go. Empty is the model's samples folder.",
        kind="new_folder",
    )
