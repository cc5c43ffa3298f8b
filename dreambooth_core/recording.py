"""What a training run leaves behind to be looked at: TensorBoard logs and `loss.csv`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dreambooth_core.job.events import Event, Notice, PlanMade, StepDone
from dreambooth_core.job.loss_table import LossTable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSS_TABLE = "loss.csv"


class Recorder:
    """Writes events into a folder as they are emitted; without a folder it writes nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Write into `folder`, which is created with the first event that is kept."""
        self.folder = folder
        self._losses = LossTable(folder / LOSS_TABLE) if folder else None
        self._writer: SummaryWriter | None = None

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
        if self._writer is not None:
            self._writer.close()

    def record(self, event: Event) -> None:
        """Keep a step's numbers and the run's plan and notices; pass over everything else."""
        if self.folder is None or self._losses is None:
            return
        if isinstance(event, StepDone):
            self._losses.add(event)
            for name, value in scalars(event).items():
                self._board(self.folder).add_scalar(name, value, event.step)
        elif isinstance(event, PlanMade):
            self._board(self.folder).add_text("plan", "\n\n".join(event.lines))
        elif isinstance(event, Notice):
            self._board(self.folder).add_text("notices", event.message)

    def _board(self, folder: Path) -> SummaryWriter:
        if self._writer is None:
            # Only the worker may load torch, and only a job that logs needs TensorBoard.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        return self._writer


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
