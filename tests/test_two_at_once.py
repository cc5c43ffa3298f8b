"""Two at once: on one model, on one file, in one folder, on two machines; and locks of the gone."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import worker
from dreambooth_core.config.presets import import_preset, own_presets, preset_of, save_preset
from dreambooth_core.config.schema import (
    BakeLoraConfig,
    CreateConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.config.settings_store import change_settings, keep_settings, kept_settings
from dreambooth_core.errors import BusyError, InputError
from dreambooth_core.job import claims, disk, heartbeat, launcher, lock, process
from dreambooth_core.job.claims import Claim, claims_of, ours
from dreambooth_core.job.commands import CommandReader
from dreambooth_core.job.events import EventWriter, JobFailed, Notice, read_events
from dreambooth_core.job.heartbeat import VOID_SECONDS, Heart
from dreambooth_core.job.launcher import Job, abandon, read_process, reserve, running_jobs
from dreambooth_core.job.lock import Holder, acquire, read_holder, release
from dreambooth_core.job.process import machine_name, this_machine
from dreambooth_core.job.runs import events_path, process_path, read_run
from dreambooth_core.job.workspace import ModelInfo, Workspace

ELSEWHERE = "other-box/0123456789abcdef/pid:[4026531836]"
ROOT = Path(__file__).resolve().parents[1]
HOLDING = """
import sys
from pathlib import Path
from dreambooth_core.job.claims import ours
from dreambooth_core.job.lock import acquire
from dreambooth_core.errors import BusyError
try:
    acquire(Path(sys.argv[1]), ours(sys.argv[2], "train"), "ada")
except BusyError as error:
    print(error.message, flush=True)
else:
    print("mine", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ready(workspace: Workspace) -> Workspace:
    """A workspace with the models "ada" and "eve"."""
    for name in ("ada", "eve"):
        workspace.model(name).write_info(ModelInfo(name, "sd1", ""))
    return workspace


def _sample(model: str = "ada") -> SampleConfig:
    return SampleConfig(model=model, prompts=["x"])


def _train(model: str, **changes: Any) -> TrainConfig:
    return from_dict(TrainConfig, {"model": model, **changes})


def _merge(name: str, subfolder: str = "") -> MergeConfig:
    return MergeConfig(name=name, primary="a", secondary="b", subfolder=subfolder)


@pytest.fixture
def holders() -> Iterator[Callable[[Path, str], tuple[subprocess.Popen[str], str]]]:
    """Start processes that take a lock and keep it until their end; tells what each said."""
    started = []

    def start(path: Path, run_id: str) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(path), run_id],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline().strip()

    yield start
    for child in started:
        child.kill()
        child.communicate()


def _at_once(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Do something in threads that begin together; return what they raised."""
    barrier, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_another_process_has_it_until_it_is_gone(ready: Workspace, holders: Any) -> None:
    path = ready.model("ada").lock_path
    child, said = holders(path, "first")
    assert said == "mine"
    _, said = holders(path, "second")
    assert f"in use by run first (train, process {child.pid}, since 20" in said
    for job in ("sample", "save"):
        config = _sample() if job == "sample" else SaveConfig(model="ada")
        with pytest.raises(BusyError, match="run first") as caught:
            claims.take(claims_of(ready, job, config), ours("third", job))
        assert caught.value.remedy == "Wait for it, or end it with: stop first"
    claims.take(claims_of(ready, "sample", _sample("eve")), ours("other", "sample"))
    claims.take(claims_of(ready, "plan", _train("ada")), ours("looking", "plan"))
    child.kill()
    child.wait()
    claims.take(claims_of(ready, "sample", _sample()), ours("third", "sample"))
    for model, run_id in (("ada", "third"), ("eve", "other")):
        claims.give_back(claims_of(ready, "sample", _sample(model)), run_id)
    assert not list(ready.jobs_dir.glob("locks/*.lock"))


def test_the_command_line_beside_the_webui(ready: Workspace) -> None:
    job = reserve(ready, "sample", _sample())  # as the WebUI does, in this process
    words = ["sample", "--root", str(ready.root), "--model", "ada", "--prompts", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_core", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"in use by run {job.run_id} (sample, process {os.getpid()}" in done.stderr
    assert f"stop {job.run_id}" in done.stderr
    abandon(ready, job, JobFailed("enough"))
    again = reserve(ready, "sample", _sample())
    abandon(ready, again, JobFailed("enough"))


TRAIN_ADA = ("train", _train("ada"))
COLLISIONS: list[tuple[tuple[str, JobConfig], tuple[str, JobConfig], bool]] = [
    (TRAIN_ADA, ("train", _train("eve")), False),
    (TRAIN_ADA, ("train", _train("eve", saving={"name": "ada"})), True),
    (TRAIN_ADA, ("train", _train("eve", saving={"name": "ada", "subfolder": "x"})), False),
    (TRAIN_ADA, ("train", _train("eve", saving={"name": "ada"}, lora={"enabled": True})), False),
    (TRAIN_ADA, ("save", SaveConfig(model="eve", name="ada")), True),
    (TRAIN_ADA, ("merge", _merge("ada")), False),  # ada.safetensors, and ada_<step>.safetensors
    (TRAIN_ADA, ("merge", _merge("ada_100")), True),
    (TRAIN_ADA, ("dry-run", _train("eve", saving={"name": "ada"})), False),
    (TRAIN_ADA, ("class-images", _train("eve", saving={"name": "ada"})), False),
    (TRAIN_ADA, ("create", CreateConfig(name="bob", source="a")), False),
    (
        ("merge", _merge("m")),
        ("bake-lora", BakeLoraConfig(name="m", checkpoint="a", lora="b")),
        True,
    ),
    (
        ("merge", _merge("m")),
        ("extract-lora", ExtractLoraConfig(name="m", base="a", trained="b")),
        False,
    ),
    (("merge", _merge("m")), ("merge", _merge("m-2")), True),  # what m is called if there is one
    (("merge", _merge("m_1")), ("merge", _merge("m_2")), False),
    (("merge", _merge("m")), ("merge", _merge("m", "x")), False),
    (("merge", _merge("_100")), ("merge", _merge("-2")), False),
    (
        ("create", CreateConfig(name="bob", source="a")),
        ("create", CreateConfig(name="bob", source="b")),
        True,
    ),
]


@pytest.mark.parametrize(("first", "second", "collide"), COLLISIONS)
def test_files_of_one_name_are_written_by_one_job(
    tmp_path: Path, first: tuple[str, JobConfig], second: tuple[str, JobConfig], collide: bool
) -> None:
    """By two WebUIs with folders of models of their own, which share the folders of files."""
    shared = {
        "checkpoints_elsewhere": tmp_path / "files",
        "loras_elsewhere": tmp_path / "loras",
        "models_elsewhere": tmp_path / "models" if first[0] == "create" else None,
    }
    (tmp_path / "loras").mkdir()
    one, two = (Workspace(tmp_path / name, **shared) for name in ("one", "two"))
    before, after = claims_of(one, *first), claims_of(two, *second)
    claims.take(before, ours("first", first[0]))
    try:
        if collide:
            with pytest.raises(BusyError, match="run first"):
                claims.take(after, ours("second", second[0]))
            claims.give_back(before, "first")
        claims.take(after, ours("second", second[0]))
    finally:
        claims.give_back(before, "first")
        claims.give_back(after, "second")
    assert not list(tmp_path.rglob("*.lock"))


def test_what_a_killed_job_had_not_finished_is_deleted_by_the_next(ready: Workspace) -> None:
    """And nothing that another job may be writing just now."""
    folder = ready.checkpoints_dir
    killed = [folder / f"ada_{end}.safetensors.tmp" for end in ("100", "200-2")]
    others = [folder / f"ada{end}" for end in (".safetensors.tmp", "_1x_2.safetensors.tmp")]
    others += [folder / f"ada_{end}" for end in ("100_5.safetensors.tmp", "300.safetensors")]
    for path in (*killed, *others):
        path.write_bytes(b"x")
    claims.drop_unfinished(claims_of(ready, "train", _train("ada")))
    assert not any(path.exists() for path in killed)
    assert all(path.exists() for path in others)


def test_a_refused_job_leaves_no_run_and_no_lock(ready: Workspace, tmp_path: Path) -> None:
    config = _train("ada", saving={"name": "shared"})
    others = claims_of(ready, "train", _train("eve", saving={"name": "shared"}))
    claims.take(others, ours("first", "train"))
    with pytest.raises(BusyError, match=r"name for a file in .*Stable-diffusion, 'shared_<step>'"):
        claims.take(claims_of(ready, "train", config), ours("second", "train"))
    assert read_holder(ready.model("ada").lock_path) is None
    claims.give_back(others, "first")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_no_lock_lies_outside_of_its_folder(ready: Workspace, name: str) -> None:
    for config in (_merge(name), _merge("x", name), SaveConfig(model="ada", subfolder=name)):
        with pytest.raises(InputError, match="name"):
            claims_of(ready, "save" if isinstance(config, SaveConfig) else "merge", config)


def test_a_folder_that_cannot_be_written_to_is_passed_over(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA is trained where checkpoints are mounted read-only; a model's lock is needed."""
    real = disk.make_folder

    def refuse(path: Path, **options: Any) -> None:
        if claims.LOCKS_FOLDER in path.parts:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, **options)

    monkeypatch.setattr(disk, "make_folder", refuse)
    wanted = claims_of(ready, "train", _train("ada"))
    claims.take(wanted, ours("run", "train"))
    assert read_holder(ready.model("ada").lock_path) == ours("run", "train")
    claims.hand_over(wanted, ours("later", "train"), "run")
    claims.give_back(wanted, "later")
    unwritable = dataclasses.replace(wanted[1], what="model")
    with pytest.raises(OSError, match="Read-only"):
        claims.take([wanted[0], unwritable], ours("run", "train"))
    assert read_holder(ready.model("ada").lock_path) is None


# Two machines or containers on one network folder


def _foreign(run_id: str = "there") -> Holder:
    """A job of another machine, which by chance has this process's id and mark."""
    return dataclasses.replace(ours(run_id, "train"), machine=ELSEWHERE, since=time.time())


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_lock_of_another_machine_holds_while_it_is_kept_fresh(ready: Workspace) -> None:
    path = ready.model("ada").lock_path
    acquire(path, _foreign(), "ada")
    with pytest.raises(BusyError) as caught:
        acquire(path, ours("here", "save"), "ada")
    assert f"process {os.getpid()} on the machine other-box, since 20" in caught.value.message
    words = "If that machine is gone, its lock is void in 3 minutes. Else wait for it, or end it"
    assert caught.value.remedy == f"{words} with: stop there"
    _age(path, VOID_SECONDS - 30)
    with pytest.raises(BusyError, match="void in a minute"):
        acquire(path, ours("here", "save"), "ada")
    release(path, "here")
    assert read_holder(path) == _foreign()
    _age(path, 60)
    acquire(path, ours("here", "save"), "ada")
    assert read_holder(path) == ours("here", "save")
    release(path, "here")


def test_locks_that_are_void_at_once(ready: Workspace) -> None:
    """This machine before it was started again; a process whose id another one has now."""
    path = ready.model("ada").lock_path
    mine = ours("old", "train")
    for holder in (
        dataclasses.replace(mine, mark=f"another-boot/{mine.mark.rpartition('/')[2]}"),
        dataclasses.replace(mine, pid=2**30),
        dataclasses.replace(mine, mark="x", machine=""),
    ):
        acquire(path, holder, "ada")
        acquire(path, ours("new", "train"), "ada")
        release(path, "new")


def test_who_it_is_that_is_no_run(ready: Workspace) -> None:
    path = ready.model("ada").lock_path
    for run_id, words in (
        (f"{lock.DELETING}1", r"The model 'ada' is being deleted \(process"),
        (f"{lock.STARTING}1", r"in use by a job that is being started \(delete, process"),
    ):
        acquire(path, ours(run_id, "delete"), "ada")
        with pytest.raises(BusyError, match=words) as caught:
            acquire(path, ours("new", "train"), "ada")
        assert caught.value.remedy == "Wait for it."
        release(path, run_id)


def test_machines_are_told_apart() -> None:
    name, installation, space = this_machine().split("/", 2)
    assert machine_name(this_machine()) == name
    assert process.is_here(this_machine())
    assert process.is_here("")
    assert not process.is_here(ELSEWHERE)
    if sys.platform == "linux":
        assert space.startswith("pid:[")
        assert not process.is_here(f"{name}/{installation}/pid:[1]")  # another container


def test_a_run_of_another_machine_is_seen_and_left_alone(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = reserve(ready, "sample", _sample())
    named = read_process(job.folder)
    assert named is not None
    assert [each.run_id for each in running_jobs(ready)] == [job.run_id]
    there = {**dataclasses.asdict(named), "machine": ELSEWHERE, "preparing": False}
    process_path(job.folder).write_text(json.dumps(there))
    killed: list[int] = []
    monkeypatch.setattr(launcher, "end_process_tree", killed.append)
    seen = Job(job.run_id, job.folder)
    assert seen.is_running()
    seen.kill()
    assert not killed
    assert running_jobs(ready) == []  # it does not take this machine's memory
    _age(process_path(job.folder), VOID_SECONDS + 1)
    assert not seen.is_running()
    process_path(job.folder).write_text(json.dumps(there))
    assert seen.is_running()
    Heart().end(process_path(job.folder))
    assert not seen.is_running()
    abandon(ready, job, JobFailed("enough"))


def test_files_are_kept_fresh_as_long_as_they_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.005)
    heart, paths = Heart(), [tmp_path / "a", tmp_path / "b", tmp_path / "lost", tmp_path / "gone"]
    for path in paths[:3]:
        path.touch()
        os.utime(path, (0, 0))
    for path in paths[:2]:
        heart.keep(path)
    heart.keep(paths[2], lambda path: True)
    heart.keep(paths[3])  # a network that is away for a while
    deadline = time.monotonic() + 20
    while not all(path.stat().st_mtime > 1 for path in paths[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert paths[2].stat().st_mtime == 0
    for path in (*paths[1:], paths[0]):
        heart.forget(path)
    while heart._beating:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    heart.keep(paths[0])  # and again
    assert heart._beating
    heart.end(paths[0])
    assert paths[0].stat().st_mtime == 0


def test_a_run_that_lost_its_lock_says_so_and_is_asked_to_stop(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart = Heart()
    monkeypatch.setattr(heart, "_run", lambda: None)
    monkeypatch.setattr(claims, "heart", lambda: heart)
    job = reserve(ready, "sample", _sample())
    wanted, told = claims_of(ready, "sample", _sample()), []
    claims.keep(wanted, job.folder, told.append)
    heart.beat()
    assert not told
    lock.hand_over(wanted[0].path, _foreign("thief"), job.run_id)
    heart.beat()
    heart.beat()
    (notice,) = told
    assert isinstance(notice, Notice)
    assert "in use by run thief" in notice.message
    assert "other-box" in notice.message
    assert [each.name for each in CommandReader(job.folder / "commands.jsonl").poll()] == ["stop"]
    claims.give_back(wanted, job.run_id)
    assert read_holder(wanted[0].path) == _foreign("thief")


def test_a_worker_whose_lock_somebody_else_has_does_nothing(ready: Workspace) -> None:
    job = reserve(ready, "sample", _sample())
    path = ready.model("ada").lock_path
    lock.hand_over(path, _foreign("thief"), job.run_id)
    with pytest.raises(BusyError, match="thief"):
        worker.run_job(read_run(job.folder), job.folder, EventWriter(events_path(job.folder)))
    assert read_events(events_path(job.folder))[0] == []
    assert read_holder(path) == _foreign("thief")


# One file, written by two


def test_no_change_of_settings_is_lost(ready: Workspace) -> None:
    folder, rounds = ready.model("ada"), 8
    keep_settings(folder, _train("ada", seed=0))

    def count(number: int) -> None:
        for _ in range(rounds):
            change_settings(folder, lambda kept: dataclasses.replace(kept, seed=kept.seed + 1))
            keep_settings(ready.model("eve"), _train("eve", seed=number))
            assert kept_settings(ready.model("eve")).seed in range(4)  # whole, whoever wrote it

    assert not _at_once(4, count)
    assert kept_settings(folder).seed == 4 * rounds
    assert not list(ready.models_dir.glob("*/*.tmp"))


def test_no_checkpoint_is_lost_from_a_models_record(ready: Workspace) -> None:
    folder, rounds = ready.model("ada"), 8

    def add(number: int) -> None:
        for turn in range(rounds):
            name = f"{number}-{turn}"
            folder.change_info(lambda info, name=name: info.checkpoints.append(name))

    assert not _at_once(4, add)
    names = {f"{number}-{turn}" for number in range(4) for turn in range(rounds)}
    assert set(folder.read_info().checkpoints) == names
    before = folder.info_path.stat().st_mtime_ns
    folder.change_info(lambda info: None)
    assert folder.info_path.stat().st_mtime_ns == before  # the newest model is known by it


def test_of_two_imports_of_a_preset_one_is_refused(ready: Workspace, tmp_path: Path) -> None:
    preset = preset_of(_train("ada"), "Mine")
    file = save_preset(ready, preset).rename(tmp_path / "passed on.json")
    errors = _at_once(2, lambda number: import_preset(ready, file) and None)
    assert len(errors) == 1
    assert all("have a preset named 'Mine' already" in str(error) for error in errors)
    _at_once(2, lambda number: save_preset(ready, preset) and None)
    found, problems = own_presets(ready)
    assert [each.name for each in found] == ["Mine"]
    assert not problems


def test_of_jobs_that_start_together_one_has_each_file(ready: Workspace) -> None:
    """Half of them want the model, half a file that it writes: no order leaves a lock behind."""
    for _ in range(10):
        won: list[list[Claim]] = []

        def start(number: int, won: list[list[Claim]] = won) -> None:
            model = ("ada", "eve")[number % 2]
            wanted = claims_of(ready, "train", _train(model, saving={"name": "shared"}))
            try:
                claims.take(wanted, ours(f"run{number}", "train"))
            except BusyError:
                return
            won.append(wanted)

        _at_once(6, start)
        assert len(won) <= 1
        for wanted in won:
            for number in range(6):
                claims.give_back(wanted, f"run{number}")
        assert not list(ready.root.rglob("*.lock"))


def test_a_drive_without_locks_is_told(ready: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, **options: float) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(lock.FileLock, "acquire", fail)
    with pytest.raises(InputError, match="drive that cannot lock files"):
        acquire(ready.model("ada").lock_path, ours("run", "train"), "ada")
