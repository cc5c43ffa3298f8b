"""What saved checkpoints say about themselves."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from dreambooth_core import __version__
from dreambooth_core.checkpoint.metadata import (
    Description,
    checkpoint_metadata,
    flat_metadata,
    told_name,
    training_metadata,
)
from dreambooth_core.errors import InputError

MOMENT = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=timezone.utc)


def test_the_fields_of_modelspec_are_there() -> None:
    description = Description("my man_400", "stable-diffusion-v1", 512, "v_prediction", "ab12")
    assert checkpoint_metadata(description, MOMENT) == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "my man_400",
        "modelspec.resolution": "512x512",
        "modelspec.date": "2026-02-03T04:05:06",
        "modelspec.prediction_type": "v",
        "dreambooth.version": __version__,
        "dreambooth.source_sha256": "ab12",
    }


def test_what_is_not_known_is_left_out() -> None:
    metadata = checkpoint_metadata(Description("x", "stable-diffusion-v1", 512, "epsilon"))
    assert "dreambooth.source_sha256" not in metadata
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.date"].startswith("20")


def test_training_adds_its_step_and_trigger_words() -> None:
    assert training_metadata(400, 3, ["ohwx", "sks"], uses_ema=True) == {
        "dreambooth.step": "400",
        "dreambooth.epoch": "3",
        "dreambooth.ema": "true",
        "modelspec.trigger_phrase": "ohwx, sks",
    }
    assert "modelspec.trigger_phrase" not in training_metadata(1, 0)


@pytest.mark.parametrize("text", ["{x}", "{", " {"])
def test_text_that_begins_with_a_brace_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="begins with a brace"):
        checkpoint_metadata(Description(text, "stable-diffusion-v1", 512, "epsilon"))
    with pytest.raises(InputError, match="trigger_phrase"):
        training_metadata(1, 0, [text])


def test_only_text_is_metadata() -> None:
    with pytest.raises(TypeError, match="step is int"):
        flat_metadata({"step": 3})  # type: ignore[dict-item]
    assert flat_metadata({"a": "b {", "c": ""}) == {"a": "b {", "c": ""}


def test_a_files_name_is_told_without_a_brace_at_its_beginning() -> None:
    assert told_name(PurePosixPath("/x/{a} {b}.ckpt")) == "a} {b}.ckpt"
    assert told_name(PureWindowsPath("C:\\x\\a.ckpt")) == "a.ckpt"
