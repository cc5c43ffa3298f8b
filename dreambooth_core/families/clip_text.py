"""CLIP's text encoder: its config read off a header, its weights' names, and prompts through it.

Shapes: B prompts, n chunks of 77 tokens, T = 77 n tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families.renaming import shape_of
from dreambooth_core.families.side_file import Side, side_count, side_value

PREFIX = "cond_stage_model.transformer."
MODEL = "text_model."
REAL_WIDTH = 768
REAL_HEADS = 12
YAML = "dreambooth.text_config"
CHUNK_TOKENS = 75
"""Tokens of a prompt in one pass of the encoder; start and end token make it 77."""
REMEMBERED_PROMPTS = 4096


def source_prefix(header: Header) -> str:
    """Return what stands before `text_model.` in a file's keys, or in its place in old files."""
    new = f"{PREFIX}{MODEL}"
    return new if any(key.startswith(new) for key in header.tensors) else PREFIX


def original_text_name(header: Header, target: str) -> str:
    """Return the name in the file of a weight of the encoder."""
    return source_prefix(header) + target.removeprefix(MODEL)


def text_config(header: Header, side: Side) -> dict[str, Any]:
    """Return transformers' config of a file's text encoder.

    Raises CheckpointError where the header and the yaml leave the number of heads open.
    """
    prefix = source_prefix(header)
    vocabulary, width = shape_of(header, f"{prefix}embeddings.token_embedding.weight")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shape_of(header, f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _layers(header, side, prefix),
        "num_attention_heads": _heads(header, side, width),
        "max_position_embeddings": shape_of(
            header, f"{prefix}embeddings.position_embedding.weight"
        )[0],
        "hidden_act": _activation(header, side),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }


def chunked_token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return token ids (B, n, 77), shorter prompts filled with empty chunks.

    A chunk is the start token, up to 75 tokens, and end tokens, as in the WebUI.
    """
    encoded = [list(_token_ids(tokenizer, prompt)) for prompt in prompts]
    chunks = max(1, *(-(-len(ids) // CHUNK_TOKENS) for ids in encoded))
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for ids in encoded:
        padded = ids + [end] * (chunks * CHUNK_TOKENS - len(ids))
        parts = [padded[i : i + CHUNK_TOKENS] for i in range(0, len(padded), CHUNK_TOKENS)]
        rows.append([[start, *part, end] for part in parts])
    return torch.tensor(rows)


@lru_cache(maxsize=REMEMBERED_PROMPTS)
def _token_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Return a prompt's ids; training asks for the same few prompts in every step."""
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
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
    examples, chunks, length = token_ids.shape
    ids = token_ids.reshape(examples * chunks, length).to(text_encoder.device)
    output = text_encoder(ids, output_hidden_states=True)
    states = text_encoder.text_model.final_layer_norm(output.hidden_states[-clip_skip])
    return states.reshape(examples, chunks * length, -1)  # type: ignore[no-any-return]


def _layers(header: Header, side: Side, prefix: str) -> int:
    count = 0
    while f"{prefix}encoder.layers.{count}.mlp.fc1.weight" in header.tensors:
        count += 1
    stated = side_count(side, f"{YAML}.num_hidden_layers", count)
    if stated != count:
        raise CheckpointError(
            f"The text encoder of {header.path} has {count} layers, but its .yaml says {stated}.",
            remedy=f"Correct {YAML}.num_hidden_layers there.",
        )
    return count


def _heads(header: Header, side: Side, width: int) -> int:
    if side_value(side, f"{YAML}.num_attention_heads") is not None:
        return side_count(side, f"{YAML}.num_attention_heads", REAL_HEADS)
    if width == REAL_WIDTH:
        return REAL_HEADS
    raise CheckpointError(
        f"{header.path} has a text encoder of unusual width, and no weight tells its number of"
        " attention heads.",
        remedy=f"Put its .yaml beside it, with {YAML}.num_attention_heads.",
    )


def _activation(header: Header, side: Side) -> str:
    activation = side_value(side, f"{YAML}.hidden_act") or "quick_gelu"
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(
            f"The .yaml beside {header.path} asks for the activation {activation!r}.",
            remedy=f"{YAML}.hidden_act is quick_gelu or gelu.",
        )
    return str(activation)
