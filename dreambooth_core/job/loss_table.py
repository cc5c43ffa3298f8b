"""The run's losses as `loss.csv`, which any spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.job.events import StepDone
from dreambooth_core.job.storage import append_line

COLUMNS = ("step", "epoch", "loss", "loss_instance", "loss_class", "grad_norm")
RATE_PREFIX = "learning_rate_"


class LossTable:
    """Writes one row per step; a value that a step does not have is an empty cell."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; the header comes with the first row and names its learning rates."""
        self.path = Path(path)
        self._rates: tuple[str, ...] = ()

    def add(self, event: StepDone) -> None:
        """Append the step's row as one whole line."""
        if not self.path.exists():
            self._rates = tuple(event.learning_rates)
            append_line(self.path, _row([*COLUMNS, *(RATE_PREFIX + name for name in self._rates)]))
        values = [getattr(event, column) for column in COLUMNS]
        values += [event.learning_rates.get(name) for name in self._rates]
        append_line(self.path, _row(values))


def _row(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow("" if v is None else v for v in values)
    return text.getvalue()
