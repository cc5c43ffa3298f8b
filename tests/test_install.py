from __future__ import annotations

import argparse
import configparser
import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import OverlayError
from dreambooth_core.job import overlay as overlay_module
from dreambooth_core.job.overlay_state import OverlayState
from dreambooth_core.job.pip_install import Report

ROOT = Path(__file__).resolve().parents[1]


class FakeOverlay:
    """An overlay in a given state, whose making goes as told."""

    def __init__(self, state: OverlayState | None = None, error: BaseException | None = None):
        self.given, self.error, self.again = state, error, False

    def state(self) -> OverlayState:
        assert self.given is not None
        return self.given

    def make(self, report: Report, again: bool = False) -> Path:
        self.again = again
        report("Getting alpha", 1, 2)
        if self.error:
            raise self.error
        return Path("packages")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("install")


def _use(monkeypatch: pytest.MonkeyPatch, overlay: FakeOverlay) -> FakeOverlay:
    monkeypatch.setattr(overlay_module, "host_overlay", lambda: overlay)
    return overlay


def test_nothing_is_said_when_all_is_there(
    install: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _use(monkeypatch, FakeOverlay(OverlayState("ready")))
    assert install.main([]) == 0
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_said_and_the_webui_starts(
    install: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _use(monkeypatch, FakeOverlay(OverlayState("unsupported_torch", "torch is old.", "Renew it.")))
    assert install.main([]) == 0
    assert capsys.readouterr().out == "Dreambooth: torch is old. Renew it.\n"


def test_now_installs_and_tells(
    install: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = _use(monkeypatch, FakeOverlay())
    assert install.main(["--now"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Dreambooth: [1/2] Getting alpha",
        "Dreambooth: the trainer is ready: packages",
    ]
    assert not overlay.again
    assert install.main(["--again"]) == 0
    assert overlay.again


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OverlayError("The disk is full.", remedy="Free some."), 1, "The disk is full. Free some."),
        (KeyboardInterrupt(), 130, "nothing was changed"),
    ],
)
def test_now_says_why_not(
    install: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    _use(monkeypatch, FakeOverlay(error=error))
    assert install.main(["--now"]) == code
    assert words in capsys.readouterr().out


def test_other_words_show_how_it_is_used(
    install: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main(["--help"]) == 2
    assert "install.py --now" in capsys.readouterr().out


def _as_the_webui(extension: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the hook as the WebUI does: in its folder, with its folder on PYTHONPATH."""
    webui = extension.parent
    (webui / "modules").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *flags, str(extension / "install.py")],
        cwd=webui,
        env={**os.environ, "PYTHONPATH": f"{webui}{os.pathsep}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    """The extension as it lies in a WebUI, with nothing installed yet."""
    folder = tmp_path / "sd_webui_dreambooth"
    (folder / "requirements").mkdir(parents=True)
    for name in ("install.py", "requirements/overlay.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    for source in [ROOT / "dreambooth_core", *(ROOT / "dreambooth_core").glob("job")]:
        target = folder / source.relative_to(ROOT)
        target.mkdir()
        for path in source.glob("*.py"):
            shutil.copyfile(path, target / path.name)
    return folder


def test_the_hook_looks_and_changes_nothing(extension: Path) -> None:
    before = sorted(extension.rglob("*.txt"))
    done = _as_the_webui(extension)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not installed yet" in done.stdout
    assert sorted(extension.rglob("*.txt")) == before
    assert not (extension / ".trainer-packages").exists()
    # A portable Python, which does not find modules beside the script by itself.
    assert "not installed yet" in _as_the_webui(extension, "-I").stdout


@pytest.mark.parametrize("damage", ["dreambooth_core/job/overlay.py", "requirements/overlay.txt"])
def test_a_damaged_extension_does_not_keep_the_webui_from_starting(
    extension: Path, damage: str
) -> None:
    (extension / damage).unlink()
    done = _as_the_webui(extension)
    assert done.returncode == 0
    assert "damaged or incomplete" in done.stdout


OLD_FLAGS = ("--dreambooth-models-path", "--lora-models-path", "--ckptfix", "--force-cpu")
OLD_FLAGS += ("--profile-db", "--debug-db")


def _preload(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    importlib.import_module("preload").preload(parser)


def test_flags_of_the_earlier_extension_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    _preload(parser, monkeypatch)
    nothing = vars(parser.parse_args([]))
    assert not any(nothing.values())
    assert {flag[2:].replace("-", "_") for flag in OLD_FLAGS} <= set(nothing)
    line = "--dreambooth-models-path /m --lora-models-path /l --force-cpu --ckptfix --profile-db"
    given = parser.parse_args([*line.split(), "--debug-db", "--dreambooth-device-id", "1"])
    assert (given.dreambooth_models_path, given.lora_models_path) == ("/m", "/l")
    assert (given.force_cpu, given.dreambooth_device_id) == (True, "1")


def test_the_webuis_own_flags_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device-id", type=str, default=None)
    parser.add_argument("--force-cpu", action="store_true", default="the WebUI's")
    _preload(parser, monkeypatch)
    _preload(parser, monkeypatch)  # as after an update while an old copy is there too
    assert parser.parse_args([]).force_cpu == "the WebUI's"
    assert parser.parse_args(["--device-id", "1", "--dreambooth-models-path", "m"]).device_id == "1"


def test_loading_the_flags_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    environment, level = dict(os.environ), logging.getLogger().level
    handlers = list(logging.getLogger().handlers)
    _preload(argparse.ArgumentParser(), monkeypatch)
    assert dict(os.environ) == environment
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == (level, handlers)


def test_the_webui_can_read_the_metadata() -> None:
    metadata = configparser.ConfigParser()
    assert metadata.read(ROOT / "metadata.ini") == [str(ROOT / "metadata.ini")]
    name = metadata["Extension"]["Name"]
    assert name == name.lower()
