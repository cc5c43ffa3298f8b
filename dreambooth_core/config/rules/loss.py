"""Rules of the loss and the noise."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_core.config.schema import LossSection, TrainConfig
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.workspace import Workspace


def check_loss(config: TrainConfig) -> list[Problem]:
    """Return which settings of the loss contradict each other."""
    return [*_check_noise(config.loss), *_check_weights(config.loss)]


def check_zero_terminal_snr(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return that the model cannot be trained with zero terminal SNR, if so."""
    if workspace is None or not config.loss.zero_terminal_snr:
        return []
    try:
        predicts_noise = workspace.model(config.model).read_info().prediction_type == "epsilon"
    except InputError:
        return []  # that there is no such model is told elsewhere
    words = (
        f"is on, but the model {config.model!r} predicts the noise (epsilon). At its last timestep"
        " nothing but noise is left to see, so there would be nothing to learn."
    )
    remedy = "Switch it off, or train a model of v-prediction."
    return [Problem("loss.zero_terminal_snr", words, remedy)] if predicts_noise else []


def _check_noise(loss: LossSection) -> Iterator[Problem]:
    if loss.min_timestep > loss.max_timestep:
        yield Problem(
            "loss.min_timestep",
            f"is {loss.min_timestep}, which is above loss.max_timestep, {loss.max_timestep}.",
            "Lower it, or raise max_timestep.",
        )
    if loss.multires_noise_iterations == 1:
        yield Problem(
            "loss.multires_noise_iterations",
            "is 1, but the first layer is as fine as the noise itself and changes nothing.",
            "Use 2 or more, or 0.",
        )
    if loss.multires_noise_iterations and loss.offset_noise:
        yield Problem(
            "loss.multires_noise_iterations",
            "and loss.offset_noise are both set; they are two ways to the same end.",
            "Set one of them to 0.",
        )


def _check_weights(loss: LossSection) -> Iterator[Problem]:
    if loss.debiased_estimation and loss.min_snr_gamma:
        yield Problem(
            "loss.debiased_estimation",
            "is on and loss.min_snr_gamma is set; both weigh the timesteps.",
            "Switch it off, or set min_snr_gamma to 0.",
        )
    if loss.prior_loss_scale and loss.prior_loss_weight_min > loss.prior_loss_weight:
        yield Problem(
            "loss.prior_loss_weight_min",
            f"is above loss.prior_loss_weight, {loss.prior_loss_weight:g}, which is to fall to it.",
            "Lower it, or switch off prior_loss_scale.",
        )
