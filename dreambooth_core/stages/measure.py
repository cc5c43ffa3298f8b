"""How good a checkpoint is: likeness, obedience, leak, diversity, drift, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

LEAK_WEIGHT = 1.0
PROMPT_WEIGHT = 1.0

Pictures = Sequence[Image.Image]


class PictureJudge(Protocol):
    """What reads pictures of the embedded world; scores are 0..1."""

    def subject_score(self, images: Pictures, subject: str) -> Sequence[float]:
        """Return how surely each picture shows the subject."""
        ...

    def prompt_fidelity(self, images: Pictures, expected: Mapping[str, str]) -> float:
        """Return the share of the expected attributes that the pictures show."""
        ...

    def diversity(self, images: Pictures) -> float:
        """Return how different the pictures are from each other."""
        ...


@dataclass(frozen=True)
class Drawn:
    """What one checkpoint drew for one prompt; `expected` are the attributes the prompt names."""

    has_token: bool
    expected: Mapping[str, str]
    pictures: Pictures


@dataclass(frozen=True)
class Measures:
    """The measures of one checkpoint.

    Subject fidelity is the mean subject score of pictures with the token, class leak that of
    pictures without it, prompt fidelity the share of what prompts ask for that is shown, diversity
    the difference among pictures of one prompt, and drift the mean difference (0..1) of pixels
    from what the model as created draws for the prompts without the token.
    """

    subject_fidelity: float
    prompt_fidelity: float
    class_leak: float
    diversity: float
    drift: float

    def values(self) -> dict[str, float]:
        """Return the measures by name."""
        return dataclasses.asdict(self)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if values else 0.0


def pixel_difference(pictures: Pictures, others: Pictures) -> float:
    """Return the mean absolute difference of two equally long rows of pictures, in 0..1."""
    pairs = zip(pictures, others, strict=True)
    return _mean([float(np.abs(_levels(a) - _levels(b)).mean()) for a, b in pairs])


def _levels(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255.0


def _subject_score(judge: PictureJudge, drawn: Sequence[Drawn], subject: str) -> float:
    pictures = [picture for one in drawn for picture in one.pictures]
    if not pictures:
        return 0.0
    return _mean([float(score) for score in judge.subject_score(pictures, subject)])


def measure(
    judge: PictureJudge, drawn: Sequence[Drawn], base: Sequence[Drawn], subject: str
) -> Measures:
    """Measure what a checkpoint drew; `base` is what the model as created drew for the same."""
    with_token = [one for one in drawn if one.has_token]
    without = [one for one in drawn if not one.has_token]
    base_without = [one for one in base if not one.has_token]
    differences = [
        pixel_difference(one.pictures, other.pictures)
        for one, other in zip(without, base_without, strict=True)
    ]
    named = [one for one in drawn if one.expected]
    return Measures(
        subject_fidelity=_subject_score(judge, with_token, subject),
        prompt_fidelity=_mean([judge.prompt_fidelity(one.pictures, one.expected) for one in named]),
        class_leak=_subject_score(judge, without, subject),
        diversity=_mean([judge.diversity(one.pictures) for one in drawn if len(one.pictures) > 1]),
        drift=_mean(differences),
    )


def verdict(measures: Measures, base: Measures) -> float:
    """Return subject fidelity less what was paid for it: added class leak, lost prompt fidelity.

    The rule of the DreamBooth evaluations, with the leak (PRES) and prompt loss (CLIP-T) counted
    from the untouched model and both weights 1.
    """
    leak = max(0.0, measures.class_leak - base.class_leak)
    prompt_loss = max(0.0, base.prompt_fidelity - measures.prompt_fidelity)
    return measures.subject_fidelity - LEAK_WEIGHT * leak - PROMPT_WEIGHT * prompt_loss


def best(measured: Sequence[Measures]) -> int:
    """Return the position of the checkpoint to keep; the first is the model as created."""
    verdicts = [verdict(one, measured[0]) for one in measured]
    return verdicts.index(max(verdicts))
