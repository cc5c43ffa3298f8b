"""Sampling: equal to diffusers' own pipeline, one seed one picture, guidance, the WebUI's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from dreambooth_core.config.schema import SAMPLERS as SAMPLER_CHOICES
from dreambooth_core.errors import InputError, NonFiniteError
from dreambooth_core.families import FAMILIES, load_components
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import sampling
from dreambooth_core.stages.png import SavedPicture, png_info, read_png, save_png
from dreambooth_core.stages.sampling import (
    SAMPLERS,
    build_scheduler,
    generate,
    guided_prediction,
    picture_info,
    to_images,
)
from tests.tiny import tiny_model

SD1_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# What diffusers documents for Stable Diffusion 1 with each sampler.
REFERENCE = {
    "ddim": DDIMScheduler(
        **SD1_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "euler": EulerDiscreteScheduler(**SD1_SCHEDULE, steps_offset=1),
    "euler_a": EulerAncestralDiscreteScheduler(**SD1_SCHEDULE, steps_offset=1),
    "dpm++_2m": DPMSolverMultistepScheduler(**SD1_SCHEDULE, steps_offset=1),
    "unipc": UniPCMultistepScheduler(**SD1_SCHEDULE, steps_offset=1),
}
COMMON: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 5.0}


@pytest.fixture(scope="module")
def components(module_folder: Path) -> Components:
    workspace = Workspace(module_folder)
    return load_components(tiny_model(workspace))


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the decoder gave, before it is rounded to 8 bits."""
    seen: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> list[Image.Image]:
        seen.append(tensor)
        return to_images(tensor)

    monkeypatch.setattr(sampling, "to_images", keep)
    return seen


def draw(components: Components, count: int = 3, **changes: Any) -> list[np.ndarray[Any, Any]]:
    prompts = ["a man", "a red dog at night", "a car"][:count]
    settings = {**COMMON, "sampler": "ddim", "seeds": range(7, 7 + count), **changes}
    negatives = settings.pop("negatives", ["blurry"] * count)
    pictures = generate(components, settings.pop("prompts", prompts), negatives, **settings)
    return [np.asarray(picture).astype(int) for picture in pictures]


def test_every_sampler_of_the_schema_is_known() -> None:
    assert tuple(SAMPLERS) == SAMPLER_CHOICES
    labels = [entry.label for entry in SAMPLERS.values()]
    assert labels == ["DDIM", "Euler", "Euler a", "DPM++ 2M", "UniPC"]


@pytest.mark.parametrize("sampler", SAMPLER_CHOICES)
def test_equals_the_pipeline_of_diffusers(
    components: Components, pixels: list[torch.Tensor], sampler: str
) -> None:
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=REFERENCE[sampler],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a man on a beach",
        negative_prompt="blurry",
        width=64,
        height=64,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(11),
        output_type="pt",
    ).images
    settings = {**COMMON, "steps": 6, "sampler": sampler, "seeds": [11]}
    list(generate(components, ["a man on a beach"], ["blurry"], **settings))
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(pixels[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLER_CHOICES)
def test_a_picture_does_not_depend_on_the_batch_size(components: Components, sampler: str) -> None:
    alone = draw(components, sampler=sampler, batch_size=1)
    together = draw(components, sampler=sampler, batch_size=3)
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(alone, together, strict=True))
    assert np.abs(alone[0] - alone[1]).max() > 20


def test_a_long_prompt_does_not_change_its_neighbours(components: Components) -> None:
    prompts = ["a man", "a dog and " * 60, "a car"]
    alone = draw(components, prompts=prompts, batch_size=1)
    together = draw(components, prompts=prompts, batch_size=3)
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(alone, together, strict=True))


def test_same_seed_same_picture_other_seed_other_picture(components: Components) -> None:
    one, again, other = draw(
        components, prompts=["a man"] * 3, seeds=[1, 1, 2], batch_size=3, sampler="euler_a"
    )
    assert np.abs(one - again).max() <= 1
    assert np.abs(one - other).max() > 20


def test_every_setting_changes_the_picture(components: Components) -> None:
    usual = draw(components, 1)[0]
    for change in (
        {"negatives": ["a dog"]},
        {"prompts": ["a woman"]},
        {"steps": 5},
        {"cfg_scale": 9.0},
        {"clip_skip": 2},
        {"sampler": "euler"},
    ):
        assert np.abs(draw(components, 1, **change)[0] - usual).max() > 2, change
    assert draw(components, 1, width=128)[0].shape == (64, 128, 3)


def test_scale_one_needs_no_negative_prompt(
    components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[components.family]
    sizes: list[int] = []
    predict = family.predict

    def counting(model: Components, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(latents))
        return predict(model, latents, *rest)

    monkeypatch.setattr(family, "predict", counting)
    one = draw(components, 1, cfg_scale=1.0, negatives=["blurry"])[0]
    other = draw(components, 1, cfg_scale=1.0, negatives=["a dog"])[0]
    assert sizes == [1] * 8 and np.array_equal(one, other)
    draw(components, 1, cfg_scale=2.0)
    assert sizes[8:] == [2] * 4


def test_guidance_is_the_formula(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: Any, latents: torch.Tensor, *__: Any) -> torch.Tensor:
        return torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand_as(latents)

    monkeypatch.setattr(FAMILIES[components.family], "predict", answer)
    latents, conditioning = torch.zeros(1, 4, 8, 8), Conditioning(torch.zeros(2, 77, 32))
    out = guided_prediction(components, latents, torch.tensor(500), conditioning, 7.5)
    assert out.shape == latents.shape and out.unique().tolist() == [1.0 + 7.5 * 2.0]


def test_progress_counts_pictures_times_steps(components: Components) -> None:
    seen: list[tuple[int, int]] = []
    draw(components, 3, batch_size=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 12), (4, 12), (6, 12), (8, 12), (9, 12), (10, 12), (11, 12), (12, 12)]


def test_batches_are_painted_when_asked_for(components: Components) -> None:
    seen: list[int] = []
    settings = {**COMMON, "sampler": "ddim", "seeds": [1, 2], "batch_size": 1}
    pictures: Iterator[Image.Image] = generate(
        components, ["a", "b"], ["", ""], on_progress=lambda done, _: seen.append(done), **settings
    )
    assert seen == []
    next(pictures)
    assert seen == [1, 2, 3, 4]


def test_training_mode_and_gradients_come_back(components: Components) -> None:
    components.unet.train()
    components.vae.eval()
    before = draw(components, 1, sampler="ddim")[0]
    assert components.unet.training and not components.vae.training
    assert torch.is_grad_enabled()
    components.unet.eval()
    assert np.array_equal(before, draw(components, 1, sampler="ddim")[0])


def test_prediction_type_and_schedule_are_the_models(components: Components) -> None:
    for sampler in SAMPLERS:
        scheduler = build_scheduler(components, sampler)
        assert scheduler.config["prediction_type"] == "epsilon"
        torch.testing.assert_close(
            scheduler.alphas_cumprod, components.noise_scheduler.alphas_cumprod
        )
    v_model = Components(**{**vars(components), "prediction_type": "v_prediction"})
    assert build_scheduler(v_model, "ddim").config["prediction_type"] == "v_prediction"


def test_what_cannot_be_drawn_is_refused(components: Components) -> None:
    with pytest.raises(InputError, match=r"no sampler called 'plms'.*ddim"):
        draw(components, 1, sampler="plms")
    with pytest.raises(InputError, match="width of 65 pixels"):
        draw(components, 1, width=65)
    with pytest.raises(InputError, match="height of 0 pixels"):
        draw(components, 1, height=0)
    with pytest.raises(ValueError, match="argument"):
        draw(components, 2, seeds=[1])
    with pytest.raises(NonFiniteError):
        to_images(torch.full((1, 3, 8, 8), float("nan")))


def test_images_are_rounded_and_clamped() -> None:
    levels = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.3]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    image = to_images(levels)[0]
    assert image.size == (5, 1) and image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_info_is_the_text_of_the_webui() -> None:
    text = picture_info(
        "a zwx man",
        "blurry, ugly",
        steps=25,
        sampler="dpm++_2m",
        cfg_scale=7.0,
        seed=1,
        size=(128, 192),
        model="my model",
    )
    assert text == (
        "a zwx man\nNegative prompt: blurry, ugly\n"
        "Steps: 25, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 128x192, Model: my model"
    )
    assert png_info("x", "", {"Steps": 1}) == "x\nSteps: 1"
    assert png_info("x", "", {"CFG scale": 7.5}) == "x\nCFG scale: 7.5"


def test_info_quotes_what_would_break_the_pairs() -> None:
    text = png_info("x", "", {"Model": 'a, "b": c', "Seed": 3})
    # The WebUI's own rule: a value is a JSON string or runs to the next comma.
    pairs = re.findall(r'\s*([\w ]+): ("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', text.splitlines()[-1])
    assert pairs == [("Model", '"a, \\"b\\": c"'), ("Seed", "3")]


def test_png_carries_its_text_and_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "00001.png"
    save_png(Image.new("RGB", (8, 8), (1, 2, 3)), path, "prompt ü\nSteps: 1")
    with Image.open(path) as image:
        assert image.info["parameters"] == "prompt ü\nSteps: 1"
        assert image.getpixel((0, 0)) == (1, 2, 3)
    assert [entry.name for entry in path.parent.iterdir()] == ["00001.png"]
    save_png(Image.new("RGB", (8, 8)), path)
    with Image.open(path) as image:
        assert "parameters" not in image.info


def test_a_whole_png_is_told_from_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (9, 8), (1, 2, 3)), path, "text")
    whole = path.read_bytes()
    assert read_png(path) == SavedPicture((9, 8), "text")
    for data in (whole[:-1], whole[:-20], whole[:30], b"", whole[:40] + whole[45:]):
        path.write_bytes(data)
        assert read_png(path) is None
    assert read_png(tmp_path / "absent.png") is None
    Image.new("RGB", (8, 8)).save(path, format="JPEG")
    assert read_png(path) is None
