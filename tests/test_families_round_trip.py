"""Files of every family to components and back, and what diffusers' pipelines make of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from dreambooth_core.errors import InputError
from dreambooth_core.families import FAMILIES, Components, load_checkpoint, load_components
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.save import save_checkpoint
from tests.tiny import VARIANTS, Variant, stage_context, tiny_model, write_variant

INPAINTING = [name for name, variant in VARIANTS.items() if variant.inpaints]
OTHERS = [name for name in VARIANTS if name not in INPAINTING]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
QKV = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(scope="module", params=VARIANTS, ids=list(VARIANTS))
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a kind of checkpoint."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, module_folder: Path) -> Iterator[ModelFolder]:
    """A model of the kind; read only."""
    workspace = Workspace(module_folder / kind)
    yield tiny_model(workspace, variant=VARIANTS[kind])
    shutil.rmtree(workspace.root)


@pytest.fixture(scope="module")
def components(folder: ModelFolder) -> Components:
    """Its networks; read only."""
    return load_components(folder)


def source_of(folder: ModelFolder) -> Path:
    return Path(folder.read_info().source)


def test_every_tensor_comes_back_as_it_was(folder: ModelFolder, tmp_path: Path) -> None:
    written = save_checkpoint(folder, tmp_path / "out.safetensors", {}, "source")
    before, after = load_file(source_of(folder)), load_file(written.path)
    assert before.keys() <= after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        assert torch.equal(value, after[key]), key
    added = {key: after[key].numel() for key in after.keys() - before.keys()}
    assert added in ({}, {"v_pred": 0})


def test_trained_weights_take_their_part_of_joined_and_turned_tensors(
    folder: ModelFolder, kind: str, tmp_path: Path
) -> None:
    base = load_components(folder)
    encoder, name = list(base.text_encoders().items())[-1][::-1]
    changed = {key: p.detach() + 1 for key, p in encoder.named_parameters() if "k_proj" in key}
    projection = {k: p.detach() + 1 for k, p in encoder.named_parameters() if "projection" in k}
    weights = {name: {**changed, **projection}}
    written = save_checkpoint(folder, tmp_path / "out.safetensors", weights, "fp32")
    again = load_checkpoint(written.path, folder)
    for key, value in again.modules()[name].state_dict().items():
        expected = weights[name].get(key, encoder.state_dict()[key])
        assert torch.equal(value, expected), key
    before, after = load_file(source_of(folder)), load_file(written.path)
    differing = {k for k, v in before.items() if not torch.equal(after[k], v.to(after[k].dtype))}
    leaf = "self_attn.k_proj" if kind.startswith("sd1") else "attn.in_proj"
    assert differing and all(leaf in k or k.endswith("text_projection") for k in differing)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_dtypes_come_back_too(dtype: str, workspace: Workspace, tmp_path: Path) -> None:
    source = workspace.checkpoints_dir / "tiny-source.safetensors"
    write_variant(source, VARIANTS["sdxl"], DTYPES[dtype])
    folder = tiny_model(workspace, variant=VARIANTS["sdxl"])
    written = save_checkpoint(folder, tmp_path / "out.safetensors", {}, dtype)
    before, after = load_file(source), load_file(written.path)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


def test_what_is_remembered_of_the_model(folder: ModelFolder, kind: str) -> None:
    variant, info = VARIANTS[kind], folder.read_info()
    assert info.family == variant.layout.family
    expected = "v_prediction" if variant.parameterization == "v" else "epsilon"
    assert info.prediction_type == expected
    assert info.resolution == 64


def test_the_loaded_model_knows_itself(components: Components, kind: str) -> None:
    variant = VARIANTS[kind]
    assert components.paints_into_pictures() is variant.inpaints
    assert components.latent_shape(64, 128) == (4, 16, 8)
    ends_in_noise = bool(components.noise_scheduler.alphas_cumprod[-1] == 0)
    assert ends_in_noise is ("ztsnr" in variant.marks)
    names = [name for name in FAMILIES[components.family].text_encoders]
    assert list(components.text_encoders()) == names


@pytest.mark.parametrize("kind", OTHERS, indirect=True, scope="module")
@torch.no_grad()
def test_pipelines_of_diffusers_load_the_folder_and_agree(
    folder: ModelFolder, components: Components
) -> None:
    told: dict[str, Any] = {"local_files_only": True, "torch_dtype": torch.float32}
    family, prompt = FAMILIES[components.family], "a photo of ohwx man"
    encoded = family.encode_prompts(components, ["", prompt])
    ours = family.unconditional(encoded, [True, False])
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).expand(2, -1)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    step, added = torch.tensor([500, 500]), None
    if components.family == "sdxl":
        xl = StableDiffusionXLPipeline.from_pretrained(folder.path, **told)
        pipeline, scale = xl, 0.13025
        states, negative, pooled, no_pooled = xl.encode_prompt(prompt, device="cpu")
        added = {"text_embeds": torch.cat([no_pooled, pooled]), "time_ids": sizes}
        assert ours.pooled is not None
        assert torch.allclose(ours.pooled, added["text_embeds"], atol=1e-5)
    else:
        pipeline, scale = StableDiffusionPipeline.from_pretrained(folder.path, **told), 0.18215
        states, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
    both = torch.cat([negative, states])
    assert torch.allclose(ours.encoder_hidden_states, both, atol=1e-5)
    expected = pipeline.unet(
        latents, step, encoder_hidden_states=both, added_cond_kwargs=added
    ).sample
    predicted = family.predict(components, latents, step, ours.beside(sizes, None))
    assert torch.allclose(predicted, expected, atol=1e-5)
    decoded = pipeline.vae.decode(latents / scale).sample
    picture = pipeline.image_processor.postprocess(decoded, output_type="pt")
    assert torch.allclose(family.decode_latents(components, latents), picture, atol=1e-5)


@pytest.mark.parametrize("kind", INPAINTING, indirect=True, scope="module")
@torch.no_grad()
def test_an_inpainting_network_is_given_mask_and_masked_picture(
    components: Components,
) -> None:
    family = FAMILIES[components.family]
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, :, 32:] = 1
    canvas = family.canvas(components, pixels, masks)
    assert canvas.shape == (2, 5, 8, 8)
    assert torch.equal(canvas[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4).expand(8, 8))
    whole, _ = family.encode_images(components, pixels)
    assert torch.allclose(canvas[1, 1:], whole[1], atol=1e-6)
    gray = pixels[0].clone()
    gray[:, :, 32:] = 0
    alone, _ = family.encode_images(components, gray[None])
    assert torch.allclose(canvas[0, 1:], alone[0], atol=1e-6)
    told = family.encode_prompts(components, ["a", "b"])
    sizes = torch.zeros(2, 6)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    step = torch.tensor([10, 900])
    ours = family.predict(components, latents, step, told.beside(sizes, canvas))
    added = {"text_embeds": told.pooled, "time_ids": sizes} if told.pooled is not None else None
    joined = torch.cat([latents, canvas], dim=1)
    states = told.encoder_hidden_states
    expected = components.unet(
        joined, step, encoder_hidden_states=states, added_cond_kwargs=added
    ).sample
    assert torch.equal(ours, expected)
    assert ours.shape == latents.shape


@pytest.mark.turns("create.prediction_type")
def test_sd2_without_yaml_asks_what_it_predicts_and_takes_the_answer(workspace: Workspace) -> None:
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.stages import create

    source = workspace.checkpoints_dir / "mystery.safetensors"
    write_variant(source, Variant(VARIANTS["sd2"].layout))
    side = source.with_suffix(".yaml")
    hints = side.read_text(encoding="utf-8")
    side.unlink()
    with pytest.raises(InputError, match="velocity") as raised:
        create.run(CreateConfig(name="m", source=str(source)), stage_context(workspace))
    assert raised.value.field == "prediction_type"
    unknown = hints.replace('parameterization: "eps"', "").replace("unet_config", "network_config")
    side.write_text(unknown, encoding="utf-8")  # tells the heads of this tiny model, no more
    answered = CreateConfig(name="m", source=str(source), prediction_type="v_prediction")
    create.run(answered, stage_context(workspace))
    assert workspace.model("m").read_info().prediction_type == "v_prediction"
