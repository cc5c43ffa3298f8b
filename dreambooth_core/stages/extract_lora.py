"""From two checkpoints to a LoRA: of each layer's change the nearest matrix of a small rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dreambooth_core.adapters.lora_file import low_rank_entries, write_lora
from dreambooth_core.adapters.targets import (
    CONVOLUTION,
    LINEAR,
    WEIGHT,
    Size,
    layer_sizes,
)
from dreambooth_core.adapters.weights import LowRank, nearest_low_rank
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.metadata import told_name
from dreambooth_core.config.lora import ExtractLoraConfig
from dreambooth_core.errors import InputError
from dreambooth_core.families.base import KeyPair
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import LoraSaved
from dreambooth_core.stages.derived import (
    Original,
    counted,
    derived_metadata,
    read_alike,
    read_original,
    tell_saved,
    until_stopped,
)
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.lora_metadata import ARCHITECTURE, network_metadata
from dreambooth_core.stages.model_shape import SAVED_DTYPES

PHASE = "comparing layers"


def run(config: ExtractLoraConfig, context: RunContext) -> dict[str, Any]:
    """Write the LoRA; checkpoints of different families, or the same one twice, are an error."""
    workspace = context.workspace
    base = read_original(workspace.find_checkpoint(config.base))
    trained = read_alike(workspace.find_checkpoint(config.trained), base)

    def extract() -> dict[str, Any]:
        layers = dict(low_rank_layers(base, trained, config, context))
        _require_any(layers, base, trained)
        path = checkpoint_path(workspace.lora_dir, config.name, 0, config.subfolder)
        entries = low_rank_entries(layers, SAVED_DTYPES[config.dtype])
        require_space(path.parent, sum(entry.size for entry in entries), "The LoRA")
        told = derived_metadata(base, path, extraction_metadata(config, base, trained))
        told[ARCHITECTURE] += "/lora"
        written = write_lora(path, entries, told)
        return tell_saved(LoraSaved, config.name, base, written, context, layers=len(layers))

    return until_stopped(config.name, extract)


def extraction_metadata(
    config: ExtractLoraConfig, base: Original, trained: Original
) -> dict[str, str]:
    """Return what an extracted LoRA says about where it comes from."""
    return {
        **network_metadata(config.rank, config.rank),
        "ss_sd_model_name": told_name(base.path),
        "dreambooth.conv_rank": str(config.conv_rank),
        "dreambooth.extracted_from": told_name(trained.path),
    }


def low_rank_layers(
    base: Original, trained: Original, config: ExtractLoraConfig, context: RunContext
) -> Iterator[tuple[str, LowRank]]:
    """Yield the layers that differ by their names in LoRA files; raises StopRequested."""
    sizes = {
        (component, path): size.rank
        for component in _components(base, config)
        for path, size in _layer_sizes(base, component, config).items()
    }
    names = {base.lora_name(*place): place for place in sizes}
    places, others = base.places(), trained.places()
    with CheckpointReader(base.path) as before, CheckpointReader(trained.path) as after:
        for name in counted(names, PHASE, "layers", context):
            component, path = names[name]
            key = (component, path + WEIGHT)
            change = _read(after, others[key]) - _read(before, places[key])
            if change.any():
                yield name, nearest_low_rank(change, sizes[component, path])


def _require_any(layers: Mapping[str, LowRank], base: Original, trained: Original) -> None:
    if not layers:
        raise InputError(
            f"{trained.path} does not differ from {base.path} in any layer that a LoRA has.",
            remedy="Give the checkpoint that training made, and the one that it began with.",
            field="trained",
        )


def _read(reader: CheckpointReader, pair: KeyPair) -> Tensor:
    return pair.to_target(reader.read(pair.source)).float()


def _components(base: Original, config: ExtractLoraConfig) -> list[str]:
    return ["unet", *(base.family.text_encoders if config.text_encoder else ())]


def _layer_sizes(base: Original, component: str, config: ExtractLoraConfig) -> dict[str, Size]:
    sizes = {LINEAR: Size(config.rank, config.rank)}
    if config.conv_rank:
        sizes[CONVOLUTION] = Size(config.conv_rank, config.conv_rank)
    return layer_sizes(component, base.shapes(component), sizes)
