"""Every call of the storage layer fails once, as disks fail: nothing is lost, nothing half is left.

What calls `job/disk.py` is found by running, not listed here: a scenario runs once with stand-ins
that note who calls, and then once for each call and fault. A call is told from others by the
function of `disk`, who called it through the storage layer, and the kind of file; one that a
cheaper scenario has tried is not tried again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from PIL import Image

import dreambooth_core
from dreambooth_core import worker
from dreambooth_core.api.uploads import Upload, save_uploads
from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.presets import delete_preset, preset_of, save_preset
from dreambooth_core.config.schema import CreateConfig, MergeConfig, SaveConfig, TrainConfig
from dreambooth_core.config.settings_store import keep_settings, kept_settings
from dreambooth_core.data.cache import LatentCache
from dreambooth_core.errors import CheckpointError, DreamboothError
from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job import disk, lock
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import EventWriter, Notice, read_events
from dreambooth_core.job.launcher import model_lock_path
from dreambooth_core.job.process import start_mark
from dreambooth_core.job.runs import Run, create_run_folder, events_path, read_run, write_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages import class_images, create, merge, save
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.saved_states import Progress, keep_newest
from dreambooth_core.stages.training_state import TrainingState, load_newest, save_state
from tests.api_standin import png
from tests.tiny import stage_context, tiny_model, write_tiny_checkpoint
from tests.trainings import Trainings

CORE = str(Path(dreambooth_core.__file__).parent)
LAYER = (f"job{os.sep}disk.py", f"job{os.sep}storage.py")
VOLATILE = {"created", "saved_at", "time", "since", "source", "checkpoints"}
ROLES = (
    *("state", "samples", "classes", "locks", "jobs", "presets", "uploads", "Lora"),
    *("Stable-diffusion", "dreambooth"),
)


@dataclass(frozen=True)
class Site:
    """A call of a function of `disk`: where it stands, for whom, and on what kind of file."""

    function: str
    caller: str
    kind: str


@dataclass(frozen=True)
class Fault:
    """What goes wrong: an error number, after half of the bytes if there are any to write."""

    number: int
    half: bool = False


FAULTS = {"write": (Fault(errno.EIO), Fault(errno.ENOSPC, half=True))}
NAMED = ("create", "append", "rename", "remove", "make_folder", "remove_folder", "read")
"""Of these the system says itself which file they were for."""


class Unreadable(FileIO):
    """An open file that the disk does not give out."""

    def readinto(self, buffer: Any) -> int:
        """Fail."""
        raise OSError(errno.EIO, "Input/output error")

    def read(self, size: int | None = -1) -> bytes:
        """Fail."""
        raise OSError(errno.EIO, "Input/output error")

    def readall(self) -> bytes:
        """Fail."""
        raise OSError(errno.EIO, "Input/output error")


@dataclass
class Disk:
    """Stands in for the functions of `disk`: notes who calls, and lets one call fail once."""

    root: Path
    sites: dict[Site, None] = field(default_factory=dict)
    fail_at: Site | None = None
    fault: Fault = Fault(errno.EIO)
    failed: bool = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Take the place of the functions."""
        with pytest.MonkeyPatch.context() as patched:
            for name in (*disk.CHANGES, *disk.READS):
                patched.setattr(disk, name, self._standing_in(name, getattr(disk, name)))
            yield

    def _standing_in(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            site = self._site(name, arguments[0])
            if site is None:
                return real(*arguments, **words)
            self.sites[site] = None
            if site != self.fail_at or self.failed:
                return real(*arguments, **words)
            self.failed = True
            return self._fail(name, *arguments)

        return call

    def _fail(self, name: str, first: Any, *rest: Any) -> Any:
        if name == "open_read":
            return Unreadable(first, "rb")
        if self.fault.half:
            first.write(rest[0][: len(rest[0]) // 2])
        text = os.strerror(self.fault.number)
        if name in NAMED:
            raise OSError(self.fault.number, text, str(first))
        raise OSError(self.fault.number, text)

    def _site(self, name: str, first: Any) -> Site | None:
        """Return what is called from where; None for what happens outside the workspace."""
        path = _path_of(first)
        if path is None or self.root not in path.parents:
            return None
        return Site(name, _caller(), _kind(path.relative_to(self.root)))


def _path_of(first: Any) -> Path | None:
    if isinstance(first, int):
        link = Path(f"/proc/self/fd/{first}")
        return Path(os.readlink(link)) if link.exists() else None
    return Path(os.fspath(first.name if isinstance(first, FileIO) else first))


def _caller() -> str:
    """Return the innermost function of ours that is under way outside the storage layer."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(CORE) and not file.endswith(LAYER):
            return f"{file.removeprefix(CORE)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "a thread"


def _kind(path: Path) -> str:
    role = next((role for role in ROLES if role in path.parts), "")
    return f"{role} {'' if path.name.startswith('.') else ''.join(path.suffixes[-2:])}"


Act = Callable[[Workspace], None]
READ: dict[tuple[int, int, int], Any] = {}


def contents(root: Path) -> dict[str, Any]:
    """Return what every file holds that is to be there, by its name, but for times."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not _is_systems(path):
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    """Return what a file holds, read once for all the places that link to it."""
    facts = path.stat()
    mark = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    if mark not in READ:
        READ[mark] = _parsed(path)
    return READ[mark]


def _parsed(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with suppress(CheckpointError):
            header, raw = read_header(path), path.read_bytes()
            return header.tensors, hashlib.sha256(raw[header.data_start :]).hexdigest()
    if path.suffix == ".json" and path.stat().st_size < 100_000:
        values = json.loads(path.read_bytes())
        dropped = isinstance(values, dict)
        return {k: v for k, v in values.items() if k not in VOLATILE} if dropped else values
    if path.suffix == ".jsonl":
        return [{**line, "time": 0} for line in map(json.loads, path.read_bytes().splitlines())]
    return path.read_bytes()


def _is_systems(path: Path) -> bool:
    """Whether it is the file of a lock of the system, which is empty and stays."""
    return path.suffix == ".guard" or path.name == ".guard"


def unfinished(root: Path) -> list[Path]:
    """Return what has the name of something that is being made or goes away."""
    names = (".tmp", ".old", ".creating")
    return [path for path in root.rglob("*") if path.name.endswith(names)]


def folders(root: Path) -> set[str]:
    """Return the names of all folders."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}


def numberless(name: str) -> str:
    """Return a name without the number that a second of its kind gets."""
    return re.sub(r"-\d+(?=[./]|$)", "", name)


class Trial:
    """One scenario: what is there before it, what it does, and what is there after it."""

    def __init__(self, before: Path, act: Act, place: Path) -> None:
        """Run it once without faults."""
        self.before, self.act, self.place = before, act, place
        self.start, self.folders = contents(before), folders(before)
        self.sites = list(self.run().sites)
        self.end = contents(place)
        assert not unfinished(place)

    def run(self, fail_at: Site | None = None, fault: Fault = Fault(errno.EIO)) -> Disk:
        """Run it in a fresh copy; raises what it raises."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place, copy_function=os.link)  # none is changed in place
        self.disk = Disk(self.place, fail_at=fail_at, fault=fault)
        with self.disk.at_work():
            self.act(Workspace(self.place))
        return self.disk

    def inject(self, site: Site, fault: Fault) -> str:
        """Let one call fail; return what was told of it, "" if it did no harm."""
        told = ""
        try:
            self.run(site, fault)
        except (DreamboothError, OSError) as error:
            told = explained(error)
        assert self.disk.failed
        self.look(site)
        if folders(self.place) == self.folders and contents(self.place) == self.start:
            return told  # nothing is left of it, so that the next time is the first time
        self.act(Workspace(self.place))
        again = contents(self.place)
        assert not unfinished(self.place)
        assert {numberless(name) for name in again} == {numberless(name) for name in self.end}
        for name, content in again.items():
            assert same_as_any(name, content, self.end), name
        return told

    def look(self, site: Site) -> None:
        """Every file is what it was or what it becomes; none is there by half."""
        now = contents(self.place)
        left = unfinished(self.place)
        assert not left or site.function in ("remove", "remove_folder"), left
        for name, content in self.start.items():
            if name not in now:
                assert name not in self.end, f"{name} is lost"
            elif content != now[name] and not name.endswith(".jsonl"):
                assert now[name] == self.end.get(name), f"{name} is neither old nor new"
        for name, content in now.items():
            stays = site.function == "remove" and name.endswith(".lock")  # void with its process
            if name not in self.start and not stays and not any(p.name in name for p in left):
                assert same_as_any(name, content, self.end), name


def same_as_any(name: str, content: Any, end: dict[str, Any]) -> bool:
    """Whether a file is what one of its name, or a second one of it, is to be."""
    wanted = [value for other, value in end.items() if numberless(other) == numberless(name)]
    if name.endswith(".jsonl"):
        return any(
            content == value[: len(content)] or set_of(content) <= set_of(value) for value in wanted
        )
    return content in wanted


def set_of(lines: list[dict[str, Any]]) -> set[str]:
    """Return the lines that there are, however often."""
    return {json.dumps(line, sort_keys=True) for line in lines}


def explained(error: DreamboothError | OSError) -> str:
    """Return what the person reads, which names a file."""
    told = worker.failure(error)
    assert not told.message.startswith("Something that should not happen"), told.message
    assert re.search(r"[/\\][\w. -]+", told.message), told.message
    return told.message


CLASS_IMAGES = {"class_prompt": "dog", "class_images_per_instance_image": 1, "class_steps": 1}
LOADED: list[Components] = []
ANYHOW = {
    ("write", "state .safetensors.tmp", errno.ENOSPC),
    ("rename", "state ", errno.EIO),
    ("sync", "Stable-diffusion .safetensors.tmp", errno.EIO),
    ("write", "samples .png.tmp", errno.ENOSPC),
}
"""What a training is tried with although others have been."""
TRIED: set[tuple[Site, Fault]] = set()


def try_all(before: Path, act: Act, place: Path) -> None:
    """Inject every fault into every call that no scenario has tried yet."""
    trial = Trial(before, act, place)
    assert trial.sites
    problems = []
    for site in trial.sites:
        for fault in FAULTS.get(site.function, (Fault(errno.EIO),)):
            again = act is training and (site.function, site.kind, fault.number) in ANYHOW
            if again or (site, fault) not in TRIED:
                TRIED.add((site, fault))
                try:
                    trial.inject(site, fault)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 (all are told)
                    problems.append(f"{site} {fault}: {type(error).__name__} {error}"[:600])
    assert not problems, "\n" + "\n\n".join(problems)


@pytest.fixture(scope="module")
def before(module_folder: Path) -> Path:
    """A workspace with a model, its training states, and files to be overwritten."""
    workspace = Workspace(module_folder)
    model = tiny_model(workspace, "tiny")
    for seed, name in enumerate("ab"):
        write_tiny_checkpoint(workspace.checkpoints_dir / f"{name}.safetensors", seed=seed)
    for name in ("merged", "made_1"):
        write_tiny_checkpoint(workspace.checkpoints_dir / f"{name}.safetensors", seed=9)
        (workspace.checkpoints_dir / f"{name}.yaml").write_text("older: 1", encoding="utf-8")
    LOADED[:] = [load_components(model)]
    for step in (1, 2):
        save_state(model, "run", a_state(step))
    damaged = model.states_dir / "run" / "step_00000002" / "unet.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    save_png(
        Image.new("RGB", (8, 8), "red"), model.samples_dir / "run" / "step_1_0.png", "a zwx dog"
    )
    keep_settings(model, TrainConfig(model="tiny"))
    for name in ("mine", "gone"):
        save_preset(workspace, preset_of(TrainConfig(model=""), name, "before"))
    return module_folder


def a_state(step: int) -> TrainingState:
    """A small state whose weights fit the tiny model."""
    bias = torch.linspace(0, step, 32)
    return TrainingState(
        progress=Progress(step, 1, 0),
        seed=5,
        settings={
            "model": "tiny",
            "concepts": [{"instance_folder": "x", "instance_token": "zwx"}],
            "ema": {"enabled": True},
        },
        weights={"unet": {"conv_in.bias": bias}},
        ema={"unet.conv_in.bias": bias + 1},
        optimizer={"unet": [{"exp_avg": bias * 2}]},
    )


def settings(workspace: Workspace) -> None:
    """Settings and presets are kept, one preset goes."""
    model = workspace.model("tiny")
    kept = kept_settings(model)
    assert kept is not None
    kept.seed = 77
    keep_settings(model, kept)
    save_preset(workspace, preset_of(kept, "mine", "after"))
    with suppress(DreamboothError):  # the second time it is gone
        delete_preset(workspace, "gone")


def runs(workspace: Workspace) -> None:
    """A run's folder is made, its lock taken, handed over and given back, and it is told things."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dreambooth_core.job.runs.time.strftime", lambda form: "now")
        folder = create_run_folder(workspace, "train")
    write_run(folder, Run("now-train", "train", Path("there"), TrainConfig(model="tiny")))
    assert read_run(folder).kind == "train"
    path, mark = model_lock_path(workspace, "tiny"), start_mark(os.getpid())
    lock.acquire(path, lock.Holder(os.getpid(), mark, "one", "train"), "tiny")
    try:
        lock.hand_over(path, lock.Holder(os.getpid(), mark, "one", "save"))
        send(folder, Command("stop"))
        EventWriter(events_path(folder)).emit(Notice("info", "half of it or all"))
        read_events(events_path(folder))
    finally:
        lock.release(path, "one")


def uploads(workspace: Workspace) -> None:
    """A picture and its caption are taken in."""
    data = io.BytesIO(png())
    save_uploads(workspace.uploads_dir / "dogs", [Upload("a.png", data, "a dog")], overwrite=True)


def states(workspace: Workspace) -> None:
    """A state takes the place of a damaged one, an older one goes, the newest is loaded."""
    model = workspace.model("tiny")
    save_state(model, "run", a_state(2))
    save_state(model, "run", a_state(3))
    keep_newest(model, "run", 2)
    assert load_newest(model)[1].progress.step in (2, 3)


def latents(workspace: Workspace) -> None:
    """Latents are kept, and found again."""
    cache = LatentCache(workspace.model("tiny").path / "latents")
    if cache.get("key") is None:
        cache.put("key", torch.ones(1, 2, 2), torch.ones(1, 2, 2))
    cache.get("key")


def painting(workspace: Workspace) -> None:
    """Class images and a preview are written; what they show is not painted here."""
    settings = Trainings(workspace).config({"concept": CLASS_IMAGES})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(class_images, "load_components", lambda model: LOADED[0])
        patched.setattr(class_images, "generate", _blank)
        class_images.run(settings, stage_context(workspace))
    preview = workspace.model("tiny").samples_dir / "run" / "step_00000004_0.png"
    save_png(Image.new("RGB", (8, 8)), preview, "a zwx dog")


def _blank(components: object, prompts: list[str], *_: object, **__: object) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64)) for _ in prompts]


def making(workspace: Workspace) -> None:
    """A model is made of a checkpoint."""
    source = workspace.checkpoints_dir / "a.safetensors"
    create.run(CreateConfig(name="other", source=str(source)), stage_context(workspace))


def saving(workspace: Workspace) -> None:
    """A checkpoint of a state is written over another one, with its card."""
    config = SaveConfig(model="tiny", run="run", step=1, name="made", use_ema=True, ema_keys=True)
    save.run(config, stage_context(workspace))


def merging(workspace: Workspace) -> None:
    """Two checkpoints are merged over another one."""
    config = MergeConfig(
        name="merged", primary="a.safetensors", secondary="b.safetensors", method="weighted_sum"
    )
    merge.run(config, stage_context(workspace))


def training(workspace: Workspace) -> None:
    """Four steps with class images, previews, a state and a checkpoint."""
    Trainings(workspace).run(
        {
            "concept": {**CLASS_IMAGES, "sample_prompts": ["a zwx dog"]},
            "intervals": {"epochs": 1},
            "previews": {"every_steps": 4, "steps": 1},
            "saving": {"save_at_end": True, "on_full_disk": "stop"},
            "images": {"cache_latents": "disk"},
        }
    )


SCENARIOS = (settings, runs, uploads, states, latents, painting, saving, making, merging, training)


@pytest.mark.parametrize("act", SCENARIOS)
def test_nothing_is_lost_and_nothing_half_is_left(
    act: Act, before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here
    try_all(before, act, tmp_path / "workspace")


def test_a_lock_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    path, mark = tmp_path / "tiny.lock", start_mark(os.getpid())
    lock.acquire(path, lock.Holder(os.getpid(), mark, "one", "train"), "tiny")
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(disk, "open_read", lambda path: Unreadable(path, "rb"))
            patched.setattr(disk, "read", lambda path: Unreadable(path, "rb").readall())
            with pytest.raises(OSError, match="Input/output"):
                lock.acquire(path, lock.Holder(os.getpid(), mark, "two", "train"), "tiny")
        holder = lock.read_holder(path)
        assert holder is not None and holder.run_id == "one"
    finally:
        lock.release(path, "one")
