"""Training, class images, states and pictures for every kind of checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.events import SampleSaved
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.sampling import generate
from tests.original_layout import TINY
from tests.test_stages_sampling_families import OPTIONS, SCHEDULE, SCHEDULERS, ZERO_SNR
from tests.tiny import VARIANTS, Variant, tiny_model
from tests.trainings import Trained, Trainings, same

STEPS = 8
KINDS = {"sd1": Variant(TINY), **VARIANTS}
SETTINGS: dict[str, Any] = {
    "intervals": {"epochs": 4, "max_steps": STEPS},
    "captions": {"dropout": 0.25},
    "images": {"horizontal_flip": True, "crop": "random"},
    "saving": {"save_at_end": True, "dtype": "fp32"},
    "ema": {"enabled": False},
}
GOLDEN: dict[str, list[float]] = {
    "sd1": [1.3827, 1.26542, 1.08226, 1.01904, 1.07306, 0.99637, 0.98983, 0.95804],
    "sd2": [1.42877, 1.36348, 1.13178, 1.02473, 1.02992, 0.94993, 1.08378, 0.94926],
    "sd2-v": [1.35546, 0.42642, 0.44049, 0.87068, 0.70076, 0.23807, 0.41169, 0.29037],
    "sdxl": [1.29775, 1.25824, 1.08675, 1.00056, 1.07395, 1.05727, 0.98996, 1.03311],
    "sdxl-v": [1.22535, 0.30995, 0.33937, 0.83071, 0.67924, 0.2857, 0.33727, 0.26383],
    "sd1-inpainting": [1.28171, 1.41287, 1.07378, 1.07964, 1.14865, 0.96909, 1.00876, 0.99834],
    "sd2-inpainting": [1.3617, 1.45515, 1.09849, 1.10305, 1.01826, 0.99831, 1.03395, 0.95123],
    "sdxl-inpainting": [1.60552, 1.30344, 1.2195, 1.09087, 1.1066, 1.04779, 1.01652, 1.07588],
}
"""Losses of the first run of this code whose parts the other tests had found right, on a CPU."""


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a kind of checkpoint."""
    return str(request.param)


@pytest.fixture(scope="module")
def trainings(kind: str, module_folder: Path) -> Iterator[Trainings]:
    """A workspace with a model of the kind."""
    workspace = Workspace(module_folder / kind)
    tiny_model(workspace, variant=KINDS[kind])
    yield Trainings(workspace)
    shutil.rmtree(workspace.root)


@pytest.fixture(scope="module")
def run(trainings: Trainings) -> Trained:
    """A training of eight steps; read only."""
    return trainings.run(SETTINGS, "whole")


@pytest.fixture(scope="module")
def base(trainings: Trainings) -> Components:
    """The model as created; read only."""
    return load_components(trainings.workspace.model("tiny"))


def test_the_losses_are_the_golden_ones(run: Trained, kind: str) -> None:
    assert len(run.losses) == STEPS
    assert run.losses == pytest.approx(GOLDEN[kind], rel=1e-3)


def test_every_trained_component_changes(run: Trained, base: Components) -> None:
    assert set(run.weights) == {"unet", *base.text_encoders()}
    for name, weights in run.weights.items():
        before = dict(base.modules()[name].named_parameters())
        changed = {key for key, value in weights.items() if not torch.equal(value, before[key])}
        unread: tuple[str, ...] = ()
        if base.family == "sdxl" and name == "text_encoder":
            # CLIP-L is read before its last layer, which therefore learns nothing.
            unread = ("text_model.encoder.layers.1.", "text_model.final_layer_norm.")
        expected = {key for key in weights if not key.startswith(unread)}
        # What is added to all keys alike adds the same to all scores, which changes nothing.
        indifferent = {key for key in weights if key.endswith("k_proj.bias")}
        assert changed - indifferent == expected - indifferent


def test_the_saved_checkpoint_draws_finite_pictures(
    run: Trained, trainings: Trainings, base: Components
) -> None:
    path = Path(run.summary["checkpoints"][-1])
    assert path.with_suffix(".yaml").exists()
    model = load_checkpoint(path, trainings.workspace.model("tiny"))
    for name, weights in run.weights.items():
        assert same(dict(model.modules()[name].named_parameters()), weights)
    pictures = [
        next(
            generate(
                components,
                ["a photo of zwx dog"],
                [""],
                width=64,
                height=64,
                steps=2,
                cfg_scale=5.0,
                sampler=sampler,
                seeds=[1],
            )
        )
        for components, sampler in (
            (base, "ddim"),
            *((model, sampler) for sampler in ("ddim", "euler_a")),
        )
    ]
    assert {picture.size for picture in pictures} == {(64, 64)}
    assert pictures[0].tobytes() != pictures[1].tobytes()


def pipeline_of(path: Path, config: Path, variant: Variant, sampler: str) -> Any:
    """What diffusers makes of a file by itself: only the sizes of this tiny model are told."""
    classes: dict[bool, dict[bool, Any]] = {
        False: {False: StableDiffusionPipeline, True: StableDiffusionInpaintPipeline},
        True: {False: StableDiffusionXLPipeline, True: StableDiffusionXLInpaintPipeline},
    }
    made = classes[variant.layout.family == "sdxl"][variant.inpaints]
    pipeline = made.from_single_file(
        str(path), config=str(config), local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler](
        **SCHEDULE,
        prediction_type="v_prediction" if variant.parameterization == "v" else "epsilon",
        **OPTIONS[sampler],
        **(ZERO_SNR if "ztsnr" in variant.marks else {}),
    )
    pipeline.watermark = None
    return pipeline


def test_diffusers_loads_the_trained_file_and_draws_the_same_from_the_same_seed(
    run: Trained, trainings: Trainings, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = Path(run.summary["checkpoints"][-1]), trainings.workspace.model("tiny")
    pipeline = pipeline_of(path, folder.path, KINDS[kind], "ddim")
    model = load_checkpoint(path, folder)
    for name, module in model.modules().items():
        assert same(dict(module.state_dict()), dict(getattr(pipeline, name).state_dict())), name
    told: dict[str, Any] = {}
    if KINDS[kind].inpaints:
        # Our pictures begin with a gray one, wholly masked, and take its mean latents.
        monkeypatch.setattr(
            DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
        )
        gray, mask = Image.new("RGB", (64, 64), (128,) * 3), Image.new("L", (64, 64), 255)
        told = {"image": gray, "mask_image": mask, "strength": 1.0}
    theirs = pipeline(
        "a photo of zwx dog",
        negative_prompt="blurry",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        output_type="np",
        **told,
    ).images[0]
    ours = next(
        generate(
            model,
            ["a photo of zwx dog"],
            ["blurry"],
            width=64,
            height=64,
            steps=3,
            cfg_scale=5.0,
            sampler="ddim",
            seeds=[3],
        )
    )
    assert np.abs(np.asarray(ours) / 255 - theirs).max() < 1.5 / 255


@pytest.mark.parametrize("kind", ["sdxl-v", "sd2-inpainting"], indirect=True, scope="module")
def test_a_resumed_training_is_the_straight_one(
    run: Trained, trainings: Trainings, tmp_path: Path
) -> None:
    half = {**SETTINGS, "intervals": {"epochs": 4, "max_steps": STEPS // 2}}
    root = tmp_path / "resumed"
    ignored = shutil.ignore_patterns("whole", "tiny_*")
    shutil.copytree(trainings.workspace.root, root, ignore=ignored)
    resumed = Trainings.__new__(Trainings)
    resumed.workspace, resumed.pictures = Workspace(root), trainings.pictures
    first = resumed.run(half, "half")
    second = resumed.run({**SETTINGS, "resume": True}, "rest")
    assert first.losses + second.losses == run.losses
    assert same(second.weights, run.weights)


def test_class_images_and_previews_are_drawn(trainings: Trainings) -> None:
    changes = {
        "intervals": {"epochs": 1, "max_steps": 1},
        "concept": {"class_images_per_instance_image": 1, "class_steps": 1},
        "previews": {"prompts": ["zwx dog"], "every_steps": 1, "steps": 1},
    }
    done = trainings.run(changes, "previews")
    assert len(done.events_of(SampleSaved)) == 4 + 1
    assert done.steps[0].loss_class is not None
