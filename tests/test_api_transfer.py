"""Merging, and LoRA out of and into checkpoints, asked for over REST and done by real workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

torch = pytest.importorskip("torch", reason="needs torch")

from safetensors.torch import load_file  # noqa: E402

from dreambooth_core.job.workspace import Workspace  # noqa: E402
from tests.test_api_real_job import ENDED, client  # noqa: E402
from tests.tiny import write_tiny_checkpoint  # noqa: E402

__all__ = ["client"]

QUERY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


def done(client: TestClient, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Start a job, wait for its end, and return its summary."""
    started = client.post("/dreambooth/jobs", json={"kind": kind, "config": config})
    assert started.status_code == 201, started.text
    url, until = started.json()["url"], time.monotonic() + 240
    shown = client.get(url).json()
    while shown["state"] not in ENDED and time.monotonic() < until:
        time.sleep(0.2)
        shown = client.get(url).json()
    assert shown["state"] == "finished", client.get(f"{url}/log").text
    files = [file["path"] for file in shown["view"]["files"]]
    assert files == [shown["view"]["summary"]["path"]]
    summary: dict[str, Any] = shown["view"]["summary"]
    return summary


def test_a_character_is_taken_to_another_model(client: TestClient, workspace: Workspace) -> None:
    for seed, name in enumerate(("target", "trained", "source")):
        path = workspace.checkpoints_dir / f"{name}.safetensors"
        write_tiny_checkpoint(path, dtype=torch.float32, seed=seed)
    tensors = {
        name: load_file(workspace.checkpoints_dir / f"{name}.safetensors")
        for name in ("target", "trained", "source")
    }
    config = {"name": "new", "primary": "target", "secondary": "trained", "tertiary": "source"}
    merged = done(client, "merge", {**config, "dtype": "fp32"})
    a, b, c = (tensors[name][QUERY] for name in ("target", "trained", "source"))
    assert torch.equal(load_file(merged["path"])[QUERY], a + (b - c))

    config = {
        "name": "small",
        "base": "source",
        "trained": "trained",
        "rank": 1024,
        "dtype": "fp32",
    }
    extracted = done(client, "extract-lora", config)
    assert Path(extracted["path"]).parent == workspace.lora_dir

    config = {"name": "back", "checkpoint": "source", "lora": "small", "dtype": "fp32"}
    baked = load_file(done(client, "bake-lora", config)["path"])
    assert torch.allclose(baked[QUERY], b, atol=1e-4)


def test_what_stands_in_the_way_is_named(client: TestClient, workspace: Workspace) -> None:
    write_tiny_checkpoint(workspace.checkpoints_dir / "a.safetensors")
    config = {"name": "new", "primary": "a", "secondary": "none", "tertiary": "a"}
    answer = client.post("/dreambooth/jobs", json={"kind": "merge", "config": config})
    assert (answer.status_code, answer.json()["field"]) == (422, "secondary")
    answer = client.get("/dreambooth/schema")
    assert "merge" in answer.text and "Trained checkpoint (model B)" in answer.text
