"""The noise schedule and the prediction type: told by keys, the side yaml, or the person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families.base import AUTO, Config
from dreambooth_core.families.side_file import Side, side_count, side_number, side_value

BETA_START = 0.00085
BETA_END = 0.012
TIMESTEPS = 1000
V_PREDICTION_KEY = "v_pred"
ZERO_SNR_KEY = "ztsnr"
"""Empty tensors by which a file says what it is, as newer hosts read it."""

PARAMETERIZATION = "model.params.parameterization"
SCALING = "model.params.denoiser_config.params.scaling_config.target"
ZERO_SNR = "dreambooth.zero_terminal_snr"
TYPES = {"eps": "epsilon", "v": "v_prediction"}
SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}


def scheduler_config(
    header: Header, side: Side, told: str = AUTO, assumed: str | None = "epsilon"
) -> Config:
    """Return diffusers' config of the schedule; the type is `assumed` where nothing tells it.

    With no assumption that is an InputError which asks the person.
    """
    config: Config = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": side_count(side, "model.params.timesteps", TIMESTEPS),
        "beta_start": side_number(side, "model.params.linear_start", BETA_START),
        "beta_end": side_number(side, "model.params.linear_end", BETA_END),
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type(header, side, told, assumed),
        "clip_sample": False,
        "steps_offset": 1,
    }
    marked = ZERO_SNR_KEY in header.tensors or side_value(side, ZERO_SNR)
    return ending_in_noise(config) if marked else config


def ending_in_noise(config: Mapping[str, Any]) -> Config:
    """Return the config of a schedule whose last step is pure noise, where sampling begins.

    sqrt(alpha_bar) is shifted and scaled so that it stays at the first step and is 0 at the last.
    Source: Lin et al. 2023 (arXiv 2305.08891), algorithm 1; diffusers computes it.
    """
    return {**config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def prediction_type(header: Header, side: Side, told: str, assumed: str | None) -> str:
    """Return what the UNet predicts; raises CheckpointError where its tellers disagree."""
    tellers = {
        "the settings": None if told == AUTO else told,
        "its .yaml": _type_of_side_file(side),
        f"its key {V_PREDICTION_KEY}": (
            "v_prediction" if V_PREDICTION_KEY in header.tensors else None
        ),
    }
    said = {teller: kind for teller, kind in tellers.items() if kind is not None}
    if len(set(said.values())) > 1:
        words = ", ".join(f"{kind} by {teller}" for teller, kind in said.items())
        raise CheckpointError(
            f"{header.path} is said to be of two prediction types: {words}.",
            remedy="Set prediction_type to auto, or correct the .yaml beside the checkpoint.",
        )
    found = next(iter(said.values()), assumed)
    if found is None:
        raise InputError(
            f"Does {header.path} predict the noise (epsilon) or the velocity (v_prediction)? No"
            " weight tells it, and there is no .yaml beside it.",
            remedy="Set prediction_type: epsilon for base models of 512 pixels and inpainting ones,"
            " v_prediction for those of 768 pixels. Or put the model's .yaml beside it.",
            field="prediction_type",
        )
    return found


def _type_of_side_file(side: Side) -> str | None:
    scaling = side_value(side, SCALING)
    if scaling is not None:
        return _known(str(scaling), str(scaling).rpartition(".")[2], SCALINGS)
    # A whole configuration of the original code that does not name it means its default.
    default = "eps" if side_value(side, "model.params.unet_config") is not None else None
    parameterization = side_value(side, PARAMETERIZATION) or default
    if parameterization is None:
        return None
    return _known(str(parameterization), str(parameterization), TYPES)


def _known(written: str, name: str, types: dict[str, str]) -> str:
    if name not in types:
        raise CheckpointError(
            f"The .yaml beside the checkpoint asks for parameterization {written!r}.",
            remedy=f"Models of the types {' and '.join(types)} can be trained.",
        )
    return types[name]
