"""The groups of settings for what a training run writes while it goes and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import SAMPLERS, SAVE_DTYPE_CHOICES
from dreambooth_core.config.control import control
from dreambooth_core.config.new_file import averages_beside

FULL_DISK_CHOICES = ("pause", "continue", "stop")


@dataclass(kw_only=True)
class SavingSection:
    """Checkpoints for the WebUI, and states to resume from."""

    save_every_epochs: int = control(
        0,
        "Save model frequency (epochs)",
        "Writes a checkpoint after every this many epochs. 0 does not.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
    )
    save_every_steps: int = control(
        0,
        "Save model frequency (steps)",
        "Writes a checkpoint after every this many steps. 0 does not.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )
    save_at_end: bool = control(
        True, "Save when training completes", "Writes a checkpoint when training is complete."
    )
    save_on_stop: bool = control(
        True,
        "Save when training is stopped",
        "Writes a checkpoint when training is stopped early.",
    )
    name: str = control(
        "",
        "Custom model name",
        "What the checkpoint files are called, before the step number. Empty uses the model's "
        "name.",
        kind="file_name",
    )
    subfolder: str = control(
        "",
        "Subfolder",
        "A folder below the WebUI's checkpoints folder to write into. Empty writes beside the "
        "other checkpoints.",
        kind="file_name",
    )
    dtype: str = control(
        "fp16",
        "Saved number format",
        "fp16 is half the size of fp32 and what most checkpoints use; source keeps each "
        "tensor as it was in the checkpoint that the model came from.",
        choices=SAVE_DTYPE_CHOICES,
    )
    use_ema: bool = control(
        True,
        "Save EMA weights",
        "Writes the running average instead of the weights of the last step. Without EMA "
        "switched on there is only the latter.",
    )
    ema_keys: bool = averages_beside()
    keep_states: int = control(
        2,
        "Training states to keep",
        "How many of the newest states to resume from are kept; older ones are deleted.",
        minimum=1,
        maximum=100,
        step=1,
        unit="states",
        advanced=True,
    )
    state_every_epochs: int = control(
        0,
        "Save state frequency (epochs)",
        "Writes a state to resume from after every this many epochs. A state is always written "
        "at the end and when training is stopped; 0 writes no others.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
    )

    on_full_disk: str = control(
        "pause",
        "When the disk is full",
        "What a training does that cannot write a file for want of room. pause waits until there "
        "is some, or until you stop it; continue leaves that file out and trains on, and waits "
        "only at the end; stop ends with an error. What was written before stays in any case.",
        choices=FULL_DISK_CHOICES,
        advanced=True,
    )


@dataclass(kw_only=True)
class PreviewsSection:
    """Pictures made during training, to see how it goes."""

    every_epochs: int = control(
        0,
        "Save preview frequency (epochs)",
        "Makes preview pictures after every this many epochs. 0 does not.",
        minimum=0,
        maximum=10000,
        step=1,
        unit="epochs",
    )
    every_steps: int = control(
        0,
        "Save preview frequency (steps)",
        "Makes preview pictures after every this many steps. 0 does not.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )
    prompts: list[str] = control(
        [],
        "Preview prompts",
        "One picture is made per prompt, and one per sample prompt of each concept.",
        kind="prompt",
    )
    negative_prompt: str = control(
        "", "Preview negative prompt", "What previews should not show.", kind="prompt"
    )
    cfg_scale: float = control(
        7.0,
        "Preview CFG scale",
        "How closely previews follow the prompt. 1 does not push at all.",
        minimum=1.0,
        maximum=30.0,
        step=0.5,
    )
    steps: int = control(
        25,
        "Preview sampling steps",
        "Denoising steps per preview. More takes longer; beyond 30 little changes.",
        minimum=1,
        maximum=500,
        step=1,
        unit="steps",
    )
    sampler: str = control(
        "dpm++_2m", "Preview sampler", "The method that denoises previews.", choices=SAMPLERS
    )
    seed: int = control(
        420420,
        "Preview seed",
        "The first preview's seed; each further one takes the next. The same each time, so that "
        "previews of different steps can be compared.",
        minimum=0,
        maximum=2**32 - 1,
        step=1,
    )
    use_ema: bool = control(
        True,
        "Use EMA weights for previews",
        "Draws previews with the running average, as saved checkpoints will.",
    )
