"""Rules of number formats and of what a machine can do."""

from __future__ import annotations

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.optimizer import SCHEDULE_FREE_OPTIMIZERS
from dreambooth_core.errors import Problem

NEEDS_GPU = "needs a GPU, but precision.device is cpu."


def check_precision(config: TrainConfig) -> list[Problem]:
    """Return number formats that do not go together, and what a CPU does not have."""
    precision, problems = config.precision, []
    if precision.device == "cpu":
        problems += _check_cpu(config)
    if precision.weights == "bf16" and precision.mixed_precision != "bf16":
        problems.append(
            Problem(
                "precision.weights",
                f"is bf16, but mixed_precision is {precision.mixed_precision}.",
                "Set mixed_precision to bf16, or weights to fp32.",
            )
        )
    if precision.weights == "bf16" and config.optimizer.name in SCHEDULE_FREE_OPTIMIZERS:
        problems.append(
            Problem(
                "precision.weights",
                f"is bf16, which cannot hold the averages that {config.optimizer.name} makes.",
                "Set it to fp32, or choose another optimizer.",
            )
        )
    return problems


def _check_cpu(config: TrainConfig) -> list[Problem]:
    precision, problems = config.precision, []
    if precision.mixed_precision == "fp16":
        problems.append(
            Problem("precision.mixed_precision", "is fp16 on the cpu.", "Choose no or bf16.")
        )
    if precision.attention == "xformers":
        problems.append(
            Problem("precision.attention", f"xformers {NEEDS_GPU}", "Choose default or sliced.")
        )
    if precision.tf32:
        problems.append(Problem("precision.tf32", NEEDS_GPU, "Switch it off."))
    return problems
