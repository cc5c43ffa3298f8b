"""Tests of going back: what is injected, where the run goes on, and what it says of it."""

from __future__ import annotations

import gc
import math
import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.job.events import Notice
from dreambooth_core.stages import dry_run, health, train, training_output
from dreambooth_core.stages.retreats import Retreats
from dreambooth_core.stages.saved_states import latest_state
from dreambooth_core.stages.session import Session
from dreambooth_core.stages.training_setup import Trainer
from dreambooth_core.stages.training_state import load_state
from dreambooth_core.worker import failure
from tests.trainings import Trained, Trainings, merged, same, trainings_in

RATE = 1e-3
FOUR_STEPS: dict[str, Any] = {
    "batch": {"batch_size": 2},
    "intervals": {"epochs": 2},
    "saving": {"state_every_epochs": 1, "save_at_end": True},
    "ema": {"enabled": True},
}
"""Two steps an epoch, and a state after each epoch; `predict` is called once a step."""

Break = Callable[[int], float | torch.Tensor]
"""What the prediction of the n-th call (from 1) is multiplied by."""


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Break], None]:
    """Make the UNet's prediction what a function says, in the whole process."""
    predict = StableDiffusion1.predict

    def install(factor: Break) -> None:
        calls = 0

        def broken(self: Any, *parts: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return predict(self, *parts) * factor(calls)

        monkeypatch.setattr(StableDiffusion1, "predict", broken)

    return install


def nan_at(*calls: int) -> Break:
    return lambda call: math.nan if call in calls else 1.0


def warnings(run: Trained) -> list[str]:
    return [event.message for event in run.events_of(Notice) if event.level == "warning"]


def remembered(run: Trained) -> Any:
    """Everything of the last state but the settings, which tell of other rates."""
    assert run.state is not None
    state = run.state
    return (state.progress, state.weights, state.ema, state.optimizer)


def is_finite(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    inner = values.values() if isinstance(values, dict) else values
    return not isinstance(values, dict | list) or all(map(is_finite, inner))


@pytest.fixture(scope="module")
def halved(trainings: Trainings) -> Trained:
    """Never broken: two steps at the full rate, then a resumed run at half of it."""
    first = {**FOUR_STEPS, "intervals": {"epochs": 2, "stop_after_steps": 2}}
    trainings.run(first, "first half")
    half = {"unet": RATE / 2, "text_encoder": RATE / 2}
    return trainings.run({**FOUR_STEPS, "learning_rate": half, "resume": True}, "second half")


# -- going back


@pytest.mark.turns("train.learning_rate.retries")
def test_a_run_goes_back_to_its_state_and_on_at_half_the_rate(
    trainings: Trainings,
    halved: Trained,
    breaking: Callable[[Break], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[weakref.ref[Any]] = []
    prepare = train.prepare

    def noting(*parts: Any, **named: Any) -> Trainer:
        gc.collect()
        assert not any(network() is not None for network in dropped), "two at once"
        trainer = prepare(*parts, **named)
        dropped.append(weakref.ref(trainer.components.unet))
        return trainer

    monkeypatch.setattr(train, "prepare", noting)
    second_of_two = torch.tensor([1.0, math.nan]).reshape(2, 1, 1, 1)
    breaking(lambda call: second_of_two if call == 4 else 1.0)
    saving = {**FOUR_STEPS["saving"], "save_every_steps": 3}
    run = trainings.run({**FOUR_STEPS, "saving": saving}, "goes back")
    assert len(dropped) == 2
    assert [step.step for step in run.steps] == [1, 2, 3, 3, 4]
    assert [step.learning_rates["unet"] for step in run.steps] == [RATE] * 3 + [RATE / 2] * 2
    assert same(remembered(run), remembered(halved))
    assert run.state is not None and run.state.retreats.as_dict() == {"steps": [4], "factor": 0.5}
    (told,) = [words for words in warnings(run) if "not a finite number" in words]
    for words in (
        "loss of step 4 ",
        "changed no weight",
        "step_00000002",
        "0.5 times",
        "Lower the learn",
    ):
        assert words in told
    shown = re.findall(r"/([^/]+\.png)", told)
    assert len(shown) == 3 and shown[1] == shown[2], "two of the step, of which the second is it"
    assert "Not finite is the loss of " in told
    assert "learning rate that is too high (UNet 0.001; text encoder 0.001)" in told
    (again,) = run.summary["retreats"]
    assert "step 4" in again and "step_00000002" in again
    assert "stopped" not in run.summary
    first, second, last = (Path(file) for file in run.summary["checkpoints"])
    assert first.stem == "tiny_3" and first.read_bytes() != second.read_bytes(), "both are kept"
    assert last.stem.startswith("tiny_4")


@pytest.mark.turns("train.learning_rate.retry_factor")
def test_before_the_first_state_a_lora_goes_back_to_the_beginning(
    trainings: Trainings, breaking: Callable[[Break], None]
) -> None:
    lora = {"enabled": True, "unet_learning_rate": RATE, "text_encoder_learning_rate": RATE}
    twice = {"retries": 2, "retry_factor": 0.25}
    breaking(nan_at(2, 3))
    run = trainings.run({**FOUR_STEPS, "lora": lora, "learning_rate": twice}, "lora back")
    assert [step.step for step in run.steps] == [1, 1, 2, 3, 4]
    rates = [step.learning_rates["unet"] for step in run.steps]
    assert rates == [RATE, *[RATE / 16] * 4]
    told = [words for words in warnings(run) if "not a finite number" in words]
    assert len(told) == len(run.summary["retreats"]) == 2
    assert "as there is no state yet" in told[0] and "times 0.25 since the run" in told[1]
    assert run.state is not None and run.state.retreats == Retreats((2, 1), 0.0625)
    assert is_finite(remembered(run)[1:])


def test_the_session_ends_where_it_was_to_and_a_resumed_run_remembers_the_retreat(
    trainings: Trainings, halved: Trained, breaking: Callable[[Break], None]
) -> None:
    breaking(nan_at(3))
    three = {"intervals": {"stop_after_steps": 3}, "saving": {"keep_states": 1}}
    first = trainings.run(merged(FOUR_STEPS, three), "three steps")
    assert [step.step for step in first.steps] == [1, 2, 3]
    assert first.summary["stopped"] and first.summary["steps"] == 3
    rest = trainings.run({**FOUR_STEPS, "resume": True}, "the rest")
    assert [step.step for step in rest.steps] == [4]
    assert same(remembered(rest), remembered(halved))
    assert any("went back at step 3" in event.message for event in rest.events_of(Notice))
    assert "retreats" not in rest.summary


def test_a_number_that_breaks_again_ends_the_run_and_spares_what_was_saved(
    trainings: Trainings, breaking: Callable[[Break], None]
) -> None:
    breaking(lambda call: math.inf if call >= 4 else 1.0)
    with pytest.raises(NonFiniteError) as caught:
        trainings.run({**FOUR_STEPS, "precision": {"device": "cpu"}}, "broken for good")
    words = caught.value.message
    assert "The loss of step 3 " in words and "gone back at step 4 already" in words
    assert "UNet 0.0005, which is 0.001 times 1 by the schedule times 0.5 since" in words
    assert "resume goes on" in caught.value.remedy and "step_00000002" in caught.value.remedy
    assert caught.value.field == "learning_rate.unet"
    final = failure(caught.value)
    assert (final.error, final.exit_code) == ("NonFiniteError", 1)
    path = latest_state(trainings.workspace.model("tiny"), "broken for good")
    assert path is not None and path.name == "step_00000002"
    assert is_finite(load_state(path).weights)


def test_a_damaged_state_is_passed_over_and_said_so(
    trainings: Trainings, halved: Trained, tmp_path: Path
) -> None:
    before = trainings.workspace.model("tiny").states_dir / "first half" / "step_00000002"
    newest = Path(shutil.copytree(halved.states / "step_00000004", tmp_path / "step_00000004"))
    weights = newest / "unet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    session, told = Session(states={2: before, 4: newest}), list[str]()
    found = session.last_good(trainings.config(), trainings.workspace.model("tiny"), told.append)
    assert found is not None and found[0] == before and found[1].progress.step == 2
    assert len(told) == 1 and str(newest) in told[0]


def test_before_its_first_state_a_session_goes_back_to_what_it_began_from(
    trainings: Trainings, halved: Trained
) -> None:
    model = trainings.workspace.model("tiny")
    resumed = Session().last_good(trainings.config({"resume": True}), model, pytest.fail)
    assert resumed is not None and resumed[0].parent.parent == model.states_dir
    assert Session().last_good(trainings.config(), model, pytest.fail) is None


def test_rates_that_a_person_sets_anew_are_taken_as_they_are(trainings: Trainings) -> None:
    made, before = Retreats((4,), 0.5), to_dict(trainings.config())
    assert made.under(trainings.config({"batch": {"batch_size": 3}}), before) == made
    for changes in ({"learning_rate": {"unet": 2e-3}}, {"lora": {"text_encoder_learning_rate": 1}}):
        assert made.under(trainings.config(changes), before) == Retreats()
    assert Retreats.of_dict(made.as_dict()) == made and Retreats.of_dict({}) == Retreats()


# -- weights


def poisoned(
    monkeypatch: pytest.MonkeyPatch, at_step: int, value: float, shape: tuple[int, ...] = ()
) -> None:
    """Let the optimizer's n-th step leave a number in the last weight of each group, once."""
    step, calls = torch.optim.AdamW.step, 0

    def poison(self: Any, *parts: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        done = step(self, *parts, **named)
        if calls == at_step:
            for group in self.param_groups:
                group["params"][-1].data.view(-1)[0] = value
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", poison)


def test_nan_in_weights_after_a_finite_gradient_is_never_saved(
    trainings: Trainings, halved: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at_step=4, value=math.nan)  # then the state after step 4 is due
    run = trainings.run(FOUR_STEPS, "poisoned")
    assert [step.step for step in run.steps] == [1, 2, 3, 4, 3, 4]
    (told,) = [words for words in warnings(run) if "goes back" in words]
    assert "The weight conv_out.bias of the UNet holds NaN" in told and "after step 4" in told
    assert same(remembered(run), remembered(halved))
    for path in run.states.glob("step_*"):
        state = load_state(path)
        assert is_finite([state.weights, state.ema, state.optimizer])
    for file in run.summary["checkpoints"]:
        with CheckpointReader(Path(file)) as reader:
            assert all(is_finite(reader.read(key)) for key in reader.header.tensors)


def test_nan_in_weights_between_two_states_is_told_at_the_next_step(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at_step=1, value=math.inf)
    run = trainings.run({**FOUR_STEPS, "intervals": {"max_steps": 2}}, "poisoned early")
    assert [step.step for step in run.steps] == [1, 1, 2]
    (told,) = run.summary["retreats"]
    assert "of the UNet holds NaN or infinite numbers after step 1" in told
    assert "the loss of step 2 is not finite" in told


def test_weights_too_large_for_the_files_format_are_kept_and_change_nothing(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, at_step=1, value=1e5)
    settings = {"intervals": {"max_steps": 2}, "saving": {"save_every_steps": 1}}
    with pytest.raises(NonFiniteError, match="too large for fp16"):
        trainings.run({**FOUR_STEPS, **settings, "ema": {"enabled": False}}, "too large")
    path = latest_state(trainings.workspace.model("tiny"), "too large")
    assert path is not None and path.name == "step_00000001"


def test_a_model_that_is_broken_from_the_start_is_not_tried_again(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = train.load_components, []

    def broken(folder: Any) -> Any:
        components = load(folder)
        components.unet.conv_in.bias.data[0] = math.nan
        loaded.append(folder)
        return components

    monkeypatch.setattr(train, "load_components", broken)
    with pytest.raises(
        NonFiniteError, match=r"conv_in\.bias of the UNet .* before any step"
    ) as caught:
        trainings.run(FOUR_STEPS, "broken model")
    assert len(loaded) == 1
    assert "Create the model anew" in caught.value.remedy


# -- what does not move, and what is only drawn


def test_a_dry_run_tells_that_its_step_changed_nothing(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE_STEPS", 1)  # so that the step itself tells it too
    AcceleratorState._reset_state(True)
    context, events = trainings.context("one step")
    config = trainings.config({"learning_rate": {"unet": 1e-46, "text_encoder": RATE}})
    dry_run.run(config, context)
    during, after = [e.message for e in events if isinstance(e, Notice) and "None" in e.message]
    assert "weights of the UNet that are looked at has changed in 1 step:" in after
    assert during == f"Step 1: {after}"


def test_a_rate_of_0_throughout_and_a_preview_of_nan_are_told_and_no_more(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws_nan(*parts: Any, **named: Any) -> Iterator[Any]:
        yield from ()
        raise NonFiniteError("The model painted values that are not numbers.")

    monkeypatch.setattr(training_output, "generate", draws_nan)
    settings = {
        "intervals": {"max_steps": 1},
        "learning_rate": {"schedule": "constant_with_warmup", "warmup_steps": 5},
        "previews": {"prompts": ["x"], "every_steps": 1},
    }
    run = trainings.run({**FOUR_STEPS, **settings}, "still")
    assert [path.name for path in run.states.glob("step_*")] == ["step_00000001"]
    assert len(run.summary["unchanged"]) == 2
    assert "weights of the text encoder that are looked at" in run.summary["unchanged"][1]
    assert all("learning rate was 0 throughout" in words for words in run.summary["unchanged"])
    assert set(run.summary["unchanged"]) < set(warnings(run))
    assert any("preview of step 1 was not drawn" in words for words in warnings(run))
