"""From a caption to the final prompt: templates, tokens, the abandoned extension's rules, tags."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.prompts import (
    Role,
    final_prompt,
    has_emphasis,
    has_word,
    reordered_tags,
    tags_of,
)


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
    ("role", "expected"),
    [("instance", "photo of my sks dog, a beach"), ("class", "photo of my dog, a beach")],
)
def test_the_name_stands_for_both_tokens(role: Role, expected: str) -> None:
    """In a class prompt for the class token alone."""
    template = "photo of my [name], [filewords]"
    tokens = {"instance_token": "sks", "class_token": "dog"}
    assert final_prompt(template, "a beach", role=role, **tokens) == expected


def test_the_name_of_a_concept_with_one_token_is_that_token() -> None:
    alone = final_prompt("a [name] here", "", instance_token="sks", class_token="", role="instance")
    assert alone == "a sks here"


# Made by running `FilenameTextGetter.create_text` of d8ahazard/sd_dreambooth_extension, commit
# 4244f6b, on each text under the template [filewords]; instance prompt, then class prompt.
EXTENSION = [
    (
        (r"a photo of an extra dog, hat \(red\)", "sks", "dog"),
        ("a photo of an extrdog, hat (red)", "a photo of an extra dog, hat (red)"),
    ),
    (("the dog and a Dog", "sks", "dog"), ("sks and a sks", "the dog and a Dog")),
    (("a photo of a dog", "sks", "dog"), ("a photo of sks", "a photo of a dog")),
    (("on a beach", "sks", "dog"), ("sks, on a beach", "dog, on a beach")),
    (("SKS on a beach", "sks", "dog"), ("sks on a beach", "dog on a beach")),
    (("a sks dog", "sks", "dog"), ("a sks dog", "a dog")),
    (("a sks", "sks", ""), ("sks, a sks", "a sks")),
    (("a sks dog", "", "dog"), ("a sks dog", "dog, a sks dog")),
    (("on  a beach ", "", ""), ("on a beach", "on a beach")),
]


@pytest.mark.parametrize(("given_words", "expected"), EXTENSION)
def test_the_rules_of_the_abandoned_extension(
    given_words: tuple[str, str, str], expected: tuple[str, str]
) -> None:
    """The class word lost, articles even inside words, doubled tokens, backslashes removed."""
    text, token, class_token = given_words
    roles: tuple[Role, Role] = ("instance", "class")
    for role, prompt in zip(roles, expected, strict=True):
        assert prompt == final_prompt(
            "[filewords]",
            text,
            instance_token=token,
            class_token=class_token,
            role=role,
            extension_rules=True,
        )


def test_our_rules_differ_where_the_extensions_lose_something() -> None:
    assert instance(r"a photo of an extra dog, hat \(red\)") == (
        r"a photo of an extra sks dog, hat \(red\)"
    )
    assert instance("a sks", class_token="") == "a sks"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red:1.2) dog", True),
        ("a (red, blue: .8) dog", True),
        ("a dog BREAK a cat", True),
        ("a (red) dog", False),
        (r"a name \(series:2\)", False),
        ("at 12:30", False),
        ("a breakfast", False),
    ],
)
def test_emphasis_is_recognised_and_left_alone(prompt: str, expected: bool) -> None:
    """What the WebUI would weigh; an escaped parenthesis is one to read."""
    assert has_emphasis(prompt) == expected
    assert instance(prompt, token="", class_token="") == prompt


def test_tags_are_reordered_behind_those_that_are_kept() -> None:
    prompt = "zwx dog, red,  blue , ,green"
    assert tags_of(prompt) == ["zwx dog", "red", "blue", "green"]
    assert reordered_tags(prompt, 1, [2, 0, 1]) == "zwx dog, green, red, blue"
    assert reordered_tags(prompt, 0, [3, 2, 1, 0]) == "green, blue, red, zwx dog"
    assert reordered_tags(prompt, 2, [1, 0]) == "zwx dog, red, green, blue"
