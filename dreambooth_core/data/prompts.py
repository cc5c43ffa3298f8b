"""From a caption to the prompt that is trained: templates, tokens, tags in another order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

FILEWORDS = "[filewords]"
NAME = "[name]"
Role = Literal["instance", "class"]

_GONE = "\0"
_EMPHASIS = re.compile(r"(?<!\\)\([^()]*:\s*\d*\.?\d+\s*\)|\bBREAK\b")


def final_prompt(
    template: str,
    caption: str,
    *,
    instance_token: str,
    class_token: str,
    role: Role,
    extension_rules: bool = False,
) -> str:
    r"""Return the prompt that the text encoder sees, white space collapsed.

    `[filewords]` in the template becomes the caption, `[name]` the instance and the class token, or
    the class token alone in role "class"; then the tokens are put right. Tokens are matched as
    whole words in any letter case. Parentheses, `\(` and numbers stay as they are written.

    Role "instance": a text that has the instance token stays. Else the first class token becomes
    "<instance> <class>"; without one, "<instance> <class>, " goes in front, or "<instance> " if no
    class token is given.

    Role "class": the instance token is taken out, with the comma of a list entry it leaves empty.
    A text that then lacks the class token gets it where the first instance token was, else in
    front as "<class>, ".

    `extension_rules` are those of `extension_prompt` instead.
    """
    instance_token, class_token = collapse(instance_token), collapse(class_token)
    name = subject(instance_token, class_token) if role == "instance" else class_token
    text = collapse(template.replace(FILEWORDS, caption).replace(NAME, name))
    if extension_rules:
        return extension_prompt(text, instance_token, class_token, role)
    with_tokens = _with_instance_token if role == "instance" else _with_class_token
    return with_tokens(text, instance_token, class_token)


def extension_prompt(text: str, instance_token: str, class_token: str, role: Role) -> str:
    """Return the prompt that sd_dreambooth_extension (4244f6b, 2025) would make, bugs included.

    With both tokens an instance prompt loses the class word, and "a", "an" and "the" before it,
    even as the end of a longer word; with the instance token alone it goes in front even where it
    stands already; backslashes are removed. Only tokens that hold signs of a pattern differ: there
    they were read as one.
    """
    if instance_token and class_token:
        both = _extension_instance if role == "instance" else _extension_class
        text = both(text, instance_token, class_token)
    elif instance_token and role == "instance":
        text = f"{instance_token}, {text}"
    elif class_token and role == "class":
        text = f"{class_token}, {text}"
    return " ".join(text.split()).replace("\\", "").strip()


def subject(instance_token: str, class_token: str) -> str:
    """Return what the subject is called: both tokens, unless one holds the other."""
    if not class_token or has_word(instance_token, class_token):
        return instance_token
    return f"{instance_token} {class_token}".strip()


def has_word(text: str, word: str) -> bool:
    """Say whether `word` (one or more words) stands in `text` as whole words, in any case."""
    return bool(word) and _word(word).search(text) is not None


def has_emphasis(prompt: str) -> bool:
    """Say whether the WebUI would read a weight, such as (word:1.2), or BREAK in a prompt."""
    return _EMPHASIS.search(prompt) is not None


def collapse(text: str) -> str:
    """Return a text with its white space as single spaces, none at the ends."""
    return " ".join(text.split())


def tags_of(prompt: str) -> list[str]:
    """Return the parts between a prompt's commas, without those that are empty."""
    return [tag for tag in map(str.strip, prompt.split(",")) if tag]


def reordered_tags(prompt: str, keep: int, order: Sequence[int]) -> str:
    """Return the prompt with its tags behind the first `keep` in an order, counted from there."""
    tags = tags_of(prompt)
    return ", ".join([*tags[:keep], *(tags[keep + index] for index in order)])


def _with_instance_token(text: str, instance_token: str, class_token: str) -> str:
    if not instance_token or has_word(text, instance_token):
        return text
    name = subject(instance_token, class_token)
    if has_word(text, class_token):
        return _replace_first(text, class_token, name)
    separator = ", " if class_token else " "
    return f"{name}{separator}{text}" if text else name


def _with_class_token(text: str, instance_token: str, class_token: str) -> str:
    # A class token that contains the instance token ("red ball", "red") could never be written.
    if has_word(text, instance_token) and not has_word(class_token, instance_token):
        without = _remove(text, instance_token)
        if class_token and not has_word(without, class_token):
            text = _replace_first(text, instance_token, class_token)
            without = _remove(text, instance_token)
        text = without
    if not class_token or has_word(text, class_token):
        return text
    return f"{class_token}, {text}" if text else class_token


def _extension_instance(text: str, instance_token: str, class_token: str) -> str:
    if _found(text, class_token):
        if _found(text, instance_token):
            return text
        for article in ("a", "the", "an"):
            text = text.replace(f"{article} {class_token}", class_token)
        return _replaced(text, class_token, instance_token)
    if _found(text, instance_token):
        return _replaced(text, instance_token, instance_token)
    return f"{instance_token}, {text}"


def _extension_class(text: str, instance_token: str, class_token: str) -> str:
    if _found(text, instance_token):
        instead = "" if _found(text, class_token) else class_token
        text = _replaced(text, instance_token, instead)
    return text if _found(text, class_token) else f"{class_token}, {text}"


def _found(text: str, token: str) -> bool:
    return _bounded(token).search(text) is not None


def _replaced(text: str, token: str, replacement: str) -> str:
    return _bounded(token).sub(lambda _: replacement, text)


def _bounded(token: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(token)}\b", re.IGNORECASE)


def _remove(text: str, token: str) -> str:
    """Return the text without the token; a comma-separated entry that becomes empty goes too."""
    entries = [
        (e, collapse(e.replace(_GONE, " "))) for e in _word(token).sub(_GONE, text).split(",")
    ]
    result = ", ".join(rest for entry, rest in entries if rest or _GONE not in entry).strip(" ,")
    # What stood around a token of several words can be the token again: "a b" in "a a b b".
    return _remove(result, token) if has_word(result, token) else result


def _replace_first(text: str, word: str, replacement: str) -> str:
    return _word(word).sub(lambda _: replacement, text, count=1)


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
