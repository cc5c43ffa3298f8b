"""Which family a file is of, and what it is called if it cannot be trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dreambooth_core.checkpoint.recognise import TRAINABLE, family_label, trainable_family
from dreambooth_core.errors import CheckpointError, UnsupportedFamilyError
from dreambooth_core.families import FAMILIES, detect, family_of
from dreambooth_core.families.side_file import read_side_file, side_value
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.workspace import ModelFolder, ModelInfo
from tests.original_layout import (
    SD15,
    SD21,
    SDXL,
    TINY,
    TINY_SD2,
    TINY_SDXL,
    Layout,
    Shapes,
    checkpoint_shapes,
)
from tests.tiny import TEXT, UNET, header_of

CONV_IN = f"{UNET}input_blocks.0.0.weight"


LABEL = f"{UNET}label_emb.0.0.weight"


def of(layout: Layout, *dropped: str, **changed: tuple[int, ...]) -> Shapes:
    shapes = checkpoint_shapes(layout) | changed
    return {key: shape for key, shape in shapes.items() if not key.startswith(dropped)}


def sd1(*dropped: str, **changed: tuple[int, ...]) -> Shapes:
    return of(TINY, *dropped, **changed)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("layout", [TINY, SD15, TINY_SD2, SD21, TINY_SDXL, SDXL])
def test_a_family_is_told_whatever_its_width(layout: Layout, channels: int) -> None:
    header = header_of(checkpoint_shapes(replace(layout, in_channels=channels)))
    assert detect(header) is FAMILIES[layout.family]
    assert trainable_family(header) == layout.family
    label = FAMILIES[layout.family].label
    assert label == TRAINABLE[layout.family]
    assert family_label(header) == (label if channels == 4 else f"{label}, inpainting")


def keys(*names: str) -> Shapes:
    return dict.fromkeys(names, (1, 1))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (keys("lora_unet_down_blocks_0.lora_down.weight"), "is a LoRA"),
        (keys("unet.down_blocks.0.attn1.to_q.lora_A.weight"), "is a LoRA"),
        (keys("emb_params"), "textual inversion"),
        (keys("control_model.input_blocks.0.0.weight"), "ControlNet"),
        (
            keys("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
            "Stable Diffusion 3",
        ),
        (keys("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "FLUX"),
        (keys("double_blocks.0.img_attn.qkv.weight"), "FLUX"),
        (keys(CONV_IN, "conditioner.embedders.1.model.ln_final.weight"), "without a VAE"),
        (keys(CONV_IN, "conditioner.embedders.0.model.ln_final.weight"), "XL refiner"),
        (keys(CONV_IN, "cond_stage_model.model.ln_final.weight"), "without a VAE"),
        (sd1(**{LABEL: (128, 64)}), "unusual form"),
        (sd1(**{CONV_IN: (32, 7, 3, 3)}), "unusual form"),
        (of(TINY_SDXL, edm_mean=(4,)), "Playground 2.5"),
        (of(TINY_SD2, **{LABEL: (128, 64), "noise_augmentor.x": (1,)}), "unCLIP"),
        (of(TINY_SDXL, "conditioner.embedders.1."), "unusual form"),
        (sd1(**{CONV_IN: (32, 8, 3, 3)}), "InstructPix2Pix"),
        (sd1(**{CONV_IN: (32, 5, 3, 3)}), "depth"),
        (sd1("first_stage_model."), "without a VAE"),
        (sd1(TEXT), "without a text encoder"),
        (sd1(UNET, TEXT), "is a VAE"),
        (keys("decoder.conv_in.weight"), "is a VAE"),
        (keys("down_blocks.0.resnets.0.conv1.weight"), "diffusers"),
        (keys("text_model.encoder.layers.0.mlp.fc1.weight"), "diffusers"),
        (keys("some.weight"), "none of its 1 tensors is known"),
        ({}, "none of its 0 tensors is known"),
    ],
)
def test_other_files_are_called_by_their_name(shapes: Shapes, words: str) -> None:
    with pytest.raises(UnsupportedFamilyError, match=words) as raised:
        detect(header_of(shapes))
    assert raised.value.remedy
    assert "made up.safetensors" in raised.value.message


def test_a_unet_for_another_text_encoder_is_no_sd1() -> None:
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    assert not FAMILIES["sd1"].matches(header_of(sd1(**{key: (64, 1024)})))


def test_a_model_of_an_unknown_family_says_so(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "future")
    folder.write_info(ModelInfo(name="future", family="sd9", source="x"))
    with pytest.raises(UnsupportedFamilyError, match="'sd9'"):
        family_of(folder)


def test_the_side_file_is_the_yaml_of_the_same_stem(tmp_path: Path) -> None:
    checkpoint = tmp_path / "my.model.safetensors"
    assert side_path(checkpoint) == tmp_path / "my.model.yaml"
    assert read_side_file(checkpoint) is None
    side_path(checkpoint).write_text("model: {params: {timesteps: 1000}}", encoding="utf-8")
    side = read_side_file(checkpoint)
    assert side_value(side, "model.params.timesteps") == 1000
    assert side_value(side, "model.params.timesteps.more") is None
    assert side_value(None, "model") is None


@pytest.mark.parametrize("text", ["just words", "a: [", "- 1", "!!python/object:os.system {}"])
def test_a_broken_side_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.yaml"):
        read_side_file(tmp_path / "model.safetensors")
