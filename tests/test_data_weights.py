"""Weights of single pictures: what the file beside a picture says, and who is told of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config.concept import Concept
from dreambooth_core.data.buckets import make_buckets
from dreambooth_core.data.examples import instance_examples, make_example
from dreambooth_core.data.weights import image_weight
from dreambooth_core.errors import InputError
from tests.noise_pictures import write_pictures

BUCKETS = make_buckets(64, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, of which the second weighs half."""
    pictures = write_pictures(tmp_path / "pictures", 3)
    (pictures / "b red dog.weight.txt").write_text("0.5\n", encoding="utf-8")
    return pictures


@pytest.mark.parametrize(
    ("text", "weight"),
    [("0.5", 0.5), (" 2 \r\n", 2.0), ("1e-3", 0.001), ("100", 100.0), ("\ufeff3", 3.0)],
)
def test_the_number_beside_a_picture_is_its_weight(
    tmp_path: Path, text: str, weight: float
) -> None:
    (tmp_path / "dog.1.weight.txt").write_text(text, encoding="utf-8")
    assert image_weight(tmp_path / "dog.1.png") == weight
    assert image_weight(tmp_path / "dog.png") == 1.0


@pytest.mark.parametrize("text", ["", "heavy", "0", "-1", "nan", "inf", "101", "0,5", "1 2"])
def test_anything_else_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dog.weight.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        image_weight(tmp_path / "dog.png")
    assert str(file) in caught.value.message
    assert "above 0" in caught.value.remedy


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dog.weight.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match=r"dog\.weight\.txt"):
        image_weight(tmp_path / "dog.png")


def test_instance_images_weigh_what_the_concept_and_the_picture_say(folder: Path) -> None:
    concept = Concept(instance_folder=str(folder), loss_weight=3.0)
    assert [example.weight for example in instance_examples(concept, BUCKETS)] == [3.0, 1.5, 3.0]


def test_class_images_have_weights_of_their_own_too(folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    examples = [make_example(path, "a dog", BUCKETS, weight=0.4, is_class=True) for path in paths]
    assert [example.weight for example in examples] == pytest.approx([0.4, 0.2, 0.4])


def test_a_weight_file_is_no_caption(folder: Path) -> None:
    examples = instance_examples(Concept(instance_folder=str(folder)), BUCKETS)
    assert [example.prompt for example in examples] == [f"{c} red dog" for c in "abc"]
