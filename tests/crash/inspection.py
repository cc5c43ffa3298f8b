"""What must hold of a workspace after every kill: each file is whole, and nothing is gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
from PIL import Image

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.job.events import (
    CheckpointSaved,
    Event,
    LoraSaved,
    SampleSaved,
    StateSaved,
    read_events,
)
from dreambooth_core.job.runs import events_path
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages.saved_states import PROGRESS_FILE, damage

BASE = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
BASE_FILES = ("layout.json", "extras.safetensors", "source.yaml")
NUMBERS = {"F32": numpy.float32, "F16": numpy.float16, "F64": numpy.float64}
UNFINISHED = ".tmp"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_of(model: ModelFolder, hashed: Callable[[Path], str] = sha256) -> dict[str, str]:
    """Return the hashes of the files that training never changes."""
    files = [path for name in BASE for path in (model.path / name).rglob("*") if path.is_file()]
    files += [model.path / name for name in BASE_FILES if (model.path / name).is_file()]
    return {str(path.relative_to(model.path)): hashed(path) for path in files}


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the tensors of a file as dtype, shape and bytes; raises if it is not whole."""
    header = read_header(path)
    data = path.read_bytes()[header.data_start :]
    return {
        key: (info.dtype, tuple(info.shape), data[info.start : info.end])
        for key, info in header.tensors.items()
    }


def read_finite(path: Path) -> None:
    """Read every number of a file of tensors; raises AssertionError for one that is not finite."""
    for key, (dtype, _, data) in tensors_of(path).items():
        if dtype in NUMBERS:
            assert numpy.isfinite(numpy.frombuffer(data, NUMBERS[dtype])).all(), f"{path}: {key}"


class Inspector:
    """Remembers what was announced as done, and looks whether it is still there and the same."""

    def __init__(self, workspace: Workspace, model: ModelFolder, keep_states: int) -> None:
        """Begin with a workspace in which nothing was trained yet."""
        self.workspace, self.model, self.keep_states = workspace, model, keep_states
        self.base = base_of(model)
        self.promised: dict[Path, str] = {}
        self.states: list[Path] = []
        self.runs: list[str] = []
        self.checked = 0
        self._hashes: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._read_whole: dict[Path, tuple[int, ...]] = {}

    def promises(self, run_id: str) -> None:
        """Take in what a run announced, as its events stand (before a power failure cuts them)."""
        self.runs.append(run_id)
        for event in events_of(self.workspace, run_id):
            if isinstance(event, StateSaved):
                self.states.append(Path(event.path))
            for path, digest in _files_of(event):
                self.promised.setdefault(path, digest or self._hash(path))

    def losses(self) -> list[str]:
        """Return what was announced once and is gone or another now."""
        lost = [
            str(path)
            for path, digest in self.promised.items()
            if not path.is_file() or self._hash(path) != digest
        ]
        gone = [path for path in self.states if damage(path) and not self._is_out_of_date(path)]
        return lost + [f"{path}: {damage(path)}" for path in gone]

    def _is_out_of_date(self, state: Path) -> bool:
        """Whether there are as many whole states after one as are to be kept."""

        def age(path: Path) -> tuple[int, str]:
            return self.runs.index(path.parent.name), path.name

        folders = [self.model.states_dir / run for run in self.runs]
        whole = [path for run in folders for path in run.glob("step_*") if not damage(path)]
        return sum(age(path) > age(state) for path in whole) >= self.keep_states

    def look(self) -> None:
        """Read every file; raises what is wrong with one."""
        assert base_of(self.model, self._hash) == self.base
        for path in sorted(self.workspace.root.rglob("*")):
            if not path.is_file() or _unfinished(path):
                continue
            if self._read_whole.get(path) != _mark(path):
                self._read(path)
                self._read_whole[path] = _mark(path)
                self.checked += 1
        for state in self.model.states_dir.glob("*/step_*"):
            assert not (state / PROGRESS_FILE).exists() or not damage(state), state

    def _hash(self, path: Path) -> str:
        """Return a file's hash, anew if anything was done to it since the last time."""
        mark = _mark(path)
        if path not in self._hashes or self._hashes[path][0] != mark:
            self._hashes[path] = mark, sha256(path)
        return self._hashes[path][1]

    def _read(self, path: Path) -> None:
        if path.suffix == ".safetensors":
            read_finite(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.name == "events.jsonl":
            for line in path.read_bytes().split(b"\n")[:-1]:
                json.loads(line.decode("utf-8"))


def events_of(workspace: Workspace, run_id: str) -> list[Event]:
    return read_events(events_path(workspace.run_folder(run_id)))[0]


def _mark(path: Path) -> tuple[int, ...]:
    """Return what the system changes with every byte of a file."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unfinished(path: Path) -> bool:
    """Whether a file has no final name: its own or a folder's is temporary, or it is a lock."""
    names = (path.name, path.parent.name)
    return any(UNFINISHED in name for name in names) or path.suffix == ".guard"


def _files_of(event: Event) -> Iterator[tuple[Path, str]]:
    if isinstance(event, CheckpointSaved | LoraSaved):
        yield Path(event.path), event.sha256
    elif isinstance(event, SampleSaved):
        yield Path(event.path), ""
