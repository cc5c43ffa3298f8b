"""From a picture's file to its prompts: caption files, file names, folder names, templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.sections.captions import CaptionsSection
from dreambooth_core.data.captions import (
    CaptionReading,
    caption_file,
    caption_path,
    caption_reading,
    instance_templates,
    prompt_for_image,
    prompts_for_image,
    read_caption,
    words_of_name,
)
from dreambooth_core.data.prompts import Role
from dreambooth_core.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("001-red ball", "red ball"),
        ("12_red_ball", "red ball"),
        ("03 red ball", "red ball"),
        ("1. red ball", "red ball"),
        ("00012-0-red ball", "red ball"),
        ("red ball (2)", "red ball"),
        ("red_ball_(2)", "red ball"),
        ("red ball_2", "red ball"),
        ("red-ball-17", "red-ball"),
        ("001-red ball (3)_2", "red ball"),
        ("0001", ""),
        ("42", ""),
        ("2 dogs playing", "2 dogs playing"),
        ("iphone 12", "iphone 12"),
        ("3d model", "3d model"),
        ("  red   ball ", "red ball"),
    ],
)
def test_words_of_a_file_name(name: str, expected: str) -> None:
    """Numbering goes, numbers that are part of the words stay."""
    assert words_of_name(name) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_read_in_utf8_and_marked_utf16(tmp_path: Path, encoding: str) -> None:
    """Editors on Windows write all three; line breaks become spaces."""
    (tmp_path / "a.txt").write_bytes("ein Hündchen,\r\n 日本\n".encode(encoding))
    assert read_caption(tmp_path / "a.png") == "ein Hündchen, 日本"


def test_the_text_file_comes_before_the_file_name(tmp_path: Path) -> None:
    """Also when it is empty: that is what the person wrote."""
    image = tmp_path / "001-red ball.v2.png"
    assert read_caption(image) == "red ball.v2"
    assert caption_path(image).name == "001-red ball.v2.txt"
    caption_path(image).write_text("blue ball")
    assert read_caption(image) == "blue ball"
    caption_path(image).write_text("")
    assert read_caption(image) == ""


def test_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    """Latin-1 bytes are not guessed at."""
    (tmp_path / "a.txt").write_bytes("Hündchen".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text \(byte 1\)"):
        read_caption(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("role", "expected"), [("instance", "photo of a sks dog"), ("class", "photo of a dog")]
)
def test_from_file_to_prompt(tmp_path: Path, role: Role, expected: str) -> None:
    """One call serves both roles."""
    image = tmp_path / "01_a dog.png"
    tokens = {"instance_token": "sks", "class_token": "dog"}
    assert prompt_for_image(image, "photo of [filewords]", role=role, **tokens) == expected


def test_a_caption_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """A broken side file does not matter to a fixed prompt."""
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    prompt = prompt_for_image(
        tmp_path / "a.png", "a dog", instance_token="sks", class_token="dog", role="instance"
    )
    assert prompt == "a sks dog"


def test_a_caption_file_of_kohya_is_read_after_the_text_file(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    (tmp_path / "a.caption").write_text("from caption")
    assert caption_file(image) == tmp_path / "a.caption"
    assert read_caption(image) == "from caption"
    (tmp_path / "a.txt").write_text("from txt")
    assert read_caption(image) == "from txt"


@pytest.mark.parametrize(
    ("source", "with_file", "without"),
    [("auto", "written", "red ball"), ("name", "red ball", "red ball"), ("file", "written", None)],
)
def test_where_captions_come_from(
    tmp_path: Path, source: str, with_file: str, without: str | None
) -> None:
    """Under file a picture without one is refused by name; under name files are not read."""
    image, reading = tmp_path / "01-red ball.png", CaptionReading(source)
    if without is None:
        with pytest.raises(InputError, match=r"01-red ball\.png has no caption file") as caught:
            read_caption(image, reading)
        assert caught.value.field == "captions.source"
    else:
        assert read_caption(image, reading) == without
    image.with_suffix(".txt").write_text("written")
    assert read_caption(image, reading) == with_file


def folder_of_kohya(tmp_path: Path, name: str = "9_w0ut3r man") -> Path:
    (tmp_path / "img" / name).mkdir(parents=True)
    return tmp_path / "img"


def test_a_folders_name_is_the_caption_where_there_is_no_file(tmp_path: Path) -> None:
    """Only if folder names are read, and only behind a caption file."""
    top = folder_of_kohya(tmp_path)
    image = top / "9_w0ut3r man" / "001.png"
    assert read_caption(image) == ""
    assert read_caption(image, CaptionReading(top=top)) == "w0ut3r man"
    assert read_caption(image, CaptionReading("name", top=top)) == ""
    image.with_suffix(".txt").write_text("a smile")
    assert read_caption(image, CaptionReading(top=top)) == "a smile"


@pytest.mark.parametrize(
    ("token", "class_token", "expected"),
    [
        ("", "", "w0ut3r man, a smile"),
        ("sks", "", "sks a smile"),
        ("sks", "boy", "sks boy, a smile"),
    ],
)
def test_a_folders_name_gives_the_tokens_that_are_not_set(
    tmp_path: Path, token: str, class_token: str, expected: str
) -> None:
    top = folder_of_kohya(tmp_path)
    image = top / "9_w0ut3r man" / "001.png"
    image.with_suffix(".txt").write_text("a smile")
    prompt = prompt_for_image(
        image,
        "[filewords]",
        instance_token=token,
        class_token=class_token,
        role="instance",
        reading=CaptionReading(top=top),
    )
    assert prompt == expected


def test_the_extensions_rules_reach_the_file_name(tmp_path: Path) -> None:
    """Golden: `FilenameTextGetter.read_text` of the extension (4244f6b) on the same names."""
    reading = CaptionReading(extension_rules=True)
    names = {"001-red ball": "red ball", "2 dogs": "dogs", "12_red_ball": "_red_ball", "--": ""}
    for name, words in names.items():
        assert read_caption(tmp_path / f"{name}.png", reading) == words
    assert read_caption(tmp_path / "2 dogs.png") == "2 dogs"
    prompt = prompt_for_image(
        tmp_path / "a dog.png",
        "[filewords]",
        instance_token="sks",
        class_token="dog",
        role="instance",
        reading=reading,
    )
    assert prompt == "sks"


def test_how_a_concept_is_read_follows_its_settings() -> None:
    concept = Concept(instance_folder="pictures", folder_names=True)
    settings = CaptionsSection(source="file", extension_rules=True)
    assert caption_reading(concept, settings) == CaptionReading("file", True, Path("pictures"))
    concept.folder_names = False
    assert caption_reading(concept, CaptionsSection()) == CaptionReading()


def test_each_template_is_a_prompt(tmp_path: Path) -> None:
    """In the order of the file, none twice; the caption is read once for all."""
    image = tmp_path / "in snow.png"
    prompts = prompts_for_image(
        image,
        ["a photo of [name], [filewords]", "[name]", "a dog", "[name]"],
        instance_token="sks",
        class_token="dog",
        role="instance",
    )
    assert prompts == ("a photo of sks dog, in snow", "sks dog", "a sks dog")


def test_a_concepts_templates_are_its_prompt_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "subject.txt"
    file.write_text("# from textual inversion\n\na photo of [name]\n  a painting of [name]  \n")
    concept = Concept(instance_folder="pictures", instance_prompt="mine")
    assert instance_templates(concept) == ["mine"]
    concept.prompt_templates = str(file)
    assert instance_templates(concept) == ["a photo of [name]", "a painting of [name]"]
