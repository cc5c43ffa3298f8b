"""Tokens counted as CLIP's own tokenizer does, and what is said of captions and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import merges, vocabulary, write_tokenizer
from dreambooth_core.config.concept import Concept
from dreambooth_core.data.examples import Example
from dreambooth_core.job.events import INFO, WARNING
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.preflight.caption_checks import (
    known_token,
    long_captions,
    token_in_class_prompt,
)
from dreambooth_core.stages.preflight.clip_words import ClipWords

WORDS = ClipWords(merges())
HARD = (
    "a photo of a zwx dog",
    "A DOG's life, (masterpiece:1.2), 8k uhd",
    "naïve café — 日本語 テスト",
    "_under_score__ a_b",
    "don't I'll we've",
    "3.14 42nd 2girls half½ ²³ ٣٤",
    "emoji 😀😀 !!! ...",
    "&amp; &lt;b&gt; quoted",
    "straße ǅ ﬁ Ünïcödé İstanbul",
    "a\tb\nc  c++ #hashtag @you http://x.y/z?q=1",
    "x" * 200,
    "",
)


@pytest.fixture(scope="module")
def reference(module_folder: Path) -> Any:
    write_tokenizer(module_folder)
    return CLIPTokenizer.from_pretrained(module_folder)


def concept(**changes: Any) -> Concept:
    return Concept(instance_folder="x", **changes)


def examples(*prompts: str, is_class: bool = False) -> list[Example]:
    return [
        Example(Path(f"{n}.png"), p, (64, 64), is_class=is_class) for n, p in enumerate(prompts)
    ]


@pytest.mark.parametrize("text", HARD)
def test_tokens_are_those_of_the_reference(reference: Any, text: str) -> None:
    assert WORDS.tokens(text) == reference.tokenize(text)


def test_tokens_of_random_texts_are_those_of_the_reference(reference: Any) -> None:
    pieces = [token.replace("</w>", " ") for token in list(vocabulary())[:-2]]
    generator = numpy.random.default_rng(0)
    for _ in range(300):
        text = "".join(generator.choice(pieces, int(generator.integers(1, 12))))
        assert WORDS.tokens(text) == reference.tokenize(text), text


def test_numbers_are_those_of_the_vocabulary(reference: Any) -> None:
    for word in ("dog", "sks", "poodle", "Dachshund"):
        assert WORDS.number(word) == reference.convert_tokens_to_ids(f"{word.lower()}</w>")
    assert WORDS.number("zwx") is None and WORDS.number("two words") is None


def test_a_models_own_tokenizer_is_read(tiny_model_folder: ModelFolder) -> None:
    assert ClipWords.of_model(tiny_model_folder).number("dog") == WORDS.number("dog")
    (tiny_model_folder.component("tokenizer") / "merges.txt").unlink()
    assert ClipWords.of_model(tiny_model_folder).number("dog") == WORDS.number("dog")


def test_long_captions_are_told_with_what_becomes_of_them() -> None:
    long = "dog " * 80
    shown = examples("a dog", long, "cat, " * 10)
    (told,) = long_captions(shown, WORDS, 0)
    assert told.level == INFO and "of 1 pictures have more than 75 tokens" in told.message
    assert "the longest 80" in told.message and "1.png" in told.message
    (cut,) = long_captions(shown, WORDS, 75)
    assert cut.level == WARNING and cut.field == "captions.max_token_length"
    assert list(long_captions(shown, WORDS, 150)) == []
    assert list(long_captions(shown[:1], WORDS, 0)) == []


@pytest.mark.parametrize(
    ("token", "level"),
    [
        ("dog", WARNING),
        ("Person", WARNING),
        ("poodle", WARNING),
        ("red dog", WARNING),
        ("sks", INFO),
        ("ohwx", INFO),
        ("zwx", None),
        ("zwx dog", None),
        ("", None),
    ],
)
def test_a_token_that_the_model_knows(token: str, level: str | None) -> None:
    found = known_token(concept(instance_token=token), "concepts.0", WORDS)
    assert [finding.level for finding in found] == ([level] if level else [])
    if found:
        assert repr(token) in found[0].message and "zwx" in found[0].remedy
        assert found[0].field == "concepts.0.instance_token"


def test_a_class_prompt_that_names_the_subject() -> None:
    asked = concept(instance_token="zwx", class_prompt="photo of a zwx dog")
    (finding,) = token_in_class_prompt(asked, "concepts.1", examples("photo of a dog"))
    assert finding.level == WARNING and "'photo of a dog'" in finding.message
    assert finding.field == "concepts.1.class_prompt" and finding.remedy
    clean = concept(instance_token="zwx", class_prompt="photo of a dog")
    assert token_in_class_prompt(clean, "concepts.0", examples("photo of a dog")) == []
    assert token_in_class_prompt(asked, "concepts.0", []) == []
    kept = concept(instance_token="red", class_token="red ball", class_prompt="a red ball")
    (finding,) = token_in_class_prompt(kept, "concepts.0", examples("a red ball"))
    assert "taught as the subject" in finding.message
