"""Going back to the last good state where a number is not finite, and on at a lower rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.job.context import RunContext
from dreambooth_core.stages.faults import Fault, look_into
from dreambooth_core.stages.out_of_memory import release_memory
from dreambooth_core.stages.session import Session
from dreambooth_core.stages.training_setup import Trainer


class Setback(Exception):
    """Unwinds a trainer whose numbers are not finite; carries what was found out about it."""

    def __init__(self, fault: Fault) -> None:
        """Keep the fault."""
        super().__init__(fault.message)
        self.fault = fault


def with_retreats(
    config: TrainConfig,
    context: RunContext,
    session: Session,
    attempt: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Make attempts until one comes to its end; raises NonFiniteError when none is left.

    The session, which all of them share, tells each where to go on from.
    """
    while True:
        try:
            summary = attempt()
            return {**summary, "retreats": list(session.told)} if session.told else summary
        except Setback as setback:
            fault = setback.fault
        release_memory()  # the trainer went with the exception
        go_back(config, context, session, fault)


@contextmanager
def watched(trainer: Trainer, keep: Callable[[], object]) -> Iterator[None]:
    """Turn a NonFiniteError of the block into a Setback if it is the training's own.

    If it is not, `keep` saves what has been learnt before the error goes its way.
    """
    try:
        yield
    except NonFiniteError as error:
        fault = look_into(trainer, error)
        if fault is None:
            keep()
            raise
        raise Setback(fault) from error


def go_back(config: TrainConfig, context: RunContext, session: Session, fault: Fault) -> None:
    """Let the session go on from its last good state, or raise NonFiniteError if it may not."""
    model = context.workspace.model(config.model)
    path, state = session.last_good(config, model, context.warn) or (None, None)
    rates, made = config.learning_rate, session.retreats.steps
    if fault.hopeless or len(made) >= rates.retries:
        raise _given_up(session, fault, path)
    retreats = session.retreats.after(fault.step, rates.retry_factor)
    where = _place(path)
    session.go_back(
        state,
        retreats,
        f"{fault.message} Went back {where}, and on at"
        f" {rates.retry_factor:g} times the learning rate.",
    )
    context.warn(
        f"{fault.message} {fault.why()} The run goes back {where}, and on at"
        f" {rates.retry_factor:g} times the learning rate, time {len(made) + 1} of"
        f" {rates.retries} (learning_rate.retries). If it comes again: {fault.remedy}"
    )


def _given_up(session: Session, fault: Fault, path: Path | None) -> NonFiniteError:
    again = ""
    if session.retreats.steps:
        steps = " and ".join(map(str, session.retreats.steps))
        again = (
            f" The run had gone back at step {steps} already and goes on no more; its learning"
            f" rates were multiplied by {session.retreats.factor:g}."
        )
    whole = f"The newest training state is unharmed, and resume goes on from it: {path}."
    return NonFiniteError(
        f"{fault.message}{again} {fault.why()}".rstrip(),
        remedy=f"{fault.remedy} {whole if path else 'No training state was written yet.'}",
        field=fault.field,
    )


def _place(path: Path | None) -> str:
    return f"to the state {path}" if path else "to the beginning, as there is no state yet"
