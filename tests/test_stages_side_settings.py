"""The `.yaml` beside a checkpoint: what hosts read there, and that it tells us the same again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.checkpoint.contents import TensorInfo
from dreambooth_core.families import FAMILIES
from dreambooth_core.stages.side_settings import side_text, tells_itself
from tests.original_layout import (
    SD15,
    SD21,
    SDXL,
    TINY,
    TINY_SD2,
    TINY_SDXL,
    Layout,
    checkpoint_shapes,
    side_yaml,
)
from tests.tiny import header_of


def configs_of(layout: Layout, kind: str, side: Any = None, ztsnr: bool = False) -> dict[str, Any]:
    header = header_of(checkpoint_shapes(layout))
    if ztsnr:
        header.tensors["ztsnr"] = TensorInfo("F32", (0,), 0, 0)
    return FAMILIES[layout.family].configs(header, side, kind)


@pytest.mark.parametrize("layout", [TINY, TINY_SD2, TINY_SDXL, replace(TINY, in_channels=9)])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("ztsnr", [False, True])
def test_what_is_written_tells_the_same_again(layout: Layout, kind: str, ztsnr: bool) -> None:
    original = yaml.safe_load(side_yaml(layout))
    params = original["model"]["params"]
    if layout.family != "sdxl":
        params["parameterization"] = "v" if kind == "v_prediction" else "eps"
    elif kind == "v_prediction":
        scaling = params.setdefault("denoiser_config", {}).setdefault("params", {})
        scaling["scaling_config"] = {"target": "sgm.VScaling"}
    configs = configs_of(layout, "auto", original, ztsnr)
    assert configs["scheduler"]["prediction_type"] == kind
    written = yaml.safe_load(side_text(layout.family, configs))
    assert configs_of(layout, "auto", written) == configs


@pytest.mark.parametrize(
    ("layout", "kind", "told"),
    [
        (SD15, "epsilon", True),
        (SD15, "v_prediction", False),
        (SD21, "epsilon", False),
        (SD21, "v_prediction", False),
        (SDXL, "epsilon", True),
        (SDXL, "v_prediction", False),
        (TINY, "epsilon", False),
    ],
)
def test_only_what_the_weights_do_not_tell_needs_words(
    layout: Layout, kind: str, told: bool
) -> None:
    side = yaml.safe_load(side_yaml(layout)) if layout is TINY else None
    configs = configs_of(layout, "auto" if side else kind, side)
    header = header_of(checkpoint_shapes(layout))
    assert tells_itself(FAMILIES[layout.family], header, configs) is told


@pytest.mark.parametrize(("kind", "said"), [("epsilon", "eps"), ("v_prediction", "v")])
def test_sd2_says_what_its_published_yaml_says(kind: str, said: str) -> None:
    """Expected values: v2-inference.yaml and v2-inference-v.yaml of the original repository."""
    model = yaml.safe_load(side_text("sd2", configs_of(SD21, kind)))["model"]
    params = model["params"]
    assert model["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
    assert params["parameterization"] == said
    assert (params["linear_start"], params["linear_end"], params["timesteps"]) == (
        0.00085,
        0.012,
        1000,
    )
    assert (params["channels"], params["scale_factor"]) == (4, 0.18215)
    assert params["conditioning_key"] == "crossattn"
    unet = params["unet_config"]["params"]
    expected = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_head_channels": 64,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": 1024,
        "legacy": False,
    }
    assert {name: unet[name] for name in expected} == expected
    assert sorted(unet["attention_resolutions"]) == [1, 2, 4]
    vae = params["first_stage_config"]["params"]
    assert vae["embed_dim"] == 4
    assert vae["ddconfig"] == {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    text = params["cond_stage_config"]
    assert text["target"] == "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
    assert text["params"] == {"freeze": True, "layer": "penultimate"}


def test_sdxl_says_what_its_published_yaml_says() -> None:
    """Expected values: sd_xl_base.yaml of the original repository, with V for Eps."""
    text = side_text("sdxl", configs_of(SDXL, "v_prediction"))
    params = yaml.safe_load(text)["model"]["params"]
    denoiser = params["denoiser_config"]["params"]
    assert denoiser["scaling_config"]["target"].endswith(".denoiser_scaling.VScaling")
    assert denoiser["weighting_config"]["target"].endswith(".denoiser_weighting.VWeighting")
    unet = params["network_config"]["params"]
    expected = {
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "in_channels": 4,
        "model_channels": 320,
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "transformer_depth": [1, 2, 10],
        "context_dim": 2048,
        "spatial_transformer_attn_type": "softmax-xformers",
    }
    assert {name: unet[name] for name in expected} == expected
    assert sorted(unet["attention_resolutions"]) == [2, 4]
    models = params["conditioner_config"]["params"]["emb_models"]
    assert [model["input_key"] for model in models] == [
        "txt",
        "txt",
        "original_size_as_tuple",
        "crop_coords_top_left",
        "target_size_as_tuple",
    ]
    assert models[0]["params"] == {"layer": "hidden", "layer_idx": 11}
    assert models[1]["params"]["layer"] == "penultimate"
    assert [model["params"]["outdim"] for model in models[2:]] == [256] * 3
    assert params["scale_factor"] == 0.13025


def test_inpainting_is_said_as_the_host_expects_it() -> None:
    configs = configs_of(replace(SD21, in_channels=9), "epsilon")
    model = yaml.safe_load(side_text("sd2", configs))["model"]
    assert model["target"].endswith(".LatentInpaintDiffusion")
    assert model["params"]["conditioning_key"] == "hybrid"
    assert model["params"]["finetune_keys"] is None
    assert model["params"]["unet_config"]["params"]["in_channels"] == 9


def test_a_yaml_is_plain_text_for_any_reader(tmp_path: Path) -> None:
    text = side_text("sdxl", configs_of(SDXL, "epsilon"))
    assert "!!" not in text and "&id" not in text  # no tags, no aliases
