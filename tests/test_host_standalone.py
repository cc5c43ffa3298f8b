from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.host import base
from dreambooth_core.host.base import Host, current_host, has_host, names_of_checkpoints, set_host
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.workspace import Workspace
from tests.host_fixtures import checkpoint


def test_it_has_all_it_needs(workspace: Workspace) -> None:
    host: Host = StandaloneHost(workspace)
    assert host.name == "standalone"
    assert host.workspace() is workspace
    assert host.overlay() is None
    assert host.worker() == WorkerPython()
    assert host.lora_dir() == workspace.root / "models" / "Lora"
    assert host.api_credentials() == {}
    assert not host.allows_origin("https://a.example")
    assert StandaloneHost(workspace, {"ada": "x"}).api_credentials() == {"ada": "x"}


def test_nobody_else_uses_the_memory(workspace: Workspace) -> None:
    host = StandaloneHost(workspace)
    assert host.generation_allowed()
    with host.hold_generation():
        host.release_memory()
    host.reclaim_memory()
    host.checkpoint_saved(workspace.checkpoints_dir / "x.safetensors", "")
    assert list(workspace.checkpoints_dir.iterdir()) == []


def test_its_checkpoints_are_the_folders(workspace: Workspace) -> None:
    for name in ("b.safetensors", "A.ckpt", "sub/c.safetensors", "b.vae.safetensors"):
        checkpoint(workspace.root, name)
    names = StandaloneHost(workspace).checkpoint_names()
    assert names == ["A.ckpt", "b.safetensors", "sub/c.safetensors"]


def test_names_of_checkpoints_elsewhere_are_paths(workspace: Workspace, tmp_path: Path) -> None:
    inside = checkpoint(workspace.root, "one.safetensors")
    outside = tmp_path / "two.safetensors"
    assert names_of_checkpoints(workspace, [inside, outside]) == sorted(
        [str(outside), "one.safetensors"], key=str.lower
    )


def test_the_host_is_chosen_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_CHOSEN", [])
    assert not has_host()
    with pytest.raises(RuntimeError, match="set_host"):
        current_host()
    host = StandaloneHost(workspace)
    set_host(host)
    assert has_host()
    assert current_host() is host
