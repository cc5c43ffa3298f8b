"""How a prompt's tokens are cut into the chunks that a text encoder reads: the WebUI's rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dreambooth_core.config.sections.captions import CHUNK_TOKENS

COMMA_BACKTRACK = 20
"""How far from a full chunk's end the WebUI looks for a comma, unless it is told otherwise."""

Token = TypeVar("Token", int, str)
"""A token by its number or its letters."""


def cut_into_chunks(tokens: Sequence[Token], comma: Token) -> list[list[Token]]:
    """Cut a prompt into chunks of at most 75 tokens; there is always one.

    Where a chunk is full, what follows its last comma goes into the next one if the comma is among
    its last 20 tokens: the WebUI's rule with its default `comma_padding_backtrack`.
    """
    chunks: list[list[Token]] = [[]]
    for token in tokens:
        chunk = chunks[-1]
        if len(chunk) == CHUNK_TOKENS:
            kept = len(chunk) if token == comma else _end_of_phrase(chunk, comma)
            chunks[-1:] = [chunk[:kept], chunk[kept:]]
        chunks[-1].append(token)
    return chunks


def _end_of_phrase(chunk: list[Token], comma: Token) -> int:
    """Return where a full chunk ends: behind its last comma if that is near, else at its end."""
    near = chunk[-COMMA_BACKTRACK:]
    return len(chunk) - near[::-1].index(comma) if comma in near else len(chunk)
