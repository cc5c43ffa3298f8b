"""CLIP's text encoder: its config read off a header, its weights' names, and prompts through it.

Shapes: B prompts, n chunks of 77 tokens, T = 77 n tokens, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dreambooth_core.checkpoint.clip_tokenizer import WORD_END
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.config.sections.captions import CHUNK_TOKENS
from dreambooth_core.data.prompt_chunks import cut_into_chunks
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families.base import AS_THE_WEBUI, PromptReading
from dreambooth_core.families.renaming import shape_of
from dreambooth_core.families.side_file import Side, side_count, side_value

PREFIX = "cond_stage_model.transformer."
MODEL = "text_model."
REAL_WIDTH = 768
REAL_HEADS = 12
YAML = "dreambooth.text_config"
REMEMBERED_PROMPTS = 4096
_KNOWN: WeakKeyDictionary[Any, dict[str, tuple[int, ...]]] = WeakKeyDictionary()
"""The ids of prompts by tokenizer, which goes with its model: it takes 21 MB."""

PHRASE_END = re.compile(r"[,;.!?](?:\s+|$)")
START, END = 49406, 49407


def source_prefix(header: Header, prefix: str = PREFIX) -> str:
    """Return what stands before `text_model.` in a file's keys, or in its place in old files."""
    new = f"{prefix}{MODEL}"
    return new if any(key.startswith(new) for key in header.tensors) else prefix


def original_text_name(header: Header, target: str, prefix: str = PREFIX) -> str:
    """Return the name in the file of a weight of the encoder."""
    return source_prefix(header, prefix) + target.removeprefix(MODEL)


def text_config(header: Header, side: Side, prefix: str = PREFIX) -> dict[str, Any]:
    """Return transformers' config of a file's text encoder.

    Raises CheckpointError where the header and the yaml leave the number of heads open.
    """
    prefix = source_prefix(header, prefix)
    table = f"{prefix}embeddings.token_embedding.weight"
    facts = Facts(
        table=table,
        positions=f"{prefix}embeddings.position_embedding.weight",
        feed_forward=f"{prefix}encoder.layers.{{}}.mlp.fc1.weight",
        yaml=YAML,
        activation="quick_gelu",
        pad_token_id=END,
        heads=REAL_HEADS if shape_of(header, table)[1] == REAL_WIDTH else None,
    )
    return encoder_config(header, side, facts)


@dataclass(frozen=True)
class Facts:
    """Where the numbers of a text encoder stand in a file, and what no weight tells.

    `layers` are the ones that are used, if those are not all.
    """

    table: str
    positions: str
    feed_forward: str
    yaml: str
    activation: str
    pad_token_id: int
    heads: int | None
    layers: int | None = None
    projection: int = 0


def encoder_config(header: Header, side: Side, facts: Facts) -> dict[str, Any]:
    """Return transformers' config of a text encoder, with a projection if it has one."""
    vocabulary, width = shape_of(header, facts.table)
    kind = "CLIPTextModelWithProjection" if facts.projection else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": facts.projection or width,
        "intermediate_size": shape_of(header, facts.feed_forward.format(0))[0],
        "num_hidden_layers": _layers(header, side, facts),
        "num_attention_heads": _heads(header, side, facts),
        "max_position_embeddings": shape_of(header, facts.positions)[0],
        "hidden_act": _activation(header, side, facts),
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": facts.pad_token_id,
    }


def chunked_token_ids(
    tokenizer: Any, prompts: Sequence[str], reading: PromptReading = AS_THE_WEBUI
) -> Tensor:
    """Return token ids (B, n, 77), shorter prompts filled with empty chunks.

    A chunk is the start token, up to 75 tokens, an end token, and the tokenizer's pad token, as in
    the WebUI. Without padding it is (B, n, L), L being the longest chunk with its start and end.
    """
    encoded = [prompt_chunks(tokenizer, prompt, reading) for prompt in prompts]
    count = max(map(len, encoded))
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    longest = max(len(chunk) for row in encoded for chunk in row)
    length = CHUNK_TOKENS if reading.pad else longest

    def full(chunk: Sequence[int]) -> list[int]:
        return [start, *chunk, end, *[pad] * (length - len(chunk))]

    return torch.tensor(
        [[full(chunk) for chunk in [*row, *[[]] * (count - len(row))]] for row in encoded]
    )


def prompt_chunks(tokenizer: Any, prompt: str, reading: PromptReading) -> list[list[int]]:
    """Return the chunks of at most 75 tokens that a prompt is read in; there is always one."""
    comma = _comma(tokenizer)
    if reading.strict:
        phrases = [_token_ids(tokenizer, phrase) for phrase in PHRASE_END.split(prompt)]
        between = (tokenizer.eos_token_id, comma, tokenizer.bos_token_id)
        chunks = _phrase_chunks([phrase for phrase in phrases if phrase], between)
    else:
        chunks = cut_into_chunks(_token_ids(tokenizer, prompt), comma)
    return chunks[: reading.max_tokens // CHUNK_TOKENS] if reading.max_tokens else chunks


def _phrase_chunks(phrases: Sequence[Sequence[int]], between: Sequence[int]) -> list[list[int]]:
    """Put phrases into chunks with an end, a comma and a start between them, whole if they fit."""
    chunks: list[list[int]] = [[]]
    for phrase in phrases:
        for start in range(0, len(phrase), CHUNK_TOKENS):
            part, chunk = phrase[start : start + CHUNK_TOKENS], chunks[-1]
            if not chunk:
                chunk.extend(part)
            elif len(chunk) + len(between) + len(part) <= CHUNK_TOKENS:
                chunk.extend([*between, *part])
            else:
                chunks.append(list(part))
    return chunks


def _comma(tokenizer: Any) -> int:
    return int(tokenizer.convert_tokens_to_ids(f",{WORD_END}"))


def _token_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Return a prompt's ids; training asks for the same few prompts in every step."""
    known = _KNOWN.setdefault(tokenizer, {})
    if prompt not in known:
        if len(known) >= REMEMBERED_PROMPTS:
            known.clear()
        known[prompt] = _split(tokenizer, prompt)
    return known[prompt]


def _split(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    ids = tokenizer(
        prompt,
        add_special_tokens=False,
        split_special_tokens=True,  # "!" pads, and is a word of prompts too
        truncation=False,
        verbose=False,
    ).input_ids
    return tuple(ids)


def encode_chunks(text_encoder: Any, token_ids: Tensor, clip_skip: int) -> Tensor:
    """Return encoder states (B, 77 n, D) of token ids (B, n, 77), each chunk encoded on its own.

    Takes the output of the layer `clip_skip` from the end (1 is the last) through the final norm,
    which is the WebUI's rule.
    """
    layers = text_encoder.config.num_hidden_layers
    if not 1 <= clip_skip <= layers:
        raise InputError(
            f"The text encoder has {layers} layers, so clip skip cannot be {clip_skip}.",
            remedy=f"Use a value from 1 to {layers}.",
            field="text_encoder.clip_skip",
        )
    hidden = run_encoder(text_encoder, token_ids).hidden_states[-clip_skip]
    return joined_chunks(text_encoder.text_model.final_layer_norm(hidden), token_ids)


def run_encoder(text_encoder: Any, token_ids: Tensor) -> Any:
    """Return transformers' output for token ids (B, n, 77), chunks as rows of their own (B n)."""
    return text_encoder(token_ids.flatten(0, 1).to(text_encoder.device), output_hidden_states=True)


def joined_chunks(states: Tensor, token_ids: Tensor) -> Tensor:
    """Return the states (B n, 77, D) of token ids (B, n, 77) as (B, 77 n, D)."""
    examples, chunks, length = token_ids.shape
    return states.reshape(examples, chunks * length, -1)


def count_layers(header: Header, pattern: str) -> int:
    """Return how many layers a file has; `pattern` is a key with the layer's number left open."""
    count = 0
    while pattern.format(count) in header.tensors:
        count += 1
    return count


def _layers(header: Header, side: Side, facts: Facts) -> int:
    count = count_layers(header, facts.feed_forward) if facts.layers is None else facts.layers
    stated = side_count(side, f"{facts.yaml}.num_hidden_layers", count)
    if stated != count:
        raise CheckpointError(
            f"The text encoder of {header.path} has {count} layers, but its .yaml says {stated}.",
            remedy=f"Correct {facts.yaml}.num_hidden_layers there.",
        )
    return count


def _heads(header: Header, side: Side, facts: Facts) -> int:
    name = f"{facts.yaml}.num_attention_heads"
    if side_value(side, name) is not None:
        return side_count(side, name, REAL_HEADS)
    if facts.heads is not None:
        return facts.heads
    raise CheckpointError(
        f"{header.path} has a text encoder of unusual width, and no weight tells its number of"
        " attention heads.",
        remedy=f"Put its .yaml beside it, with {name}.",
    )


def _activation(header: Header, side: Side, facts: Facts) -> str:
    activation = side_value(side, f"{facts.yaml}.hidden_act") or facts.activation
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(
            f"The .yaml beside {header.path} asks for the activation {activation!r}.",
            remedy=f"{facts.yaml}.hidden_act is quick_gelu or gelu.",
        )
    return str(activation)
