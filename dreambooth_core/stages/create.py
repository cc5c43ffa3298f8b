"""From a checkpoint file to a model: its tensors streamed into diffusers components.

The file is read once, from front to back: each chunk goes into the file's SHA-256 and to the
component that its tensor belongs to, or to the extras. No byte is changed on the way.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.file import CheckpointReader, CheckpointWriter, Entry
from dreambooth_core.checkpoint.header import Header
from dreambooth_core.checkpoint.stream import Digest
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import CheckpointError, InputError, ModelExistsError, NonFiniteError
from dreambooth_core.families import detect
from dreambooth_core.families.base import Config, Family, KeyPair
from dreambooth_core.families.loading import config_file, weights_file
from dreambooth_core.families.side_file import Side, read_side_file
from dreambooth_core.job.checkpoint_files import side_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import PhaseProgress, PhaseStarted
from dreambooth_core.job.storage import (
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    replace,
    sync_folder,
)
from dreambooth_core.job.workspace import ModelFolder, ModelInfo
from dreambooth_core.stages.disk import require_space

PHASE = "create"
EXTRAS = "extras"
EMA_PREFIX = "model_ema."
PROGRESS_SECONDS = 0.5
DTYPE_LABELS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64"}
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class _Stopped(Exception):
    """The person asked to stop."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that can become a model, and all that its header and side file tell."""

    header: Header
    side: Side
    family: Family
    configs: dict[str, Config]
    pairs: list[KeyPair]


@dataclass(frozen=True)
class Route:
    """Where a tensor of the source goes: a component or the extras, and its entry there.

    `key` is the name under which a saved checkpoint carries it.
    """

    key: str
    part: str
    entry: Entry


def run(config: CreateConfig, context: RunContext) -> dict[str, Any]:
    """Create the model; a model of this name, or a source that cannot be used, is an error."""
    folder = context.workspace.model(config.name)
    if folder.path.exists():
        raise ModelExistsError(
            f"There is a model named {config.name!r} already, in {folder.path}.",
            remedy="Choose another name, or delete that folder first.",
            field="name",
        )
    source = read_source(_source_path(config, context))
    routes = plan_routes(source, config.extract_ema)
    require_space(folder.path.parent, source.header.file_size, "The model")
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
    }


def read_source(path: Path) -> Source:
    """Read a checkpoint's header and side file; raises CheckpointError if it cannot be a model."""
    with CheckpointReader(path) as reader:
        header = reader.header
    family = detect(header)
    side = read_side_file(path)
    configs = family.configs(header, side)
    return Source(header, side, family, configs, family.key_map(header, configs))


def plan_routes(source: Source, extract_ema: bool) -> dict[str, Route]:
    """Return the route of every tensor that is kept, by its key in the source.

    Moving averages (`model_ema.*`) are kept only if they are asked for, and then take the place of
    the UNet's weights; raises InputError if the file has none.
    """
    tensors = source.header.tensors
    routes = {
        key: Route(key, EXTRAS, Entry(key, info.dtype, info.shape, bytes, verbatim=True))
        for key, info in tensors.items()
        if not key.startswith(EMA_PREFIX)
    }
    for pair in source.pairs:
        routes.pop(pair.source)
        key = source.family.ema_key(pair.source) if _is_averaged(pair, extract_ema) else pair.source
        info = tensors.get(key)
        if info is None or info.shape != tensors[pair.source].shape:
            raise InputError(
                f"{source.header.path} holds no EMA weights (or not all: {key} is missing).",
                remedy="Switch off the extraction of EMA weights.",
                field="extract_ema",
            )
        entry = Entry(pair.target, info.dtype, pair.target_shape(info.shape), bytes)
        routes[key] = Route(pair.source, pair.component, entry)
    return {key: routes[key] for key in tensors if key in routes}


def _is_averaged(pair: KeyPair, extract_ema: bool) -> bool:
    return extract_ema and pair.component == "unet"


def _source_path(config: CreateConfig, context: RunContext) -> Path:
    if config.source.strip() and Path(config.source).expanduser().is_dir():
        raise InputError(
            f"{config.source} is a folder.",
            remedy="Give a single file in the original layout, which the WebUI loads.",
            field="source",
        )
    return context.workspace.find_checkpoint(config.source)


@contextmanager
def _new_folder(folder: ModelFolder) -> Iterator[ModelFolder]:
    """Yield a folder that takes the model's name on success and is removed on any error.

    Its own name begins with a dot, so that what a killed job leaves is no model; the next try
    clears it away.
    """
    building = ModelFolder(folder.path.with_name(f".{folder.name}.creating"))
    shutil.rmtree(building.path, ignore_errors=True)
    building.path.mkdir(parents=True)
    try:
        yield building
        replace(building.path, folder.path)
    except BaseException:
        shutil.rmtree(building.path, ignore_errors=True)
        raise
    sync_folder(folder.path.parent)


def _copy_tensors(
    source: Source, routes: Mapping[str, Route], folder: ModelFolder, context: RunContext
) -> str:
    """Copy every tensor to its place and return the source's SHA-256."""
    header = source.header
    progress = _Progress(context, sum(info.size for info in header.tensors.values()))
    digest = Digest()
    with ExitStack() as stack:
        stack.callback(digest.close)
        reader = stack.enter_context(CheckpointReader(header.path))
        writers = _open_writers(routes, folder, source.family, stack)
        digest.update(reader.header_bytes())
        for key in header.tensors:
            chunks = _through(reader.chunks(key), digest, progress)
            _copy_tensor(key, routes.get(key), chunks, writers, header.path)
        return digest.hexdigest()


def _copy_tensor(
    key: str,
    route: Route | None,
    chunks: Iterator[memoryview],
    writers: Mapping[str, CheckpointWriter],
    path: Path,
) -> None:
    if route is None:
        for _ in chunks:
            pass
        return
    try:
        writers[route.part].write(route.entry.key, chunks)
    except NonFiniteError as error:
        raise CheckpointError(
            f"{path} is broken: its weight {key} holds NaN or infinite numbers.",
            remedy="Use another copy or version of the checkpoint.",
        ) from error


def _through(
    chunks: Iterator[memoryview], digest: Digest, progress: _Progress
) -> Iterator[memoryview]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
        progress.advance(len(chunk))


def _open_writers(
    routes: Mapping[str, Route], folder: ModelFolder, family: Family, stack: ExitStack
) -> dict[str, CheckpointWriter]:
    writers = {}
    for part in (*family.networks, EXTRAS):
        path = folder.extras_path if part == EXTRAS else weights_file(folder, part)
        entries = [route.entry for route in routes.values() if route.part == part]
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
    atomic_write_json(folder.path / "model_index.json", PIPELINE)
    if source.side is not None:
        yaml = side_path(source.header.path).read_bytes()
        atomic_write_bytes(folder.kept_side_file, yaml)
    tensors = source.header.tensors
    layout = [
        [route.key, tensors[key].dtype, list(tensors[key].shape)] for key, route in routes.items()
    ]
    atomic_write_json(folder.layout_path, layout)
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
