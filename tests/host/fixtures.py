"""What tests of the host side share, without torch: in a bare host, tests/conftest.py cannot load.

Used as a plugin: `python -m pytest --noconftest -p tests.host.fixtures tests/host`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.job.workspace import Workspace
from tests.folders import module_folder as module_folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may need the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace in the test's own folder."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.checkpoints_dir.mkdir(parents=True)
    return workspace


@pytest.fixture
def tiny_checkpoint() -> Path:
    """Skip: making a checkpoint needs torch."""
    pytest.skip("needs torch")


@pytest.fixture
def tiny_model_folder() -> None:
    """Skip: making a model needs torch."""
    pytest.skip("needs torch")
