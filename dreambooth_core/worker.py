"""The worker process: reads one `job.json`, runs its stage, reports every outcome as an event."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.config.schema import JobConfig, TrainConfig
from dreambooth_core.config.validate import check
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job import claims
from dreambooth_core.job.claims import LOOKING_KINDS, claims_of
from dreambooth_core.job.commands import COMMANDS_FILE, CommandReader
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.eight_bit import EIGHT_BIT_TEST_WORD
from dreambooth_core.job.events import (
    WARNING,
    Event,
    EventWriter,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStopped,
    Notice,
)
from dreambooth_core.job.formats import EVENTS
from dreambooth_core.job.full_disk import is_full
from dreambooth_core.job.kept import Kept
from dreambooth_core.job.memory_errors import GPU, Shortage, place_of, shortage_of
from dreambooth_core.job.overlay import SELF_TEST_WORD
from dreambooth_core.job.runs import Run, events_path, read_run
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.recording import Recorder

STAGES = {
    "create": "dreambooth_core.stages.create",
    "train": "dreambooth_core.stages.train",
    "dry-run": "dreambooth_core.stages.dry_run",
    "plan": "dreambooth_core.stages.plan",
    "class-images": "dreambooth_core.stages.class_images",
    "sample": "dreambooth_core.stages.sample",
    "save": "dreambooth_core.stages.save",
    "compare": "dreambooth_core.stages.compare",
    "extract-lora": "dreambooth_core.stages.extract_lora",
    "bake-lora": "dreambooth_core.stages.bake_lora",
    "merge": "dreambooth_core.stages.merge",
}

MACHINE_MODULE = "dreambooth_core.stages.machine"
MEMORY_MODULE = "dreambooth_core.stages.out_of_memory"
BLOCKED_PACKAGES = (
    *("xformers", "bitsandbytes", "flash_attn", "torchao"),
    *("tensorflow", "jax", "flax"),
)


def block_packages(names: Sequence[str]) -> None:
    """Make packages look absent: a host's broken one would break the import of diffusers.

    None in `sys.modules` is Python's own way to say so: an import raises ModuleNotFoundError and
    `importlib.util.find_spec` returns None.
    """
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]


def put_first(name: str, folders: Sequence[str]) -> None:
    """Let a namespace package be looked for in `folders` before where a `.pth` file put it.

    The host's protobuf claims the name "google" as Python starts, whatever comes first on the path.
    """
    found = [os.path.join(folder, name) for folder in folders]
    ours = [path for path in found if os.path.isdir(path)]
    if ours:
        package = importlib.import_module(name)
        package.__path__ = [*ours, *(path for path in package.__path__ if path not in ours)]


def separate_from_host(wanted: Collection[str] = ()) -> None:
    """Keep packages of the host that would get between ours from being loaded, but those wanted."""
    block_packages([name for name in BLOCKED_PACKAGES if name not in wanted])
    put_first("google", os.environ.get("PYTHONPATH", "").split(os.pathsep))


def wanted_packages(config: JobConfig) -> set[str]:
    """Return the packages of the host that a job's settings ask for by name."""
    wants_xformers = isinstance(config, TrainConfig) and config.precision.attention == "xformers"
    return {"xformers"} if wants_xformers else set()


def main(arguments: Sequence[str]) -> int:
    """Run the job in the folder given; return the exit code, which its final event tells too.

    `--self-test FOLDER` only tries the packages in that folder, and raises if they fail; so does
    `--self-test-eight-bit FOLDER` with the package of the 8-bit optimizers.
    """
    if arguments[0] in SELF_TESTS:
        return SELF_TESTS[arguments[0]](Path(arguments[1]))
    folder = Path(arguments[0])
    # Ctrl-C is for the process that shows the progress: it sends "stop".
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    writer = EventWriter(events_path(folder), spare=True)
    run, kept = None, Kept()
    try:
        run = read_run(folder)
        separate_from_host(wanted_packages(run.config))
        final = run_job(run, folder, writer, kept)
    except BaseException as error:
        print_error(error)
        final = failure(error, kept, run)
    writer.emit(final)
    return final.exit_code if isinstance(final, JobFailed) else 0


def try_packages(folder: Path) -> int:
    """Load every stage as jobs do and compute with the packages in `folder`; raises what fails."""
    separate_from_host()
    for stage in STAGES.values():
        importlib.import_module(stage)
    importlib.import_module("dreambooth_core.stages.self_test").run(folder)
    return 0


def try_eight_bit(folder: Path) -> int:
    """Make a step with each 8-bit optimizer of the package in `folder`; raises what fails."""
    separate_from_host()
    importlib.import_module("dreambooth_core.optim.eight_bit").self_test(folder)
    return 0


SELF_TESTS = {SELF_TEST_WORD: try_packages, EIGHT_BIT_TEST_WORD: try_eight_bit}


def run_job(run: Run, folder: Path, writer: EventWriter, kept: Kept | None = None) -> Event:
    """Run the job's stage and return the final event; its locks are given back at the end.

    How far the job comes is told to `kept`.
    """
    workspace = run.workspace
    wanted = claims_of(workspace, run.kind, run.config)
    claims.take(wanted, claims.ours(run.run_id, run.kind))
    try:
        claims.keep(wanted, folder, writer.emit)
        claims.drop_unfinished(wanted)

        def warn(words: str) -> None:
            writer.emit(Notice(WARNING, words))

        with Recorder(_record_folder(workspace, run), warn) as recorder:

            def emit(event: Event) -> None:
                writer.emit(event)
                recorder.record(event)
                if kept is not None:
                    kept.take(event)

            emit(_started(run))
            check(run.config, workspace, run.kind)
            commands = CommandReader(folder / COMMANDS_FILE)
            stage = importlib.import_module(STAGES[run.kind])
            if run.kind not in LOOKING_KINDS and importlib.util.find_spec("torch"):
                importlib.import_module(MACHINE_MODULE).look_at_machine(workspace)
            context = RunContext(workspace, run.run_id, folder, emit, commands)
            return outcome(stage.run(run.config, context))
    finally:
        claims.give_back(wanted, run.run_id, folder)


def _started(run: Run) -> JobStarted:
    pid = os.getpid()
    return JobStarted(run.kind, run.model, run.run_id, pid, __version__, EVENTS.version)


def print_error(error: BaseException) -> None:
    """Write an error's trace into the log."""
    with suppress(OSError):  # the disk of the log may be full
        traceback.print_exception(type(error), error, error.__traceback__)


def outcome(summary: dict[str, Any]) -> Event:
    """Return the final event of a stage that returned its summary."""
    if summary.get("stopped"):
        return JobStopped(int(summary.get("step", summary.get("steps", 0))), summary)
    return JobFinished(summary)


def failure(error: BaseException, kept: Kept | None = None, run: Run | None = None) -> JobFailed:
    """Return the final event of a job that raised: in plain words where the cause is known.

    `kept` is how far the job `run` came.
    """
    kept = kept or Kept()
    name, lasts = type(error).__name__, kept.lines(run.config if run else None)
    if isinstance(error, DreamboothError):
        values = (error.message, error.remedy, error.field, name, error.exit_code)
        return JobFailed(*values, kept=lasts)
    shortage = shortage_of(error)
    if shortage is not None:
        return out_of_memory(error, shortage, kept, run)
    if isinstance(error, OSError) and is_full(error):
        where = f" ({error.filename})" if error.filename else ""
        words = f"The disk is full{where}."
        return JobFailed(words, "Free some space and resume.", error=name, kept=lasts)
    if isinstance(error, OSError) and error.filename:
        words = f"{error.filename}: {error.strerror}."
        remedy = "Check that it is there and may be read and written."
        return JobFailed(words, remedy, error=name, kept=lasts)
    message = f"Something that should not happen did: {name}: {error}"
    return JobFailed(message, "The log of the run has the details.", error=name, kept=lasts)


def out_of_memory(
    error: BaseException, shortage: Shortage, kept: Kept, run: Run | None
) -> JobFailed:
    """Return the final event of a job that ran out of memory: where, what is kept, what would fit.

    What fits is estimated, with the memory that the job gave back.
    """
    place = place_of(error)
    amounts = f" ({shortage})" if str(shortage) else ""
    what = "GPU memory" if shortage.device == GPU else "Main memory"
    words = f"{what} ran out {kept.where(place.doing)}{amounts}."
    if place.changes_weights:
        words += " Weights were being changed, so that nothing was written of that step."
    remedy, changes = "Close other programs that take memory.", {}
    try:
        stage = importlib.import_module(MEMORY_MODULE)
        stage.free_memory(error)
        if run is not None:
            remedy, changes = stage.remedy_of(shortage, run, kept, place.doing)
    except (ImportError, MemoryError, RuntimeError) as another:
        print_error(another)
    lasts = kept.lines(run.config if run else None)
    return JobFailed(words, remedy, error=type(error).__name__, kept=lasts, changes=changes)


def _record_folder(workspace: Workspace, run: Run) -> Path | None:
    if run.kind != "train":
        return None
    return workspace.model(run.model).logging_dir / run.run_id


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
