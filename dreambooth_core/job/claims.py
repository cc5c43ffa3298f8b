"""What a job keeps for itself: its model, and the names of the files that it writes.

A lock lies in the folder that it protects, which several WebUIs may share. A training writes
`<name>_<step>` and has all names of that form; a job that writes one file has that name, and sees
that no training is about to write it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config.schema import (
    BakeLoraConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.job import disk, lock
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import ERROR, Event, Notice
from dreambooth_core.job.heartbeat import heart
from dreambooth_core.job.lock import Holder
from dreambooth_core.job.process import start_mark, this_machine
from dreambooth_core.job.runs import process_path
from dreambooth_core.job.workspace import Workspace, check_name

LOOKING_KINDS = ("plan",)
"""Kinds of job that only look at a model, beside whatever job has it."""
LOCKS_FOLDER = ".dreambooth"
LOCK = ".lock"
UNFINISHED = ".safetensors.tmp"
ANY_STEP = "_#"
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
STOP = "stop"
MODEL = "model"
WHY_LOST = "This machine did not keep it fresh, as if it had slept; the run stops."
_NUMBERED_ON = re.compile(r"-\d+$")
_STEP = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Claim:
    """One lock that a job takes, or only needs to be free: its file, and what it is of.

    `folder` is where the files lie, if it is of files.
    """

    path: Path
    name: str
    what: str = MODEL
    taken: bool = True
    folder: Path | None = None


def claims_of(workspace: Workspace, kind: str, config: JobConfig) -> list[Claim]:
    """Return all that a job keeps for itself."""
    if kind in LOOKING_KINDS:
        return []
    model = getattr(config, "model", "")
    if kind == "create":
        model = getattr(config, "name", "")
    found = [Claim(workspace.model(model).lock_path, model)] if model else []
    return found + _claims_of_files(workspace, kind, config)


def take(claims: Sequence[Claim], holder: Holder) -> None:
    """Take all of them or none; raises BusyError naming who has one.

    Where nothing can be written, no file has to be kept from being written over.
    """
    taken: list[Claim] = []
    try:
        for claim in claims:
            with _unless_unwritable(claim):
                _take(claim, holder)
                taken.append(claim)
    except BaseException:
        give_back(taken, holder.run_id)
        raise


def hand_over(claims: Sequence[Claim], holder: Holder, before: str = "") -> None:
    """Name another process, or the run that had no id before, in those that are taken."""
    for claim in claims:
        if claim.taken:
            with _unless_unwritable(claim):
                lock.hand_over(claim.path, holder, before)


def give_back(claims: Sequence[Claim], run_id: str, folder: Path | None = None) -> None:
    """Let go of those that the run has; with its `folder`, its process is over for others too."""
    if folder is not None:
        heart().end(process_path(folder))
    for claim in claims:
        if claim.taken:
            with _unless_unwritable(claim):
                lock.release(claim.path, run_id)


def ours(run_id: str, kind: str) -> Holder:
    """Return this process as a holder."""
    return Holder(os.getpid(), start_mark(os.getpid()), run_id, kind, this_machine())


def keep(claims: Sequence[Claim], folder: Path, emit: Callable[[Event], None]) -> None:
    """Keep a run's locks and its process fresh; if one is lost, say so and ask the run to stop.

    That happens to a machine that slept, while another took its lock for void.
    """

    def lost(path: Path) -> bool:
        holder = lock.read_holder(path)
        if holder is None or holder.run_id == folder.name:
            return False
        emit(Notice(ERROR, f"{path.name} is {lock.use(holder)} now. {WHY_LOST}"))
        send(folder, Command(STOP))
        return True

    heart().keep(process_path(folder))
    for claim in claims:
        if claim.taken:
            heart().keep(claim.path, lost)


def drop_unfinished(claims: Sequence[Claim]) -> None:
    """Delete what a killed job of the same file names left of files that it had not finished."""
    for claim in claims:
        if not claim.taken or claim.folder is None:
            continue
        stem = re.escape(claim.path.name.removesuffix(LOCK))
        ours_alone = re.compile(stem.replace(re.escape(ANY_STEP), r"_\d+") + r"(-\d+)?")
        for path in claim.folder.glob(f"*{UNFINISHED}"):
            if ours_alone.fullmatch(path.name.removesuffix(UNFINISHED)):
                with _unless_unwritable(claim):
                    disk.remove(path)


def _claims_of_files(workspace: Workspace, kind: str, config: JobConfig) -> list[Claim]:
    if kind == "train" and isinstance(config, TrainConfig):
        return _claims_of_training(workspace, config)
    if isinstance(config, SaveConfig):
        return _claims_of_saving(workspace, config)
    if isinstance(config, MergeConfig | BakeLoraConfig | ExtractLoraConfig):
        is_lora = isinstance(config, ExtractLoraConfig)
        folder = workspace.lora_dir if is_lora else workspace.checkpoints_dir
        return _claims_of_one_file(folder, config.subfolder, config.name)
    return []


def _claims_of_training(workspace: Workspace, config: TrainConfig) -> list[Claim]:
    folder = workspace.lora_dir if config.lora.enabled else workspace.checkpoints_dir
    name = config.saving.name or config.model
    return [_claim_of_file(folder, config.saving.subfolder, name, ANY_STEP)]


def _claims_of_saving(workspace: Workspace, config: SaveConfig) -> list[Claim]:
    """Return the name in both folders: to which it writes is known once the state is read."""
    folders, name = [workspace.checkpoints_dir], config.name or config.model
    if workspace.lora_dir.is_dir():
        folders.append(workspace.lora_dir)
    return [_claim_of_file(folder, config.subfolder, name, ANY_STEP) for folder in folders]


def _claims_of_one_file(folder: Path, subfolder: str, name: str) -> list[Claim]:
    """Return what has a file's name, which is numbered on where one of it exists."""
    name = _NUMBERED_ON.sub("", name) or name
    claims = [_claim_of_file(folder, subfolder, name)]
    stem = _STEP.sub("", name)
    if stem not in ("", name):
        of_training = _claim_of_file(folder, subfolder, stem, ANY_STEP)
        claims.append(dataclasses.replace(of_training, taken=False))
    return claims


def _claim_of_file(folder: Path, subfolder: str, name: str, numbered: str = "") -> Claim:
    """Return what has a file's name; raises InputError for one that leaves the folder."""
    for part in Path(subfolder).parts:
        check_name(part, what="subfolder")
    check_name(name, what="file")
    path = folder / LOCKS_FOLDER / subfolder / f"{name}{numbered}{LOCK}"
    shown = Path(subfolder) / (f"{name}_<step>" if numbered else name)
    return Claim(path, str(shown), f"name for a file in {folder},", folder=folder / subfolder)


def _take(claim: Claim, holder: Holder) -> None:
    if claim.taken:
        lock.acquire(claim.path, holder, claim.name, claim.what)
    else:
        lock.refuse_if_held(claim.path, holder.run_id, claim.name, claim.what)


@contextmanager
def _unless_unwritable(claim: Claim) -> Iterator[None]:
    """Pass over a folder of files that cannot be written to, as a job that writes there fails."""
    try:
        yield
    except OSError as error:
        if claim.what == MODEL or error.errno not in UNWRITABLE:
            raise
