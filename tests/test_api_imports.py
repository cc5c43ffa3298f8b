"""Imports over REST: the report, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.settings_store import kept_settings
from tests.api_standin import Bench, bench

__all__ = ["bench"]

SETTINGS = {"learning_rate": 3e-6, "min_snr_gamma": 5, "hflip": True, "odd": "secret"}
TEXT = json.dumps(SETTINGS)


def test_a_text_is_reported_and_nothing_is_kept(bench: Bench) -> None:
    answer = bench.post("/imports", {"text": TEXT})
    assert answer["summary"].startswith("text, settings of sd_dreambooth_extension")
    assert answer["settings"]["learning_rate.unet"] == 3e-6
    verdicts = {line["old"]: line["verdict"] for line in answer["lines"]}
    assert verdicts["odd"] == "unknown" and verdicts["hflip"] == "kept"
    assert answer["create"] is None and answer["settings_now"] is None
    assert "secret" not in json.dumps(answer)
    assert kept_settings(bench.workspace.model("ada")) is None


def test_with_a_model_it_is_kept(bench: Bench) -> None:
    body = {"text": TEXT, "model": "ada", "behaviour": "as it was"}
    answer = bench.post("/imports", body)
    assert answer["settings_now"]["loss"]["min_snr_gamma"] == 0.0
    kept = kept_settings(bench.workspace.model("ada"))
    assert kept is not None and kept.images.horizontal_flip
    assert bench.get("/models/ada/settings") == answer["settings_now"]


def test_a_folder_says_how_to_make_a_model_of_it(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    (folder / "working").mkdir(parents=True)
    (folder / "working" / "model_index.json").write_text("{}")
    (folder / "db_config.json").write_text(TEXT)
    answer = bench.post("/imports", {"path": str(folder)})
    assert answer["create"]["name"] == "theirs"
    assert answer["create"]["source"] == str(folder / "working")
    assert answer["found_model"]["sources"][0]["label"] == "The newest weights"
    started = bench.post("/jobs", {"kind": "create", "config": answer["create"]}, 201)
    assert started["kind"] == "create"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "path"),
        ({"path": "a", "text": "b"}, 422, "path"),
        ({"path": 3}, 422, "path"),
        ({"text": TEXT, "more": 1}, 422, "more"),
        ({"text": TEXT, "model": "nobody"}, 404, "model"),
        ({"text": TEXT, "behaviour": "odd"}, 422, ""),
        ({"text": "{"}, 422, ""),
        ({"path": "/etc/passwd"}, 422, ""),
        ({"path": "/gone"}, 422, ""),
        ([], 422, ""),
    ],
)
def test_what_is_refused(bench: Bench, body: Any, status: int, field: str) -> None:
    refusal = bench.refusal("POST", "/imports", status, json=body)
    assert not field or refusal["field"] == field
    assert "root:" not in json.dumps(refusal)


def test_no_other_site_may_import(bench: Bench) -> None:
    bench.refusal(
        "POST", "/imports", 403, json={"text": TEXT}, headers={"Origin": "https://evil.example"}
    )


def test_a_secret_file_of_another_program_is_not_given_out(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auth": "c2VjcmV0", "token": "xyz", "user": "me", "epoch": 1}))
    refusal = bench.refusal("POST", "/imports", 422, json={"path": str(path)})
    assert "c2VjcmV0" not in json.dumps(refusal) and "xyz" not in json.dumps(refusal)
