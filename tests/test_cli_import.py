"""The verb `import`: the report for people and programs, and where the settings are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import cli
from dreambooth_core.cli import verbs
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import load_json
from dreambooth_core.config.settings_store import keep_settings, kept_settings
from dreambooth_core.job.workspace import ModelInfo, Workspace

SETTINGS = {"learning_rate": 3e-6, "min_snr_gamma": 5, "hflip": True, "odd": "secret"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "db_config.json"
    path.write_text(json.dumps(SETTINGS), encoding="utf-8")
    return path


def add_model(workspace: Workspace, name: str = "ada") -> None:
    workspace.model(name).path.mkdir(parents=True)
    workspace.model(name).write_info(ModelInfo(name, "sd1", "base.safetensors"))


def run(workspace: Workspace, *words: str) -> int:
    return cli.main(["import", *words, "--root", str(workspace.root)])


def test_the_report(workspace: Workspace, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workspace, str(file)) == 0
    text = capsys.readouterr().out
    assert text.startswith("db_config.json, settings of sd_dreambooth_extension: ")
    assert "min_snr_gamma = 5 -> loss.min_snr_gamma = 5.0 (" in text
    assert "  hflip = true -> images.horizontal_flip = true\n" in text
    assert text.index("Unknown:") < text.index("Never worked there:") < text.index("Kept:")
    assert "secret" not in text


def test_the_report_for_programs(
    workspace: Workspace, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workspace, str(file), "--json", "--as-it-was") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["loss.min_snr_gamma"] == 0.0
    assert found["settings"]["captions.extension_rules"] is True
    assert {"old", "old_value", "new", "new_value", "verdict", "words"} == set(found["lines"][0])


def test_settings_are_kept_for_a_model(workspace: Workspace, file: Path) -> None:
    add_model(workspace)
    before = TrainConfig(model="ada")
    before.batch.batch_size = 3
    keep_settings(workspace.model("ada"), before)
    assert run(workspace, str(file), "--model", "ada") == 0
    kept = kept_settings(workspace.model("ada"))
    assert kept is not None
    assert (kept.learning_rate.unet, kept.batch.batch_size) == (3e-6, 3)


def test_settings_are_written_for_the_flag_config(
    workspace: Workspace, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "ada.json"
    assert run(workspace, str(file), "--output", str(output)) == 0
    config = load_json(output, TrainConfig)
    assert config.images.horizontal_flip and config.model == ""
    assert f"train --config {output}" in capsys.readouterr().out
    assert run(workspace, str(file), "--output", str(output)) == 2  # nothing is written over
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.json"], "no file"),
        (["{}"], "no settings"),
        (["FILE", "--model", "nobody"], "no model 'nobody'"),
        (["FILE", "--create", "x"], "holds no weights"),
    ],
)
def test_what_cannot_be_done(
    workspace: Workspace,
    file: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(file) if word == "FILE" else word for word in words]
    assert run(workspace, *words) == 2
    assert said in capsys.readouterr().err


def test_a_model_is_made_of_a_folder(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "theirs"
    (folder / "working").mkdir(parents=True)
    (folder / "working" / "model_index.json").write_text("{}")
    (folder / "db_config.json").write_text(json.dumps(SETTINGS))
    made: list[Any] = []

    def launched(workspace: Workspace, kind: str, config: Any, as_json: bool) -> int:
        made.append((kind, config.name, config.source, config.extract_ema))
        add_model(workspace, config.name)
        return 0

    monkeypatch.setattr(verbs, "_launch_and_follow", launched)
    assert run(workspace, str(folder), "--create", "mine", "--extract-ema", "--as-it-was") == 0
    assert made == [("create", "mine", str(folder / "working"), True)]
    kept = kept_settings(workspace.model("mine"))
    assert kept is not None and kept.loss.min_snr_gamma == 0.0

    def failed(workspace: Workspace, kind: str, config: Any, as_json: bool) -> int:
        return 1

    monkeypatch.setattr(verbs, "_launch_and_follow", failed)
    assert run(workspace, str(folder), "--create", "other") == 1
    assert not workspace.model("other").path.exists()
