"""Rules of the concepts."""

from __future__ import annotations

from dreambooth_core.config.schema import Concept, TrainConfig
from dreambooth_core.errors import Problem


def _check_concept(concept: Concept, path: str, prior_loss_weight: float) -> list[Problem]:
    problems = []
    if not concept.instance_prompt.strip():
        problems.append(
            Problem(
                f"{path}.instance_prompt",
                "is empty.",
                "Use [filewords] for the pictures' captions, or say what they show.",
            )
        )
    if concept.class_folder and not concept.class_images_per_instance_image:
        problems.append(
            Problem(
                f"{path}.class_images_per_instance_image",
                "is 0, so the pictures of class_folder would not be used.",
                "Raise it, or leave class_folder empty.",
            )
        )
    if concept.class_images_per_instance_image:
        field = f"{path}.class_images_per_instance_image"
        if not (concept.class_prompt.strip() or concept.class_token.strip()):
            problems.append(
                Problem(
                    f"{path}.class_prompt",
                    "is empty, but class images are asked for.",
                    "Say what they show, such as: a photo of a dog.",
                )
            )
        if prior_loss_weight == 0:
            problems.append(
                Problem(
                    field,
                    "asks for class images, but loss.prior_loss_weight is 0, which ignores them.",
                    "Set either to something else.",
                )
            )
    return problems


def check_concepts(config: TrainConfig) -> list[Problem]:
    """Return what is wrong with the concepts."""
    if not config.concepts:
        remedy = "Give an instance images folder."
        return [Problem("concepts", "there is nothing to learn.", remedy)]
    problems = []
    for index, concept in enumerate(config.concepts):
        problems += _check_concept(concept, f"concepts.{index}", config.loss.prior_loss_weight)
    return problems
