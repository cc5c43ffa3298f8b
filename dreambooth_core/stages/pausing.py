"""A rest between epochs, in which commands are still answered."""

from __future__ import annotations

import time
from collections.abc import Callable

from dreambooth_core.job.events import Event, PhaseProgress, PhaseStarted

PHASE = "paused"
LOOK_SECONDS = 0.5


def pause(seconds: int, is_stopped: Callable[[], bool], emit: Callable[[Event], None]) -> None:
    """Wait, telling how long it has been; ends early once `is_stopped` says so."""
    began, told = time.monotonic(), 0
    emit(PhaseStarted(PHASE, seconds, "seconds"))
    while not is_stopped():
        passed = time.monotonic() - began
        if int(passed) > told:
            told = min(seconds, int(passed))
            emit(PhaseProgress(PHASE, told, seconds))
        if passed >= seconds:
            return
        time.sleep(min(LOOK_SECONDS, seconds - passed))
