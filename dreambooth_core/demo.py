"""The demo: the built-in small model learns a built-in subject, and every checkpoint is compared.

Imports no torch: the jobs it lists run in worker processes like any others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.config.schema import (
    BatchSection,
    CompareConfig,
    Concept,
    CreateConfig,
    EmaSection,
    ImagesSection,
    IntervalsSection,
    JobConfig,
    LearningRateSection,
    LossSection,
    OptimizerSection,
    SavingSection,
    TextEncoderSection,
    TrainConfig,
)
from dreambooth_core.job.workspace import Workspace

ASSETS = Path(__file__).parent / "world" / "assets"
CHECKPOINT = ASSETS / "world.safetensors"
SUBJECT = "bob"
INSTANCE_FOLDER = ASSETS / "subjects" / SUBJECT
TOKEN, CLASS_WORD = "ohwx", "man"
NAME = "demo"
PROMPTS = [
    f"photo of a {TOKEN} {CLASS_WORD}",
    f"photo of a {TOKEN} {CLASS_WORD} at night",
    f"photo of a {CLASS_WORD}",
    "photo of a woman",
]


def steps(workspace: Workspace) -> list[tuple[str, JobConfig]]:
    """Return the demo's jobs in order, for a model under a name that is not taken yet."""
    name = free_name(workspace)
    training = training_config(name)
    return [
        ("create", CreateConfig(name=name, source=str(CHECKPOINT))),
        ("class-images", training),
        ("train", training),
        ("compare", comparison_config(name)),
    ]


def free_name(workspace: Workspace) -> str:
    """Return "demo", or "demo-2" and so on if a model or its checkpoints have that name."""

    def is_taken(name: str) -> bool:
        checkpoints = workspace.checkpoints_dir.glob(f"{name}_*.safetensors")
        return workspace.model(name).path.exists() or any(checkpoints)

    names = itertools.chain([NAME], (f"{NAME}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not is_taken(name))


def concept() -> Concept:
    """Return the subject: six captioned pictures, class images from the same captions."""
    return Concept(
        instance_folder=str(INSTANCE_FOLDER),
        instance_prompt="[filewords]",
        class_prompt="[filewords]",
        instance_token=TOKEN,
        class_token=CLASS_WORD,
        class_images_per_instance_image=8,
        class_steps=20,
        class_cfg_scale=5.0,
        class_sampler="dpm++_2m",
    )


def training_config(name: str) -> TrainConfig:
    """Return the demo's training: prior preservation, Lion, EMA, text encoder for 75 % of it."""
    return TrainConfig(
        model=name,
        concepts=[concept()],
        intervals=IntervalsSection(epochs=132),
        batch=BatchSection(batch_size=2, class_batch_size=2, gradient_checkpointing=False),
        learning_rate=LearningRateSection(unet=8e-5, text_encoder=1e-4),
        optimizer=OptimizerSection(name="lion"),
        text_encoder=TextEncoderSection(train_ratio=0.75),
        loss=LossSection(prior_loss_weight=1.0),
        ema=EmaSection(decay=0.95),
        images=ImagesSection(resolution=128),
        saving=SavingSection(save_every_epochs=33),
    )


def known_subject(concepts: Sequence[Concept]) -> str:
    """Return the built-in subject that the concepts are of, which the judge knows; else ""."""
    folders = {Path(concept.instance_folder) for concept in concepts}
    return SUBJECT if folders == {INSTANCE_FOLDER} else ""


def comparison_config(name: str) -> CompareConfig:
    """Return the comparison of the demo's checkpoints, measured by the world's judge."""
    return CompareConfig(
        model=name,
        prompts=PROMPTS,
        seeds_per_prompt=4,
        steps=20,
        cfg_scale=5.0,
        subject=SUBJECT,
    )
