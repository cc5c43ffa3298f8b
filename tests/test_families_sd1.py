"""Stable Diffusion 1: configs, names and weights against the original layout and diffusers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils as oracle
from safetensors.torch import load_file

from dreambooth_core.checkpoint.header import Header, TensorInfo
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import FAMILIES, Components, load_checkpoint, load_components
from dreambooth_core.families.base import Config, KeyPair
from dreambooth_core.job.workspace import ModelFolder, Workspace
from tests.original_layout import SD15, TINY, Layout, checkpoint_shapes, side_yaml
from tests.tiny import TEXT, UNET, header_of, tiny_weights

VAE = "first_stage_model."
SD1 = FAMILIES["sd1"]
LAYOUTS = {
    "sd1.5": SD15,
    "tiny": TINY,
    "three levels, no attention in the first": replace(
        TINY, channel_mult=(1, 2, 2), num_res_blocks=2, attention_levels=(1, 2)
    ),
    "attention in the first level only": replace(TINY, attention_levels=(0,)),
    "vae encoder without resnets": replace(TINY, vae_num_res_blocks=0),
    "vae of two widths": replace(TINY, vae_channel_mult=(1, 2), vae_num_res_blocks=2),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def side_of(layout: Layout) -> Any:
    return yaml.safe_load(side_yaml(layout))


def described(layout: Layout) -> tuple[Header, dict[str, Config], list[KeyPair]]:
    header = header_of(checkpoint_shapes(layout))
    configs = SD1.configs(header, side_of(layout))
    return header, configs, SD1.key_map(header, configs)


def tagged(layout: Layout) -> tuple[dict[str, torch.Tensor], dict[float, str]]:
    """Tensors of the right shapes that take no memory, each filled with its own number."""
    shapes = checkpoint_shapes(layout)
    tensors = {
        key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(shapes.items())
    }
    return tensors, dict(enumerate(shapes))


def converted_by_diffusers(
    tensors: Mapping[str, torch.Tensor], configs: Mapping[str, Config]
) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "unet": oracle.convert_ldm_unet_checkpoint(dict(tensors), configs["unet"]),
        "vae": oracle.convert_ldm_vae_checkpoint(dict(tensors), configs["vae"]),
        "text_encoder": oracle.convert_ldm_clip_checkpoint(dict(tensors)),
    }


@layouts
def test_every_weight_of_the_original_layout_is_mapped_once(layout: Layout) -> None:
    _, _, pairs = described(layout)
    sources = [pair.source for pair in pairs]
    assert sorted(sources) == sorted(checkpoint_shapes(layout))
    assert len({(pair.component, pair.target) for pair in pairs}) == len(pairs)


@layouts
def test_the_names_and_shapes_are_those_of_diffusers_own_conversion(layout: Layout) -> None:
    header, configs, pairs = described(layout)
    tensors, key_of = tagged(layout)
    converted = converted_by_diffusers(tensors, configs)
    theirs = {
        (component, target): (key_of[int(value.flatten()[0])], tuple(value.shape))
        for component, weights in converted.items()
        for target, value in weights.items()
    }
    ours = {
        (pair.component, pair.target): (
            pair.source,
            pair.target_shape(header.tensors[pair.source].shape),
        )
        for pair in pairs
    }
    assert ours == theirs


def test_the_table_of_sd15_is_the_golden_one() -> None:
    """The digest was taken of the table that the two tests above had just found right."""
    _, _, pairs = described(SD15)
    counts = [sum(pair.component == part for pair in pairs) for part in SD1.networks]
    assert counts == [686, 248, 196]
    lines = sorted(f"{p.source} {p.component} {p.target} {p.transform}" for p in pairs)
    assert lines[0].startswith("cond_stage_model.transformer.text_model.embeddings")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "4bf7f61e515b029fe4317f4ec0609d1314fad129fa818669ab7fa3305f811965"


def test_only_the_vaes_attention_changes_shape() -> None:
    _, _, pairs = described(SD15)
    changed = {pair.source for pair in pairs if pair.transform}
    expected = {
        f"{VAE}{half}.mid.attn_1.{name}.weight"
        for half in ("encoder", "decoder")
        for name in ("q", "k", "v", "proj_out")
    }
    assert changed == expected


def test_the_configs_of_sd15_need_no_yaml() -> None:
    header = header_of(checkpoint_shapes(SD15))
    configs = SD1.configs(header, None)
    assert configs == SD1.configs(header, side_of(SD15))
    assert configs["unet"]["attention_head_dim"] == 8
    assert configs["vae"]["scaling_factor"] == 0.18215
    assert configs["vae"]["sample_size"] == 512
    text = configs["text_encoder"]
    assert (text["num_attention_heads"], text["num_hidden_layers"]) == (12, 12)
    assert (text["hidden_act"], text["intermediate_size"]) == ("quick_gelu", 3072)


@pytest.mark.filterwarnings("ignore:.image_size. is deprecated:FutureWarning")
@pytest.mark.parametrize("layout", [SD15, TINY], ids=["sd1.5", "tiny"])
def test_the_configs_are_those_that_diffusers_reads_from_the_yaml(layout: Layout) -> None:
    _, ours, _ = described(layout)
    original, size = side_of(layout), layout.image_size * 8
    unet = oracle.create_unet_diffusers_config_from_ldm(original, {}, image_size=size)
    vae = oracle.create_vae_diffusers_config_from_ldm(original, {}, image_size=size)
    # One known difference: without its own sample size diffusers divides by a factor of its own.
    for theirs, mine in ((unet, ours["unet"]), (vae, ours["vae"])):
        shared = (theirs.keys() & mine.keys()) - {"sample_size"}
        assert len(shared) >= 7
        for name in shared:
            expected, actual = theirs[name], mine[name]
            assert actual == (list(expected) if isinstance(expected, tuple) else expected), name
    assert ours["unet"]["sample_size"] == layout.image_size
    assert ours["vae"]["sample_size"] == size


def test_the_schedule_is_the_yamls_or_the_usual_one() -> None:
    header = header_of(checkpoint_shapes(SD15))
    usual = SD1.configs(header, None)["scheduler"]
    assert (usual["beta_start"], usual["beta_end"]) == (0.00085, 0.012)
    assert usual["beta_schedule"] == "scaled_linear"
    assert usual["prediction_type"] == "epsilon"
    side = side_of(SD15)
    side["model"]["params"] |= {"parameterization": "v", "timesteps": 500, "linear_end": 0.02}
    changed = SD1.configs(header, side)["scheduler"]
    assert changed["prediction_type"] == "v_prediction"
    assert (changed["num_train_timesteps"], changed["beta_end"]) == (500, 0.02)
    side["model"]["params"]["parameterization"] = "x0"
    with pytest.raises(CheckpointError, match="x0"):
        SD1.configs(header, side)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model.params.unet_config.params.num_heads", "UNet of unusual width"),
        ("dreambooth.text_config.num_attention_heads", "text encoder of unusual width"),
    ],
)
def test_heads_that_nothing_tells_are_asked_for(path: str, words: str) -> None:
    side = side_of(TINY)
    *parents, name = path.split(".")
    owner = side
    for parent in parents:
        owner = owner[parent]
    del owner[name]
    with pytest.raises(CheckpointError, match=words) as raised:
        SD1.configs(header_of(checkpoint_shapes(TINY)), side)
    assert path in raised.value.remedy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, "has 2 layers, but its .yaml says 3"),
        ({"num_attention_heads": 0}, "whole number of at least 1"),
        ({"num_attention_heads": "four"}, "not a number"),
        ({"hidden_act": "relu6"}, "relu6"),
    ],
)
def test_a_yaml_that_contradicts_the_file_is_refused(changes: Config, words: str) -> None:
    side = side_of(TINY)
    side["dreambooth"]["text_config"] |= changes
    with pytest.raises(CheckpointError, match=words):
        SD1.configs(header_of(checkpoint_shapes(TINY)), side)


def test_old_files_without_text_model_in_their_keys_are_mapped() -> None:
    shapes = {
        key.replace(f"{TEXT}text_model.", TEXT): shape
        for key, shape in checkpoint_shapes(TINY).items()
    }
    header = header_of(shapes)
    assert SD1.matches(header)
    pairs = SD1.key_map(header, SD1.configs(header, side_of(TINY)))
    assert {pair.source for pair in pairs} == shapes.keys()
    table = {pair.target: pair.source for pair in pairs}
    assert table["text_model.final_layer_norm.bias"] == f"{TEXT}final_layer_norm.bias"


def test_a_missing_weight_is_named() -> None:
    shapes = checkpoint_shapes(TINY)
    configs = SD1.configs(header_of(shapes), side_of(TINY))
    missing = f"{UNET}output_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
    del shapes[missing]
    with pytest.raises(CheckpointError, match=missing):
        SD1.key_map(header_of(shapes), configs)


def test_a_weight_of_another_shape_is_named() -> None:
    shapes = checkpoint_shapes(TINY)
    configs = SD1.configs(header_of(shapes), side_of(TINY))
    shapes[f"{UNET}time_embed.2.weight"] = (128, 64)
    with pytest.raises(CheckpointError, match=r"time_embed\.2\.weight .*\[128, 64\]"):
        SD1.key_map(header_of(shapes), configs)


def test_weights_in_reduced_formats_are_refused() -> None:
    header = header_of(checkpoint_shapes(TINY))
    configs = SD1.configs(header, side_of(TINY))
    key = f"{UNET}out.2.weight"
    header.tensors[key] = TensorInfo("F8_E4M3", header.tensors[key].shape, 0, 0)
    with pytest.raises(CheckpointError, match="stored as F8_E4M3"):
        SD1.key_map(header, configs)


def test_an_uneven_unet_is_refused() -> None:
    shapes = checkpoint_shapes(replace(TINY, num_res_blocks=2))
    shapes = {key: shape for key, shape in shapes.items() if "input_blocks.2.1." not in key}
    with pytest.raises(CheckpointError, match="uneven"):
        SD1.configs(header_of(shapes), side_of(TINY))


def test_the_ema_name_is_flat() -> None:
    key = f"{UNET}input_blocks.0.0.weight"
    assert SD1.ema_key(key) == "model_ema.diffusion_modelinput_blocks00weight"


def test_created_components_hold_what_diffusers_would_convert(
    tiny_model_folder: ModelFolder,
) -> None:
    weights = tiny_weights()
    _, configs, _ = described(TINY)
    for component, theirs in converted_by_diffusers(weights, configs).items():
        name = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        ours = load_file(tiny_model_folder.component(component) / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value.half()), key


@pytest.fixture(scope="module")
def components(_created_model: Path) -> Components:
    """The networks of a created model; read only."""
    return load_components(Workspace(_created_model).model("tiny"))


def test_loaded_networks_are_fp32_and_ready(components: Components) -> None:
    for module in components.modules().values():
        assert not module.training
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.device.type == "cpu"
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert all(p.requires_grad for p in module.parameters())
    assert components.family == "sd1"
    assert components.prediction_type == "epsilon"


def test_a_pipeline_of_diffusers_loads_the_folder_and_agrees(
    tiny_model_folder: ModelFolder, components: Components
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_model_folder.path, local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a photo of ohwx man"
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        ours = SD1.encode_prompts(components, [prompt])
        assert torch.equal(ours.encoder_hidden_states, theirs)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        step = torch.tensor([500])
        expected = pipeline.unet(latents, step, encoder_hidden_states=theirs).sample
        assert torch.equal(SD1.predict(components, latents, step, ours), expected)
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        picture = pipeline.image_processor.postprocess(decoded, output_type="pt")
        assert torch.allclose(SD1.decode_latents(components, latents), picture, atol=1e-6)
    noise_schedule = pipeline.scheduler.alphas_cumprod
    assert torch.equal(components.noise_scheduler.alphas_cumprod, noise_schedule)


def test_images_are_encoded_to_scaled_mean_and_deviation(components: Components) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        mean, deviation = SD1.encode_images(components, pixels)
        latents = components.vae.encode(pixels).latent_dist
    assert mean.shape == deviation.shape == (2, 4, 8, 8)
    assert torch.equal(mean, latents.mean * 0.18215)
    assert torch.equal(deviation, latents.std * 0.18215)


def test_pictures_are_decoded_into_zero_to_one(components: Components) -> None:
    with torch.no_grad():
        pictures = SD1.decode_latents(components, 50 * torch.randn(1, 4, 8, 8))
    assert pictures.shape == (1, 3, 64, 64)
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1


def test_sides_are_multiples_of_what_vae_and_unet_halve(components: Components) -> None:
    assert SD1.quantum(components) == 8 * 2  # four VAE levels, two UNet levels


def test_given_weights_take_the_place_of_the_bases(tiny_model_folder: ModelFolder) -> None:
    base = load_components(tiny_model_folder)
    name = "conv_in.bias"
    given = {"unet": {name: torch.full((32,), 3.0)}}
    changed = load_components(tiny_model_folder, weights=given)
    assert changed.unet.get_parameter(name).tolist() == [3.0] * 32
    assert torch.equal(changed.unet.conv_in.weight, base.unet.conv_in.weight)
    changed.unet.get_parameter(name).data.zero_()
    assert given["unet"][name].tolist() == [3.0] * 32  # the caller's tensor is its own


@pytest.mark.parametrize("weight", [("conv_in.bias", 31), ("conv_in.offset", 32)])
def test_given_weights_must_fit(tiny_model_folder: ModelFolder, weight: tuple[str, int]) -> None:
    name, size = weight
    with pytest.raises(CheckpointError, match=name):
        load_components(tiny_model_folder, weights={"unet": {name: torch.zeros(size)}})


def test_a_single_file_is_loaded_like_the_model_made_of_it(
    tiny_model_folder: ModelFolder, tiny_checkpoint: Path
) -> None:
    from_file = load_checkpoint(tiny_checkpoint, tiny_model_folder)
    from_folder = load_components(tiny_model_folder)
    for component, module in from_folder.modules().items():
        other = from_file.modules()[component].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(other[key], value), (component, key)


def test_other_dtypes_are_loaded_on_request(tiny_model_folder: ModelFolder) -> None:
    components = load_components(tiny_model_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in components.unet.parameters()} == {torch.bfloat16}
