"""How large a step is."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

LR_SCHEDULE_CHOICES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "inverse_sqrt",
    "warmup_stable_decay",
)


@dataclass(kw_only=True)
class LearningRateSection:
    """How large a step is, and how that changes over the run."""

    unet: float = control(
        1e-6,
        "UNet learning rate",
        "How far one step moves the UNet. Lion works well at 5e-7 to 1e-6; AdamW needs about "
        "2e-6 to 5e-6; prodigy and dadapt_adam find the rate themselves and want 1. Too high "
        "spoils pictures, too low learns nothing.",
        minimum=0.0,
        maximum=1.0,
    )
    text_encoder: float = control(
        5e-7,
        "Text encoder learning rate",
        "How far one step moves the text encoder. Usually half the UNet's rate or less; with "
        "prodigy and dadapt_adam, which find one rate for all, the UNet's.",
        minimum=0.0,
        maximum=1.0,
    )
    schedule: str = control(
        "constant_with_warmup",
        "Learning rate schedule",
        "How the learning rate changes over the run, counted in steps (updates), whatever the "
        "batch. The constant ones hold it; linear, cosine, polynomial and rex lower it to the "
        "end, rex late and steeply; inverse_sqrt falls as slowly as the warm-up is long, without "
        "one hardly at all; warmup_stable_decay holds it and falls over the last share of the "
        "steps. All but constant begin with the warm-up.",
        choices=LR_SCHEDULE_CHOICES,
        source="Loshchilov & Hutter 2016 (arXiv 1608.03983) for the cosines, Chen et "
        "al. 2021 (arXiv 2107.04197) for rex, Hu et al. 2024 (arXiv 2404.06395) "
        "for warmup_stable_decay",
    )
    warmup_steps: int = control(
        0,
        "Warm-up steps",
        "Raises the learning rate in a straight line from near 0 over this many steps. "
        "The schedule constant has no warm-up. Some trainers count images here; these are "
        "updates.",
        minimum=0,
        maximum=1_000_000,
        step=1,
        unit="steps",
    )
    min_factor: float = control(
        0.0,
        "Lowest share of the learning rate",
        "Where the schedules that fall end, as a share of the learning rate: 0.1 ends at a tenth. "
        "Others call it minimum learning rate and want the rate itself.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    cycles: int = control(
        1,
        "Restarts",
        "How many times cosine_with_restarts falls from the full rate to the lowest.",
        minimum=1,
        maximum=100,
        step=1,
        unit="cycles",
        advanced=True,
    )
    power: float = control(
        1.0,
        "Polynomial power",
        "The bend of the polynomial schedule: 1 falls in a straight line, 2 falls fast at first.",
        minimum=0.1,
        maximum=10.0,
        step=0.1,
        advanced=True,
    )
    decay_share: float = control(
        0.2,
        "Share of the steps that decay",
        "Over which last part of the steps warmup_stable_decay falls: 0.2 is the last fifth.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    retries: int = control(
        1,
        "Times to go back after NaN",
        "How often a training whose numbers become NaN or infinite goes back to its last good "
        "state and on at a lower learning rate. It says so each time, and a resumed run remembers "
        "it. The next time it ends, with all that was saved unharmed; 0 ends it the first time.",
        minimum=0,
        maximum=10,
        step=1,
        unit="times",
        advanced=True,
    )
    retry_factor: float = control(
        0.5,
        "Learning rate after going back",
        "What all learning rates are multiplied by each time the training has gone back. 1 tries "
        "the same again, which helps only against a fault of the machine.",
        minimum=0.01,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
