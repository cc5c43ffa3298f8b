"""A real WebUI with our extension in it and a folder of the test's for its data.

WEBUI_DIR     the WebUI's folder, with its launch.py; it was started before, so that it is whole
WEBUI_PYTHON  its Python, if that is not the one in WEBUI_DIR/venv

Nothing in WEBUI_DIR is changed. The trainer's packages are taken from the checkout's
.trainer-packages; without them the first job installs them, which needs the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreambooth_core.job.workspace import Workspace
from dreambooth_core.world.install import install
from tests.browser.driver import ROOT, free_port, wait_until

FOLDER_VARIABLE, PYTHON_VARIABLE = "WEBUI_DIR", "WEBUI_PYTHON"
VENV_PYTHONS = ("venv/bin/python", "venv/Scripts/python.exe")
FLAGS = (
    *("--api", "--no-download-sd-model", "--do-not-download-clip"),
    *("--skip-prepare-environment", "--skip-version-check", "--skip-torch-cuda-test"),
    *("--use-cpu", "all", "--no-half", "--force-cpu"),
)
"""On the CPU in full precision, everywhere alike; the last flag is ours."""
SURROUNDINGS = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
START_SECONDS, JOB_SECONDS, ANSWER_SECONDS = 1200.0, 1200.0, 600.0
STARTED = "Startup time:"
ENDED = ("finished", "stopped", "failed")


def webui_folder() -> Path:
    """The WebUI's folder; skips the test where none is named."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if not named:
        pytest.skip(f"{FOLDER_VARIABLE} names no WebUI to run in.")
    folder = Path(named)
    assert (folder / "launch.py").is_file(), f"{FOLDER_VARIABLE}: no launch.py in {folder}"
    return folder


def webui_python(folder: Path) -> Path:
    """The WebUI's own Python."""
    named = os.environ.get(PYTHON_VARIABLE, "")
    candidates = [Path(named)] if named else [folder / path for path in VENV_PYTHONS]
    found = [path for path in candidates if path.is_file()]
    assert found, f"No Python at {candidates}; name it in {PYTHON_VARIABLE}."
    return found[0]


class RealWebui:
    """A WebUI's process, and what it can be asked over HTTP."""

    def __init__(self, data: Path) -> None:
        self.folder = webui_folder()
        self.python = webui_python(self.folder)
        self.data = data
        self.extension = data / "extensions" / "sd_dreambooth"
        self.workspace = Workspace(data)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data / "webui.log"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Copy the extension, and the built-in checkpoint as the only one."""
        shutil.copytree(ROOT, self.extension, ignore=_not_the_products, symlinks=True)
        probe = self.data / "extensions" / "probe" / "scripts"
        probe.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("probe.py"), probe)
        self.workspace.checkpoints_dir.mkdir(parents=True)
        install(self.workspace)

    def start(self) -> None:
        """Start it, and wait until its page is there."""
        command = [str(self.python), "launch.py", "--data-dir", str(self.data)]
        command += ["--port", str(self.port), *FLAGS]
        environment = {**os.environ, **SURROUNDINGS}
        environment.pop("PYTHONPATH", None)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_for_page(0)

    def close(self) -> None:
        """End it and the jobs that it started."""
        if self._process is None or self._process.poll() is not None:
            return
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family, timeout=30)

    def last_words(self) -> str:
        """The end of what it printed."""
        return self._printed()[-4000:]

    def get(self, path: str, **query: str) -> Any:
        """The JSON answer to a GET."""
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}" if query else path, None)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST of JSON."""
        return self._ask(path, json.dumps(body).encode())

    def elem_ids(self) -> Counter[str]:
        """The ids of all that is on the page, by how often they are there."""
        props = (component["props"] for component in self.get("/config")["components"])
        return Counter(p["elem_id"] for p in props if p.get("elem_id"))

    def press(self, script: str, data: list[Any]) -> list[Any]:
        """Do what the button with this script of the page does; `data` are its inputs."""
        functions = self.get("/config")["dependencies"]
        [index] = [n for n, function in enumerate(functions) if function.get("js") == script]
        body = {"fn_index": index, "data": data, "session_hash": "test"}
        return list(self.post("/run/predict", body)["data"])

    def reload_ui(self) -> None:
        """Press "Reload UI", and wait until the new page is there."""
        starts = self._starts()
        self.press("restart_reload", [])
        self._wait_for_page(starts)

    def titles(self) -> dict[str, str]:
        """The checkpoints' titles by file, as the WebUI lists them now: nothing is refreshed."""
        listed = self.get("/sdapi/v1/sd-models")
        return {str(Path(model["filename"]).resolve()): model["title"] for model in listed}

    def start_job(self, kind: str, config: dict[str, Any]) -> str:
        """Start a job and return its id."""
        return str(self.post("/dreambooth/jobs", {"kind": kind, "config": config})["id"])

    def job(self, run_id: str) -> Any:
        """All that is told of a job."""
        return self.get(f"/dreambooth/jobs/{run_id}")

    def wait_for_job(self, run_id: str, *states: str) -> Any:
        """Wait until a job is in one of the states, or has ended; return what is told of it."""
        good = {*ENDED, *states}
        wait_until(
            lambda: self.job(run_id)["state"] in good,
            lambda: f"{self.job(run_id)}\n{self.last_words()}",
            JOB_SECONDS,
        )
        return self.job(run_id)

    def has_hashed(self, file: str) -> bool:
        """Whether it read a whole file to learn its SHA-256, as it says when it does."""
        return f"Calculating sha256 for {file}" in self._printed()

    def freeze(self) -> str:
        """The packages of the WebUI's Python."""
        command = [str(self.python), "-m", "pip", "freeze", "--all"]
        return subprocess.check_output(command, encoding="utf-8")

    def _wait_for_page(self, started_before: int) -> None:
        """Wait until it says once more that it has started.

        It is not asked meanwhile: a request that comes before its API is there makes it fail.
        """

        def has_started() -> bool:
            assert self._process is not None and self._process.poll() is None, self.last_words()
            return self._starts() > started_before

        wait_until(has_started, self.last_words, START_SECONDS)

    def _starts(self) -> int:
        return self._printed().count(STARTED)

    def _printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _ask(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data=body)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            words = error.read().decode("utf-8", "replace")[:2000]
            raise AssertionError(f"{path}: {error.code} {words}") from error


def _not_the_products(folder: str, names: list[str]) -> set[str]:
    """What lies in a checkout and is none of the extension: environments, caches, models."""
    ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "*.tmp")
    at_the_top = {"models"} if Path(folder) == ROOT else set()
    return {*ignored(folder, names), *at_the_top}
