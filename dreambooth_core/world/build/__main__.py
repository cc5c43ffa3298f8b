"""Makes the world's model from nothing: `python -m dreambooth_core.world.build STAGE --out DIR`.

The stages, in this order: `autoencoder`, `language`, `latents`, `denoiser`, `export`. The first
and the fourth gain from two processes: `torchrun --nproc_per_node 2 -m
dreambooth_core.world.build autoencoder --out DIR`. What judges the model is made by
`python -m dreambooth_core.world.build.subjects`, `.judge` and `.gate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.world.build.autoencoder import train_autoencoder
from dreambooth_core.world.build.denoiser import Latents, encode_scenes, train_denoiser
from dreambooth_core.world.build.export import (
    export,
    fold_normalisation,
    model_metadata,
    spread_vocabulary,
)
from dreambooth_core.world.build.fitting import keep, say
from dreambooth_core.world.build.language import Words, train_text_encoder
from dreambooth_core.world.build.networks import new_text_encoder, new_vae


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(prog="dreambooth_core.world.build", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder for what the stages make")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options.out)


def autoencoder(out: Path) -> None:
    """Train the VAE."""
    train_autoencoder(out)


def language(out: Path) -> None:
    """Train the text encoder to tell what captions say."""
    train_text_encoder(out, _words(out))


def latents(out: Path) -> None:
    """Encode the scenes that the UNet is trained on."""
    vae = new_vae()
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    encoded = encode_scenes(vae)
    keep(out / "latents.pt", vars(encoded))


def denoiser(out: Path) -> None:
    """Train UNet and text encoder."""
    words = _words(out)
    text_encoder = new_text_encoder(len(words.token_ids), words.end)
    text_encoder.load_state_dict(torch.load(out / "text.pt", weights_only=True))
    train_denoiser(out, _latents(out), text_encoder, words)


def write_checkpoint_file(out: Path) -> None:
    """Write the single file and its side file."""
    encoded = _latents(out)
    vae = torch.load(out / "vae.pt", weights_only=True)
    networks = torch.load(out / "denoiser.pt", weights_only=True)
    size = export(
        out / "world.safetensors",
        networks["unet"],
        fold_normalisation(vae, encoded.mean, encoded.deviation),
        spread_vocabulary(networks["text"], _words(out).token_ids),
        model_metadata(),
    )
    say(f"{out / 'world.safetensors'}: {size / 1e6:.1f} MB")


def _words(out: Path) -> Words:
    write_tokenizer(out / "tokenizer")
    return Words(CLIPTokenizer.from_pretrained(out / "tokenizer"))


def _latents(out: Path) -> Latents:
    return Latents(**torch.load(out / "latents.pt", weights_only=True))


STAGES: dict[str, Callable[[Path], None]] = {
    "autoencoder": autoencoder,
    "language": language,
    "latents": latents,
    "denoiser": denoiser,
    "export": write_checkpoint_file,
}

if __name__ == "__main__":
    main()
