"""The UNet's training: latents, timesteps, the loss at several scales, and one tiny run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.world.build import denoiser
from dreambooth_core.world.build.denoiser import (
    EMPHASIS_SHIFT,
    Latents,
    draw_timesteps,
    encode_scenes,
    multiscale_error,
    noisy_end_weights,
    train_denoiser,
)
from dreambooth_core.world.build.language import Words
from dreambooth_core.world.build.networks import new_text_encoder, new_vae
from dreambooth_core.world.captions import parse_prompt


@pytest.fixture(scope="module")
def latents() -> Latents:
    torch.manual_seed(0)
    return encode_scenes(new_vae(), count=50, seed=1)


def test_latents_have_mean_0_and_deviation_1_in_each_channel(latents: Latents) -> None:
    assert latents.values.shape == (50, 4, 16, 16) and len(latents.parts) == 50
    assert latents.values.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(latents.values.std((0, 2, 3)), torch.ones(4), atol=1e-4)


def test_weights_have_mean_1_and_lift_the_object(latents: Latents) -> None:
    assert latents.weights.shape == (50, 1, 16, 16)
    assert latents.weights.mean().item() == pytest.approx(1)
    assert latents.weights.min() < 1 < latents.weights.max()


def test_the_mean_and_deviation_give_the_raw_latents_back(latents: Latents) -> None:
    torch.manual_seed(0)
    raw = encode_scenes(new_vae(), count=50, seed=1)
    scaled = raw.values * raw.deviation.view(-1, 1, 1) + raw.mean.view(-1, 1, 1)
    assert torch.allclose(scaled.mean((0, 2, 3)), latents.mean, atol=1e-4)


def test_the_error_is_felt_at_three_scales() -> None:
    """A constant error of 1 counts 1 + 2 + 4; one of mean 0 in every 4x4 block only once."""
    constant = torch.ones(1, 4, 16, 16)
    checkered = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    checkered = checkered.expand(1, 4, 16, 16)
    errors = torch.cat([constant, checkered])
    assert multiscale_error(errors, torch.ones(2, 1, 16, 16)).tolist() == pytest.approx([7, 1])
    assert multiscale_error(errors, torch.full((2, 1, 16, 16), 3.0)).tolist() == [9, 3]


def test_noisy_timesteps_weigh_more_within_limits() -> None:
    weights = noisy_end_weights(torch.tensor([1e6, 1.0, 1 / 3, 1e-9]))
    assert weights.mean().item() == pytest.approx(1)
    ratios = (weights / weights[0]).tolist()
    assert ratios == pytest.approx([1, 2**0.5, 2, 8**0.5], rel=1e-3)


def test_timesteps_are_spread_evenly_or_lean_to_the_noisy_end() -> None:
    class Always(random.Random):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def random(self) -> float:
            return self.value

    torch.manual_seed(0)
    even = draw_timesteps(10, Always(0.0))
    assert sorted((even // 100).tolist()) == list(range(10))
    leaning = draw_timesteps(4000, Always(0.99))
    assert set(leaning.tolist()) <= set(range(1000))
    assert leaning.float().mean().item() == pytest.approx(625, abs=15)  # 1000 / (1 + 0.6)


def test_some_captions_are_dropped_and_the_others_are_true() -> None:
    rng = random.Random(0)
    parts = {"kind": "heart", "color": "red", "background": "snow"}
    texts = [denoiser._caption_or_nothing(parts, rng) for _ in range(1000)]
    assert 70 < texts.count("") < 130
    assert all(parse_prompt(text).items() <= parts.items() for text in texts)


def test_a_tiny_run_changes_both_networks_and_shifts_the_encoders_mean(
    tmp_path: Path, latents: Latents
) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    words = Words(CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"))
    encoder = new_text_encoder(len(words.token_ids), words.end)
    token = encoder.text_model.embeddings.token_embedding.weight.detach().clone()
    bias = encoder.text_model.final_layer_norm.bias.detach().clone()
    snapshot = train_denoiser(tmp_path, latents, encoder, words, steps=1, batch_size=2)
    kept = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert kept.keys() == {"unet", "text"}
    assert torch.equal(kept["unet"]["conv_in.weight"], snapshot["unet"]["conv_in.weight"])
    text = kept["text"]
    assert not torch.equal(text["text_model.embeddings.token_embedding.weight"], token)
    shifted = text["text_model.final_layer_norm.bias"] - bias
    assert torch.allclose(shifted, torch.full_like(bias, EMPHASIS_SHIFT), atol=1e-3)
