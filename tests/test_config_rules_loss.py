"""Rules of the loss: what contradicts itself is refused, naming the field and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.rules.loss import check_loss, check_zero_terminal_snr
from dreambooth_core.config.schema import LossSection, TrainConfig
from dreambooth_core.config.validate import validate
from dreambooth_core.job.workspace import ModelInfo, Workspace


def problems(**loss: Any) -> list[str]:
    """The fields that are wrong with these settings of the loss."""
    return [problem.field for problem in check_loss(training(**loss))]


def training(**loss: Any) -> TrainConfig:
    """Settings with these of the loss."""
    return TrainConfig(model="ada", loss=LossSection(**loss))


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"min_timestep": 5, "max_timestep": 5},
        {"multires_noise_iterations": 6},
        {"offset_noise": 0.1},
        {"debiased_estimation": True},
        {"min_snr_gamma": 5.0, "dream": True, "loss_type": "huber"},
        {"prior_loss_scale": True, "prior_loss_weight": 0.1, "prior_loss_weight_min": 0.1},
        {"prior_loss_weight": 0.05},
    ],
)
def test_what_goes_together_is_allowed(loss: dict[str, Any]) -> None:
    assert problems(**loss) == []


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        ({"min_timestep": 500, "max_timestep": 499}, "min_timestep"),
        ({"multires_noise_iterations": 1}, "multires_noise_iterations"),
        ({"multires_noise_iterations": 6, "offset_noise": 0.1}, "multires_noise_iterations"),
        ({"debiased_estimation": True, "min_snr_gamma": 5.0}, "debiased_estimation"),
        ({"prior_loss_scale": True, "prior_loss_weight": 0.05}, "prior_loss_weight_min"),
    ],
)
def test_what_contradicts_itself_is_refused(loss: dict[str, Any], field: str) -> None:
    (problem,) = check_loss(training(**loss))
    assert problem.field == f"loss.{field}"
    assert problem.remedy
    assert f"loss.{field}" in [p.field for p in validate(training(**loss), None)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", "l7"),
        ("huber_schedule", "linear"),
        ("huber_delta", 0.0),
        ("max_timestep", 1000),
        ("unmasked_weight", 1.5),
        ("prior_loss_target", 0),
        ("dream_detail_preservation", -1.0),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    assert f"loss.{name}" in [p.field for p in validate(training(**{name: value}), None)]


@pytest.mark.parametrize(("kind", "refused"), [("epsilon", True), ("v_prediction", False)])
def test_zero_terminal_snr_is_for_v_prediction(tmp_path: Path, kind: str, refused: bool) -> None:
    workspace = Workspace(tmp_path)
    workspace.model("ada").write_info(ModelInfo("ada", "sd2", "", prediction_type=kind))
    config = training(zero_terminal_snr=True)
    found = check_zero_terminal_snr(config, workspace)
    assert [problem.field for problem in found] == ["loss.zero_terminal_snr"] * refused
    assert all("epsilon" in p.message and "v-prediction" in p.remedy for p in found)
    told = [problem.field for problem in validate(config, workspace)]
    assert ("loss.zero_terminal_snr" in told) is refused
    assert check_zero_terminal_snr(training(), workspace) == []
    assert check_zero_terminal_snr(config, None) == []


def test_a_model_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    config = training(zero_terminal_snr=True)
    assert check_zero_terminal_snr(config, Workspace(tmp_path)) == []
