"""A host, a conductor and a client for tests of the API, without torch or worker processes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dreambooth_core.api import mount
from dreambooth_core.config.schema import JobConfig
from dreambooth_core.errors import BusyError, DreamboothError
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.commands import Command, CommandReader
from dreambooth_core.job.events import Event, EventWriter, JobFinished, JobStarted
from dreambooth_core.job.launcher import Job, abandon, reserve
from dreambooth_core.job.runs import events_path, model_of
from dreambooth_core.job.workspace import ModelInfo, Workspace

FRIEND = "https://friend.example"
"""Another site whose pages may use the API."""
Script = Callable[[Job], Sequence[Event]]


class FakeHost(StandaloneHost):
    """A host with checkpoints that need not be there, and another site that may call."""

    def checkpoint_names(self) -> list[str]:
        return ["base.safetensors", "sub/other.safetensors"]

    def allows_origin(self, origin: str) -> bool:
        return origin == FRIEND


class FakeConductor:
    """Reserves runs as the real one does, then lets a script end them; without one they go on."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.problem: DreamboothError | None = None
        self.doing = ""
        self.started: list[tuple[str, JobConfig]] = []
        self.script: Script | None = lambda job: [JobFinished({})]
        self.refusal: Exception | None = None
        self._job: Job | None = None

    def start(self, kind: str, config: JobConfig) -> Job:
        if self.refusal is not None:
            raise self.refusal
        if self._job is not None and self._job.is_running():
            raise BusyError(f"The job {self._job.run_id} is still going on.", remedy="Wait.")
        self._job = job = reserve(self.workspace, kind, config)
        self.started.append((kind, config))
        emit(job, JobStarted(kind, model_of(config), job.run_id, 1, "test"))
        if self.script is not None:
            *before, final = self.script(job)
            for event in before:
                emit(job, event)
            abandon(self.workspace, job, final)
        return job

    def job(self) -> Job | None:
        return self._job

    def preparing(self) -> str:
        return self.doing

    def end(self, final: Event) -> None:
        """End a job that goes on."""
        assert self._job is not None
        abandon(self.workspace, self._job, final)


class Bench:
    """A served API with its host, conductor and workspace."""

    def __init__(self, workspace: Workspace, credentials: Mapping[str, str] | None = None) -> None:
        self.workspace = workspace
        self.host = FakeHost(workspace, credentials)
        self.conductor = FakeConductor(workspace)
        self.app = FastAPI()
        mount(self.app, self.host, self.conductor)
        self.client = TestClient(self.app)

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """The JSON that an address answers."""
        return self.ask("GET", path, status, **options).json()

    def post(self, path: str, json: Any = None, status: int = 200, **options: Any) -> Any:
        """The JSON that an address answers to a JSON body."""
        return self.ask("POST", path, status, json=json, **options).json()

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """The whole answer, which must have the status."""
        answer = self.client.request(method, f"/dreambooth{path}", **options)
        assert answer.status_code == status, answer.text[:2000]
        return answer

    def refusal(self, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
        """The JSON of an error, which must have all its parts."""
        content = self.ask(method, path, status, **options).json()
        assert {"message", "remedy", "field"} <= set(content)
        assert content["message"]
        return content

    def commands(self) -> list[Command]:
        """What the newest job was asked."""
        job = self.conductor.job()
        assert job is not None
        return CommandReader(job.folder / "commands.jsonl").poll()


def emit(job: Job, *events: Event) -> None:
    """Write events into a run's file."""
    for event in events:
        EventWriter(events_path(job.folder)).emit(event)


def png(width: int = 4, height: int = 3, shade: int = 120) -> bytes:
    """A grey PNG."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([shade]) * width) * height
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def put(path: Path, data: bytes = b"") -> Path:
    """A file with its folders; a grey picture if no bytes are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data or png())
    return path


def make_model(workspace: Workspace, name: str = "ada", **facts: Any) -> None:
    """A model as far as the API looks at it."""
    folder = workspace.model(name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_info(ModelInfo(name, "sd1", "base.safetensors", **facts))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A served API of an empty workspace with the model "ada", open to everybody."""
    monkeypatch.delenv("API_KEY", raising=False)
    workspace = Workspace(tmp_path / "workspace")
    workspace.checkpoints_dir.mkdir(parents=True)
    make_model(workspace)
    served = Bench(workspace)
    with served.client:
        yield served
