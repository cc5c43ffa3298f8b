"""Rules of captions and of what prompts are made of."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.captions import CHUNK_TOKENS
from dreambooth_core.config.text_files import read_templates
from dreambooth_core.errors import InputError, Problem

NAME = "[name]"


def check_captions(config: TrainConfig) -> list[Problem]:
    """Return what is wrong with the settings of captions, and with the concepts' templates."""
    problems = []
    if config.captions.max_token_length % CHUNK_TOKENS:
        problems.append(
            Problem(
                "captions.max_token_length",
                f"is {config.captions.max_token_length}, but prompts are read {CHUNK_TOKENS} tokens"
                " at a time.",
                "Choose 75, 150, 225, 300, or 0 for no limit.",
            )
        )
    for index, concept in enumerate(config.concepts):
        problems += _check_templates(concept, f"concepts.{index}")
    return problems


def _check_templates(concept: Concept, path: str) -> list[Problem]:
    """Return what keeps a concept's prompts from being made: a bad file, or [name] without one."""
    field, templates = f"{path}.instance_prompt", [concept.instance_prompt]
    if concept.prompt_templates.strip():
        field = f"{path}.prompt_templates"
        try:
            templates = read_templates(Path(concept.prompt_templates.strip()).expanduser())
        except InputError as error:
            return [Problem(field, error.message, error.remedy)]
    named = any(NAME in template for template in templates)
    if not named or concept.instance_token.strip() or concept.folder_names:
        return []
    return [
        Problem(
            field,
            f"holds {NAME}, but the concept has no instance token.",
            "Give it an instance token.",
        )
    ]
