"""A training of the tiny model that looks through masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainings import Trainings, trainings_in

ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 4}}


@pytest.fixture
def trainings(tmp_path: Path, _created_model: Path) -> Trainings:
    """A workspace with a tiny model and four pictures, of each the left half to be learned."""
    made = trainings_in(tmp_path, _created_model)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    for path in made.pictures.glob("*.png"):
        mask.save(path.with_name(f"{path.stem}.mask.png"))
    return made


def test_masks_reach_the_loss(trainings: Trainings) -> None:
    """As if there were none where the rest counts in full; another loss where it does not."""
    plain = trainings.run(ONE_STEP, "plain").losses
    losses = {
        weight: trainings.run(
            {**ONE_STEP, "images": {"masks": "files"}, "loss": {"unmasked_weight": weight}},
            f"masked {weight}",
        ).losses
        for weight in (0.0, 1.0)
    }
    assert losses[1.0] == pytest.approx(plain, rel=1e-5)
    assert losses[0.0] != pytest.approx(plain, rel=1e-3)
