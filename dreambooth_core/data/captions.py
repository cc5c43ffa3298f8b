"""From a picture's file to the prompt it is trained with."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Literal

from dreambooth_core.errors import InputError

FILEWORDS = "[filewords]"
Role = Literal["instance", "class"]

_GONE = "\0"
_LEADING_NUMBER = re.compile(r"^(?:\d+(?:\s*[-_]+\s*|\.(?!\d)\s*)|0\d*\s+)+|^\d+$")
_TRAILING_NUMBER = re.compile(r"(?:[\s_-]*\(\d+\)|[_-]+\d+)+$")


def prompt_for_image(
    image: Path, template: str, *, instance_token: str, class_token: str, role: Role
) -> str:
    """Return the prompt that a picture is trained with: its caption read, then `final_prompt`.

    The caption is read only if the template asks for it.
    """
    caption = read_caption(image) if FILEWORDS in template else ""
    return final_prompt(
        template, caption, instance_token=instance_token, class_token=class_token, role=role
    )


def read_caption(image: Path) -> str:
    """Return the text of the `.txt` file beside the picture, else its file name's words.

    White space is collapsed to single spaces. The file is UTF-8, or UTF-16 if it says so with a
    byte order mark; anything else is an InputError naming it.
    """
    side = caption_path(image)
    if not side.is_file():
        return words_of_name(Path(image).stem)
    try:
        data = side.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return _collapse(data.decode("utf-16" if utf16 else "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"The caption {side} is not UTF-8 text (byte {error.start}).",
            remedy="Save it as UTF-8.",
        ) from error
    except OSError as error:
        raise InputError(f"The caption {side} cannot be read: {error}.") from error


def caption_path(image: Path) -> Path:
    """Return where the caption of a picture would be: the same name ending in `.txt`."""
    return Path(image).with_suffix(".txt")


def words_of_name(stem: str) -> str:
    """Return a file name without its ending as a caption: numbering removed, `_` as space.

    Numbering is digits in front that end in `-`, `_` or `.` or start with 0 (`001-`, `12_`,
    `03 `), a name of digits only, and `(2)`, `_2`, `-2` at the end. A number that is part of the
    words (`2 dogs`, `iphone 12`) stays.
    """
    words = _TRAILING_NUMBER.sub("", _LEADING_NUMBER.sub("", stem.strip()))
    return _collapse(words.replace("_", " "))


def final_prompt(
    template: str, caption: str, *, instance_token: str, class_token: str, role: Role
) -> str:
    """Return the prompt that the text encoder sees, white space collapsed.

    `[filewords]` in the template becomes the caption; then the tokens are put right. Tokens are
    matched as whole words in any letter case.

    Role "instance": a text that has the instance token stays. Else the first class token becomes
    "<instance> <class>"; without one, "<instance> <class>, " goes in front, or "<instance> " if no
    class token is given.

    Role "class": the instance token is taken out, with the comma of a list entry it leaves empty.
    A text that then lacks the class token gets it where the first instance token was, else in
    front as "<class>, ".
    """
    instance_token, class_token = _collapse(instance_token), _collapse(class_token)
    text = _collapse(template.replace(FILEWORDS, caption))
    with_tokens = _with_instance_token if role == "instance" else _with_class_token
    return with_tokens(text, instance_token, class_token)


def has_word(text: str, word: str) -> bool:
    """Say whether `word` (one or more words) stands in `text` as whole words, in any case."""
    return bool(word) and _word(word).search(text) is not None


def _with_instance_token(text: str, instance_token: str, class_token: str) -> str:
    if not instance_token or has_word(text, instance_token):
        return text
    subject = _subject(instance_token, class_token)
    if has_word(text, class_token):
        return _replace_first(text, class_token, subject)
    separator = ", " if class_token else " "
    return f"{subject}{separator}{text}" if text else subject


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


def _subject(instance_token: str, class_token: str) -> str:
    if not class_token or has_word(instance_token, class_token):
        return instance_token
    return f"{instance_token} {class_token}"


def _remove(text: str, token: str) -> str:
    """Return the text without the token; a comma-separated entry that becomes empty goes too."""
    entries = [
        (e, _collapse(e.replace(_GONE, " "))) for e in _word(token).sub(_GONE, text).split(",")
    ]
    result = ", ".join(rest for entry, rest in entries if rest or _GONE not in entry).strip(" ,")
    # What stood around a token of several words can be the token again: "a b" in "a a b b".
    return _remove(result, token) if has_word(result, token) else result


def _replace_first(text: str, word: str, replacement: str) -> str:
    return _word(word).sub(lambda _: replacement, text, count=1)


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _collapse(text: str) -> str:
    return " ".join(text.split())
