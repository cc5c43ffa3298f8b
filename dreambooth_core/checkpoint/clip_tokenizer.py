"""The tokenizer of CLIP, written out from the merges that we ship, so that no network is needed."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth_core.job.storage import atomic_write_bytes, atomic_write_json

MERGES_FILE = Path(__file__).parent / "assets" / "clip_merges.txt.gz"
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
ZERO_TOKEN = "!"
"""Token number 0, with which OpenCLIP fills prompts up."""
WORD_END = "</w>"
MAX_TOKENS = 77


@lru_cache(maxsize=1)
def merges() -> tuple[str, ...]:
    """Return the 48,894 pairs in the order in which they are joined."""
    return tuple(gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").splitlines())


def byte_letters() -> list[str]:
    """Return the printable letter that stands for each byte, in the vocabulary's order.

    Printable bytes of Latin-1 stand for themselves and come first; the others follow as the
    letters from code point 256 on (Radford et al. 2019, GPT-2's byte-level vocabulary).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]


def vocabulary() -> dict[str, int]:
    """Return every token's number: 49,408 in all."""
    letters = byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges()]
    return {token: i for i, token in enumerate([*tokens, START_TOKEN, END_TOKEN])}


def write_tokenizer(folder: Path, pad_token: str = END_TOKEN) -> None:
    """Write the four files that `CLIPTokenizer.from_pretrained` reads."""
    vocabulary_json = json.dumps(vocabulary(), ensure_ascii=False).encode("utf-8")
    atomic_write_bytes(folder / "vocab.json", vocabulary_json)
    lines = ["#version: 0.2", *merges(), ""]
    atomic_write_bytes(folder / "merges.txt", "\n".join(lines).encode("utf-8"))
    special = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN}
    special["pad_token"] = pad_token
    atomic_write_json(folder / "special_tokens_map.json", special)
    config: dict[str, Any] = {**special, "tokenizer_class": "CLIPTokenizer"}
    config |= {"model_max_length": MAX_TOKENS, "do_lower_case": True, "errors": "replace"}
    atomic_write_json(folder / "tokenizer_config.json", config)
