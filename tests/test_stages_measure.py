"""The measures of a checkpoint, on a judge whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from PIL import Image

from dreambooth_core.stages.measure import (
    Drawn,
    Measures,
    best,
    measure,
    pixel_difference,
    verdict,
)


def gray(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level, level, level))


class GrayJudge:
    """Takes brightness for likeness: 255 is the subject."""

    def subject_score(self, images: Sequence[Image.Image], subject: str) -> list[float]:
        assert subject == "bob"
        return [image.getpixel((0, 0))[0] / 255 for image in images]

    def prompt_fidelity(self, images: Sequence[Image.Image], expected: Mapping[str, str]) -> float:
        return 1.0 if expected["background"] == "snow" else 0.5

    def diversity(self, images: Sequence[Image.Image]) -> float:
        return float(len(images))


BASE = [
    Drawn(True, {"background": "snow"}, [gray(0), gray(0)]),
    Drawn(False, {}, [gray(51), gray(51)]),
]


def test_measures_of_known_pictures() -> None:
    drawn = [
        Drawn(True, {"background": "snow"}, [gray(255), gray(255)]),
        Drawn(True, {"background": "night"}, [gray(255), gray(51)]),
        Drawn(False, {}, [gray(51), gray(102)]),
    ]
    base = [BASE[0], BASE[0], BASE[1]]
    result = measure(GrayJudge(), drawn, base, "bob")
    assert result.subject_fidelity == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert result.class_leak == pytest.approx((0.2 + 0.4) / 2)
    assert result.prompt_fidelity == pytest.approx(0.75)
    assert result.diversity == pytest.approx(2.0)
    assert result.drift == pytest.approx((0 + 0.2) / 2)


def test_the_base_has_no_drift() -> None:
    assert measure(GrayJudge(), BASE, BASE, "bob").drift == 0.0


def test_without_pictures_of_a_kind_its_measures_are_nothing() -> None:
    only = [Drawn(True, {}, [gray(255)])]
    result = measure(GrayJudge(), only, only, "bob")
    assert result == Measures(1.0, 0.0, 0.0, 0.0, 0.0)


def test_pixel_difference_is_a_share_of_the_range() -> None:
    assert pixel_difference([gray(0)], [gray(255)]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="zip"):
        pixel_difference([gray(0)], [])


def measured(subject: float, leak: float, prompt: float) -> Measures:
    return Measures(subject, prompt, leak, 0.5, 0.1)


def test_verdict_takes_off_what_the_base_did_not_have() -> None:
    base = measured(0.05, 0.02, 0.95)
    assert verdict(measured(0.9, 0.12, 0.85), base) == pytest.approx(0.9 - 0.1 - 0.1)
    assert verdict(measured(0.9, 0.0, 1.0), base) == pytest.approx(0.9)
    assert verdict(base, base) == pytest.approx(0.05)


def test_best_is_the_likeness_that_costs_least() -> None:
    base, young = measured(0.0, 0.0, 1.0), measured(0.6, 0.0, 1.0)
    good, leaking = measured(0.9, 0.05, 0.98), measured(0.97, 0.6, 1.0)
    broken = measured(0.95, 0.0, 0.3)
    assert best([base, young, good, leaking, broken]) == 2
    assert best([base, leaking, young]) == 2
    assert best([base, measured(0.5, 0.9, 1.0)]) == 0
