"""Puts the built-in checkpoint among a WebUI's checkpoints, in a form that the WebUI loads.

The WebUI builds the text encoder from the folder that `cond_stage_config.params.version` of the
side `.yaml` names, a config and a tokenizer. Without it, it takes the usual encoder, 768 wide,
which does not fit ours. Checkpoints saved from a model take the source's `.yaml` along, and so
load too. (Forge reads no side file and knows usual sizes only: it cannot load ours.)
"""

from __future__ import annotations

import filecmp
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.clip_tokenizer import MAX_TOKENS, write_tokenizer
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.storage import atomic_write_bytes, atomic_write_json
from dreambooth_core.job.workspace import Workspace

CHECKPOINT = Path(__file__).parent / "assets" / "world.safetensors"
NAME = "dreambooth-built-in"
CONFIG = "config.json"
EMBEDDER = "      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder\n"
TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 80,
    "projection_dim": 80,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
"""The shape of the built-in text encoder, which a WebUI cannot read off the weights."""


def install(workspace: Workspace) -> Path:
    """Return the built-in checkpoint in the checkpoints folder, put there if it is not.

    No other file is written over. The checkpoint itself comes last: what is listed is complete.
    """
    folder = workspace.built_in_clip_dir
    _write_text_encoder(folder)
    side = side_settings(folder).encode("utf-8")
    for path in _candidates(workspace.checkpoints_dir):
        is_ours = path.is_file() and filecmp.cmp(path, CHECKPOINT, shallow=False)
        if not is_ours and (path.exists() or _is_other(side_path(path), side)):
            continue
        if _is_other(side_path(path), side) or not side_path(path).exists():
            atomic_write_bytes(side_path(path), side)
        if not is_ours:
            atomic_write_bytes(path, disk.read(CHECKPOINT))
        return path
    raise AssertionError("the candidates never end")


def side_settings(folder: Path) -> str:
    """Return the built-in checkpoint's `.yaml`, naming the folder of the text encoder's files."""
    text = side_path(CHECKPOINT).read_text(encoding="utf-8")
    before, _, after = text.partition(EMBEDDER)
    version = json.dumps(str(folder.absolute()), ensure_ascii=False)  # a string of YAML, too
    return f"{before}{EMBEDDER}      params:\n        version: {version}\n{after}"


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder / f"{NAME}.safetensors"
    yield from (folder / f"{NAME}-{number}.safetensors" for number in itertools.count(2))


def _is_other(path: Path, contents: bytes) -> bool:
    return path.exists() and disk.read(path) != contents


def _write_text_encoder(folder: Path) -> None:
    """Write config and tokenizer, the config last: its presence means "complete"."""
    if _known_config(folder) == TEXT_CONFIG:
        return
    write_tokenizer(folder)
    atomic_write_json(folder / CONFIG, TEXT_CONFIG)


def _known_config(folder: Path) -> object:
    try:
        return json.loads(disk.read(folder / CONFIG))
    except (OSError, ValueError):
        return None
