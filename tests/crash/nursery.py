"""Forks workers from a process that has torch and the stages loaded, so that each starts at once.

`python -m tests.crash.nursery` answers requests, one JSON line each way; `Nursery` is the other
side. Only where processes can be forked.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core import worker
from tests.crash.blow import Blow, install

LOADED = (
    *("dreambooth_core.stages.train", "dreambooth_core.stages.create", "torch.utils.tensorboard"),
    *("dreambooth_core.stages.machine", "tests.tiny", "tests.noise_pictures", "lion_pytorch"),
    *("schedulefree", "peft.helpers", "transformers.models.clip.modeling_clip"),
    *("transformers.models.auto.processing_auto", "diffusers.hooks", "numpy.ctypeslib"),
)
"""What workers load; a lazy import that is missing here costs time in every one of them."""


class Nursery:
    """The process that forks, as seen from the test."""

    def __init__(self) -> None:
        """Start it; the first answer comes when everything is loaded."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery ended: {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


class Child:
    """A forked worker, with what the launcher needs of a `Popen`."""

    def __init__(self, nursery: Nursery, **request: Any) -> None:
        """Let it be forked."""
        self._nursery, self._code = nursery, None
        self.pid = int(nursery.ask(do="fork", **request))

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._wait(False)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended."""
        code = self._wait(True)
        assert code is not None
        return code

    def _wait(self, patiently: bool) -> int | None:
        if self._code is None:
            self._code = self._nursery.ask(do="wait", pid=self.pid, patiently=patiently)
        return self._code


def serve() -> None:
    """Answer until there are no more requests."""
    worker.separate_from_host()
    for name in LOADED:
        importlib.import_module(name)
    Image.init()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        does = {"fork": _fork, "wait": _wait, "threads": _threads}[request.pop("do")]
        answers.write(json.dumps(does(**request)) + "\n")
        answers.flush()


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _wait(pid: int, patiently: bool) -> int | None:
    found, status = os.waitpid(pid, 0 if patiently else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _fork(**request: Any) -> int:
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = _be_child(**request)
        except Exception:  # noqa: BLE001 - the log tells
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _be_child(call: str, argument: str, log: str, blow: Blow | None = None, note: str = "") -> int:
    """Call "module:function" with a folder, in a process group of its own."""
    os.setsid()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    counter = install(blow or {}, Path(note) if note else None)
    module, _, name = call.partition(":")
    code = getattr(importlib.import_module(module), name)(argument)
    print("changes of the disk:", counter.count, flush=True)  # noqa: T201
    return int(code or 0)


def work(folder: str) -> int:
    """Run a job as the worker process does."""
    os.chdir(folder)
    return worker.main([folder])


def prepare(root: str) -> int:
    """Write the checkpoint and the pictures that the trainings begin with."""
    from tests.noise_pictures import write_pictures
    from tests.tiny import write_tiny_checkpoint

    folder = Path(root)
    write_tiny_checkpoint(folder / "models/Stable-diffusion/tiny-source.safetensors")
    pictures = write_pictures(folder / "pictures", 4)
    for path in pictures.glob("*.png"):
        path.with_suffix(".txt").write_text(f"a zwx dog, {path.stem}, on noise, small")
    return 0


if __name__ == "__main__":
    serve()
