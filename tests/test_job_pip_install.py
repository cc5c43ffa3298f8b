from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import OverlayError
from dreambooth_core.job import pip_install
from dreambooth_core.job.interpreter import PACKAGE_ROOT
from dreambooth_core.job.pip_install import failure, pins, pip_environment, pip_settings

REQUIREMENTS = PACKAGE_ROOT / "requirements"

# What a WebUI's own installation brings and the trainer imports.
FROM_THE_HOST = {"torch", "numpy", "PIL", "yaml", "psutil", "filelock"}
NOT_FOR_WORKERS = {"rich", "gradio", "fastapi", "starlette", "uvicorn", "pandas"}
DISTRIBUTIONS = {"lion_pytorch": "lion-pytorch"}


@pytest.fixture
def no_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person without any settings for pip."""
    for name in list(os.environ):
        if name.upper().startswith("PIP_") or name == "INDEX_URL":
            monkeypatch.delenv(name)


def test_pins_are_read(tmp_path: Path) -> None:
    listed = tmp_path / "r.txt"
    listed.write_text(
        "# comment==1\nalpha==1.0 \\\n    --hash=sha256:00==\nBeta-two==2.5; python_version>'3'\n"
    )
    assert pins(listed) == {"alpha": "1.0", "Beta-two": "2.5"}


def test_the_overlays_pins_are_those_that_run_alone() -> None:
    ours, alone = pins(REQUIREMENTS / "overlay.txt"), pins(REQUIREMENTS / "trainer.txt")
    assert {name: alone.get(name) for name in ours} == ours


def test_every_pin_has_hashes_and_nothing_names_an_index() -> None:
    text = (REQUIREMENTS / "overlay.txt").read_text(encoding="utf-8")
    entry = re.compile(r"^([\w.-]+)==\S+((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.M)
    entries = {name: hashes.count("sha256") for name, hashes in entry.findall(text)}
    assert list(entries) == list(pins(REQUIREMENTS / "overlay.txt"))
    assert all(line.startswith("#") for line in entry.sub("", text).splitlines())
    assert "://" not in text and "--index" not in text
    # Linux on two kinds of machine, Windows, and macOS on two kinds, of which protobuf makes one.
    compiled = {"protobuf": 4, "safetensors": 5, "tokenizers": 5}
    assert entries == {**dict.fromkeys(entries, 1), **compiled}


def test_what_is_the_hosts_is_not_replaced() -> None:
    ours = {name.lower() for name in pins(REQUIREMENTS / "overlay.txt")}
    assert not ours & {"torch", "torchvision", "numpy", "pillow", "xformers", "bitsandbytes"}


def test_all_that_the_trainer_imports_is_there() -> None:
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.M)
    sources = [
        path
        for path in (PACKAGE_ROOT / "dreambooth_core").rglob("*.py")
        if path.relative_to(PACKAGE_ROOT).parts[1] not in ("ui", "host", "api", "cli")
    ]
    imported = {name for path in sources for name in pattern.findall(path.read_text("utf-8"))}
    known = {*sys.stdlib_module_names, *FROM_THE_HOST, *NOT_FOR_WORKERS, "dreambooth_core"}
    ours = {name.replace("-", "_").lower() for name in pins(REQUIREMENTS / "overlay.txt")}
    words = {name for name in imported - known - ours if _is_installed(name)}
    assert words == set()


def _is_installed(name: str) -> bool:
    """Whether it is a package at all; docstrings have lines that begin with "from" too."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.mark.usefixtures("no_pip_settings")
def test_only_how_packages_are_reached_is_kept(tmp_path: Path) -> None:
    inherited = {
        "PATH": "p",
        "PYTHONPATH": "/webui",
        "PIP_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "PIP_CONSTRAINT": "c.txt",
        "PIP_CONFIG_FILE": "/own/pip.conf",
        "PIP_PROXY": "proxy:1",
        "TMPDIR": "/tmp",
    }
    made = pip_environment(inherited, {"index-url": "mirror", "timeout": "60"}, tmp_path)
    assert made == {
        "PATH": "p",
        "PIP_PROXY": "proxy:1",
        "PIP_INDEX_URL": "mirror",
        "PIP_TIMEOUT": "60",
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path)),
    }


def test_which_index_wins(tmp_path: Path) -> None:
    def index(inherited: dict[str, str]) -> str:
        return pip_environment(inherited, {"index-url": "settings"}, tmp_path)["PIP_INDEX_URL"]

    assert index({}) == "settings"
    assert index({"INDEX_URL": "host"}) == "host"
    assert index({"INDEX_URL": "host", "PIP_INDEX_URL": "pip"}) == "pip"
    assert index({"INDEX_URL": ""}) == "settings"


@pytest.mark.usefixtures("no_pip_settings")
def test_settings_are_read_from_the_persons_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = mirror\ntimeout = 5\nuser = true\ntrusted-host =\n  one\n  two\n"
        "[install]\ntimeout = 7\ntarget = /elsewhere\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    found = pip_settings(sys.executable)
    assert (found["index-url"], found["timeout"]) == ("mirror", "7")
    assert found["trusted-host"].split() == ["one", "two"]
    assert not {"user", "target"} & set(found)


def test_what_pip_lists_and_cannot_be_read_is_left_out() -> None:
    listed = "global.index-url=[broken\nglobal.proxy='p'\n:env:.cert='x'\ninstall.retries='3'\n"
    assert pip_install._network_settings(listed) == {"proxy": "p", "retries": "3"}


def test_a_python_without_pip(tmp_path: Path) -> None:
    python = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")]
    subprocess.run(command, check=True)
    with pytest.raises(OverlayError, match="no pip") as caught:
        pip_settings(str(python))
    assert f"{python} -m ensurepip" in caught.value.remedy


def test_no_python_at_all() -> None:
    with pytest.raises(OverlayError, match="no-such-python could not be started"):
        pip_settings("no-such-python")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("/usr/bin/python: No module named pip", "no pip"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space",
            "disk is full",
        ),
        ("OSError: [WinError 112] There is not enough space on the disk", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE", "was refused"),
        ("HINT: This error might be since it lacks Windows Long Path support", "too long"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...: [Errno -3]'\n"
            "ERROR: No matching distribution found for diffusers==0.35.2",
            "no network",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'", "secure"),
        ("ERROR: No matching distribution found for tokenizers==0.21.4", "no build of a package"),
        ("PermissionError: [Errno 13] Permission denied: '/x'", "could not be written"),
    ],
)
def test_why_pip_failed_in_plain_words(said: str, words: str) -> None:
    error = failure(["Collecting a", said], "python", Path("install.log"))
    assert words in error.message
    assert error.remedy.endswith("The log is install.log.")
    assert len(error.remedy) > len(" The log is install.log.")


def test_an_unknown_reason_is_quoted() -> None:
    error = failure([*map(str, range(40)), "", "ERROR: something new"], "python")
    assert error.message.endswith("38\n39\nERROR: something new")
    assert "\n20\n" not in error.message


def test_no_network_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 9 of this machine.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setattr(pip_install, "pip_settings", lambda python: {})
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    listed = tmp_path / "r.txt"
    listed.write_text(f"dreambooth-test-package==1.0 --hash=sha256:{'0' * 64}\n")
    (tmp_path / "tmp").mkdir()
    with pytest.raises(OverlayError, match="no network"):
        pip_install.install(
            sys.executable, listed, tmp_path / "to", tmp_path / "tmp", tmp_path / "log", _ignore
        )
    assert "127.0.0.1" in (tmp_path / "log").read_text()


def _ignore(text: str, done: int, total: int) -> None:
    pass
