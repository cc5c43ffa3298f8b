"""Every training setting, turned: what changes is what its label says."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_core.errors import ConfigError, InputError
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.job.events import PhaseProgress, PhaseStarted, StepDone
from dreambooth_core.stages import train
from dreambooth_core.stages.training_state import load_state
from tests.trainings import Trained, Trainings, merged, trainings_in

SHORT: dict[str, Any] = {"intervals": {"epochs": 1}, "batch": {"batch_size": 2}}
"""Two steps of two pictures."""
ONE_STEP: dict[str, Any] = {"intervals": {"max_steps": 1}, "batch": {"batch_size": 2}}
LION = {"name": "lion", "weight_decay": 0.0, "text_encoder_weight_decay": 0.0}


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture(scope="module")
def base(trainings: Trainings) -> Components:
    """The model before training."""
    return load_components(trainings.workspace.model("tiny"))


@pytest.fixture(scope="module")
def short(trainings: Trainings) -> Trained:
    """The two steps without any setting changed."""
    return trainings.run(SHORT, "short")


@pytest.fixture(scope="module")
def one_step(trainings: Trainings) -> Trained:
    """One step without any setting changed."""
    return trainings.run(ONE_STEP, "one")


class Spy:
    """What the family was asked to do during a run."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []
        self.predicted: list[torch.Tensor] = []
        self.encoded_pictures = 0
        self.models: list[Components] = []


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Watch the family's calls and the models that are loaded."""
    seen, family = Spy(), StableDiffusion1
    encode, predict, pictures = family.encode_prompts, family.predict, family.encode_images
    load = train.load_components

    def encode_prompts(self: Any, model: Any, prompts: Any, *how: Any, **read: Any) -> Conditioning:
        seen.prompts.append(list(prompts))
        return encode(self, model, prompts, *how, **read)

    def spied_predict(self: Any, *parts: Any) -> torch.Tensor:
        seen.predicted.append(predict(self, *parts))
        return seen.predicted[-1]

    def encode_images(self: Any, model: Any, pixels: torch.Tensor) -> Any:
        seen.encoded_pictures += len(pixels)
        return pictures(self, model, pixels)

    def load_components_once(folder: Any) -> Components:
        seen.models.append(load(folder))
        return seen.models[-1]

    monkeypatch.setattr(family, "encode_prompts", encode_prompts)
    monkeypatch.setattr(family, "predict", spied_predict)
    monkeypatch.setattr(family, "encode_images", encode_images)
    monkeypatch.setattr(train, "load_components", load_components_once)
    return seen


def rates(run: Trained) -> list[set[str]]:
    """The parts that each step gave a learning rate."""
    return [set(step.learning_rates) for step in run.steps]


def moves(run: Trained, base: Components, part: str) -> torch.Tensor:
    """How far each weight of a part moved."""
    start = dict(base.modules()[part].named_parameters())
    return torch.cat([(t - start[k]).detach().reshape(-1) for k, t in run.weights[part].items()])


def memory_norm(run: Trained, name: str = "exp_avg") -> float:
    """The norm of everything the optimizer remembers under a name."""
    assert run.state is not None
    entries = [entry for group in run.state.optimizer.values() for entry in group if entry]
    return math.sqrt(sum(float(entry[name].double().square().sum()) for entry in entries))


# -- what is trained


@pytest.mark.turns("train.unet.train")
def test_unet_train_off_leaves_the_unet_as_it_is(trainings: Trainings, base: Components) -> None:
    run = trainings.run({**ONE_STEP, "unet": {"train": False}}, "no unet")
    assert set(run.weights) == {"text_encoder"}
    assert rates(run) == [{"text_encoder"}]
    assert moves(run, base, "text_encoder").abs().max() > 0


def test_train_ratio_0_leaves_the_text_encoder_and_reads_each_prompt_once(
    trainings: Trainings, spy: Spy
) -> None:
    run = trainings.run(
        {"intervals": {"epochs": 2}, "text_encoder": {"train_ratio": 0.0}}, "no text encoder"
    )
    assert set(run.weights) == {"unet"}
    assert rates(run) == [{"unet"}] * 8
    assert sorted(spy.prompts) == [[f"{letter} red zwx dog"] for letter in "abcd"]


@pytest.mark.turns("train.text_encoder.train_ratio")
def test_train_ratio_freezes_the_text_encoder_after_its_share(
    trainings: Trainings, spy: Spy
) -> None:
    settings = {
        "intervals": {"epochs": 2},
        "batch": {"batch_size": 2},
        "text_encoder": {"train_ratio": 0.5},
        "saving": {"state_every_epochs": 1},
    }
    run = trainings.run(settings, "half")
    assert rates(run) == [{"unet", "text_encoder"}] * 2 + [{"unet"}] * 2
    half = load_state(run.states / "step_00000002")
    assert run.state is not None
    before, after = half.weights["text_encoder"], run.state.weights["text_encoder"]
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(
        half.weights["unet"]["conv_in.weight"], run.state.weights["unet"]["conv_in.weight"]
    )
    assert set(half.optimizer) == {"unet", "text_encoder"}
    assert set(run.state.optimizer) == {"unet"}
    assert [len(prompts) for prompts in spy.prompts] == [2, 2, 1, 1, 1, 1]
    assert all(p.grad is None for p in spy.models[0].text_encoder.parameters())


def test_train_ratio_1_trains_the_text_encoder_to_the_end(short: Trained) -> None:
    assert rates(short) == [{"unet", "text_encoder"}] * 2
    assert short.state is not None and set(short.state.optimizer) == {"unet", "text_encoder"}


@pytest.mark.turns("train.text_encoder.clip_skip")
def test_clip_skip_reads_an_earlier_layer(
    trainings: Trainings, base: Components, short: Trained
) -> None:
    run = trainings.run({**SHORT, "text_encoder": {"clip_skip": 2}}, "skip")
    assert run.losses[0] != short.losses[0]
    start = dict(base.text_encoder.named_parameters())

    def learnt(trained: Trained, layer: str) -> bool:
        weights = trained.weights["text_encoder"]
        keys = [key for key in weights if f"layers.{layer}." in key]
        return not all(torch.equal(weights[key], start[key]) for key in keys)

    assert (learnt(run, "0"), learnt(run, "1")) == (True, False)
    assert (learnt(short, "0"), learnt(short, "1")) == (True, True)


# -- how long, how many pictures


@pytest.mark.turns(
    "train.intervals.epochs",
    "train.intervals.max_steps",
    "train.batch.batch_size",
    "train.batch.gradient_accumulation_steps",
)
@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"intervals": {"epochs": 1}, "batch": {"batch_size": 4}}, 1),
        ({"intervals": {"epochs": 2}, "batch": {"batch_size": 3}}, 4),
        ({"intervals": {"epochs": 2, "max_steps": 1}}, 1),
        (
            {
                "intervals": {"epochs": 1},
                "batch": {"batch_size": 1, "gradient_accumulation_steps": 2},
            },
            2,
        ),
    ],
)
def test_epochs_batches_and_accumulation_make_the_steps(
    trainings: Trainings, spy: Spy, changes: dict[str, Any], steps: int
) -> None:
    run = trainings.run(changes, f"length {changes}".replace(":", "").replace("'", ""))
    assert len(run.steps) == steps
    if not changes["intervals"].get("max_steps"):
        shown = sum(len(prediction) for prediction in spy.predicted)
        assert shown == 4 * changes["intervals"]["epochs"]
    most = changes.get("batch", {}).get("batch_size", 1)
    assert max(len(prediction) for prediction in spy.predicted) == most


@pytest.mark.turns("train.batch.class_batch_size")
@pytest.mark.parametrize(("size", "rows"), [(0, 4), (1, 3)])
def test_class_batch_size_is_how_many_class_images_a_step_has(
    trainings: Trainings, spy: Spy, size: int, rows: int
) -> None:
    concept = {"class_images_per_instance_image": 1, "class_prompt": "dog", "class_steps": 1}
    changes = merged({**ONE_STEP, "concept": concept}, {"batch": {"class_batch_size": size}})
    run = trainings.run(changes, f"class {size}")
    assert len(spy.predicted[-1]) == rows
    assert run.steps[0].loss_class is not None


def test_class_images_are_made_once_and_remind_of_the_class(
    trainings: Trainings, spy: Spy, one_step: Trained
) -> None:
    concept = {"class_images_per_instance_image": 2, "class_prompt": "my dog", "class_steps": 1}
    run = trainings.run({**ONE_STEP, "concept": concept}, "class images")
    painted = [event for event in run.events_of(PhaseProgress) if event.phase == "class images"]
    assert (painted[-1].done, painted[-1].total) == (8, 8)
    assert any("my dog" in prompts for prompts in spy.prompts[8:])
    assert one_step.steps[0].loss_class is None
    again = trainings.run({**ONE_STEP, "concept": concept}, "class images again")
    assert "class images" not in [event.phase for event in again.events_of(PhaseProgress)]
    assert again.losses == run.losses


def test_the_prior_loss_weight_is_what_a_class_image_counts(trainings: Trainings) -> None:
    concept = {"class_images_per_instance_image": 1, "class_prompt": "dog", "class_steps": 1}
    for weight in (0.25, 1.0):
        changes = {**ONE_STEP, "concept": concept, "loss": {"prior_loss_weight": weight}}
        (step,) = trainings.run(changes, f"prior {weight}").steps
        assert step.loss_class is not None
        expected = (step.loss_instance + weight * step.loss_class) / (1 + weight)
        assert step.loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.turns("train.batch.gradient_checkpointing")
def test_gradient_checkpointing_gives_the_same_result(
    trainings: Trainings, spy: Spy, one_step: Trained
) -> None:
    run = trainings.run(
        merged(ONE_STEP, {"batch": {"gradient_checkpointing": True}}), "checkpointed"
    )
    assert spy.models[0].unet.is_gradient_checkpointing
    assert spy.models[0].text_encoder.is_gradient_checkpointing
    assert run.losses == pytest.approx(one_step.losses, rel=1e-6)
    assert run.steps[0].grad_norm == pytest.approx(one_step.steps[0].grad_norm, rel=1e-5)


@pytest.mark.turns("train.batch.max_grad_norm")
@pytest.mark.parametrize("limit", [0.0, 0.25])
def test_max_grad_norm_limits_what_the_optimizer_sees(trainings: Trainings, limit: float) -> None:
    run = trainings.run(merged(ONE_STEP, {"batch": {"max_grad_norm": limit}}), f"clip {limit}")
    seen = memory_norm(run) / (1 - 0.9)  # the first momentum is (1 - beta1) times the gradient
    assert seen == pytest.approx(limit or run.steps[0].grad_norm, rel=1e-3)
    assert run.steps[0].grad_norm > 0.25


@pytest.mark.turns("train.optimizer.text_encoder_max_grad_norm")
@pytest.mark.parametrize("together", [0.0, 0.1])
def test_the_text_encoder_s_gradient_is_clipped_apart(
    trainings: Trainings, one_step: Trained, together: float
) -> None:
    """Its own norm becomes 0.02; the UNet's stays or becomes the other limit, by itself."""
    changes = {"text_encoder_max_grad_norm": 0.02}
    run = trainings.run(
        merged(ONE_STEP, {"optimizer": changes, "batch": {"max_grad_norm": together}}),
        f"apart {together}",
    )
    assert run.steps[0].grad_norm == pytest.approx(one_step.steps[0].grad_norm, rel=1e-5)
    seen = {part: norm_of_part(run, part) / (1 - 0.9) for part in run.weights}
    assert seen["text_encoder"] == pytest.approx(0.02, rel=1e-3)
    whole = (run.steps[0].grad_norm ** 2 - whole_text_encoder(trainings) ** 2) ** 0.5
    assert seen["unet"] == pytest.approx(together or whole, rel=1e-3)


def norm_of_part(run: Trained, part: str) -> float:
    """The norm of the momentum of one part."""
    assert run.state is not None
    entries = run.state.optimizer[part]
    return math.sqrt(sum(float(e["exp_avg"].double().square().sum()) for e in entries))


def whole_text_encoder(trainings: Trainings) -> float:
    """The norm of the text encoder's gradient where nothing is clipped."""
    run = trainings.run(merged(ONE_STEP, {"batch": {"max_grad_norm": 0.0}}), "unclipped")
    return norm_of_part(run, "text_encoder") / (1 - 0.9)


# -- learning rate and optimizer


@pytest.mark.turns("train.learning_rate.unet", "train.learning_rate.text_encoder")
def test_each_part_moves_by_its_own_learning_rate(trainings: Trainings, base: Components) -> None:
    changes = {"optimizer": LION, "learning_rate": {"unet": 1e-3, "text_encoder": 1e-4}}
    run = trainings.run({**ONE_STEP, **changes}, "rates")
    assert moves(run, base, "unet").abs().max().item() == pytest.approx(1e-3, rel=1e-3)
    assert moves(run, base, "text_encoder").abs().max().item() == pytest.approx(1e-4, rel=1e-2)
    assert run.steps[0].learning_rates == {"unet": 1e-3, "text_encoder": 1e-4}


@pytest.mark.turns("train.optimizer.weight_decay", "train.optimizer.text_encoder_weight_decay")
@pytest.mark.parametrize(
    ("name", "part"),
    [("weight_decay", "unet"), ("text_encoder_weight_decay", "text_encoder")],
)
def test_weight_decay_pulls_its_part_towards_zero(
    trainings: Trainings, base: Components, name: str, part: str
) -> None:
    plain = trainings.run({**ONE_STEP, "optimizer": LION}, f"{name} off")
    decayed = trainings.run({**ONE_STEP, "optimizer": {**LION, name: 0.5}}, f"{name} on")
    for other, parameters in plain.weights.items():
        start = dict(base.modules()[other].named_parameters())
        for key, without in parameters.items():
            pull = 1e-3 * 0.5 * start[key] if other == part else torch.zeros_like(without)
            assert torch.allclose(decayed.weights[other][key], without - pull, atol=1e-6)


@pytest.mark.turns("train.optimizer.name")
def test_lion_and_adamw_remember_different_things(trainings: Trainings, one_step: Trained) -> None:
    lion = trainings.run({**ONE_STEP, "optimizer": {"name": "lion"}}, "lion")
    assert lion.state is not None and one_step.state is not None
    assert set(lion.state.optimizer["unet"][0]) == {"exp_avg"}
    assert set(one_step.state.optimizer["unet"][0]) == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.turns("train.optimizer.beta1", "train.optimizer.beta2")
@pytest.mark.parametrize(
    ("name", "value", "memory", "ratio"),
    [("beta1", 0.5, "exp_avg", 5.0), ("beta2", 0.9, "exp_avg_sq", 10.0)],
)
def test_betas_are_how_slowly_the_optimizer_forgets(
    trainings: Trainings, one_step: Trained, name: str, value: float, memory: str, ratio: float
) -> None:
    run = trainings.run({**ONE_STEP, "optimizer": {name: value}}, name)
    assert memory_norm(run, memory) == pytest.approx(
        ratio * memory_norm(one_step, memory), rel=1e-3
    )


@pytest.mark.turns("train.optimizer.epsilon")
def test_a_large_epsilon_shortens_adamws_steps(
    trainings: Trainings, base: Components, one_step: Trained
) -> None:
    run = trainings.run({**ONE_STEP, "optimizer": {"epsilon": 1.0}}, "epsilon")
    assert moves(run, base, "unet").norm() < 0.1 * moves(one_step, base, "unet").norm()


@pytest.mark.turns(
    "train.learning_rate.schedule",
    "train.learning_rate.warmup_steps",
    "train.learning_rate.min_factor",
    "train.learning_rate.cycles",
    "train.learning_rate.power",
    "train.learning_rate.decay_share",
)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 2}, [1, 1, 1, 1]),
        ({"schedule": "constant_with_warmup", "warmup_steps": 2}, [0, 0.5, 1, 1]),
        ({"schedule": "linear", "min_factor": 0.2}, [1, 0.8, 0.6, 0.4]),
        ({"schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "cosine_with_restarts", "cycles": 2}, [1, 0.5, 1, 0.5]),
        ({"schedule": "polynomial", "power": 2.0}, [1, 0.5625, 0.25, 0.0625]),
        ({"schedule": "rex"}, [1, 6 / 7, 2 / 3, 0.4]),
        ({"schedule": "inverse_sqrt", "warmup_steps": 1}, [0, 1, 0.5**0.5, (1 / 3) ** 0.5]),
        ({"schedule": "warmup_stable_decay", "decay_share": 0.5}, [1, 1, 1, 0.5]),
        ({"schedule": "warmup_stable_decay", "decay_share": 1.0}, [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_schedule_is_a_function_of_the_step(
    trainings: Trainings, settings: dict[str, Any], expected: list[float]
) -> None:
    config = trainings.config({"learning_rate": settings})
    plan = SimpleNamespace(total_steps=4)
    factors = [
        train.learning_rate_factor(
            SimpleNamespace(config=config, plan=plan, progress=SimpleNamespace(step=step))  # type: ignore[arg-type]
        )
        for step in range(4)
    ]
    assert factors == pytest.approx(expected, rel=1e-5)


def test_the_schedule_reaches_the_weights(trainings: Trainings, base: Components) -> None:
    changes = {"optimizer": LION, "learning_rate": {"schedule": "linear"}}
    run = trainings.run({**SHORT, **changes}, "linear")
    assert [step.learning_rates["unet"] for step in run.steps] == pytest.approx([1e-3, 5e-4])
    assert moves(run, base, "unet").abs().max().item() == pytest.approx(1.5e-3, rel=1e-3)


# -- loss, noise, precision, seed


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"offset_noise": 0.5}},
        {"loss": {"min_snr_gamma": 1.0}},
        {"seed": 1},
        {"images": {"horizontal_flip": True}, "seed": 3},
    ],
    ids=["offset noise", "min-SNR", "seed", "flip"],
)
def test_a_changed_loss_or_seed_changes_the_losses(
    trainings: Trainings, short: Trained, changes: dict[str, Any]
) -> None:
    run = trainings.run({**SHORT, **changes}, f"loss {'-'.join(changes)}")
    assert all(a != b for a, b in zip(run.losses, short.losses, strict=True))


@pytest.mark.turns("train.precision.mixed_precision")
def test_bf16_computes_in_16_bits_and_keeps_weights_in_32(
    trainings: Trainings, spy: Spy, short: Trained
) -> None:
    run = trainings.run({**SHORT, "precision": {"mixed_precision": "bf16"}}, "bf16")
    assert {prediction.dtype for prediction in spy.predicted} == {torch.bfloat16}
    assert {p.dtype for p in spy.models[0].unet.parameters()} == {torch.float32}
    assert run.losses == pytest.approx(short.losses, rel=0.02)
    assert run.losses != short.losses


def test_fp16_on_the_cpu_is_refused(trainings: Trainings) -> None:
    with pytest.raises(ConfigError) as caught:
        trainings.run({"precision": {"mixed_precision": "fp16"}}, "fp16")
    assert caught.value.problems[0].field == "precision.mixed_precision"
    assert "bf16" in caught.value.problems[0].remedy


@pytest.mark.turns("train.precision.device")
def test_a_device_that_is_not_here_is_refused(trainings: Trainings) -> None:
    with pytest.raises(InputError) as caught:
        trainings.run({"precision": {"device": "cuda:99"}}, "gpu")
    assert caught.value.field == "precision.device"


# -- EMA


def ema_moves(run: Trained, base: Components) -> torch.Tensor:
    """How far the average of each UNet weight moved."""
    assert run.state is not None
    start = dict(base.unet.named_parameters())
    parts = [run.state.ema[f"unet.{key}"] - value for key, value in start.items()]
    return torch.cat([part.detach().reshape(-1) for part in parts])


@pytest.mark.turns("train.ema.enabled")
def test_ema_off_keeps_no_average(trainings: Trainings) -> None:
    run = trainings.run({**ONE_STEP, "ema": {"enabled": False}}, "no ema")
    assert run.state is not None and run.state.ema == {}


@pytest.mark.turns("train.ema.decay")
def test_ema_follows_with_its_decay_after_the_warm_up(
    trainings: Trainings, base: Components, one_step: Trained
) -> None:
    warm_up = (1 + 1) / (10 + 1)  # below the decay of 0.995
    expected = (1 - warm_up) * moves(one_step, base, "unet")
    assert torch.allclose(ema_moves(one_step, base), expected, atol=1e-6)
    at_once = trainings.run({**ONE_STEP, "ema": {"decay": 0.0}}, "decay 0")
    assert torch.allclose(ema_moves(at_once, base), moves(at_once, base, "unet"), atol=1e-6)


@pytest.mark.turns("train.ema.every_steps")
def test_ema_waits_for_its_interval(trainings: Trainings, base: Components) -> None:
    run = trainings.run({**ONE_STEP, "ema": {"every_steps": 2}}, "ema interval")
    assert ema_moves(run, base).abs().max() == 0


# -- pictures and captions


def cached(run: Trained) -> int:
    """How many forms of pictures were to be encoded."""
    (phase,) = [e for e in run.events_of(PhaseStarted) if e.phase == "caching latents"]
    return int(phase.total)


def test_flip_and_random_crop_show_more_forms_of_each_picture(
    trainings: Trainings, one_step: Trained
) -> None:
    assert cached(one_step) == 4
    assert cached(trainings.run({**ONE_STEP, "images": {"horizontal_flip": True}}, "flip")) == 8
    assert cached(trainings.run({**ONE_STEP, "images": {"crop": "random"}}, "crop")) > 8


def test_resolution_is_the_size_of_the_latents(trainings: Trainings, spy: Spy) -> None:
    trainings.run({**ONE_STEP, "images": {"resolution": 96}}, "resolution")
    assert spy.predicted[0].shape[-2:] == (12, 12)


def test_latents_on_disk_serve_the_next_run(trainings: Trainings, spy: Spy) -> None:
    settings = {**ONE_STEP, "images": {"cache_latents": "disk"}}
    first = trainings.run(settings, "disk")
    folder = trainings.workspace.model("tiny").cache_dir
    assert len(list(folder.rglob("*.safetensors"))) == spy.encoded_pictures == 4
    second = trainings.run(settings, "disk again")
    assert spy.encoded_pictures == 4
    assert second.losses == first.losses


def test_caption_dropout_1_shows_only_empty_prompts(trainings: Trainings, spy: Spy) -> None:
    trainings.run({**ONE_STEP, "captions": {"dropout": 1.0}}, "dropout")
    assert spy.prompts == [["", ""]]


def test_prompts_are_the_concepts(trainings: Trainings, spy: Spy) -> None:
    concept = {"instance_prompt": "photo of [filewords]", "instance_token": "sks"}
    trainings.run({**ONE_STEP, "concept": concept}, "prompts")
    assert all(prompt.startswith("photo of ") for prompt in spy.prompts[0])
    assert all("sks dog" in prompt for prompt in spy.prompts[0])


@pytest.mark.turns("train.concepts")
def test_two_concepts_are_trained_together(trainings: Trainings, spy: Spy) -> None:
    changes = merged(SHORT, {"batch": {"batch_size": 8}})
    config = trainings.config(changes)
    config.concepts.append(
        config.concepts[0].__class__(
            instance_folder=str(trainings.pictures), instance_prompt="a house"
        )
    )
    context, events = trainings.context("two concepts")
    train.run(config, context)
    assert sum(isinstance(event, StepDone) for event in events) == 1
    assert sorted(spy.prompts[0]) == ["a house"] * 4 + [f"{c} red zwx dog" for c in "abcd"]
