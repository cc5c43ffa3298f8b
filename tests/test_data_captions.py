"""From a file to the final prompt: captions, file names, tokens."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.captions import (
    Role,
    caption_path,
    final_prompt,
    has_word,
    prompt_for_image,
    read_caption,
    words_of_name,
)
from dreambooth_core.errors import InputError


def instance(text: str, token: str = "sks", class_token: str = "dog") -> str:
    """Return the instance prompt of a caption under the template [filewords]."""
    return final_prompt(
        "[filewords]", text, instance_token=token, class_token=class_token, role="instance"
    )


def prior(text: str, token: str = "sks", class_token: str = "dog") -> str:
    """Return the class prompt of a caption under the template [filewords]."""
    return final_prompt(
        "[filewords]", text, instance_token=token, class_token=class_token, role="class"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a dog", "a photo of a sks dog"),
        ("a Dog and a dog", "a sks dog and a dog"),
        ("a photo of sks dog", "a photo of sks dog"),
        ("a photo of SKS", "a photo of SKS"),
        ("on a beach", "sks dog, on a beach"),
        ("a hotdog, dogs", "sks dog, a hotdog, dogs"),
        ("sksy weather", "sks dog, sksy weather"),
        ("", "sks dog"),
        ("dog's bowl", "sks dog's bowl"),
        ("  many   spaces\tdog ", "many spaces sks dog"),
    ],
)
def test_instance_with_both_tokens(text: str, expected: str) -> None:
    """The token joins the first class word; without one both go in front."""
    assert instance(text) == expected


def test_instance_with_one_token_or_none() -> None:
    """Only the instance token is prefixed with a space; a class token alone changes nothing."""
    assert instance("on a beach", class_token="") == "sks on a beach"
    assert instance("a sks on a beach", class_token="") == "a sks on a beach"
    assert instance("", class_token="") == "sks"
    assert instance("a dog", token="") == "a dog"
    assert instance("on a beach", token="", class_token="") == "on a beach"


def test_an_instance_token_that_holds_the_class_word_is_not_doubled() -> None:
    """With token "sks dog" the class word becomes "sks dog", not "sks dog dog"."""
    assert instance("a dog", token="sks dog") == "a sks dog"
    assert instance("on a beach", token="sks dog") == "sks dog, on a beach"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a sks dog", "a photo of a dog"),
        ("a photo of sks", "a photo of dog"),
        ("SKS and sks in snow", "dog and in snow"),
        ("sks, red, outdoors", "dog, red, outdoors"),
        ("red, sks, a dog", "red, a dog"),
        ("a dog, sks", "a dog"),
        ("on a beach", "dog, on a beach"),
        ("a dog on a beach", "a dog on a beach"),
        ("sks", "dog"),
        ("", "dog"),
        ("sksy weather", "dog, sksy weather"),
    ],
)
def test_class_with_both_tokens(text: str, expected: str) -> None:
    """The instance token goes, the class token is there, list entries left empty go too."""
    assert prior(text) == expected


def test_class_with_one_token_or_none() -> None:
    """Removal needs no class token; a class token needs no instance token."""
    assert prior("a sks on a beach", class_token="") == "a on a beach"
    assert prior("sks", class_token="") == ""
    assert prior("on a beach", token="") == "dog, on a beach"
    assert prior("on a beach", token="", class_token="") == "on a beach"


def test_class_with_tokens_that_contain_each_other() -> None:
    """Token "sks dog" leaves the class word behind; class "red ball" keeps its "red"."""
    assert prior("a sks dog in snow", token="sks dog") == "a dog in snow"
    assert prior("a red ball", token="red", class_token="red ball") == "a red ball"


def test_class_removes_a_token_of_several_words_wholly() -> None:
    """Also where its parts close up to the token again, and where it holds a comma."""
    assert prior("a sks sks man man dog", token="sks man") == "a dog"
    assert prior("red, x, y, a dog", token="x, y") == "red, a dog"


def test_tokens_with_special_characters_are_plain_text() -> None:
    """Nothing in a token or caption is read as a pattern or an escape."""
    assert instance(r"a (dog)\1", token=r"s.k\s+", class_token="dog") == r"a (s.k\s+ dog)\1"
    assert not has_word("sxk", "s.k")
    assert has_word("a <sks> b", "<sks>")
    assert instance("a dog", token="<new1>") == "a <new1> dog"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("photo of [filewords], sharp", "photo of a sks dog, sharp"),
        ("photo of dog", "photo of sks dog"),
        ("[filewords] and [filewords]", "a sks dog and a dog"),
        ("", "sks dog"),
    ],
)
def test_the_template(template: str, expected: str) -> None:
    """[filewords] stands for the caption; the tokens are put right in the whole text."""
    result = final_prompt(
        template, "a dog", instance_token="sks", class_token="dog", role="instance"
    )
    assert result == expected


WORDS = st.lists(st.sampled_from(["a", "dog", "Dog", "sks", "SKS", "dogs", "red", ",", "(sks)"]))
TOKENS = st.one_of(
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "dog", "sks", "red"]), min_size=1, max_size=3).map(" ".join),
)


@settings(deadline=None)
@given(words=WORDS, token=TOKENS, class_token=TOKENS)
def test_an_instance_prompt_has_its_token_and_keeps_all_words(
    words: list[str], token: str, class_token: str
) -> None:
    """Whatever the text: the token is there, applying it twice adds nothing, no word is lost."""
    text = " ".join(words)
    result = instance(text, token, class_token)
    assert has_word(result, token)
    assert instance(result, token, class_token) == result
    rest = iter(re.findall(r"\w+", result.lower()))
    in_class = class_token.lower().split()
    kept = [word for word in re.findall(r"\w+", text.lower()) if word not in in_class]
    assert all(word in rest for word in kept)


@settings(deadline=None)
@given(words=WORDS, token=TOKENS, class_token=TOKENS)
def test_a_class_prompt_has_the_class_and_never_the_instance_token(
    words: list[str], token: str, class_token: str
) -> None:
    """The only exception is a class token that itself holds the instance token."""
    result = prior(" ".join(words), token, class_token)
    assert has_word(result, class_token)
    assert has_word(result, token) == has_word(class_token, token) or not has_word(result, token)
    assert prior(result, token, class_token) == result


@settings(deadline=None)
@given(words=WORDS, token=TOKENS, class_token=TOKENS)
def test_making_an_instance_prompt_and_back_is_clean(
    words: list[str], token: str, class_token: str
) -> None:
    """The class prompt of an instance prompt never mentions the instance."""
    if not has_word(class_token, token):
        prompt = instance(" ".join(words), token, class_token)
        assert not has_word(prior(prompt, token, class_token), token)


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
