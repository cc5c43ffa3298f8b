from __future__ import annotations

import csv
import errno
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest

from dreambooth_core import recording
from dreambooth_core.job import disk
from dreambooth_core.job.events import Notice, PhaseStarted, PlanMade, StepDone
from dreambooth_core.job.loss_table import LossTable
from dreambooth_core.recording import LOSS_TABLE, Recorder, scalars

FIRST = StepDone(1, 9, 0, 0.5, 0.25, 0.75, {"unet": 1e-6, "text_encoder": 5e-7}, 1.5, 2.0, 4.0, 8.0)
SECOND = StepDone(2, 9, 1, 0.125, 0.125, None, {"unet": 2e-6}, 0.5)


def test_the_loss_table(tmp_path: Path) -> None:
    table = LossTable(tmp_path / "run" / "loss.csv")
    table.add(FIRST)
    table.add(SECOND)
    with table.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "step": "1",
            "epoch": "0",
            "loss": "0.5",
            "loss_instance": "0.25",
            "loss_class": "0.75",
            "grad_norm": "1.5",
            "learning_rate_unet": "1e-06",
            "learning_rate_text_encoder": "5e-07",
        },
        {
            "step": "2",
            "epoch": "1",
            "loss": "0.125",
            "loss_instance": "0.125",
            "loss_class": "",
            "grad_norm": "0.5",
            "learning_rate_unet": "2e-06",
            "learning_rate_text_encoder": "",
        },
    ]


def test_scalars_have_names_that_group() -> None:
    assert scalars(FIRST) == {
        "loss/all": 0.5,
        "loss/instance": 0.25,
        "loss/class": 0.75,
        "gradient/norm": 1.5,
        "speed/steps_per_second": 2.0,
        "memory/peak_mb": 8.0,
        "learning_rate/unet": 1e-6,
        "learning_rate/text_encoder": 5e-7,
    }
    assert "loss/class" not in scalars(SECOND)


def test_training_leaves_logs_and_a_table(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "logging" / "run"
    with Recorder(folder) as recorder:
        for event in (PlanMade(["a", "b"]), FIRST, SECOND, Notice("info", "x"), PhaseStarted("p")):
            recorder.record(event)
    board = EventAccumulator(str(folder))
    board.Reload()
    losses = [(scalar.step, scalar.value) for scalar in board.Scalars("loss/all")]
    assert losses == [(1, 0.5), (2, 0.125)]
    assert "plan/text_summary" in board.Tags()["tensors"]
    assert "notices/text_summary" in board.Tags()["tensors"]
    assert len((folder / LOSS_TABLE).read_text().splitlines()) == 3


def test_without_a_folder_nothing_is_written(
    tmp_path: Path,
) -> None:
    with Recorder(None) as recorder:
        recorder.record(FIRST)
    with Recorder(tmp_path / "unused") as recorder:
        recorder.record(PhaseStarted("p"))
    assert not (tmp_path / "unused").exists()


def test_a_full_disk_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap in the table, one warning, and a second TensorBoard file once there is room."""
    full: list[bool] = []
    real = disk.append

    def append(path: Path) -> FileIO:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(disk, "append", append)
    monkeypatch.setattr(recording, "ROOM_TO_BEGIN_AGAIN", 0)
    warnings: list[str] = []
    folder = tmp_path / "run"
    with Recorder(folder, warnings.append) as recorder:
        recorder.record(FIRST)
        full.append(True)
        for step in (2, 3, 4):
            recorder.record(replace(SECOND, step=step))
        full.clear()
        recorder.record(replace(SECOND, step=5))
    rows = (folder / LOSS_TABLE).read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "1", "5"]
    assert len(warnings) == 1 and str(folder) in warnings[0] and "Training goes on" in warnings[0]
    assert len(list(folder.glob("events.out.*"))) == 2


def test_a_tensorboard_that_cannot_write_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Board:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        def close(self) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    warnings: list[str] = []
    with Recorder(tmp_path, warnings.append) as recorder:
        monkeypatch.setattr(recorder, "_writer", Board())
        recorder.record(FIRST)
        recorder.record(SECOND)
    assert len(warnings) == 1
