"""A training's losses as `loss.csv`, which any spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.job import disk
from dreambooth_core.job.events import StepDone
from dreambooth_core.job.storage import append_line, atomic_write_bytes

COLUMNS = ("step", "epoch", "loss", "loss_instance", "loss_class", "grad_norm")
RATE_PREFIX = "learning_rate_"


class LossTable:
    """Writes one row per step; a value that a step does not have is an empty cell."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; the header comes with the first row and names its learning rates."""
        self.path = Path(path)
        self._rates: tuple[str, ...] = ()
        self._last = 0

    def go_on(self, earlier: Path, step: int) -> None:
        """Begin with the rows of an earlier table up to a step; one that is gone has none."""
        try:
            lines = disk.read(earlier).decode("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        header = next(csv.reader(lines[:1]), [])
        kept = [line for line in lines[1:] if _is_up_to(line, step, len(header))]
        if not kept or tuple(header[: len(COLUMNS)]) != COLUMNS:
            return
        self._rates = tuple(name.removeprefix(RATE_PREFIX) for name in header[len(COLUMNS) :])
        atomic_write_bytes(self.path, "".join(f"{line}\n" for line in [lines[0], *kept]).encode())
        self._last = step

    def add(self, event: StepDone) -> None:
        """Append the step's row as one whole line; one that is made again takes its place."""
        if event.step <= self._last:
            self.go_on(self.path, event.step - 1)
        if not self.path.exists():
            self._rates = tuple(event.learning_rates)
            append_line(self.path, _row([*COLUMNS, *(RATE_PREFIX + name for name in self._rates)]))
        values = [getattr(event, column) for column in COLUMNS]
        values += [event.learning_rates.get(name) for name in self._rates]
        append_line(self.path, _row(values))
        self._last = event.step


def _is_up_to(line: str, step: int, columns: int) -> bool:
    """Whether a line is a whole row of a step up to this one; a crash may have torn the last."""
    cells = line.split(",")
    return len(cells) == columns and cells[0].isdecimal() and int(cells[0]) <= step


def _row(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow("" if v is None else v for v in values)
    return text.getvalue()
