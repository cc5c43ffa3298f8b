"""The trainings that the effect table compares: what each changes, and what it is measured at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.demo import training_config
from dreambooth_core.world.subjects import Subject, subject_folder

CAPTIONED, PLAIN = "[filewords]", "plain"
LONG, SHORT = (120, 240, 360, 480), (360,)
CLASS_IMAGES = 10


@dataclass(frozen=True)
class EffectRun:
    """One training: which prompts it uses, which settings differ from the demo's, when to look."""

    name: str
    about: str
    instance: str = CAPTIONED
    classes: str = CAPTIONED
    class_images: int = CLASS_IMAGES
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = SHORT


LEARNING_RATE = training_config("reference").learning_rate
ADAMW_FACTOR = 4.0
"""AdamW's steps are as large as the rate only where gradients agree, Lion's always are."""


def _rates(factor: float) -> dict[str, Any]:
    return {
        "learning_rate.unet": LEARNING_RATE.unet * factor,
        "learning_rate.text_encoder": LEARNING_RATE.text_encoder * factor,
    }


_ADAMW = {"optimizer.name": "adamw", "optimizer.beta2": 0.999, **_rates(ADAMW_FACTOR)}

RUNS: dict[str, EffectRun] = {
    run.name: run
    for run in (
        EffectRun(
            "reference", "Lion, prior preservation, captions on both, over-trained", steps=LONG
        ),
        EffectRun("no-prior", "without prior preservation", class_images=0, steps=LONG),
        EffectRun(
            "frozen-text-encoder", "text encoder frozen", changes={"text_encoder.train_ratio": 0.0}
        ),
        EffectRun("rate-third", "a third of the learning rate", changes=_rates(1 / 3)),
        EffectRun("rate-triple", "three times the learning rate", changes=_rates(3.0)),
        EffectRun("adamw", "AdamW", changes=_ADAMW),
        EffectRun("no-captions", "one prompt for all, no captions", instance=PLAIN, classes=PLAIN),
        EffectRun("captions-instance-only", "captions on instance images only", classes=PLAIN),
    )
}


def run_settings(run: EffectRun) -> dict[str, Any]:
    """Return what a stored result must have been made with to still count."""
    return {
        "instance": run.instance,
        "classes": run.classes,
        "class_images": run.class_images,
        "changes": dict(run.changes),
        "steps": list(run.steps),
    }


def concept_of(run: EffectRun, subject: Subject) -> Concept:
    """Return the subject as the run is told of it."""
    noun = subject.class_noun
    return Concept(
        instance_folder=str(subject_folder(subject.name)),
        instance_prompt=f"photo of a {subject.token} {noun}"
        if run.instance == PLAIN
        else CAPTIONED,
        class_prompt=f"photo of a {noun}" if run.classes == PLAIN else CAPTIONED,
        instance_token=subject.token,
        class_token=noun,
        class_images_per_instance_image=run.class_images,
        class_steps=20,
        class_cfg_scale=5.0,
        class_sampler="dpm++_2m",
    )


def config_of(run: EffectRun, subject: Subject, model: str) -> TrainConfig:
    """Return the run's training: the demo's settings with the run's changes."""
    config = training_config(model)
    config.concepts = [concept_of(run, subject)]
    config.intervals.epochs = run.steps[-1]
    config.intervals.max_steps = run.steps[-1]
    config.saving.save_every_epochs = 0
    config.saving.save_every_steps = run.steps[0]
    config.saving.keep_states = 1
    for path, value in run.changes.items():
        section, _, name = path.partition(".")
        setattr(getattr(config, section), name, value)
    return config
