"""Files say their version: older ones are read as today's, newer ones are refused and stay.

`old_files/` holds what a training of the tiny model left at commit 998e05f, the last without
versions (but of presets and states); only folders were renamed and the layout was cut short.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.cli import main
from dreambooth_core.config import renames
from dreambooth_core.config.presets import (
    apply_preset,
    import_preset,
    own_presets,
    preset_of,
    read_preset,
    save_preset,
)
from dreambooth_core.config.renames import Removed, Renamed, of_today
from dreambooth_core.config.schema import SampleConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict, load_json, to_dict, to_kept
from dreambooth_core.config.settings_store import change_settings, keep_settings, kept_settings
from dreambooth_core.errors import ConfigError, InputError, NewerVersionError
from dreambooth_core.job import formats, lock
from dreambooth_core.job.comparison import last_comparison
from dreambooth_core.job.events import WARNING, EventWriter, JobStarted, read_events
from dreambooth_core.job.formats import KEY, Format, unchanged
from dreambooth_core.job.history import past_runs
from dreambooth_core.job.launcher import Job, NamedProcess, read_process
from dreambooth_core.job.lock import Holder
from dreambooth_core.job.machine import note_unavailable, unavailable
from dreambooth_core.job.run_view import RunReader
from dreambooth_core.job.runs import Run, events_path, last_run, read_run, write_run
from dreambooth_core.job.workspace import ModelInfo, Workspace

OLD = Path(__file__).parent / "old_files"
RUN_ID = "20261122-000239-train"
FORMATS = {name: value for name, value in vars(formats).items() if isinstance(value, Format)}
FORMATS["SETTINGS"] = renames.settings_format()


@pytest.fixture
def old(workspace: Workspace) -> Workspace:
    """A workspace with a model, a run and a state as the version before versions left them."""
    model, run = workspace.model("tiny"), workspace.run_folder(RUN_ID)
    state = model.states_dir / RUN_ID / "step_00000002"
    places = {
        model.path: ("model.json", "settings.json", "layout.json"),
        run: ("job.json", "events.jsonl", "process.json"),
        state: ("progress.json",),
        workspace.jobs_dir: ("machine.json",),
    }
    for folder, names in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(OLD / name, folder / name)
    workspace.presets_dir.mkdir()
    shutil.copy(OLD / "preset.json", workspace.presets_dir / "Mine.json")
    model.lock_path.parent.mkdir()
    shutil.copy(OLD / "model.lock", model.lock_path)
    return workspace


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _all_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_before_versions_is_read_and_stays(old: Workspace) -> None:
    before = _all_bytes(old.root)
    model, folder = old.model("tiny"), old.run_folder(RUN_ID)
    info = model.read_info()
    assert (info.family, info.steps, info.last_run) == ("sd1", 2, RUN_ID)
    settings = kept_settings(model)
    assert settings is not None
    assert settings.concepts[0].instance_token == "zwx"
    presets, problems = own_presets(old)
    assert not problems
    assert apply_preset(presets[0], TrainConfig(model="a")).learning_rate.unet == 1e-3
    assert read_run(folder) == last_run(old, "tiny", "train")
    assert read_run(folder).config == settings
    started = read_events(events_path(folder))[0][0]
    assert isinstance(started, JobStarted)
    assert started.format == 0
    assert [(past.step, past.outcome) for past in past_runs(old, "tiny")] == [(2, "finished")]
    view = RunReader(folder).poll()
    assert (view.state, view.step, view.notices) == ("finished", 2, [])
    process = read_process(folder)
    assert process is not None
    assert process.is_here  # an id of this machine, as all were
    assert not Job(RUN_ID, folder).is_running()
    holder = lock.read_holder(model.lock_path)
    assert holder == Holder(8822, holder.mark, RUN_ID, "train")
    assert "xformers" in unavailable(old)["precision.attention"]
    assert _all_bytes(old.root) == before


def test_an_old_state_and_layout_are_read(old: Workspace) -> None:
    pytest.importorskip("torch")
    from dreambooth_core.stages.model_shape import read_layout

    values = formats.STATE.read(json.loads((OLD / "progress.json").read_text()), "progress.json")
    assert values["files"]["unet.safetensors"] == {"size": 4252904, "crc32": ""}
    assert from_dict(TrainConfig, values["settings"]) == kept_settings(old.model("tiny"))
    assert read_layout(old.model("tiny")).tensors["alphas_cumprod"].shape == (1000,)


def test_an_old_lock_is_void_if_its_process_is_gone_and_holds_if_not(old: Workspace) -> None:
    path = old.model("tiny").lock_path
    lock.acquire(path, dataclasses.replace(_me(), run_id="new"), "tiny")
    lock.release(path, "new")
    mine = dataclasses.asdict(_me())
    path.write_text(json.dumps({name: mine[name] for name in ("pid", "mark", "run_id", "kind")}))
    with pytest.raises(lock.BusyError, match=r"run mine \(train, process \d+\)"):
        lock.acquire(path, dataclasses.replace(_me(), run_id="new"), "tiny")


def _me() -> Holder:
    from dreambooth_core.job.claims import ours

    return ours("mine", "train")


def test_what_is_written_says_its_version(old: Workspace, tmp_path: Path) -> None:
    model, folder = old.model("tiny"), old.run_folder(RUN_ID)
    model.change_info(lambda info: info.checkpoints.append("a"))
    config = change_settings(model, lambda kept: dataclasses.replace(kept, seed=5))
    preset = save_preset(old, preset_of(config, "Mine"))
    write_run(folder, read_run(folder))
    note_unavailable(old, {})
    lock.acquire(model.lock_path, _me(), "tiny")
    lock.release(model.lock_path, "mine")
    lock.acquire(model.lock_path, _me(), "tiny")
    for path, version in {
        model.info_path: formats.MODEL.version,
        model.settings_path: FORMATS["SETTINGS"].version,
        preset: formats.PRESET.version,
        folder / "job.json": formats.RUN.version,
        old.jobs_dir / "machine.json": formats.MACHINE.version,
        model.lock_path: formats.LOCK.version,
    }.items():
        assert json.loads(path.read_text())[KEY] == version, path
    lock.release(model.lock_path, "mine")
    assert json.loads((folder / "job.json").read_text())["config"][KEY] == 1
    assert json.loads(preset.read_text())["settings_version"] == 1
    assert kept_settings(model) == config
    assert load_json(model.settings_path, TrainConfig).seed == 5  # also as a --config file


@pytest.mark.parametrize("name", FORMATS)
def test_a_newer_version_is_refused_by_name(name: str) -> None:
    known = FORMATS[name]
    with pytest.raises(NewerVersionError) as caught:
        known.read({KEY: known.version + 1}, Path("/here/file.json"))
    assert f"{known.words} /here/file.json was written by a newer version" in caught.value.message
    assert f"is {known.version + 1}, and this one reads up to {known.version}" in str(caught.value)
    assert caught.value.remedy == formats.UPDATE
    for odd in ("1", True, -1, None, 1.0):
        with pytest.raises(InputError, match="which is none"):
            known.read({KEY: odd}, "file.json")


def test_steps_follow_each_other() -> None:
    def add(name: str) -> Callable[[Any], dict[str, Any]]:
        return lambda values: {**values, name: len(values)}

    three = Format("It", (unchanged, add("b"), add("c")))
    assert three.version == 3
    assert three.read({"a": 0}, "x") == {"a": 0, "b": 1, "c": 2}
    assert three.read({KEY: 1, "a": 0}, "x") == {"a": 0, "b": 2, "c": 3}
    assert three.read({KEY: 3, "a": 0}, "x") == {"a": 0}
    assert three.stamped({"a": 0}) == {KEY: 3, "a": 0}


CHANGES = (
    (),
    (
        Renamed("TrainConfig", "optimizer.method", "optimizer.name"),
        Renamed("TrainConfig", "concepts.*.word", "concepts.*.instance_token"),
        Renamed("TrainConfig", "random", "seed"),
        Renamed("SampleConfig", "random", "scale"),
    ),
    (
        Renamed("SampleConfig", "scale", "cfg_scale"),
        Removed("TrainConfig", "optimizer.magic", 0, "Use the loss instead."),
    ),
)
"""As if settings had been called otherwise in the version before."""
WORDS_THEN: dict[str, Any] = {
    "model": "tiny",
    "random": 7,
    "optimizer": {"method": "adamw", "magic": 0, "weight_decay": 0.5},
    "concepts": [{"instance_folder": "a"}, {"instance_folder": "b", "word": "zwx"}],
}


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that have been renamed in a second version, and one that is gone in a third."""
    monkeypatch.setattr(renames, "CHANGES", CHANGES)


@pytest.mark.usefixtures("renamed")
def test_renamed_settings_are_found_wherever_they_are_kept(old: Workspace) -> None:
    kept = {KEY: 1, **WORDS_THEN}
    config = from_dict(TrainConfig, of_today(kept, "TrainConfig"))
    assert (config.seed, config.optimizer.name, config.optimizer.weight_decay) == (7, "adamw", 0.5)
    assert [concept.instance_token for concept in config.concepts][1] == "zwx"
    assert kept == {KEY: 1, **WORDS_THEN}  # a migration changes nothing that it is given
    assert from_dict(TrainConfig, kept) == config  # as a state's settings are read
    model, folder = old.model("tiny"), old.run_folder(RUN_ID)
    for version in ({}, {KEY: 1}):
        model.settings_path.write_text(json.dumps({**version, **WORDS_THEN}))
        assert kept_settings(model) == config
        values = {**version, "run_id": RUN_ID, "kind": "train", "root": "/", "config": WORDS_THEN}
        (folder / "job.json").write_text(json.dumps(values))
        assert read_run(folder).config == config
    sample = {KEY: 1, "model": "tiny", "prompts": ["x"], "random": 4.5}
    assert from_dict(SampleConfig, sample).cfg_scale == 4.5  # two steps, and not the training's
    assert to_kept(config)[KEY] == 3


@pytest.mark.usefixtures("renamed")
def test_names_of_before_are_no_settings_of_today() -> None:
    with pytest.raises(ConfigError, match="random: is not a setting"):
        from_dict(TrainConfig, {"model": "a", "random": 7})
    with pytest.raises(ConfigError, match="random: is not a setting"):
        from_dict(TrainConfig, {KEY: 3, "model": "a", "random": 7})


@pytest.mark.usefixtures("renamed")
def test_a_removed_setting_that_was_used_is_told() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.magic: is 3.*Use the loss") as caught:
        from_dict(TrainConfig, {KEY: 2, "model": "a", "optimizer": {"magic": 3}})
    assert caught.value.field == "optimizer.magic"


@pytest.mark.usefixtures("renamed")
def test_presets_name_settings_as_they_did(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    settings = {"optimizer.method": "adamw", "optimizer.magic": 0, "random": 7}
    values = {"format": "dreambooth preset", KEY: 1, "name": "Then", "settings": settings}
    path.write_text(json.dumps(values))
    assert dict(read_preset(path).settings) == {"optimizer.name": "adamw", "seed": 7}
    path.write_text(json.dumps({**values, "settings_version": 3}))
    with pytest.raises(ConfigError, match="not a setting"):
        read_preset(path)
    path.write_text(json.dumps({**values, "settings_version": 4}))
    with pytest.raises(NewerVersionError, match=r"preset\.json"):
        read_preset(path)
    settings["optimizer.magic"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="Use the loss"):
        import_preset(workspace, path)


def test_files_of_a_newer_version_leave_the_others_to_be_listed(
    old: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(old.model("tiny").path, old.model("later").path)
    _rewrite(old.model("later").info_path, version=9, name="later", new_field=1)
    later = old.run_folder("20261123-000000-train")
    shutil.copytree(old.run_folder(RUN_ID), later)
    _rewrite(later / "job.json", version=9)
    newer = old.run_folder("20261123-000001-compare")
    newer.mkdir()
    (newer / "job.json").write_text(json.dumps({KEY: 9, "kind": "x", "config": {"model": "eve"}}))
    infos, problems = old.models_and_problems()
    assert [info.name for info in infos] == [info.name for info in old.models()] == ["tiny"]
    assert old.model_names() == ["later", "tiny"]
    assert "newer version" in str(problems["later"])
    past = past_runs(old, "tiny")
    assert [each.run.kind for each in past] == ["train", "train"]
    assert sorted(each.outcome.partition(":")[0] for each in past) == ["cannot be read", "finished"]
    assert str(later / "job.json") in " ".join(each.outcome for each in past)
    assert last_comparison(old, "tiny") is None  # the one that cannot be read is of another
    with pytest.raises(NewerVersionError):
        last_run(old, "tiny", "train")  # resuming must not take the one before
    view = RunReader(later).poll()
    assert (view.kind, view.model, view.state) == ("train", "tiny", "finished")
    assert "newer version" in view.notices[0].message
    assert main(["models", "--root", str(old.root)]) == 0
    said = capsys.readouterr().out
    assert "tiny" in said.splitlines()[0]
    assert "later: The model's record" in said
    assert main(["models", "--root", str(old.root), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["tiny", "later"]
    pytest.importorskip("fastapi")
    from tests.api_standin import Bench

    bench = Bench(old)
    assert bench.get("/models") == ["", "later", "tiny"]
    told = bench.get("/models?details=true")
    assert [model["name"] for model in told["models"]] == ["tiny"]
    assert [model["name"] for model in told["unreadable"]] == ["later"]
    assert told["unreadable"][0]["remedy"] == formats.UPDATE
    assert "newer version" in bench.refusal("GET", "/models/later", 422)["message"]
    states = {job["id"]: job["state"] for job in bench.get("/jobs")["jobs"]}
    assert states[later.name] == "finished"


def test_newer_events_are_shown_with_a_warning(workspace: Workspace) -> None:
    folder = workspace.run_folder("run")
    folder.mkdir(parents=True)
    config = SampleConfig(model="ada", prompts=["x"])
    write_run(folder, Run("run", "sample", workspace.root, config))
    newer = JobStarted("sample", "ada", "run", 1, "9.0", formats.EVENTS.version + 1)
    EventWriter(events_path(folder)).emit(newer)
    line = json.loads(events_path(folder).read_text())
    for changes in ({}, {"another": 1}):
        events_path(folder).write_text(json.dumps({**line, **changes}) + "\n")
        (notice,) = RunReader(folder).poll().notices
        assert notice.level == WARNING
        assert "newer version" in notice.message
    events_path(folder).write_text(json.dumps({**line, "format": 1}) + "\n")
    assert RunReader(folder).poll().notices == []


def test_nothing_of_a_newer_version_is_written_over(old: Workspace) -> None:
    model = old.model("tiny")
    preset = old.presets_dir / "Mine.json"
    for path in (model.settings_path, model.info_path, preset, model.lock_path):
        _rewrite(path, version=9)
    model.lock_path.write_text(json.dumps({KEY: 9, "owner": "somebody"}))
    before = _all_bytes(old.models_dir)
    config = TrainConfig(model="tiny")
    for attempt in (
        lambda: keep_settings(model, config),
        lambda: change_settings(model, lambda kept: config),
        lambda: model.change_info(lambda info: info.checkpoints.append("a")),
        lambda: save_preset(old, preset_of(config, "Mine")),
        lambda: lock.acquire(model.lock_path, _me(), "tiny"),
    ):
        with pytest.raises(NewerVersionError):
            attempt()
    after = {path: data for path, data in _all_bytes(old.models_dir).items() if path in before}
    assert after == before


def test_who_has_a_newer_lock_is_known_all_the_same(workspace: Workspace) -> None:
    path = workspace.model("ada").lock_path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**dataclasses.asdict(_me()), KEY: 9, "more": True}))
    with pytest.raises(lock.BusyError, match="run mine"):
        lock.acquire(path, dataclasses.replace(_me(), run_id="other"), "ada")
    assert lock.read_holder(path) == _me()


def test_a_newer_process_is_known_all_the_same(workspace: Workspace) -> None:
    folder = workspace.run_folder("run")
    folder.mkdir(parents=True)
    named = dataclasses.asdict(NamedProcess(5, "mark"))
    (folder / "process.json").write_text(json.dumps({**named, KEY: 9, "more": 1}))
    assert read_process(folder) == NamedProcess(5, "mark")


def test_a_model_without_version_or_with_odd_fields_is_damaged(workspace: Workspace) -> None:
    folder = workspace.model("ada")
    folder.write_info(ModelInfo("ada", "sd1", ""))
    _rewrite(folder.info_path, surprise=1)
    with pytest.raises(InputError, match="surprise") as caught:
        folder.read_info()
    assert not isinstance(caught.value, NewerVersionError)
    assert to_dict(SampleConfig(model="a", prompts=[])).get(KEY) is None
