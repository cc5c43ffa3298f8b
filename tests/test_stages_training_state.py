"""Tests of what a run remembers: written all or nothing, refused when damaged, found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.errors import CheckpointError, NonFiniteError
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages import training_state
from dreambooth_core.stages.saved_states import (
    Progress,
    damage,
    keep_newest,
    latest_state,
    state_progress,
)
from dreambooth_core.stages.training_state import (
    TrainingState,
    load_state,
    save_state,
    trained_weights,
)
from tests.trainings import same

FILES = {
    "unet.safetensors",
    "text_encoder.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "progress.json",
}


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A model folder that holds nothing yet."""
    return ModelFolder(tmp_path / "model")


def make_state(step: int = 7, **changes: Any) -> TrainingState:
    """A state with one weight per component and one remembered momentum."""
    values: dict[str, Any] = {
        "progress": Progress(step=step, epoch=2, position=1),
        "seed": 5,
        "settings": {"model": "tiny", "optimizer": {"name": "lion"}},
        "weights": {
            "unet": {"a.weight": torch.tensor([[1.0, 2.0 / 3.0]])},
            "text_encoder": {"b": torch.tensor([0.1])},
        },
        "ema": {"unet.a.weight": torch.tensor([[3.0, 4.0]]), "text_encoder.b": torch.tensor([9.0])},
        "optimizer": {"unet": [{"exp_avg": torch.tensor([[0.5, 0.25]])}], "text_encoder": [{}]},
    }
    return TrainingState(**{**values, **changes})


def test_a_state_comes_back_as_it_was_saved(model: ModelFolder) -> None:
    state = make_state(loss_scaler={"scale": 512.0, "growth_factor": 2.0})
    path = save_state(model, "run-a", state)
    loaded = load_state(path)
    assert path == model.states_dir / "run-a" / "step_00000007"
    assert {file.name for file in path.iterdir()} == FILES
    assert loaded.progress == state_progress(path) == Progress(7, 2, 1)
    assert (loaded.seed, loaded.settings) == (5, state.settings)
    assert loaded.loss_scaler == {"scale": 512.0, "growth_factor": 2.0}
    assert loaded.weights.keys() == {"unet", "text_encoder"}
    assert torch.equal(loaded.weights["unet"]["a.weight"], state.weights["unet"]["a.weight"])
    assert torch.equal(loaded.ema["text_encoder.b"], torch.tensor([9.0]))
    momentum = loaded.optimizer["unet"][0]["exp_avg"]
    assert torch.equal(momentum, torch.tensor([[0.5, 0.25]]))
    assert loaded.optimizer["text_encoder"] == [{}]


def test_weights_are_kept_in_fp32(model: ModelFolder) -> None:
    weights = {"unet": {"a": torch.tensor([1.5], dtype=torch.bfloat16)}}
    path = save_state(model, "run", make_state(weights=weights))
    kept = trained_weights(path, use_ema=False)["unet"]["a"]
    assert kept.dtype == torch.float32
    assert kept.item() == 1.5


def test_trained_weights_are_the_average_only_if_asked_for_and_kept(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state(step=1))
    assert trained_weights(path, use_ema=True)["unet"]["a.weight"].tolist() == [[3.0, 4.0]]
    assert trained_weights(path, use_ema=False)["text_encoder"]["b"].item() == pytest.approx(0.1)
    without = save_state(model, "run", make_state(step=2, ema={}))
    assert not (without / "ema.safetensors").exists()
    assert trained_weights(without, use_ema=True)["unet"]["a.weight"][0, 0].item() == 1.0
    assert load_state(without).ema == {}


def test_weights_that_are_not_numbers_are_refused_and_leave_nothing(model: ModelFolder) -> None:
    broken = make_state(weights={"unet": {"a.weight": torch.tensor([float("nan")])}})
    with pytest.raises(NonFiniteError, match=r"a\.weight"):
        save_state(model, "run", broken)
    assert list((model.states_dir / "run").iterdir()) == []
    assert latest_state(model) is None


def test_a_crash_while_writing_leaves_no_state(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(model, "run", make_state(step=1))

    def crash(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training_state, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_state(model, "run", make_state(step=2))
    assert [path.name for path in (model.states_dir / "run").iterdir()] == ["step_00000001"]


def test_what_a_kill_left_behind_is_no_state_and_is_overwritten(model: ModelFolder) -> None:
    run = model.states_dir / "run"
    leftover = run / ".step_00000007.tmp"
    leftover.mkdir(parents=True)
    (leftover / "progress.json").write_text("{}")
    assert latest_state(model) is None
    path = save_state(model, "run", make_state())
    assert [entry.name for entry in run.iterdir()] == [path.name]


def test_saving_the_same_step_twice_keeps_the_first(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state())
    before = (path / "progress.json").read_bytes()
    assert save_state(model, "run", make_state()) == path
    assert (path / "progress.json").read_bytes() == before
    (path / "unet.safetensors").unlink()
    save_state(model, "run", make_state())
    assert damage(path) == ""


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _scramble_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))


def _newer_version(path: Path) -> None:
    progress = json.loads(path.read_text())
    path.write_text(json.dumps({**progress, "version": 99}))


@pytest.mark.parametrize(
    ("name", "break_it", "words"),
    [
        ("unet.safetensors", Path.unlink, "unet.safetensors is missing"),
        ("ema.safetensors", _truncate, "ema.safetensors has"),
        ("text_encoder.safetensors", _scramble_header, "text_encoder.safetensors"),
        ("optimizer.safetensors", _truncate, "optimizer.safetensors has"),
        ("progress.json", Path.unlink, "progress.json is missing or damaged"),
        ("progress.json", _truncate, "progress.json is missing or damaged"),
        ("progress.json", _newer_version, "version 99"),
    ],
)
def test_a_damaged_state_is_passed_over_and_refused_by_name(
    model: ModelFolder, name: str, break_it: Any, words: str
) -> None:
    good = save_state(model, "run", make_state(step=1))
    bad = save_state(model, "run", make_state(step=2))
    assert latest_state(model) == bad
    if break_it is _truncate and name == "progress.json":
        (bad / name).write_text((bad / name).read_text().rstrip()[:-1])
    else:
        break_it(bad / name)
    assert latest_state(model) == good
    assert words in damage(bad)
    with pytest.raises(CheckpointError) as caught:
        load_state(bad)
    assert str(bad) in caught.value.message
    assert caught.value.remedy


def with_old_optimizer_file(path: Path, memory: Any) -> Path:
    """Make a state one that was written before the optimizer's file was a .safetensors file."""
    (path / "optimizer.safetensors").unlink()
    file = path / "optimizer.pt"
    torch.save(memory, file)
    progress = json.loads((path / "progress.json").read_text())
    progress["files"].pop("optimizer.safetensors")
    progress["files"]["optimizer.pt"] = file.stat().st_size
    (path / "progress.json").write_text(json.dumps(progress))
    return file


def test_a_state_with_an_older_optimizer_file_is_read(model: ModelFolder) -> None:
    state = make_state()
    path = save_state(model, "run", state)
    with_old_optimizer_file(path, state.optimizer)
    assert same(load_state(path).optimizer, state.optimizer)


def test_an_optimizer_file_that_is_no_tensor_file_is_refused(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state())
    file = with_old_optimizer_file(path, {})
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        load_state(path)


def test_the_optimizer_file_cannot_hide_a_program(model: ModelFolder) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("run",)

    path = save_state(model, "run", make_state())
    with_old_optimizer_file(path, {"unet": Program()})
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        load_state(path)


def test_the_optimizer_s_file_is_not_taken_for_a_component(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state())
    assert set(load_state(path).weights) == {"unet", "text_encoder"}


def test_the_latest_state_is_the_newest_of_the_run_or_of_all(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1, 100))
    monkeypatch.setattr(training_state.time, "time", lambda: float(next(clock)))
    old = save_state(model, "run-a", make_state(step=9))
    first = save_state(model, "run-b", make_state(step=1))
    second = save_state(model, "run-b", make_state(step=2))
    assert latest_state(model) == second  # saved last, although run-a went further
    assert latest_state(model, "run-a") == old
    assert latest_state(model, "run-b", step=1) == first
    assert latest_state(model, step=9) == old
    assert latest_state(model, "run-b", step=3) is None
    assert latest_state(model, "run-c") is None


def test_only_the_newest_states_of_a_run_are_kept(model: ModelFolder) -> None:
    other = save_state(model, "other", make_state(step=1))
    paths = [save_state(model, "run", make_state(step=step)) for step in (5, 10, 100)]
    keep_newest(model, "run", 2)
    assert [path.exists() for path in paths] == [False, True, True]
    assert other.exists()
    keep_newest(model, "run", 5)
    assert paths[1].exists()
    keep_newest(model, "no such run", 1)
