"""Makes `overlay.txt` from `trainer.txt`: the same versions, with the hash of every wheel.

    python requirements/pin_overlay.py

pip fetches each wheel for each system that is supported; only what the host lacks is listed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OLDEST_PYTHON = "310"
PACKAGES = (
    *("absl-py", "accelerate", "diffusers", "huggingface_hub", "importlib_metadata"),
    *("lion-pytorch", "peft", "prodigyopt", "protobuf", "pytorch-optimizer", "safetensors"),
    *("schedulefree", "tensorboard", "tokenizers", "transformers", "zipp"),
)
"""What no WebUI has, or has in another version. torch, numpy and Pillow are always the host's."""

MANYLINUX = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_28")
SYSTEMS = (
    tuple(f"{name}_x86_64" for name in MANYLINUX),
    tuple(f"{name}_aarch64" for name in MANYLINUX),
    ("win_amd64",),
    ("macosx_12_0_arm64", "macosx_11_0_arm64", "macosx_10_9_universal2"),
    ("macosx_10_12_x86_64", "macosx_10_9_x86_64", "macosx_10_9_universal2"),
)
HEADER = """\
# The trainer's own packages beside a WebUI's: those of trainer.txt that a WebUI lacks.
# Made by `python requirements/pin_overlay.py`; a hash for each system whose wheels differ.
# Only wheels for every Python from 3.10 are used, so that one list serves all.
"""


def versions() -> dict[str, str]:
    """Return the pinned versions of the trainer's packages."""
    lines = (FOLDER / "trainer.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition(";")[0].strip().split("==") for line in lines if "==" in line)
    return {name: version for name, version in pinned if name in PACKAGES}


def fetch(pin: str, system: Sequence[str], folder: Path) -> None:
    """Fetch the wheel of a package for a system; one that has none is told and left out."""
    limits = ["--python-version", OLDEST_PYTHON, "--implementation", "cp"]
    limits += [word for abi in ("abi3", "none") for word in ("--abi", abi)]
    limits += [word for name in system for word in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, "-d", str(folder), pin]
    if subprocess.call(command):
        sys.stderr.write(f"{pin} has no wheel for {system[0]}\n")


def hashes(pin: str) -> list[str]:
    """Return the hashes of a package's wheels for all systems, sorted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for system in SYSTEMS:
            fetch(pin, system, folder)
            if system is SYSTEMS[0] and list(folder.glob("*-any.whl")):
                break  # one wheel for all
        found = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir())
    if not found:
        raise SystemExit(f"There is no wheel of {pin} at all.")
    return found


def main() -> None:
    """Write `overlay.txt`."""
    text = HEADER
    for name, version in versions().items():
        pin = f"{name}=={version}"
        listed = [f"--hash=sha256:{value}" for value in hashes(pin)]
        text += " \\\n    ".join([pin, *listed]) + "\n"
    (FOLDER / "overlay.txt").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
