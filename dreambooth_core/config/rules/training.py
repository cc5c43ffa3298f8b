"""Rules of training: those of every group, and of the model that is to be trained."""

from __future__ import annotations

from collections.abc import Callable

from dreambooth_core.config.rules.captions import check_captions
from dreambooth_core.config.rules.concepts import check_concepts
from dreambooth_core.config.rules.found import check_model, saved_states
from dreambooth_core.config.rules.intervals import check_intervals
from dreambooth_core.config.rules.learning import check_learning
from dreambooth_core.config.rules.loss import check_loss, check_zero_terminal_snr
from dreambooth_core.config.rules.networks import check_clip_skip, check_unet_parts
from dreambooth_core.config.rules.optimizer import check_optimizer
from dreambooth_core.config.rules.outputs import check_ema_keys, check_lora, check_preview_prompts
from dreambooth_core.config.rules.precision import check_precision
from dreambooth_core.config.rules.transfer import check_start_from
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import Problem
from dreambooth_core.job.workspace import Workspace

RULES: tuple[Callable[[TrainConfig], list[Problem]], ...] = (
    check_concepts,
    check_captions,
    check_intervals,
    check_learning,
    check_optimizer,
    check_loss,
    check_unet_parts,
    check_precision,
    check_lora,
    check_ema_keys,
    check_preview_prompts,
)


def check_training(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return the conflicts between training settings."""
    problems = check_model(config.model, workspace)
    conflicts = [problem for rule in RULES for problem in rule(config)]
    conflicts += check_clip_skip(config, workspace)
    conflicts += check_zero_terminal_snr(config, workspace)
    conflicts += check_start_from(config, workspace)
    if config.resume and workspace and not problems and not saved_states(workspace, config.model):
        problems.append(
            Problem(
                "resume",
                f"the model {config.model!r} has no training state to go on from.",
                "Train it without resume.",
            )
        )
    return problems + conflicts
