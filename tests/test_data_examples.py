"""From a concept's folders to examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.config.concept import Concept
from dreambooth_core.data.buckets import make_buckets
from dreambooth_core.data.examples import instance_examples, make_example
from dreambooth_core.data.picture_files import file_hash
from dreambooth_core.errors import InputError

BUCKETS = make_buckets(64, 16)


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    """Two instance pictures, one square with a caption, one wide named by its file."""
    folder = tmp_path / "instance"
    folder.mkdir()
    Image.new("RGB", (100, 100), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a dog on grass")
    Image.new("RGB", (200, 50), "red").save(folder / "b - in snow.jpg")
    return Concept(
        instance_folder=str(folder),
        instance_prompt="photo of [filewords]",
        class_prompt="a photo of a dog",
        instance_token="zwx",
        class_token="dog",
    )


def test_instance_examples(concept: Concept) -> None:
    """Prompt by the token rules, bucket by aspect, weight 1, hash of the file."""
    square, wide = instance_examples(concept, BUCKETS)
    assert (square.prompt, wide.prompt) == (
        "photo of a zwx dog on grass",
        "zwx dog, photo of b - in snow",
    )
    assert (square.bucket, wide.bucket) == ((64, 64), (128, 32))
    assert (square.source_size, wide.source_size) == ((100, 100), (200, 50))
    assert {square.weight, wide.weight} == {1.0}
    assert not square.is_class
    assert square.file_hash == file_hash(square.path)


def test_a_class_example_carries_its_prompt_and_weight(concept: Concept) -> None:
    """The prompt is taken as it is; the bucket and the hash come from the file."""
    path = Path(concept.instance_folder) / "b - in snow.jpg"
    example = make_example(path, "a dog", BUCKETS, weight=0.75, is_class=True)
    assert (example.prompt, example.weight, example.is_class) == ("a dog", 0.75, True)
    assert (example.bucket, example.file_hash) == ((128, 32), file_hash(path))


def test_a_broken_picture_is_named(concept: Concept) -> None:
    """Before training starts, not in its middle."""
    (Path(concept.instance_folder) / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        instance_examples(concept, BUCKETS)
