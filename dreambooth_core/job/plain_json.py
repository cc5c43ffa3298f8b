"""JSON that somebody else may have written: parsed without surprises, and held against a shape."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from functools import cache
from json import JSONDecoder, dumps
from typing import Any, Union, get_args, get_origin, get_type_hints

MAX_DEPTH = 50
"""Nothing of ours is nested deeper than some six levels."""


def parse(data: bytes | str, *, most_digits: int = 0, repeats: bool = False) -> Any:
    """Return a JSON value; raises ValueError for what is none, and for all that is only nearly one.

    That is text that is not UTF-8, NaN and infinity, a name that an object has twice but for
    `repeats`, whole numbers of more than `most_digits` if that is given, and values that are nested
    so deeply that who walks through them would fail.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = _decoder(most_digits, repeats).decode(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        refuse_depth(value)
    if isinstance(data, str) or "\\ud" in text.lower():
        # Half of a surrogate pair is a str in Python, but in no text.
        dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def line_of(value: Any) -> str:
    """Return a value as one line of JSON; what is half of a character becomes a question mark.

    Names of files may hold such. Raises ValueError for NaN and infinity.
    """
    text = dumps(value, allow_nan=False)
    if "\\ud" in text:
        whole = dumps(value, allow_nan=False, ensure_ascii=False)
        text = whole.encode("utf-8", "replace").decode("utf-8")
    return text


def fits(cls: type, values: dict[str, Any]) -> bool:
    """Whether a dataclass made of these values would have the types that its fields say.

    Names that it does not have do not fit, nor does one of its own that is missing and must not be.
    """
    checks, required = _shape(cls)
    return (
        values.keys() <= checks.keys()
        and required <= values.keys()
        and all(checks[name](value) for name, value in values.items())
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if type(value) is float or type(value) is int:
        return -sys.float_info.max <= value <= sys.float_info.max
    return False


@cache
def _shape(cls: type) -> tuple[dict[str, Callable[[Any], bool]], frozenset[str]]:
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    missing = dataclasses.MISSING
    required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
    return {f.name: _check_of(hints[f.name]) for f in fields}, frozenset(required)


def _check_of(hint: Any) -> Callable[[Any], bool]:
    """Return whether a JSON value is of a type; a dataclass is an object that fits it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is list:
        item = _check_of(inner[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if origin is dict:
        held = _check_of(inner[1])
        return lambda value: isinstance(value, dict) and all(map(held, value.values()))
    if origin in (Union, types.UnionType):
        checks = [_check_of(one) for one in inner]
        return lambda value: any(check(value) for check in checks)
    if dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, dict) and fits(hint, value)  # type: ignore[arg-type]
    return _PLAIN[hint]


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int: lambda value: type(value) is int and is_number(value),
    float: is_number,
    type(None): lambda value: value is None,
}


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if -sys.float_info.max <= value <= sys.float_info.max:
        return value
    raise ValueError(f"{text[:20]} is too large a number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; raises ValueError if a name is there twice."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{twice[:100]!r} is there twice")


def refuse_depth(value: Any) -> None:
    """Raise ValueError for a value that is nested deeper than anything of ours."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


@cache
def _decoder(most_digits: int, repeats: bool) -> JSONDecoder:
    def whole(text: str) -> int:
        if len(text) > most_digits:
            raise ValueError(f"a number has {len(text)} digits")
        return int(text)

    return JSONDecoder(
        parse_constant=_refuse,
        parse_float=_finite,
        parse_int=whole if most_digits else None,
        object_pairs_hook=None if repeats else _without_repeats,
    )
