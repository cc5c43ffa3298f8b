"""Sampling from every kind of model: equal to diffusers' pipelines, told what the WebUI tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from dreambooth_core.families import FAMILIES, Components, load_components
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.sampling import build_scheduler, generate
from tests.tiny import VARIANTS, tiny_model

SCHEDULERS: dict[str, Any] = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}
OPTIONS: dict[str, Any] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "euler": {},
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def model_of(kind: str, root: Path) -> ModelFolder:
    return tiny_model(Workspace(root), variant=VARIANTS[kind])


def drawn(components: Components, negative: str, sampler: str, **changes: Any) -> Image.Image:
    settings: dict[str, Any] = {"width": 96, "height": 64, "steps": 3, "cfg_scale": 5.0, **changes}
    return next(
        generate(components, ["a red dog"], [negative], sampler=sampler, seeds=[3], **settings)
    )


@pytest.mark.parametrize(
    ("kind", "negative", "sampler"),
    [
        ("sd2", "blurry", "ddim"),
        ("sd2-v", "", "euler"),
        ("sdxl", "", "euler"),
        ("sdxl", "blurry", "ddim"),
        ("sdxl-v", "", "euler"),
        ("sdxl-v", "blurry", "ddim"),
    ],
)
def test_equals_the_pipelines_of_diffusers(
    kind: str, negative: str, sampler: str, tmp_path: Path
) -> None:
    folder = model_of(kind, tmp_path)
    told: dict[str, Any] = {"local_files_only": True, "torch_dtype": torch.float32}
    is_xl = VARIANTS[kind].layout.family == "sdxl"
    pipeline: Any
    if is_xl:
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder.path, add_watermarker=False, **told
        )
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(folder.path, **told)
    pipeline.set_progress_bar_config(disable=True)
    variant = VARIANTS[kind]
    pipeline.scheduler = SCHEDULERS[sampler](
        **SCHEDULE,
        prediction_type="v_prediction" if variant.parameterization == "v" else "epsilon",
        **OPTIONS[sampler],
        **(ZERO_SNR if "ztsnr" in variant.marks else {}),
    )
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    expected = pipeline(
        "a red dog",
        negative_prompt=negative or None,
        width=96,
        height=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        latents=noise,
        output_type="np",
    ).images[0]
    ours = np.asarray(drawn(load_components(folder), negative, sampler))
    assert ours.shape == (64, 96, 3)
    assert np.abs(ours / 255 - expected).max() < 1.5 / 255


@pytest.mark.parametrize("kind", ["sd1-inpainting", "sdxl-inpainting"])
def test_a_picture_without_a_picture_before_is_all_mask_over_gray(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = load_components(model_of(kind, tmp_path))
    family = type(FAMILIES[components.family])
    seen: list[Any] = []
    predict = family.predict

    def spy(self: Any, components: Any, noisy: Any, timesteps: Any, told: Any) -> Any:
        seen.append(told)
        return predict(self, components, noisy, timesteps, told)

    monkeypatch.setattr(family, "predict", spy)
    drawn(components, "", "euler", steps=1)
    drawn(components, "", "euler", steps=1, cfg_scale=1.0)
    with torch.no_grad():
        gray, _ = FAMILIES[components.family].encode_images(components, torch.zeros(1, 3, 64, 96))
    for told, rows in zip(seen, (2, 1), strict=True):
        assert told.canvas.shape == (rows, 5, 8, 12)
        assert bool((told.canvas[:, 0] == 1).all())
        assert torch.allclose(told.canvas[:, 1:], gray.expand(rows, -1, -1, -1), atol=1e-6)
        assert told.sizes.tolist() == [[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]] * rows


def test_only_the_missing_negative_prompt_of_sdxl_is_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = load_components(model_of("sdxl", tmp_path))
    family = type(FAMILIES["sdxl"])
    seen: list[list[bool]] = []
    unconditional = family.unconditional

    def spy(self: Any, encoded: Any, rows: Any) -> Any:
        seen.append(list(rows))
        return unconditional(self, encoded, rows)

    monkeypatch.setattr(family, "unconditional", spy)
    settings: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "sampler": "euler"}
    list(generate(components, ["", "a"], ["", "b"], cfg_scale=5.0, seeds=[1, 2], **settings))
    list(generate(components, [""], [""], cfg_scale=1.0, seeds=[1], **settings))
    assert seen == [[True, False], [False, False], [False]]


def test_a_model_that_ends_in_noise_is_sampled_from_its_end(tmp_path: Path) -> None:
    components = load_components(model_of("sdxl-v", tmp_path))
    for sampler in ("ddim", "euler", "euler_a", "dpm++_2m", "unipc"):
        scheduler = build_scheduler(components, sampler)
        scheduler.set_timesteps(4)
        assert int(scheduler.timesteps[0]) == 999
        assert scheduler.alphas_cumprod[-1] < 1e-6
