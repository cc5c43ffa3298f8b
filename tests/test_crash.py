"""Workers killed at any instant lose nothing, and what they go on to ends with the same bits.

`python -m tests.crash --kills 100 --seed 1` does it at length.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import power
from tests.crash.blow import Disk, Note
from tests.crash.chain import run, supported

KILLS = 30

needs_fork = pytest.mark.skipif(not supported(), reason="workers are forked, which needs Linux")


@needs_fork
def test_killed_trainings_lose_nothing_and_end_with_the_same_bits(tmp_path: Path) -> None:
    tally, _ = run(tmp_path, KILLS, seed=1, variants=("lion", "lora"))
    assert tally.losses == []
    assert tally.differences == []
    assert tally.killed == KILLS
    assert len(tally.kills) == 6 and tally.inside_saves > 3 and tally.taken_by_power > 3


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The functions of the disk, noting in `note` what a power failure would take."""
    from dreambooth_core.job import disk

    for name in disk.CHANGES:
        monkeypatch.setattr(disk, name, getattr(disk, name))  # put back after the test
    (tmp_path / "note").mkdir()
    return Disk({}, Note(tmp_path / "note"))


class Always:
    """A chance that takes all that it may."""

    @staticmethod
    def randint(low: int, high: int) -> int:
        return low

    @staticmethod
    def random() -> float:
        return 1.0


@needs_fork
def test_a_power_failure_takes_what_was_not_synced_and_nothing_else(
    tmp_path: Path, noted: Disk
) -> None:
    """The stand-in for a power failure is no weaker than what POSIX allows."""
    from dreambooth_core.job import disk
    from dreambooth_core.job.storage import append_line, atomic_write_bytes

    work = tmp_path / "work"
    disk.make_folder(work / "deep" / "er")
    atomic_write_bytes(work / "whole", b"whole")
    atomic_write_bytes(work / "replaced", b"old")
    append_line(work / "log", "not synced")
    disk.sync_folder(work)
    (work / "named").mkdir()
    with disk.create(work / "unsynced") as file:
        disk.write(file, b"bytes")
    disk.rename(work / "unsynced", work / "replaced")
    disk.remove(work / "whole")
    assert power.fail(tmp_path / "note", work, Always()) == 5  # type: ignore[arg-type]
    assert (work / "whole").read_bytes() == b"whole"
    assert (work / "replaced").read_bytes() == b"old"
    assert (work / "log").read_bytes() == b""
    assert (work / "deep" / "er").is_dir()
    assert not (work / "unsynced").exists()
