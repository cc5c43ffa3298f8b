"""How inputs are bent: bytes, texts and JSON trees."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

WORDS = (
    *("", " ", "\0", "a\0b", "..", "../..", "../../etc/passwd", "/etc/passwd", "C:\\Windows", "~"),
    *("CON", "nul.txt", "COM1", "a/b", "a\\b", "a:b", ".", ".hidden", "x.", "x ", "-", "--help"),
    *(
        "\u202egpj.exe",
        "e\u0301",
        "\u00e9",
        "\U0001f600" * 60,
        "a" * 300,
        "\ud800",
        "\ufeff",
        "\u2028",
    ),
    *("<script>alert(1)</script>", "'; DROP", "{0}", "%s%n", "${HOME}", "\r\nX: y", "\x1b[31m"),
    *("true", "null", "1e999", "NaN", "-1", "0", "٣", "²", "1_0", "0x10", "inf", "1" * 5000),
    *("[filewords]", "[name]", "a (b:1.5) [c] \\(d\\)", "((((", "))))", "[a:b:0.5]", "ada", "sd1"),
)
NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 65536, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, -0.5, 1e-300, 1e300, 1.5, 1e18),
    *(float("nan"), float("inf"), float("-inf")),
)
PLAIN: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": {}}, {"a": 1}, [{}], "")


def value(chance: Random, depth: int = 0) -> Any:
    """Return something that JSON can hold, often odd."""
    kind = chance.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return chance.choice(PLAIN)
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind == 2:
        return chance.choice(WORDS)
    if kind == 3:
        return text(chance)
    inner = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return inner if kind == 4 else {chance.choice(WORDS): item for item in inner}


def text(chance: Random, longest: int = 30) -> str:
    """Return characters of all kinds, none of them half of one."""
    made = []
    for _ in range(chance.randrange(longest)):
        top = chance.choice((0x80, 0x80, 0x100, 0x3000, 0x10FFFF))
        letter = chance.randrange(1, top)
        made.append(chr(letter) if not 0xD800 <= letter < 0xE000 else "?")
    return "".join(made)


def tree(chance: Random, whole: Any, changes: int | None = None) -> Any:
    """Return a copy of a JSON value with some of it replaced, left out, repeated or added."""
    for _ in range(changes if changes is not None else chance.randint(1, 4)):
        whole = _changed(chance, whole)
    return whole


def deep(chance: Random) -> str:
    """Return a JSON text that is nested deeply."""
    depth = chance.choice((60, 500, 3000, 100_000))
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    return opening * depth + "1" + closing * chance.choice((depth, 0))


def raw(chance: Random, data: bytes, changes: int | None = None) -> bytes:
    """Return bytes with some flipped, cut out, put in, doubled or set to limits."""
    made = bytearray(data)
    for _ in range(changes if changes is not None else chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(made) + 1)
        kind = chance.randrange(7)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(made):
            made[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del made[place : place + chance.choice((1, 2, 4, 50))]
        elif kind == 3:
            made[place:place] = chance.randbytes(chance.choice((1, 4, 30)))
        elif kind == 4:
            made[place:place] = made[place : place + chance.choice((4, 40))]
        elif kind == 5:
            size = chance.choice((2, 4, 8))
            number = chance.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1))
            order = chance.choice(("little", "big"))
            made[place : place + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif chance.random() < 0.3:
            del made[place:]
    return bytes(made)


def encoded(chance: Random, words: str) -> bytes:
    """Return a text in some encoding, or what is none."""
    names = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp932")
    data = words.encode(chance.choice(names), "replace")
    return raw(chance, data) if chance.random() < 0.3 else data


def _changed(chance: Random, node: Any) -> Any:
    if not isinstance(node, dict | list) or not node or chance.random() < 0.05:
        return value(chance)
    if isinstance(node, dict):
        return _changed_dict(chance, dict(node))
    place = chance.randrange(len(node))
    made = list(node)
    kind = chance.randrange(6)
    if kind == 0:
        del made[place]
    elif kind == 1:
        made[place:place] = [made[place]] * chance.choice((1, 3, 40))
    else:
        made[place] = _changed(chance, made[place])
    return made


def _changed_dict(chance: Random, made: dict[str, Any]) -> dict[str, Any]:
    key = chance.choice(list(made))
    kind = chance.randrange(10)
    if kind == 0:
        del made[key]
    elif kind == 1:
        made[chance.choice(WORDS)] = made[key]
    elif kind == 2:
        made[key] = made[chance.choice(list(made))]
    else:
        made[key] = _changed(chance, made[key])
    return made


def pick(chance: Random, choices: Sequence[Any], share: float = 0.8) -> Any:
    """Return one of the choices, or now and then an odd word."""
    return chance.choice(choices) if chance.random() < share else chance.choice(WORDS)
