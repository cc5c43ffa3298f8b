"""The effect table's machinery: which results count, and what the document says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training_effects
from benchmarks._effect_report import best_rows, quality, report
from benchmarks._effect_runs import RUNS, config_of, run_settings
from benchmarks.training_effects import main, read_result, result_path
from dreambooth_core.config.validate import check_fields, validate
from dreambooth_core.world.subjects import SUBJECTS


def row(step: int, subject: float, leak: float, unseen: float = 1.0) -> dict[str, float]:
    return {
        "step": step,
        "subject": subject,
        "subject_plain": 0.5,
        "leak": leak,
        "leak_neighbour": 0.0,
        "background_seen": 1.0,
        "background_unseen": unseen,
        "held_out_loss": 0.0712,
    }


def result(subject: str, run: str, *rows: dict[str, float]) -> dict[str, Any]:
    settings = run_settings(training_effects.BASE if run == "base" else RUNS[run])
    return {
        "subject": subject,
        "run": run,
        "settings": settings,
        "checkpoint": "hash",
        "seconds": 60.0,
        "rows": list(rows),
    }


RESULTS = [
    result("bob", "base", row(0, 0.01, 0.0)),
    result("bob", "reference", row(200, 0.6, 0.0), row(400, 0.9, 0.02), row(800, 0.95, 0.3)),
    result("bob", "no-prior", row(200, 0.7, 0.5), row(400, 0.9, 0.8)),
    result("mia", "reference", row(200, 0.8, 0.1), row(400, 0.7, 0.0)),
]


@pytest.mark.parametrize("run", RUNS.values(), ids=str)
def test_every_run_is_a_valid_training_of_every_subject(run: Any) -> None:
    for subject in SUBJECTS.values():
        config = config_of(run, subject, "m")
        assert check_fields(config) == [] and validate(config, None) == []
        assert config.intervals.max_steps == run.steps[-1]
        assert all(step % config.saving.save_every_steps == 0 for step in run.steps)
        assert len(config.concepts) == 1


def test_runs_differ_from_the_reference_as_they_say() -> None:
    bob = SUBJECTS["bob"]
    configs = {name: config_of(run, bob, "m") for name, run in RUNS.items()}
    reference = configs["reference"]
    assert reference.concepts[0].class_images_per_instance_image > 0
    assert configs["no-prior"].concepts[0].class_images_per_instance_image == 0
    assert configs["frozen-text-encoder"].text_encoder.train_ratio == 0
    assert configs["adamw"].optimizer.name == "adamw" and reference.optimizer.name == "lion"
    rates = [configs[n].learning_rate.unet for n in ("rate-third", "reference", "rate-triple")]
    assert rates[1] / rates[0] == pytest.approx(3) and rates[2] / rates[1] == pytest.approx(3)
    assert configs["no-captions"].concepts[0].instance_prompt == "photo of a ohwx man"
    only = configs["captions-instance-only"].concepts[0]
    assert (only.instance_prompt, only.class_prompt) == ("[filewords]", "photo of a man")


def test_a_result_counts_only_for_its_settings_and_checkpoint(tmp_path: Path) -> None:
    task = ("bob", "reference")
    assert read_result(tmp_path, task, "hash") is None
    path = result_path(tmp_path, task)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(RESULTS[1]), encoding="utf-8")
    assert read_result(tmp_path, task, "hash") == RESULTS[1]
    assert read_result(tmp_path, task, "other") is None
    changed = {**RESULTS[1], "settings": {**RESULTS[1]["settings"], "steps": [1]}}
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert read_result(tmp_path, task, "hash") is None
    path.write_text(json.dumps(RESULTS[1])[:-9], encoding="utf-8")
    assert read_result(tmp_path, task, "hash") is None


def test_the_best_checkpoint_is_compared_with_the_same_step_without_prior() -> None:
    (bob,) = best_rows(RESULTS)  # mia's base is missing
    assert bob[0] == "bob" and bob[2]["step"] == 400
    assert bob[3] is not None and bob[3]["leak"] == 0.8
    base = row(0, 0.0, 0.0)
    _, mia = best_rows([*RESULTS[:1], *RESULTS, result("mia", "base", base)])
    assert mia[2]["step"] == 200 and mia[3] is None
    assert quality(row(1, 0.9, 0.1, 0.8), base) == pytest.approx(0.9 - 0.1 - 0.2)


def test_the_document_has_means_subjects_and_the_command() -> None:
    text = report(RESULTS, "python -m benchmarks.training_effects --subjects bob", "a machine")
    assert "`python -m benchmarks.training_effects --subjects bob`" in text
    assert "| bob | 400 | 0.01 | 0.90 | 0.02 | 0.80 | 1.00 |" in text
    assert "| reference | 400 | 0.80 | 0.50 | 0.01 |" in text  # the mean of 0.9 and 0.7
    assert "## bob" in text and "## mia" in text
    assert "| reference | 400 | 0.90 | 0.50 | 0.02 | 0.00 | 1.00 | 1.00 | 0.0712 |" in text
    lines = [line for line in text.splitlines() if line.startswith("| run")]
    assert all(line.count("|") == 10 for line in lines)


def test_a_finished_table_only_writes_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_effects, "read_result", lambda *_: RESULTS[1])
    monkeypatch.setattr(training_effects, "in_parallel", None)
    checkpoint = tmp_path / "world.safetensors"
    checkpoint.write_bytes(b"x")
    monkeypatch.setattr(training_effects, "CHECKPOINT", checkpoint)
    target = tmp_path / "effects.md"
    arguments = ["--subjects", "bob", "--runs", "reference", "--results", str(tmp_path)]
    assert main([*arguments, "--report", str(target)]) == 0
    assert "--runs reference" in target.read_text(encoding="utf-8")
