"""The single file: exact rewritings of the weights, the original layout, and its side file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from dreambooth_core.world.build import gate
from dreambooth_core.world.build.export import (
    TOKENS,
    export,
    fold_normalisation,
    model_metadata,
    original_layout,
    side_yaml,
    spread_vocabulary,
)
from dreambooth_core.world.build.networks import new_text_encoder, new_unet, new_vae

MEAN = torch.tensor([-0.3, 0.5, 0.1, 0.0])
DEVIATION = torch.tensor([1.7, 1.8, 2.0, 2.2])
FACTOR = 0.18215
WORDS = [5, 320, 49406, 49407]


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return {
        "unet": new_unet().state_dict(),
        "vae": new_vae().state_dict(),
        "text": new_text_encoder(4, 3).state_dict(),
    }


def test_words_get_their_rows_and_the_others_small_noise(
    weights: dict[str, dict[str, Tensor]],
) -> None:
    spread = spread_vocabulary(weights["text"], WORDS)
    table = spread[TOKENS]
    assert table.shape == (49_408, 80)
    assert torch.equal(table[WORDS], weights["text"][TOKENS])
    assert 0.015 < table[6:300].std() < 0.025
    assert spread.keys() == weights["text"].keys()


@torch.no_grad()
def test_the_folded_vae_encodes_to_normalised_latents_and_decodes_them_alike(
    weights: dict[str, dict[str, Tensor]],
) -> None:
    plain, folded = new_vae().eval(), new_vae().eval()
    plain.load_state_dict(weights["vae"])
    folded.load_state_dict(fold_normalisation(weights["vae"], MEAN, DEVIATION))
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    before, after = plain.encode(pixels).latent_dist, folded.encode(pixels).latent_dist
    scale = DEVIATION.view(-1, 1, 1)
    normal = (before.mean - MEAN.view(-1, 1, 1)) / scale
    assert torch.allclose(after.mean * FACTOR, normal, atol=1e-5)
    assert torch.allclose(after.std * FACTOR, before.std / scale, rtol=1e-4)
    again = folded.decode(after.mean).sample
    assert torch.allclose(again, plain.decode(before.mean).sample, atol=1e-5)


def test_the_layout_is_the_original_one(weights: dict[str, dict[str, Tensor]]) -> None:
    text = spread_vocabulary(weights["text"], WORDS)
    named = original_layout(weights["unet"], weights["vae"], text)
    assert len(named) == sum(len(part) for part in (weights["unet"], weights["vae"], text))
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    assert all(key.startswith(prefixes) for key in named)
    wanted = {
        "model.diffusion_model.input_blocks.0.0.weight": weights["unet"]["conv_in.weight"],
        "model.diffusion_model.out.2.bias": weights["unet"]["conv_out.bias"],
        "first_stage_model.decoder.conv_out.weight": weights["vae"]["decoder.conv_out.weight"],
        f"cond_stage_model.transformer.{TOKENS}": text[TOKENS],
    }
    for key, weight in wanted.items():
        assert torch.equal(named[key], weight), key
    assert named["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)


def test_the_side_file_says_what_no_weight_tells() -> None:
    side = yaml.safe_load(side_yaml())
    params = side["model"]["params"]
    unet = params["unet_config"]["params"]
    assert (unet["model_channels"], unet["channel_mult"]) == (64, [1, 2, 2])
    assert (unet["num_heads"], unet["context_dim"]) == (4, 80)
    assert unet["attention_resolutions"] == [2, 4]
    vae = params["first_stage_config"]["params"]["ddconfig"]
    assert (vae["ch"], vae["ch_mult"], vae["num_res_blocks"]) == (64, [1, 1, 1, 1], 0)
    assert (params["image_size"], params["scale_factor"]) == (16, FACTOR)
    assert (params["linear_start"], params["linear_end"]) == (0.00085, 0.012)
    text = side["dreambooth"]["text_config"]
    assert (text["num_attention_heads"], text["num_hidden_layers"]) == (4, 3)


@torch.no_grad()
def test_the_written_file_loads_as_the_networks_that_were_written(
    weights: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    text = spread_vocabulary(weights["text"], WORDS)
    path = tmp_path / "world.safetensors"
    size = export(path, weights["unet"], weights["vae"], text, model_metadata())
    assert size == path.stat().st_size < 24e6
    loaded = gate.load_checkpoint(path)
    assert loaded.family == "sd1" and loaded.prediction_type == "epsilon"
    assert loaded.unet.config.attention_head_dim == 4
    assert loaded.unet.config.sample_size == 16
    for name, wanted in (
        ("unet", weights["unet"]),
        ("vae", weights["vae"]),
        ("text_encoder", text),
    ):
        state = getattr(loaded, name).state_dict()
        for key, weight in wanted.items():
            assert torch.equal(state[key].float(), weight.half().float()), key
