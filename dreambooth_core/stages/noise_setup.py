"""The noise schedule that a training runs on."""

from __future__ import annotations

from torch import Tensor

from dreambooth_core.config.schema import LossSection
from dreambooth_core.errors import ConfigError, Problem
from dreambooth_core.families.base import Components
from dreambooth_core.families.loading import end_in_noise


def check_schedule(loss: LossSection, components: Components) -> None:
    """Raise ConfigError for what the loss cannot do on the schedule that the model has."""
    alphas_cumprod, problems = components.noise_scheduler.alphas_cumprod, []
    if loss.min_timestep >= len(alphas_cumprod):
        problem = f"is {loss.min_timestep}, but this model has {len(alphas_cumprod)} timesteps."
        problems.append(Problem("loss.min_timestep", problem, "Lower it."))
    signal_ends = bool((alphas_cumprod[: loss.max_timestep + 1] <= 0).any())
    if loss.debiased_estimation and signal_ends and components.prediction_type == "epsilon":
        problem = "is on, but the model's last timestep has no signal and would weigh without end."
        remedy = "Switch it off, or lower loss.max_timestep."
        problems.append(Problem("loss.debiased_estimation", problem, remedy))
    if problems:
        raise ConfigError(problems)


def training_schedule(loss: LossSection, components: Components) -> Tensor:
    """Return alpha-bar of every timestep, (N,); zero terminal SNR changes the model's schedule."""
    if loss.zero_terminal_snr:
        end_in_noise(components)
    alphas_cumprod: Tensor = components.noise_scheduler.alphas_cumprod
    return alphas_cumprod
