"""What a model predicts, and whether its last step is pure noise: who tells it, and who must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler

from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families.noise_schedule import scheduler_config
from tests.original_layout import SD21, SDXL, side_yaml
from tests.tiny import header_of

PLAIN = header_of({"a.weight": (1,)})
MARKED = header_of({"a.weight": (1,), "v_pred": (0,)})
ZERO_SNR = header_of({"a.weight": (1,), "v_pred": (0,), "ztsnr": (0,)})


def side(layout: Any, parameterization: str) -> Any:
    return yaml.safe_load(side_yaml(layout, parameterization))


@pytest.mark.parametrize(
    ("header", "beside", "told", "assumed", "expected"),
    [
        (PLAIN, None, "auto", "epsilon", "epsilon"),
        (PLAIN, None, "v_prediction", "epsilon", "v_prediction"),
        (MARKED, None, "auto", "epsilon", "v_prediction"),
        (PLAIN, side(SD21, "v"), "auto", None, "v_prediction"),
        (PLAIN, side(SD21, "eps"), "auto", None, "epsilon"),
        (PLAIN, side(SDXL, "v"), "auto", "epsilon", "v_prediction"),
        (PLAIN, side(SDXL, "eps"), "epsilon", "epsilon", "epsilon"),
        (MARKED, side(SDXL, "v"), "v_prediction", "epsilon", "v_prediction"),
        # the original code's settings without the word mean its default, our own hints nothing
        (PLAIN, {"model": {"params": {"unet_config": {}}}}, "auto", None, "epsilon"),
        (MARKED, {"dreambooth": {"image_size": 8}}, "auto", None, "v_prediction"),
    ],
)
def test_the_prediction_type_is_what_key_yaml_or_person_say(
    header: Any, beside: Any, told: str, assumed: str | None, expected: str
) -> None:
    assert scheduler_config(header, beside, told, assumed)["prediction_type"] == expected


@pytest.mark.parametrize("beside", [None, {"dreambooth": {"image_size": 8}}])
def test_what_nothing_tells_is_asked(beside: Any) -> None:
    with pytest.raises(InputError, match=r"epsilon.* or the velocity") as raised:
        scheduler_config(PLAIN, beside, assumed=None)
    assert raised.value.field == "prediction_type"
    assert "Set prediction_type: epsilon" in raised.value.remedy


@pytest.mark.parametrize(
    ("header", "beside", "told", "words"),
    [
        (PLAIN, side(SD21, "v"), "epsilon", "epsilon by the settings, v_prediction by its .yaml"),
        (MARKED, None, "epsilon", "v_prediction by its key v_pred"),
        (MARKED, side(SDXL, "eps"), "auto", "epsilon by its .yaml"),
    ],
)
def test_tellers_that_disagree_are_named(header: Any, beside: Any, told: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        scheduler_config(header, beside, told)


@pytest.mark.parametrize("scaling", ["EDMScaling", "a.module.EDMScaling"])
def test_another_scaling_is_refused(scaling: str) -> None:
    other = side(SDXL, "eps")
    other["model"]["params"]["denoiser_config"]["params"]["scaling_config"]["target"] = scaling
    with pytest.raises(CheckpointError, match=scaling):
        scheduler_config(PLAIN, other)


@pytest.mark.parametrize(
    ("header", "beside"), [(ZERO_SNR, None), (MARKED, {"dreambooth": {"zero_terminal_snr": True}})]
)
def test_zero_terminal_snr_makes_the_last_step_pure_noise(header: Any, beside: Any) -> None:
    usual = DDPMScheduler.from_config(scheduler_config(MARKED, None))
    zero = DDPMScheduler.from_config(scheduler_config(header, beside))
    assert zero.alphas_cumprod[-1] == 0
    assert usual.alphas_cumprod[-1] > 0.004
    # Lin et al. 2023, algorithm 1: the root is shifted and scaled so that the first step stays.
    root = usual.alphas_cumprod.double().sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert torch.allclose(zero.alphas_cumprod.double().sqrt(), expected, atol=1e-4)
    zero.set_timesteps(10)
    assert zero.timesteps[0] == 999
