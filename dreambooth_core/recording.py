"""What a training run leaves behind to be looked at: TensorBoard logs and `loss.csv`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dreambooth_core.job.events import Event, Notice, PlanMade, Resumed, StepDone
from dreambooth_core.job.loss_table import LossTable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSS_TABLE = "loss.csv"
ROOM_TO_BEGIN_AGAIN = 16 * 2**20
"""What is to be free on a disk that was full, before logs are written on it again."""


class Recorder:
    """Writes events into a folder as they are emitted; without a folder it writes nothing.

    What its disk refuses is missing in the logs, and training never ends for it.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None] = lambda words: None
    ) -> None:
        """Write into `folder`, which is created with the first event that is kept.

        `warn` is told, once, that the disk refuses.
        """
        self.folder = folder
        self._losses = LossTable(folder / LOSS_TABLE) if folder else None
        self._writer: SummaryWriter | None = None
        self._warn = warn
        self._refused, self._warned = False, False

    def __enter__(self) -> Recorder:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close the logs."""
        self._close()

    def record(self, event: Event) -> None:
        """Keep a step's numbers and the run's plan and notices; pass over everything else.

        The table of losses of a run that goes on from another begins with that one's rows.
        """
        if self.folder is None or self._losses is None:
            return
        if not isinstance(event, StepDone | Resumed | PlanMade | Notice) or self._is_full(
            self.folder
        ):
            return
        try:
            self._record(event, self.folder, self._losses)
        except OSError as error:
            self._refused = True
            self._close()
            if not self._warned:
                self._warned = True
                self._warn(
                    f"The logs in {self.folder} cannot be written ({error.strerror or error}):"
                    " they have a gap until there is room. Training goes on."
                )

    def _record(
        self, event: StepDone | Resumed | PlanMade | Notice, folder: Path, losses: LossTable
    ) -> None:
        if isinstance(event, StepDone):
            losses.add(event)
            for name, value in scalars(event).items():
                self._board(folder).add_scalar(name, value, event.step)
        elif isinstance(event, Resumed):
            losses.go_on(folder.parent / event.run_id / LOSS_TABLE, event.step)
        elif isinstance(event, PlanMade):
            self._board(folder).add_text("plan", "\n\n".join(event.lines))
        else:
            self._board(folder).add_text("notices", event.message)

    def _is_full(self, folder: Path) -> bool:
        """Whether the disk refused before and has no room for more yet."""
        if self._refused and folder.is_dir():
            self._refused = shutil.disk_usage(folder).free < ROOM_TO_BEGIN_AGAIN
        return self._refused

    def _board(self, folder: Path) -> SummaryWriter:
        if self._writer is None:
            # Only the worker may load torch, and only a job that logs needs TensorBoard.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        return self._writer

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # what it still holds does not fit either
                writer.close()


def scalars(event: StepDone) -> dict[str, float]:
    """Return a step's numbers under the names that TensorBoard groups them by."""
    values = {
        "loss/all": event.loss,
        "loss/instance": event.loss_instance,
        "gradient/norm": event.grad_norm,
        "speed/steps_per_second": event.steps_per_second,
        "memory/peak_mb": event.memory_mb,
    }
    if event.loss_class is not None:
        values["loss/class"] = event.loss_class
    values.update({f"learning_rate/{name}": rate for name, rate in event.learning_rates.items()})
    return values
