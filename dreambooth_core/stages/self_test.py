"""Whether the trainer's own packages are the ones that are loaded, and compute with this torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load, save
from torch.utils.tensorboard import SummaryWriter
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_core.errors import OverlayError

PACKAGES = (
    *("accelerate", "diffusers", "huggingface_hub", "lion_pytorch", "peft", "prodigyopt"),
    *("pytorch_optimizer", "safetensors", "schedulefree", "tensorboard", "tokenizers"),
    "transformers",
)


def run(folder: Path) -> None:
    """Raise unless the packages in `folder` are used and a tiny text encoder learns and is kept."""
    check_origins(folder, PACKAGES)
    check_text_encoder()
    with TemporaryDirectory() as logs, SummaryWriter(logs) as writer:
        writer.add_scalar("loss", 1.0, 1)


def check_origins(folder: Path, names: Sequence[str]) -> None:
    """Raise OverlayError if a package is taken from elsewhere."""
    for name in names:
        origin = Path(importlib.import_module(name).__file__ or "").resolve()
        if folder.resolve() not in origin.parents:
            raise OverlayError(f"{name} is taken from {origin} and not from {folder}.")


def check_text_encoder() -> None:
    """Take a gradient through a tiny CLIP text encoder; its weights must survive being saved."""
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    encoder = CLIPTextModel(config)
    encoder(torch.tensor([[1, 5, 2]])).last_hidden_state.sum().backward()
    weights = encoder.state_dict()
    read = load(save(weights))
    if not all(torch.equal(read[name], weight) for name, weight in weights.items()):
        raise OverlayError("Weights that were written with safetensors are read differently.")
