"""Makes the WebUIs' own environments from exact pins and runs the host side's tests in them.

A host has an old gradio and none of our packages, and its page gets along without torch. What is
proven here is that the tab, the API and the host code run there. `.venv-hosts/<name>` is kept
between runs and made anew when its pins change.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-hosts"
HOSTS = ("a1111", "forge")
PYTHONS = ((3, 10), (3, 11))
"""Those that the hosts run on; their pins have no wheels for newer ones."""
TESTS = ("tests/host", "tests/test_host_*.py", "tests/test_ui_*.py", "tests/test_api_*.py")
OTHER = ("tests/test_ui_main.py",)


def find_python() -> str:
    """Return a Python that the hosts' pins are for, "" if there is none."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    names = (f"python{major}.{minor}" for major, minor in reversed(PYTHONS))
    return next((found for found in map(shutil.which, names) if found), "")


def make(name: str, python: str) -> Path:
    """Return the environment's Python; the environment is made if its pins are not the ones."""
    pins = ROOT / "requirements" / f"host-{name}.txt"
    folder = FOLDER / name
    mark = folder / "pins.sha256"
    own = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return own
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    install = [str(own), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins)]
    subprocess.run([*install, "--disable-pip-version-check"], check=True)
    mark.write_text(wanted, encoding="utf-8")
    return own


def test(name: str, python: str) -> int:
    """Run the tests that need no torch; print what they say and return pytest's exit code."""
    found = sorted({str(path) for pattern in TESTS for path in ROOT.glob(pattern)})
    files = [path for path in found if not path.endswith(OTHER)]
    options = ["--noconftest", "-p", "tests.host.fixtures", "-p", "no:cacheprovider", "-q"]
    command = [str(make(name, python)), "-m", "pytest", *options, *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    words = done.stdout.decode("utf-8", errors="replace")
    sys.stdout.write(f"--- the host side in {name}'s environment\n{words}")
    sys.stdout.flush()
    return done.returncode


def main() -> int:
    """Return 0 if every test passed in every environment."""
    python = find_python()
    if not python:
        sys.stdout.write("The hosts' environments need Python 3.10 or 3.11: skipped.\n")
        return 0
    with ThreadPoolExecutor(len(HOSTS)) as at_once:
        return int(any(at_once.map(test, HOSTS, [python] * len(HOSTS))))


if __name__ == "__main__":
    sys.exit(main())
