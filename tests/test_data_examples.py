"""From a concept's folders to examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.sections.images import ImagesSection
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


def test_repeats_come_from_the_concept_or_its_folders(concept: Concept) -> None:
    """A kohya folder's number takes the place of the setting, if folder names are read."""
    top = Path(concept.instance_folder)
    (top / "9_w0ut3r man").mkdir()
    Image.new("RGB", (64, 64)).save(top / "9_w0ut3r man" / "001.png")
    concept.repeats = 2
    assert [e.repeats for e in instance_examples(concept, BUCKETS)] == [2, 2, 2]
    concept.folder_names, concept.instance_prompt = True, "[filewords]"
    concept.instance_token = concept.class_token = ""
    kohya, plain, wide = instance_examples(concept, BUCKETS)
    assert [e.repeats for e in (kohya, plain, wide)] == [9, 2, 2]
    assert [e.prompt for e in (kohya, plain, wide)] == [
        "w0ut3r man",
        "a dog on grass",
        "b - in snow",
    ]


def test_a_template_file_gives_each_picture_several_prompts(
    concept: Concept, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("photo of [name]\n[name], [filewords]\n")
    concept.prompt_templates = str(tmp_path / "lines.txt")
    square, wide = instance_examples(concept, BUCKETS)
    assert square.prompts == ("photo of zwx dog", "zwx dog, a dog on grass")
    assert wide.prompts == ("photo of zwx dog", "zwx dog, b - in snow")
    assert (square.prompt, square.other_prompts) == (square.prompts[0], square.prompts[1:])


def test_the_focus_is_looked_for_only_where_it_is_needed(concept: Concept) -> None:
    """A tall stripe at the right of the wide picture: the focus of a crop to 2:1 lies there."""
    path = Path(concept.instance_folder) / "b - in snow.jpg"
    image = Image.new("RGB", (300, 50), "gray")
    image.paste("white", (270, 0, 280, 50))
    image.save(path)
    buckets = [(64, 64), (80, 40)]
    focal = instance_examples(concept, buckets, images=ImagesSection(crop="focal"))
    assert [e.focus for e in focal] == [0.5, 1.0]
    assert [e.focus for e in instance_examples(concept, buckets)] == [0.5, 0.5]
    unread = instance_examples(concept, buckets, images=ImagesSection(crop="focal"), hashed=False)
    assert [e.focus for e in unread] == [0.5, 0.5]


def test_pictures_with_masks_are_marked(concept: Concept) -> None:
    folder = Path(concept.instance_folder)
    Image.new("L", (100, 100), 255).save(folder / "a.mask.png")
    for masks, expected in (("none", [False, False]), ("files", [True, False])):
        found = instance_examples(concept, BUCKETS, images=ImagesSection(masks=masks))
        assert [example.masked for example in found] == expected
