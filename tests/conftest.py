"""Fixtures that many tests share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.folders import module_folder as module_folder
from tests.folders import states_of_a_test as states_of_a_test
from tests.tiny import tiny_model, write_tiny_checkpoint

if TYPE_CHECKING:
    from dreambooth_core.job.workspace import ModelFolder, Workspace


LONGEST = ("end_to_end", "walk", "crash", "fault_injection", "soak")
"""Files that begin first, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in their order."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda i: names.index(i.path.stem) if i.path.stem in names else len(names))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may need the network: make the hub client fail at once instead of trying."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace in the test's own folder."""
    from dreambooth_core.job.workspace import Workspace

    root = tmp_path / "workspace"
    root.mkdir()
    workspace = Workspace(root)
    workspace.checkpoints_dir.mkdir(parents=True)
    return workspace


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny fp16 checkpoint with extras and its side yaml; read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def _created_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One created tiny model of the session, to be copied."""
    from dreambooth_core.job.workspace import Workspace

    root = tmp_path_factory.mktemp("created")
    tiny_model(Workspace(root), "tiny")
    return root


@pytest.fixture
def tiny_model_folder(workspace: Workspace, _created_model: Path) -> ModelFolder:
    """A model named "tiny" in the test's own workspace, its source checkpoint beside it."""
    shutil.copytree(_created_model, workspace.root, dirs_exist_ok=True)
    return workspace.model("tiny")
