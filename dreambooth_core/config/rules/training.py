"""Rules of training: those of every group, and of the model that is to be trained."""

from __future__ import annotations

from collections.abc import Callable

from dreambooth_core.config.rules.concepts import check_concepts
from dreambooth_core.config.rules.found import check_model, saved_states
from dreambooth_core.config.rules.learning import check_learning
from dreambooth_core.config.rules.outputs import check_ema_keys, check_lora, check_preview_prompts
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import Problem
from dreambooth_core.job.workspace import Workspace

RULES: tuple[Callable[[TrainConfig], list[Problem]], ...] = (
    check_concepts,
    check_learning,
    check_lora,
    check_ema_keys,
    check_preview_prompts,
)


def check_training(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return the conflicts between training settings."""
    problems = check_model(config.model, workspace)
    conflicts = [problem for rule in RULES for problem in rule(config)]
    if config.resume and workspace and not problems and not saved_states(workspace, config.model):
        problems.append(
            Problem(
                "resume",
                f"the model {config.model!r} has no training state to go on from.",
                "Train it without resume.",
            )
        )
    return problems + conflicts
