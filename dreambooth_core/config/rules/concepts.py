"""Rules of the concepts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.config.concept import OWN
from dreambooth_core.config.pictures import picture_files
from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.errors import Problem


def check_concepts(config: TrainConfig) -> list[Problem]:
    """Return what is wrong with the concepts."""
    if not config.concepts:
        remedy = "Give an instance images folder."
        return [Problem("concepts", "there is nothing to learn.", remedy)]
    problems: list[Problem] = []
    for index, concept in enumerate(config.concepts):
        problems += _check_instances(concept, f"concepts.{index}")
        if concept.class_images_per_instance_image:
            weight = config.loss.prior_loss_weight
            problems += _check_class_images(concept, f"concepts.{index}", weight)
    return problems


def _check_instances(concept: Concept, path: str) -> Iterator[Problem]:
    if not concept.instance_prompt.strip():
        remedy = "Use [filewords] for the pictures' captions, or say what they show."
        yield Problem(f"{path}.instance_prompt", "is empty.", remedy)
    if concept.instance_token.strip().startswith("{"):
        yield Problem(
            f"{path}.instance_token",
            "begins with a brace, which the WebUI would take for JSON in a checkpoint's metadata.",
            "Choose another token.",
        )
    if concept.class_folder and not concept.class_images_per_instance_image:
        yield Problem(
            f"{path}.class_images_per_instance_image",
            "is 0, so the pictures of class_folder would not be used.",
            "Raise it, or leave class_folder empty.",
        )


def _check_class_images(concept: Concept, path: str, prior_loss_weight: float) -> Iterator[Problem]:
    if not (concept.class_prompt.strip() or concept.class_token.strip()):
        yield Problem(
            f"{path}.class_prompt",
            "is empty, but class images are asked for.",
            "Say what they show, such as: a photo of a dog.",
        )
    if prior_loss_weight == 0:
        yield Problem(
            f"{path}.class_images_per_instance_image",
            "asks for class images, but loss.prior_loss_weight is 0, which ignores them.",
            "Set either to something else.",
        )
    if concept.class_images_source == OWN and not _has_pictures(concept.class_folder):
        yield Problem(
            f"{path}.class_folder",
            "has no pictures, but class_images_source is own, which uses only these.",
            "Put pictures in it, or choose fill_up or generate.",
        )


def _has_pictures(folder: str) -> bool:
    return bool(folder and picture_files(Path(folder).expanduser()))
