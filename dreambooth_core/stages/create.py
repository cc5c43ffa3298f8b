"""From a checkpoint file to a model: its tensors streamed into diffusers components.

The file is read once, from front to back: each chunk goes into the file's SHA-256 and to the
component that its tensor belongs to, or to the extras. No byte is changed on the way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.assembled import AssemblyReader
from dreambooth_core.checkpoint.contents import TensorInfo
from dreambooth_core.checkpoint.file import CheckpointWriter, Data, Entry, tensor_of
from dreambooth_core.checkpoint.recognise import EMA_PREFIX
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import CheckpointError, InputError, ModelExistsError, NonFiniteError
from dreambooth_core.families.base import Family, pairs_by_source
from dreambooth_core.families.loading import config_file, weights_file
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted
from dreambooth_core.job.formats import LAYOUT
from dreambooth_core.job.storage import (
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    put_folder,
)
from dreambooth_core.job.workspace import ModelFolder, ModelInfo
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.imported_settings import begin_with_settings_of
from dreambooth_core.stages.side_settings import needed_settings
from dreambooth_core.stages.source import Source, find_source

PHASE = "create"
EXTRAS = "extras"
PROGRESS_SECONDS = 0.5
DTYPE_LABELS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64"}


class _Stopped(Exception):
    """The person asked to stop."""


@dataclass(frozen=True)
class Route:
    """Where a tensor of the source goes: a component or the extras, and its entries there.

    `key` is the name under which a saved checkpoint carries it. One tensor of the source can be
    several of the component, one after the other; a `transposed` one is turned on the way.
    """

    key: str
    part: str
    entries: tuple[Entry, ...]
    transposed: bool = False


def run(config: CreateConfig, context: RunContext) -> dict[str, Any]:
    """Create the model; a model of this name, or a source that cannot be used, is an error."""
    folder = context.workspace.model(config.name)
    if folder.path.exists():
        raise ModelExistsError(
            f"There is a model named {config.name!r} already, in {folder.path}.",
            remedy="Choose another name, or delete that folder first.",
            field="name",
        )
    source = find_source(config, context.workspace)
    routes = plan_routes(source, config.extract_ema)
    require_space(folder.path.parent, source.assembly.file_size, "The model")
    try:
        with _new_folder(folder) as building:
            digest = _copy_tensors(source, routes, building, context)
            _write_records(source, routes, building, _info(config, source, digest))
    except _Stopped:
        return {"model": config.name, "stopped": True}
    return {
        "model": config.name,
        "family": source.family.name,
        "path": str(folder.path),
        "tensors": len(source.pairs),
        "extras": sum(route.part == EXTRAS for route in routes.values()),
        "source_sha256": digest,
        "imported": begin_with_settings_of(source.header.path, folder),
    }


def plan_routes(source: Source, extract_ema: bool) -> dict[str, Route]:
    """Return the route of every tensor that is kept, by its key in the source.

    Moving averages (`model_ema.*`) are kept only if they are asked for, and then take the place of
    the UNet's weights; raises InputError if the file has none.
    """
    tensors = source.header.tensors
    routes = {
        key: Route(key, EXTRAS, (Entry(key, info.dtype, info.shape, bytes, verbatim=True),))
        for key, info in tensors.items()
        if not key.startswith(EMA_PREFIX)
    }
    for key, pairs in pairs_by_source(source.pairs).items():
        del routes[key]
        averaged = extract_ema and pairs[0].component == "unet"
        name = source.family.ema_key(key) if averaged else key
        info = tensors.get(name)
        if info is None or info.shape != tensors[key].shape:
            raise InputError(
                f"{source.header.path} holds no EMA weights (or not all: {name} is missing).",
                remedy="Switch off the extraction of EMA weights.",
                field="extract_ema",
            )
        transposed = pairs[0].transform == "transposed"
        entries = [
            Entry(pair.target, info.dtype, pair.target_shape(info.shape), bytes) for pair in pairs
        ]
        routes[name] = Route(key, pairs[0].component, tuple(entries), transposed)
    return {key: routes[key] for key in tensors if key in routes}


@contextmanager
def _new_folder(folder: ModelFolder) -> Iterator[ModelFolder]:
    """Yield a folder that takes the model's name on success and is removed on any error.

    Its own name begins with a dot, so that what a killed job leaves is no model; the next try
    clears it away.
    """
    building = ModelFolder(folder.path.with_name(f".{folder.name}.creating"))
    disk.remove_folder(building.path)
    try:
        disk.make_folder(building.path, new=True)
        yield building
        put_folder(building.path, folder.path)
    except BaseException:
        with suppress(OSError):
            disk.remove_folder(building.path)
        raise


def _copy_tensors(
    source: Source, routes: Mapping[str, Route], folder: ModelFolder, context: RunContext
) -> str:
    """Copy every tensor to its place and return the source's SHA-256."""
    header = source.header
    progress = _Progress(context, source.assembly.file_size)
    with ExitStack() as stack:
        reader = stack.enter_context(AssemblyReader(source.assembly))
        writers = _open_writers(routes, folder, source.family, stack)
        for key, info in header.tensors.items():
            chunks = _through(reader.chunks(key), progress)
            route = routes.get(key)
            if route is None:
                _skip(chunks)
            else:
                _copy_tensor(key, info, route, chunks, writers[route.part], header.path)
        return reader.sha256()


def _copy_tensor(
    key: str,
    info: TensorInfo,
    route: Route,
    chunks: Iterator[memoryview],
    writer: CheckpointWriter,
    path: Path,
) -> None:
    contents: Iterator[Data] = _divided(chunks, [entry.size for entry in route.entries])
    if route.transposed:
        contents = iter([tensor_of(chunks, info.dtype, info.shape).t().contiguous()])
    try:
        for entry, data in zip(route.entries, contents, strict=True):
            writer.write(entry.key, data)
        _skip(chunks)
    except NonFiniteError as error:
        raise CheckpointError(
            f"{path} is broken: its weight {key} holds NaN or infinite numbers.",
            remedy="Use another copy or version of the checkpoint.",
        ) from error


def _divided(chunks: Iterator[memoryview], sizes: Sequence[int]) -> Iterator[Data]:
    """Yield the stream in parts of these sizes; each must be used up before the next."""
    rest = memoryview(b"")

    def take(size: int) -> Iterator[memoryview]:
        nonlocal rest
        while size:
            rest = rest or next(chunks)
            piece, rest = rest[:size], rest[size:]
            size -= len(piece)
            yield piece

    for size in sizes:
        yield take(size)


def _skip(chunks: Iterator[memoryview]) -> None:
    for _ in chunks:
        pass


def _through(chunks: Iterator[memoryview], progress: _Progress) -> Iterator[memoryview]:
    for chunk in chunks:
        yield chunk
        progress.advance(len(chunk))


def _open_writers(
    routes: Mapping[str, Route], folder: ModelFolder, family: Family, stack: ExitStack
) -> dict[str, CheckpointWriter]:
    writers = {}
    for part in (*family.networks, EXTRAS):
        path = folder.extras_path if part == EXTRAS else weights_file(folder, part)
        entries = [
            entry for route in routes.values() if route.part == part for entry in route.entries
        ]
        temporary = stack.enter_context(atomic_file(path))
        writer = CheckpointWriter(temporary, entries, {"format": "pt"})
        writers[part] = stack.enter_context(writer)
    return writers


class _Progress:
    """Reports the bytes done now and then, and looks for the command to stop."""

    def __init__(self, context: RunContext, total: int) -> None:
        self._context, self._total = context, total
        self._done, self._told = 0, time.monotonic()
        context.emit(PhaseStarted(PHASE, total, "bytes"))

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._done < self._total and now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        self._context.emit(PhaseProgress(PHASE, self._done, self._total))
        if any(command.name == "stop" for command in self._context.commands.poll()):
            raise _Stopped


def _write_records(
    source: Source, routes: Mapping[str, Route], folder: ModelFolder, info: ModelInfo
) -> None:
    """Write everything that is not a tensor; `model.json`, which makes it a model, comes last."""
    for component, config in source.configs.items():
        atomic_write_json(config_file(folder, component), config)
    source.family.write_tokenizers(folder)
    index = source.family.model_index(source.configs)
    atomic_write_json(folder.path / "model_index.json", index)
    side = needed_settings(source.family, source.header, source.configs)
    if source.side is not None:
        side = disk.read(side_path(source.header.path))
    if side is not None:
        atomic_write_bytes(folder.kept_side_file, side)
    tensors = source.header.tensors
    layout = [
        [route.key, tensors[key].dtype, list(tensors[key].shape)] for key, route in routes.items()
    ]
    atomic_write_json(folder.layout_path, LAYOUT.stamped({"tensors": layout}))
    folder.write_info(info)


def _info(config: CreateConfig, source: Source, digest: str) -> ModelInfo:
    header = source.header
    dtypes = Counter(
        header.tensors[pair.source].dtype for pair in source.pairs if pair.component == "unet"
    )
    return ModelInfo(
        name=config.name,
        family=source.family.name,
        source=str(header.path),
        source_sha256=digest,
        prediction_type=source.configs["scheduler"]["prediction_type"],
        resolution=source.configs["vae"]["sample_size"],
        dtype=DTYPE_LABELS[dtypes.most_common(1)[0][0]],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
