from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.job import disk, lock
from dreambooth_core.job.events import JobStopped
from dreambooth_core.job.launcher import model_lock_path
from dreambooth_core.job.process import start_mark
from tests.api_standin import Bench, bench, make_model, put

__all__ = ["bench"]


@pytest.fixture
def saved(bench: Bench, tmp_path: Path) -> Path:
    """A saved checkpoint of "ada"; others that are gone or elsewhere are remembered too."""
    path = put(bench.workspace.checkpoints_dir / "pets" / "ada_10.safetensors", b"weights")
    put(path.with_suffix(".yaml"), b"a: 1")
    other = put(tmp_path / "elsewhere.safetensors", b"private")
    gone = bench.workspace.checkpoints_dir / "gone.safetensors"
    make_model(bench.workspace, steps=10, checkpoints=[str(path), str(gone), str(other)])
    return path


def test_models_are_listed(bench: Bench) -> None:
    make_model(bench.workspace, "Bob", steps=7)
    assert bench.get("/models") == ["", "Bob", "ada"]
    details = bench.get("/models?details=true")["models"]
    assert [(m["name"], m["steps"], m["family"]) for m in details] == [
        ("Bob", 7, "sd1"),
        ("ada", 0, "sd1"),
    ]


def test_a_model_is_shown_with_its_checkpoints(bench: Bench, saved: Path) -> None:
    shown = bench.get("/models/ada")
    assert (shown["name"], shown["steps"]) == ("ada", 10)
    (file,) = shown["checkpoints"]
    assert (file["name"], file["size"]) == ("pets/ada_10.safetensors", 7)
    answer = bench.client.get(file["url"])
    assert answer.content == b"weights"
    assert "ada_10.safetensors" in answer.headers["content-disposition"]
    assert bench.get("/checkpoints?model=ada")["checkpoints"] == [file]
    assert bench.get("/checkpoints?details=1") == {
        "sources": ["base.safetensors", "sub/other.safetensors"],
        "saved": {"ada": [file]},
    }
    assert bench.get("/checkpoints") == ["base.safetensors", "sub/other.safetensors"]


def test_only_saved_checkpoints_are_given_out(bench: Bench, saved: Path) -> None:
    put(bench.workspace.checkpoints_dir / "base.safetensors")
    for name in (
        "base.safetensors",
        "gone.safetensors",
        "elsewhere.safetensors",
        "ada_10.safetensors",
    ):
        bench.refusal("GET", f"/checkpoints/ada/{name}", 404)
    bench.refusal("GET", "/checkpoints/eve/pets/ada_10.safetensors", 404)
    bench.refusal("GET", "/checkpoints/ada/pets/..%2fpets/ada_10.safetensors", 404)


@pytest.mark.parametrize("name", ["eve", "..", ".jobs", "a%5cb", "con", "a%2fb"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_model_that_is_not_there(bench: Bench, name: str, method: str) -> None:
    bench.refusal(method, f"/models/{name}", 404)


def test_settings_are_kept_changed_and_replaced(bench: Bench, tmp_path: Path) -> None:
    defaults = to_dict(TrainConfig(model="ada"))
    assert bench.get("/models/ada/settings") == defaults
    change = {"optimizer": {"name": "adamw"}, "seed": 5}
    changed = bench.ask("PATCH", "/models/ada/settings", json=change).json()
    assert changed["optimizer"] == {**defaults["optimizer"], "name": "adamw"}
    assert bench.get("/models/ada/settings") == changed and changed["seed"] == 5
    put(tmp_path / "dog" / "a.png")
    concepts = [{"instance_folder": str(tmp_path / "dog")}]
    changed = bench.ask("PATCH", "/models/ada/settings", json={"concepts": concepts}).json()
    assert changed["seed"] == 5 and changed["concepts"][0]["instance_prompt"] == "[filewords]"
    replaced = bench.ask("PUT", "/models/ada/settings", json={"seed": 6}).json()
    assert replaced == {**defaults, "seed": 6} == bench.get("/models/ada/settings")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"sed": 1}, "sed"),
        ({"optimizer": {"nam": "lion"}}, "optimizer.nam"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"optimizer": {"name": "magic"}}, "optimizer.name"),
        ({"model": "eve"}, "model"),
        ({"learning_rate": {"unet": 10**29}}, "learning_rate.unet"),
        ({"concepts": [{}]}, "concepts.0.instance_folder"),
        ({"concepts": [{"instance_folder": "no such folder"}]}, "concepts.0.instance_folder"),
        ({"saving": {"subfolder": ".."}}, "saving.subfolder"),
        ({"saving": {"name": "a/b"}}, "saving.name"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_settings_that_cannot_be_kept(bench: Bench, body: object, field: str, method: str) -> None:
    before = bench.get("/models/ada/settings")
    assert bench.refusal(method, "/models/ada/settings", 422, json=body)["field"] == field
    assert bench.get("/models/ada/settings") == before


def test_damaged_settings_are_told(bench: Bench) -> None:
    bench.workspace.model("ada").settings_path.write_text("{", encoding="utf-8")
    assert "settings.json" in bench.refusal("GET", "/models/ada/settings", 422)["message"]


def test_concepts_of_a_model(bench: Bench, tmp_path: Path) -> None:
    put(tmp_path / "dog" / "a.png")
    bench.ask("PATCH", "/models/ada/settings", json={"seed": 5})
    assert bench.get("/concepts?model=ada") == {"concepts": []}
    body = {"concepts": [{"instance_folder": str(tmp_path / "dog"), "instance_token": "zwx"}]}
    answer = bench.ask("PUT", "/concepts?model=ada", json=body).json()
    assert answer["concepts"][0]["instance_token"] == "zwx"
    assert bench.get("/concepts?model=ada") == answer
    assert bench.get("/models/ada/settings")["seed"] == 5
    for wrong in ({}, {"concepts": {}}, {"concepts": ["x"]}, {"concepts": [{"token": "x"}]}):
        bench.refusal("PUT", "/concepts?model=ada", 422, json=wrong)
    bench.refusal("PUT", "/concepts?model=eve", 404, json=body)
    assert bench.get("/concepts?model=ada") == answer


def test_a_model_is_deleted_without_its_checkpoints(bench: Bench, saved: Path) -> None:
    make_model(bench.workspace, "eve")
    answer = bench.ask("DELETE", "/models/ada").json()
    assert answer == {"deleted": "ada", "checkpoints": []}
    assert bench.get("/models") == ["", "eve"] and saved.exists()
    left = {path.name for path in bench.workspace.models_dir.iterdir()}
    assert left == {"eve", ".jobs"}


def test_a_model_is_deleted_with_its_checkpoints(bench: Bench, saved: Path, tmp_path: Path) -> None:
    base = put(bench.workspace.checkpoints_dir / "base.safetensors")
    answer = bench.ask("DELETE", "/models/ada?checkpoints=true").json()
    assert answer["checkpoints"] == [str(saved)]
    assert not saved.exists() and not saved.with_suffix(".yaml").exists()
    assert base.exists() and (tmp_path / "elsewhere.safetensors").exists()


def test_a_model_in_use_is_not_deleted(bench: Bench) -> None:
    bench.conductor.script = None
    job = {"kind": "sample", "config": {"model": "ada", "prompts": ["x"]}}
    run_id = bench.post("/jobs", job, 201)["id"]
    assert run_id in bench.refusal("DELETE", "/models/ada", 409)["message"]
    bench.conductor.end(JobStopped(0, {}))
    bench.ask("DELETE", "/models/ada")


def test_the_lock_is_given_back_when_deleting_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real = bench.workspace.model("ada").path, disk.rename

    def fail(source: Path, target: Path) -> None:
        if source == model:
            raise PermissionError(13, "Permission denied", "ada")
        real(source, target)

    monkeypatch.setattr(disk, "rename", fail)
    bench.refusal("DELETE", "/models/ada", 403)
    assert bench.workspace.model("ada").exists()
    path = model_lock_path(bench.workspace, "ada")
    holder = lock.Holder(os.getpid(), start_mark(os.getpid()), "after", "test")
    lock.acquire(path, holder, "ada")


def test_folders_that_are_not_only_ours_are_left(bench: Bench, tmp_path: Path) -> None:
    (bench.workspace.model("ada").path / "db_config.json").write_text("{}", encoding="utf-8")
    assert "another program" in bench.refusal("DELETE", "/models/ada", 409)["message"]
    if sys.platform != "win32":
        make_model(bench.workspace, "eve")
        (bench.workspace.models_dir / "link").symlink_to(bench.workspace.model("eve").path)
        bench.refusal("DELETE", "/models/link", 409)
    assert bench.workspace.model("ada").exists()
