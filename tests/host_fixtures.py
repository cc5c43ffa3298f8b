"""What the tests of the host share: a running stand-in, its conductor, and jobs without torch."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.host import base
from dreambooth_core.host.conductor import Conductor, conductor
from dreambooth_core.job import launcher
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.host_standin import Webui
from tests.host_standin.quiet import replacements

PATIENCE = 120.0
"""Seconds; only a test that fails waits so long."""


def order(text: str, model: str = "ada") -> SampleConfig:
    """Settings of a job whose stage does what the text says (tests/host_standin/worker.py)."""
    return SampleConfig(model=model, prompts=[text])


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something to come true, and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    return pytest.fail("it did not come true")


class ReadyOverlay:
    """The trainer's packages, all there."""

    def __init__(self) -> None:
        self.kind, self.message, self.remedy = "ready", "", ""
        self.made = 0

    @property
    def ready(self) -> bool:
        return self.kind == "ready"

    def state(self) -> ReadyOverlay:
        return self

    def make(self, report: Callable[[str, int, int], None]) -> None:
        self.made += 1
        report("numbers", 1, 2)
        report("letters", 2, 2)
        self.kind = "ready"


def checkpoint(folder: Path, name: str) -> Path:
    """A file that the host lists as a checkpoint."""
    path = folder / "models" / "Stable-diffusion" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def prepare_folder(root: Path) -> Workspace:
    """A WebUI's folder with a checkpoint and a model "ada" in training."""
    checkpoint(root, "base.safetensors")
    workspace = Workspace(root, checkpoints_elsewhere=root / "models" / "Stable-diffusion")
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    return workspace


@contextmanager
def running(kind: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    """A started stand-in in `root`, with a conductor of its own."""
    prepare_folder(root)
    monkeypatch.setenv("STANDIN_DATA_DIR", str(root))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.host_standin.worker")
    monkeypatch.setattr(base, "_CHOSEN", [])
    for name, module in replacements().items():
        monkeypatch.setitem(sys.modules, name, module)
    conductor.cache_clear()
    webui = Webui(kind, os.environ)
    try:
        webui.start()
        assert webui.errors() == []
        use_ready_overlay(monkeypatch)
        yield webui
        end_jobs(conductor())
    finally:
        conductor.cache_clear()
        webui.close()


@contextmanager
def started_during_a_picture(webui: Webui, work: Callable[[], None]) -> Iterator[None]:
    """Start work while the host makes a picture; it waits. At the end both are done."""
    begun, enough = threading.Event(), threading.Event()

    def during() -> None:
        begun.set()
        enough.wait(PATIENCE)

    drawing = threading.Thread(target=webui.module("processing").txt2img, args=(during,))
    drawing.start()
    assert begun.wait(PATIENCE)
    working = threading.Thread(target=work)
    working.start()
    working.join(0.2)
    assert working.is_alive()
    try:
        yield
    finally:
        enough.set()
        for thread in (working, drawing):
            thread.join(PATIENCE)


def use_ready_overlay(monkeypatch: pytest.MonkeyPatch) -> ReadyOverlay:
    """Let workers run in this Python, as if the trainer's packages were installed."""
    overlay, host = ReadyOverlay(), base.current_host()
    monkeypatch.setattr(host, "overlay", lambda: overlay, raising=False)
    monkeypatch.setattr(host, "worker", WorkerPython, raising=False)
    return overlay


def end_jobs(conducting: Conductor) -> None:
    """Kill what a test left running."""
    for job in list(conducting._active.values()):
        job.kill()
    assert conducting.wait(PATIENCE)
