"""What other trainers call optimizers, schedules and samplers, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dreambooth_core.config.choices import SAMPLERS
from dreambooth_core.config.schema import LR_SCHEDULE_CHOICES, OPTIMIZER_CHOICES

OPTIMIZERS: Mapping[str, Sequence[str]] = {
    "adamw": ("adamw",),
    "torchadamw": ("adamw",),
    "8bitadamw": ("adamw_8bit", "adamw"),
    "8bitadam": ("adamw_8bit", "adamw"),
    "adamw8bit": ("adamw_8bit", "adamw"),
    "paged8bitadamw": ("paged_adamw_8bit", "adamw_8bit", "adamw"),
    "pagedadamw8bit": ("paged_adamw_8bit", "adamw_8bit", "adamw"),
    "pagedadamw32bit": ("adamw",),
    "lion": ("lion",),
    "8bitlion": ("lion_8bit", "lion"),
    "lion8bit": ("lion_8bit", "lion"),
    "paged8bitlion": ("paged_lion_8bit", "lion_8bit", "lion"),
    "pagedlion8bit": ("paged_lion_8bit", "lion_8bit", "lion"),
    "adafactor": ("adafactor",),
    "came": ("came",),
    "pytorchoptimizercame": ("came",),
    "prodigy": ("prodigy",),
    "adamwdadaptation": ("dadapt_adam",),
    "dadaptation": ("dadapt_adam",),
    "dadaptadam": ("dadapt_adam",),
    "dadaptadampreprint": ("dadapt_adam",),
    "adamwschedulefree": ("adamw_schedule_free",),
    "sgd": ("sgd",),
    "sgdnesterov": ("sgd",),
}
"""By their letters and digits alone; of ours the first that there is."""

SCHEDULES: Mapping[str, str] = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "linear_with_warmup": "linear",
    "cosine": "cosine",
    "cosine_annealing": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "cosine_annealing_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "rex": "rex",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "warmup_stable_decay",
}

SAMPLER_NAMES: Mapping[str, str] = {
    "ddim": "ddim",
    "euler": "euler",
    "eulerdiscrete": "euler",
    "keuler": "euler",
    "eulera": "euler_a",
    "keulera": "euler_a",
    "eulerancestral": "euler_a",
    "eulerancestraldiscrete": "euler_a",
    "dpmpp": "dpm++_2m",
    "dpmsolver": "dpm++_2m",
    "dpmsolvermultistep": "dpm++_2m",
    "dpmsolversinglestep": "dpm++_2m",
    "dpmsinglestep": "dpm++_2m",
    "unipc": "unipc",
    "unipcmultistep": "unipc",
}


def optimizer_here(name: str) -> tuple[str, bool]:
    """Return our optimizer for another trainer's, and whether it is the same; "" for none."""
    wanted = OPTIMIZERS.get(letters(name), ())
    known = [ours for ours in wanted if ours in OPTIMIZER_CHOICES]
    return (known[0], known[0] == wanted[0]) if known else ("", False)


def schedule_here(name: str) -> str:
    """Return our learning rate schedule for another trainer's; "" if there is none."""
    ours = SCHEDULES.get(name.strip().lower(), "")
    return ours if ours in LR_SCHEDULE_CHOICES else ""


def sampler_here(name: str) -> str:
    """Return our sampler for another trainer's noise scheduler or sampler; "" if there is none."""
    ours = SAMPLER_NAMES.get(letters(name).removesuffix("scheduler"), "")
    return ours if ours in SAMPLERS else ""


def letters(name: str) -> str:
    """Return a name's letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
