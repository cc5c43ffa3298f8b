"""CLIP's byte pair encoding in plain Python: how many tokens a prompt takes, and which they are.

The merges come from the model's own tokenizer, so that nothing heavy is loaded for a count.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dreambooth_core.checkpoint.clip_tokenizer import WORD_END, byte_letters, merges
from dreambooth_core.job.workspace import ModelFolder

MERGES_FILE = "merges.txt"
FIRST_MERGED = 512
"""Tokens before the first merge: each byte, within a word and at its end."""

_BYTE_ORDER = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_PIECES = re.compile(rf"{_CONTRACTIONS}|[^\W\d_]+|\d|(?:(?!\w)\S|_)+", re.IGNORECASE)
_REMEMBERED_WORDS = 65536


class ClipWords:
    """A model's tokenizer as far as counting and looking words up goes."""

    def __init__(self, merge_rules: Sequence[str]) -> None:
        """Take the merges in their order, each as two parts with a space between."""
        self._ranks = {tuple(rule.split()): rank for rank, rule in enumerate(merge_rules)}
        self._numbers = {
            "".join(rule.split()): FIRST_MERGED + rank for rank, rule in enumerate(merge_rules)
        }
        self._letters = _letter_of_byte()
        self._split = lru_cache(_REMEMBERED_WORDS)(self._merge)

    @classmethod
    def of_model(cls, model: ModelFolder) -> ClipWords:
        """Read the merges of a created model; those we ship if it has none."""
        path = model.component("tokenizer") / MERGES_FILE
        return _of_file(path, path.stat().st_mtime_ns) if path.is_file() else cls(merges())

    def tokens(self, text: str) -> list[str]:
        """Return a prompt's tokens, without the start and the end one."""
        spread = "".join(map(_apart, unicodedata.normalize("NFC", text).lower()))
        return [token for word in _PIECES.findall(spread) for token in self._split(word)]

    def number(self, word: str) -> int | None:
        """Return the number of the token that is a whole word; None if it takes several.

        The numbers follow how common the words were in the text that the vocabulary was made of.
        """
        tokens = self.tokens(word)
        return self._numbers.get(tokens[0]) if len(tokens) == 1 else None

    def _merge(self, word: str) -> tuple[str, ...]:
        """Return a word's tokens: the pair that comes first among the merges is joined first."""
        letters = [self._letters[byte] for byte in word.encode("utf-8")]
        parts = [*letters[:-1], letters[-1] + WORD_END]
        while len(parts) > 1:
            pairs = [self._ranks.get(pair) for pair in itertools.pairwise(parts)]
            known = [rank for rank in pairs if rank is not None]
            if not known:
                break
            parts = _joined(parts, pairs, min(known))
        return tuple(parts)


def _apart(letter: str) -> str:
    """Return a letter, with space around it where it is a piece of its own: CJK, and ½, ², Ⅷ."""
    alone = letter > "\x7f" and (
        unicodedata.name(letter, "").startswith("CJK")
        or unicodedata.category(letter) in ("No", "Nl")
    )
    return f" {letter} " if alone else letter


def _joined(parts: Sequence[str], ranks: Sequence[int | None], best: int) -> list[str]:
    joined: list[str] = []
    position = 0
    while position < len(parts):
        if position < len(ranks) and ranks[position] == best:
            joined.append(parts[position] + parts[position + 1])
            position += 2
        else:
            joined.append(parts[position])
            position += 1
    return joined


@lru_cache(maxsize=2)
def _of_file(path: Path, _changed: int) -> ClipWords:
    lines = path.read_text(encoding="utf-8").splitlines()
    return ClipWords([line for line in lines[1:] if line.strip()])


def _letter_of_byte() -> dict[int, str]:
    """Return the printable letter that stands for each byte, as in the vocabulary."""
    order = [*_BYTE_ORDER, *(byte for byte in range(256) if byte not in _BYTE_ORDER)]
    return dict(zip(order, byte_letters(), strict=True))
