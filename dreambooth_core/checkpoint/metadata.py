"""What a checkpoint says about itself: modelspec 1.0.1 and a few words of our own.

Field names: github.com/Stability-AI/ModelSpec. All values are flat text. `modelspec.hash_sha256`
is left out: it stands before the bytes that it describes, and these are written as a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePath

from dreambooth_core import __version__
from dreambooth_core.errors import InputError

SPEC_VERSION = "1.0.1"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class Description:
    """What is told about every saved checkpoint; `resolution` is the side of its pictures."""

    title: str
    architecture: str
    resolution: int
    prediction_type: str
    source_sha256: str = ""


def checkpoint_metadata(description: Description, now: datetime | None = None) -> dict[str, str]:
    """Return the header's metadata; raises InputError for text that the WebUI would misread."""
    moment = (now or datetime.now(timezone.utc)).replace(microsecond=0, tzinfo=None)
    side = description.resolution
    values = {
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": description.architecture,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": description.title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": moment.isoformat(),
        "modelspec.prediction_type": PREDICTION_TYPES[description.prediction_type],
        "dreambooth.version": __version__,
        "dreambooth.source_sha256": description.source_sha256,
    }
    return flat_metadata({name: value for name, value in values.items() if value})


def training_metadata(
    step: int, epoch: int, trigger_words: Sequence[str] = (), uses_ema: bool = False
) -> dict[str, str]:
    """Return what training adds to the metadata."""
    values = {
        "dreambooth.step": str(step),
        "dreambooth.epoch": str(epoch),
        "dreambooth.ema": "true" if uses_ema else "false",
    }
    if trigger_words:
        values["modelspec.trigger_phrase"] = ", ".join(trigger_words)
    return flat_metadata(values)


def told_name(path: PurePath) -> str:
    """Return a file's name as metadata may tell it, without a brace at its beginning."""
    return path.name.lstrip("{ ")


def flat_metadata(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values unchanged; raises InputError for one that begins with a brace.

    The WebUI reads such a value as JSON and stumbles over everything else.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"metadata {name} is {type(value).__name__}, not text")
        if value.lstrip().startswith("{"):
            raise InputError(
                f"The text {value!r} cannot be a checkpoint's {name}: it begins with a brace.",
                remedy="Choose a name or trigger word that does not.",
            )
    return dict(values)
