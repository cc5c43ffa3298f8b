"""Tests of what a run remembers: written all or nothing, refused when damaged, found again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.adapters.lora_file import lora_entries
from dreambooth_core.checkpoint.file import write_checkpoint
from dreambooth_core.checkpoint.stored import JoinedTensors, shapes_of
from dreambooth_core.errors import (
    CheckpointError,
    InputError,
    NewerVersionError,
    NonFiniteError,
)
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.saved_states import (
    Progress,
    damage,
    keep_newest,
    latest_state,
    state_progress,
)
from dreambooth_core.stages.training_state import (
    TrainingState,
    load_newest,
    load_state,
    save_state,
    trained_weights,
)
from tests.read_tensors import ReadTensors
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

    monkeypatch.setattr(disk, "rename", crash)
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


@pytest.mark.parametrize(
    ("name", "break_it", "words"),
    [
        ("unet.safetensors", Path.unlink, "unet.safetensors is missing"),
        ("ema.safetensors", _truncate, "ema.safetensors has"),
        ("text_encoder.safetensors", _scramble_header, "text_encoder.safetensors"),
        ("optimizer.safetensors", _truncate, "optimizer.safetensors has"),
        ("progress.json", Path.unlink, "progress.json is missing or damaged"),
        ("progress.json", _truncate, "progress.json is missing or damaged"),
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
    told: list[str] = []
    assert latest_state(model, tell=told.append) == good
    assert len(told) == 1 and str(bad) in told[0] and words in told[0]
    assert words in damage(bad)
    with pytest.raises(CheckpointError) as caught:
        load_state(bad)
    assert str(bad) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["unet.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_changed_byte_is_found_by_its_checksum(model: ModelFolder, name: str) -> None:
    """It is as long as it was and its header is whole, so only reading it all can tell."""
    good = save_state(model, "run", make_state(step=1))
    bad = save_state(model, "run", make_state(step=2))
    data = bytearray((bad / name).read_bytes())
    data[-1] ^= 1
    (bad / name).write_bytes(data)
    assert damage(bad) == ""
    told: list[str] = []
    path, state = load_newest(model, told.append)
    assert (path, state.progress.step) == (good, 1)
    assert len(told) == 1 and str(bad / name) in told[0] and "checksum" in told[0]
    if name != "optimizer.safetensors":
        with pytest.raises(CheckpointError, match="checksum"):
            trained_weights(bad, use_ema=name == "ema.safetensors")
    assert trained_weights(good, use_ema=True).keys() == {"unet", "text_encoder"}


def rewritten(path: Path, **changes: Any) -> None:
    """Change what a state says of itself; a value of None is left out."""
    values = {**json.loads((path / "progress.json").read_text()), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    (path / "progress.json").write_text(json.dumps(values))


def test_a_state_of_the_first_version_is_read(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state())
    sizes = {file.name: file.stat().st_size for file in path.glob("*.safetensors")}
    rewritten(path, version=1, files=sizes, retreats=None)
    assert same(load_state(path).optimizer, make_state().optimizer)
    assert trained_weights(path, use_ema=True)["text_encoder"]["b"].item() == 9.0


def test_a_state_of_a_newer_version_is_refused(model: ModelFolder) -> None:
    """Nothing is gone on from behind its back."""
    save_state(model, "run", make_state(step=1))
    newer = save_state(model, "run", make_state(step=2))
    rewritten(newer, version=99)
    assert "version" in damage(newer)
    for use in (latest_state, load_newest):
        with pytest.raises(NewerVersionError, match="newer version") as caught:
            use(model)
        assert str(newer) in caught.value.message
    assert latest_state(model, step=1) is not None


HOSTILE: list[Any] = [
    {"surprise": 1},
    *({"version": value} for value in ("2", -1, True, [2])),
    *({name: "7"} for name in ("step", "epoch", "position", "seed", "saved_at", "settings")),
    *({"step": value} for value in (-1, 1.5, True, [], float("nan"))),
    *({"saved_at": value} for value in (float("inf"), {})),
    *({"loss_scaler": value} for value in ([], {"scale": "x"}, {"scale": {}})),
    *({"retreats": value} for value in ([], {"steps": 3}, {"steps": ["a"]}, {"factor": "x"})),
    *({"files": value} for value in ([], 3, "abc", {"unet.safetensors": 5}, {"x": {"size": "1"}})),
    {"files": {"../run-b/unet.safetensors": {"size": 5, "crc32": ""}}},
    {"files": {"unet.safetensors": {"size": 5, "crc32": 7}}},
    {"files": {"unet.safetensors": {"size": 5, "more": 7}}},
    {"files": {"\0": {"size": 5, "crc32": ""}}},
]


def test_what_a_hostile_state_says_is_damage_and_no_crash(model: ModelFolder) -> None:
    path = save_state(model, "run", make_state())
    whole = (path / "progress.json").read_text()
    texts = ["", "null", "[]", "3", "[" * 100_000, "\ud800", "{}", '{"version": 2}']
    texts.append(whole.replace('"saved_at": ', '"saved_at": ' + "9" * 400))
    for changes in HOSTILE:
        rewritten(path, **changes)
        texts.append((path / "progress.json").read_text())
        (path / "progress.json").write_text(whole)
    for text in texts:
        (path / "progress.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        problem = damage(path)
        assert problem, text[:200]
        assert latest_state(model) is None
        with pytest.raises(CheckpointError, match="cannot be used"):
            load_state(path)
    with pytest.raises(InputError, match="no intact training state"):
        load_newest(model)


def test_saving_reads_one_tensor_after_the_other(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a state has: each is gone before the next but one is read."""
    weights = {"unet": {f"w{i:02}": torch.full((4, 5), float(i)) for i in range(40)}}
    ema = {f"unet.{key}": tensor + 100 for key, tensor in weights["unet"].items()}
    path = save_state(model, "run", make_state(weights=weights, ema=ema))
    read = ReadTensors(monkeypatch)
    for use_ema, first in ((False, 0.0), (True, 100.0)):
        before = read.count
        trained = trained_weights(path, use_ema)
        assert shapes_of(trained["unet"]) == dict.fromkeys(weights["unet"], (4, 5))
        assert ("w00" in trained["unet"], "other" in trained["unet"]) == (True, False)
        assert read.count == before
        joined = JoinedTensors(trained.values())
        entries = lora_entries(joined, {}, "F32")
        write_checkpoint(model.path / "out.safetensors", entries)
        assert read.count == before + 40
        assert joined["w00"][0, 0].item() == first
    assert read.most_held <= 2


def with_old_optimizer_file(path: Path, memory: Any) -> Path:
    """Make a state one that was written before the optimizer's file was a .safetensors file."""
    (path / "optimizer.safetensors").unlink()
    file = path / "optimizer.pt"
    torch.save(memory, file)
    progress = json.loads((path / "progress.json").read_text())
    progress["files"].pop("optimizer.safetensors")
    progress["files"]["optimizer.pt"] = {"size": file.stat().st_size, "crc32": ""}
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
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
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
    for leftover in (other.with_name(".step_00000009.tmp"), paths[0].with_name(".step_2.old")):
        leftover.mkdir()
    keep_newest(model, "run", 2)
    assert {path.name for path in model.states_dir.glob("*/*")} == {
        other.name,
        paths[1].name,
        paths[2].name,
    }
    assert [path.exists() for path in paths] == [False, True, True]
    assert other.exists()
    keep_newest(model, "run", 5)
    assert paths[1].exists()
    keep_newest(model, "no such run", 1)
