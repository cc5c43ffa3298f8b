"""The VAE's training: growing from the inside out, the loss, and what a phase may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from dreambooth_core.world.build import autoencoder
from dreambooth_core.world.build.autoencoder import (
    PHASES,
    Phase,
    as_input,
    draw_pictures,
    picture_loss,
    psnr,
    run_phase,
    train_autoencoder,
    with_one_more_level,
)
from dreambooth_core.world.build.fitting import Rates
from dreambooth_core.world.build.networks import new_vae

TINY = Phase("tiny", 2, 32, 2, 3, Rates(1e-3, 1e-3, 1))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return draw_pictures(6, seed=3)


def test_pictures_are_whole_scenes_and_follow_the_seed(pictures: torch.Tensor) -> None:
    assert pictures.shape == (6, 3, 128, 128) and pictures.dtype == torch.uint8
    assert torch.equal(draw_pictures(2, seed=3), pictures[:2])
    assert not torch.equal(draw_pictures(2, seed=4), pictures[:2])


def test_inputs_lie_in_minus_one_to_one_and_are_reduced_by_area() -> None:
    picture = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    picture[..., ::2] = 255
    assert as_input(picture).unique().tolist() == [-1, 1]
    assert as_input(picture, 32).abs().max() < 1e-6


def test_the_loss_of_a_step_edge_by_hand() -> None:
    """Error 0.5 on the right half of 2x4: |e| 0.25, e^2 0.125, across 0.5 / 3, down 0."""
    error = torch.zeros(1, 1, 2, 4)
    error[..., 2:] = 0.5
    loss = picture_loss(error, torch.zeros_like(error))
    assert loss.item() == pytest.approx(0.25 + 0.125 + 0.5 / 3)


def test_a_grown_vae_keeps_its_inner_levels_and_halves_the_scale() -> None:
    small = new_vae(2)
    grown = with_one_more_level(small)
    assert grown.config.block_out_channels == (64, 64, 64)
    old, new = small.state_dict(), grown.state_dict()
    down = "encoder.down_blocks.{}.downsamplers.0.conv.weight"
    assert torch.equal(old[down.format(0)], new[down.format(1)])
    kept = (
        "encoder.mid_block.resnets.0.conv1.weight",
        "decoder.up_blocks.0.resnets.0.conv1.weight",
        "decoder.conv_out.weight",
        "quant_conv.bias",
    )
    for key in kept:
        assert torch.equal(old[key], new[key]), key
    assert not torch.equal(old["encoder.conv_in.weight"], new["encoder.conv_in.weight"])
    assert grown.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 4, 16, 16)


def test_a_decoder_phase_leaves_the_encoder_as_it_is(pictures: torch.Tensor) -> None:
    vae = new_vae(2)
    before = {key: weight.clone() for key, weight in vae.state_dict().items()}
    run_phase(vae, replace(TINY, decoder_only=True), pictures)
    for key, weight in vae.state_dict().items():
        if key.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(weight, before[key]), key
    assert not torch.equal(
        vae.state_dict()["decoder.conv_in.weight"], before["decoder.conv_in.weight"]
    )


def test_a_whole_phase_teaches_the_encoder_too(pictures: torch.Tensor) -> None:
    vae = new_vae(2)
    before = vae.state_dict()["encoder.conv_in.weight"].clone()
    run_phase(vae, TINY, pictures)
    assert not torch.equal(vae.state_dict()["encoder.conv_in.weight"], before)


def test_psnr_is_that_of_the_error(pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 0.2 on a range of 2 is 20 dB."""
    vae = new_vae(2)
    gray = torch.full((2, 3, 128, 128), 100, dtype=torch.uint8)
    wrong = as_input(gray)[:1, :, :32, :32].repeat(2, 1, 1, 1) + 0.2

    class Decoded:
        sample = wrong

    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, latents: Decoded)
    assert psnr(vae, gray, 32) == pytest.approx(20, abs=0.01)


def test_batches_are_mostly_pieces_and_sometimes_whole_pictures(pictures: torch.Tensor) -> None:
    phase = replace(TINY, picture_size=128, batch_size=5)
    shapes = [tuple(autoencoder._draw_batch(pictures, phase, step).shape) for step in range(12)]
    assert shapes == [(5, 3, 64, 64)] * 11 + [(2, 3, 128, 128)]
    assert autoencoder._draw_batch(pictures, TINY, 0).shape == (2, 3, 32, 32)


def test_the_phases_grow_to_the_whole_vae_and_end_with_the_decoder() -> None:
    levels = [phase.levels for phase in PHASES]
    assert levels == sorted(levels) and levels[-1] == 4
    assert all(phase.picture_size == 8 * 2**phase.levels for phase in PHASES)
    assert PHASES[-1].decoder_only and not any(phase.decoder_only for phase in PHASES[:-1])


def test_training_grows_the_vae_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autoencoder, "PICTURES", 3)
    phases = (
        replace(TINY, steps=1),
        replace(TINY, name="next", levels=3, picture_size=64, steps=1),
    )
    vae = train_autoencoder(tmp_path, phases)
    kept = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert kept.keys() == vae.state_dict().keys() == new_vae(3).state_dict().keys()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny", "next"]
    assert np.isfinite(float(lines[-1].split()[1]))
