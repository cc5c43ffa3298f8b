"""What making a file from checkpoint files has in common: reading them, telling, writing, stopping.

A checkpoint that is made from another one takes its side `.yaml` along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.checkpoint.file import Data, Entry, WrittenFile, write_checkpoint
from dreambooth_core.checkpoint.header import Header, TensorInfo, read_header
from dreambooth_core.checkpoint.metadata import IMPLEMENTATION, SPEC_VERSION, flat_metadata
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import detect
from dreambooth_core.families.base import Config, Family, KeyPair, pairs_by_source
from dreambooth_core.families.noise_schedule import prediction_type
from dreambooth_core.families.side_file import read_side_file
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import CheckpointSaved, LoraSaved, PhaseProgress, PhaseStarted
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.model_shape import SAVED_DTYPES, SOURCE_DTYPE
from dreambooth_core.stages.requests import Requests, StopRequested

KEPT_METADATA = ("modelspec.prediction_type", "modelspec.resolution")
ANY_PREDICTION = "epsilon"
"""Taken where nothing tells the prediction type: no name or shape of a weight depends on it."""


@dataclass(frozen=True)
class Original:
    """A checkpoint file, and where the weights of its networks are in it."""

    header: Header
    family: Family
    configs: dict[str, Config]
    pairs: dict[str, list[KeyPair]]

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    def places(self) -> dict[tuple[str, str], KeyPair]:
        """Return where each weight is, by its component and its name in it."""
        listed = (pair for pairs in self.pairs.values() for pair in pairs)
        return {(pair.component, pair.target): pair for pair in listed}

    def shapes(self, component: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a network's weights by their names in it."""
        return {
            key: pair.target_shape(self.header.tensors[pair.source].shape)
            for (owner, key), pair in self.places().items()
            if owner == component
        }

    def lora_name(self, component: str, path: str) -> str:
        """Return what LoRA files call the layer at a path of a network."""
        return self.family.lora_name(component, path, self.configs[component])


def read_original(path: Path) -> Original:
    """Read a checkpoint's header and side file; raises CheckpointError if its family is unknown."""
    header = read_header(path)
    family, side = detect(header), read_side_file(path)
    told = prediction_type(header, side, "auto", ANY_PREDICTION)
    configs = family.configs(header, side, told)
    return Original(header, family, configs, pairs_by_source(family.key_map(header, configs)))


def read_alike(path: Path, original: Original) -> Original:
    """Read another checkpoint of the same form, which needs no side file of its own.

    Raises CheckpointError if it is of another family or form.
    """
    header = read_header(path)
    require_family(header, original)
    try:
        pairs = original.family.key_map(header, original.configs)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is not of the form of {original.path}: {error.message}",
            remedy="Give checkpoints one of which was made from the other.",
        ) from error
    return Original(header, original.family, original.configs, pairs_by_source(pairs))


def require_family(header: Header, original: Original) -> None:
    """Raise CheckpointError if a file is not of the family of another one."""
    family = detect(header)
    if family.name != original.family.name:
        raise CheckpointError(
            f"{header.path} is of the family {family.label}, and {original.path} of"
            f" {original.family.label}: they cannot be put together.",
            remedy="Give checkpoints of one family.",
        )


def saved_dtype(info: TensorInfo, dtype: str) -> str:
    """Return the format's name of the dtype that a weight is saved in; `dtype` as in settings."""
    return info.dtype if dtype == SOURCE_DTYPE else SAVED_DTYPES[dtype]


def derived_metadata(original: Original, path: Path, told: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a file made from a checkpoint; raises InputError for a bad name."""
    kept = {
        name: original.header.metadata[name]
        for name in KEPT_METADATA
        if name in original.header.metadata
    }
    return flat_metadata(
        {
            "modelspec.sai_model_spec": SPEC_VERSION,
            "modelspec.architecture": original.family.architecture(original.configs),
            "modelspec.implementation": IMPLEMENTATION,
            "modelspec.title": path.stem,
            **kept,
            "ss_output_name": path.stem,
            "ss_base_model_version": original.family.lora_base_version,
            "ss_v2": str(original.family.lora_base_version.startswith("sd_v2")),
            "dreambooth.version": __version__,
            **told,
        }
    )


def until_stopped(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of what `make` made of that name, or that it was told to end."""
    try:
        return make()
    except StopRequested:
        return {"name": name, "stopped": True}


def tell_saved(
    saved: type[CheckpointSaved | LoraSaved],
    name: str,
    original: Original,
    written: WrittenFile,
    context: RunContext,
    **more: object,
) -> dict[str, Any]:
    """Report a file that was made from an original, and return the job's summary."""
    context.emit(saved(str(written.path), 0, 0, written.sha256, written.size))
    return {
        "name": name,
        "family": original.family.name,
        "path": str(written.path),
        "sha256": written.sha256,
        "size": written.size,
        **more,
    }


def write_derived(
    original: Original,
    path: Path,
    entries: Iterable[Entry],
    told: Mapping[str, str],
    phase: str,
    context: RunContext,
) -> WrittenFile:
    """Write a checkpoint made from another one, and that one's side yaml, all or nothing.

    `told` is what its metadata say of how it was made. Raises StopRequested if told to end.
    """
    metadata = derived_metadata(original, path, told)
    side, kept = side_path(path), side_path(original.path)
    watched = reporting(entries, phase, context)
    require_space(path.parent, sum(entry.size for entry in watched), "The checkpoint")
    beside = {side: disk.read(kept)} if kept.is_file() else {}
    return write_checkpoint(path, watched, metadata, beside)


def reporting(entries: Iterable[Entry], phase: str, context: RunContext) -> list[Entry]:
    """Return entries that tell of their writing, and raise StopRequested when it is to end."""
    listed, requests = list(entries), Requests(context.commands)
    total = sum(entry.size for entry in listed)
    progress = _Progress(context, phase, total, requests)
    context.emit(PhaseStarted(phase, total, "bytes"))
    return [progress.watched(entry) for entry in listed]


def counted(paths: Iterable[str], phase: str, unit: str, context: RunContext) -> Iterator[str]:
    """Yield paths, telling how many are done; raises StopRequested when it is to end."""
    listed, requests = list(paths), Requests(context.commands)
    context.emit(PhaseStarted(phase, len(listed), unit))
    for done, path in enumerate(listed, start=1):
        requests.stop_if_asked()
        yield path
        context.emit(PhaseProgress(phase, done, len(listed)))


class _Progress:
    """Counts the bytes of entries as their turn comes."""

    def __init__(self, context: RunContext, phase: str, total: int, requests: Requests) -> None:
        self._context, self._phase, self._total = context, phase, total
        self._requests, self._done = requests, 0

    def watched(self, entry: Entry) -> Entry:
        def load() -> Data:
            self._requests.stop_if_asked()
            self._done += entry.size
            self._context.emit(PhaseProgress(self._phase, self._done, self._total))
            return entry.load()

        return Entry(entry.key, entry.dtype, entry.shape, load, entry.verbatim)
