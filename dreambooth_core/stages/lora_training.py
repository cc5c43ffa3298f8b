"""Training a LoRA in place of the model: its adapters, its states and its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.adapters.lora import LoraNetwork, add_lora
from dreambooth_core.adapters.lora_file import lora_entries, write_lora
from dreambooth_core.adapters.targets import Size, layer_sizes
from dreambooth_core.checkpoint.file import WrittenFile
from dreambooth_core.checkpoint.stored import JoinedTensors, shapes_of
from dreambooth_core.config.lora import LoraSection
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.diffusion.noise import stream
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import FAMILIES, family_of, load_components
from dreambooth_core.families.base import Components, Weights
from dreambooth_core.families.loading import read_configs
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.disk import require_space
from dreambooth_core.stages.lora_sizes import adapter_sizes
from dreambooth_core.stages.model_shape import SAVED_DTYPES, weight_shapes
from dreambooth_core.stages.saved_states import read_intact

FIXED = ("enabled", "rank", "conv_rank", "text_encoder_rank", "dora")
"""What a training cannot go on with another value of."""


def add_adapters(
    lora: LoraSection, seed: int, components: Components, parts: Iterable[str]
) -> dict[str, LoraNetwork]:
    """Put new adapters into parts of a model, and return them by component."""
    return {
        part: _add_adapters(lora, seed, components, part)
        for part in components.modules()
        if part in set(parts)
    }


def require_same_adapters(config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Raise InputError if a state with these settings is of another kind of training."""
    plain = LoraSection()
    before = {name: settings.get("lora", {}).get(name, getattr(plain, name)) for name in FIXED}
    names = FIXED if config.lora.enabled and before["enabled"] else FIXED[:1]
    for name in names:
        now = getattr(config.lora, name)
        if before[name] != now:
            raise InputError(
                f"The training state was made with lora.{name} {before[name]!r}, and it is"
                f" {now!r} now, so the training cannot go on from it.",
                remedy=f"Set lora.{name} back, or start a new run without resume.",
                field=f"lora.{name}",
            )


def is_lora_state(state: Path) -> bool:
    """Return whether a training state is a LoRA's."""
    settings: Mapping[str, Any] = read_intact(state)["settings"]
    return bool(settings.get("lora", {}).get("enabled", False))


def load_with_adapters(
    folder: ModelFolder, lora: LoraSection, weights: Mapping[str, Weights]
) -> Components:
    """Load a model with the adapters of a LoRA in it, by component and name; ready to draw."""
    components = load_components(folder)
    networks = add_adapters(lora, 0, components, weights)
    for component, tensors in weights.items():
        put_adapter_weights(networks[component], tensors, component)
    for module in components.modules().values():
        module.requires_grad_(False)
        module.eval()
    return components


@torch.no_grad()
def put_adapter_weights(network: LoraNetwork, tensors: Weights, component: str) -> None:
    """Copy weights into adapters; raises CheckpointError if they do not fit."""
    parameters = dict(network.named_parameters())
    if shapes_of(tensors) != shapes_of(parameters):
        raise CheckpointError(
            f"The LoRA of {component} does not fit the model.",
            remedy="It belongs to another model, or has other ranks.",
        )
    for key, tensor in tensors.items():
        parameters[key].copy_(tensor)


def save_lora(
    folder: ModelFolder,
    path: Path,
    config: TrainConfig,
    weights: Mapping[str, Weights],
    metadata: Mapping[str, str],
) -> WrittenFile:
    """Write the LoRA of a training into a file for the WebUI, all or nothing.

    `weights` are the adapters' by component and name. Raises NonFiniteError naming a weight that
    is NaN or infinite.
    """
    tensors = JoinedTensors(weights.values())
    alphas = {
        name: size.alpha
        for component in weights
        for name, size in named_sizes(folder, config.lora, component).items()
    }
    entries = lora_entries(tensors, alphas, SAVED_DTYPES[config.saving.dtype])
    require_space(path.parent, sum(entry.size for entry in entries), "The LoRA")
    return write_lora(path, entries, metadata)


def named_sizes(folder: ModelFolder, lora: LoraSection, component: str) -> dict[str, Size]:
    """Return the size of each adapter of a component by its layer's name in LoRA files."""
    family = family_of(folder)
    config = read_configs(folder, family)[component]
    sizes = layer_sizes(component, weight_shapes(folder, component), adapter_sizes(lora, component))
    return {family.lora_name(component, path, config): size for path, size in sizes.items()}


def _add_adapters(
    lora: LoraSection, seed: int, components: Components, component: str
) -> LoraNetwork:
    family, network = FAMILIES[components.family], components.modules()[component]
    config: Any = network.config

    def name_of(path: str) -> str:
        return family.lora_name(component, path, config)

    sizes = adapter_sizes(lora, component)
    generator = stream(seed, f"lora {component}", 0)
    return add_lora(component, network, sizes, name_of, generator, dora=lora.dora)
