"""The real packages beside a real host's: only where DREAMBOOTH_HOST_VENV names its Python.

The host is a virtual environment with the WebUI's old pins (transformers 4.30.2, safetensors 0.4.2,
pydantic 1.10, numpy 1.26.2) and a torch. The packages are downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dreambooth_core.job.interpreter import PACKAGE_ROOT, module_command, worker_environment
from dreambooth_core.job.overlay import Overlay
from dreambooth_core.job.pip_install import pins

HOST = os.environ.get("DREAMBOOTH_HOST_VENV", "")
pytestmark = pytest.mark.skipif(not HOST, reason="DREAMBOOTH_HOST_VENV names no host's Python")

VERSIONS = (
    "import json, torch, transformers, safetensors, numpy, tokenizers;"
    "print(json.dumps({m.__name__: [m.__version__, m.__file__]"
    " for m in (torch, transformers, safetensors, numpy, tokenizers)}))"
)


def _freeze() -> list[str]:
    said = subprocess.check_output([HOST, "-m", "pip", "freeze"], text=True)
    return sorted(said.splitlines())


def _versions(environment: dict[str, str]) -> dict[str, list[str]]:
    said = subprocess.check_output([HOST, "-c", VERSIONS], env=environment, text=True)
    return dict(json.loads(said))


def test_beside_a_host_with_old_packages(tmp_path: Path) -> None:
    before = _freeze()
    assert "transformers==4.30.2" in before
    overlay = Overlay(tmp_path / "packages", PACKAGE_ROOT / "requirements/overlay.txt", HOST)
    assert overlay.state().kind == "missing"
    said: list[str] = []
    folder = overlay.make(lambda text, done, total: said.append(text))
    assert overlay.state().ready
    assert len([text for text in said if text.startswith("Getting")]) == len(
        pins(overlay.requirements)
    )
    assert _freeze() == before

    worker = _versions(worker_environment(os.environ, overlay.worker().paths))
    host = _versions({**os.environ, "PYTHONPATH": ""})
    assert worker["transformers"] == ["4.55.4", str(folder / "transformers" / "__init__.py")]
    assert host["transformers"][0] == "4.30.2"
    assert worker["safetensors"][0] == "0.6.2"
    assert host["safetensors"][0] == "0.4.2"
    assert worker["torch"] == host["torch"]
    assert worker["numpy"] == host["numpy"]

    # Every stage loads and computes, even beside broken packages of the host.
    for name in ("xformers", "bitsandbytes", "flash_attn", "tensorflow"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text("raise RuntimeError('broken')")
    done = subprocess.run(
        module_command(HOST, "dreambooth_core.worker", "--self-test", str(folder)),
        env=worker_environment(os.environ, [folder, tmp_path / "broken"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
