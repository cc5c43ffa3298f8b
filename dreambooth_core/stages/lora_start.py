"""A LoRA's training that begins from a LoRA file, and a model with such a file put into it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dreambooth_core.adapters.lora_file import layer_tensors, read_lora
from dreambooth_core.adapters.targets import CONVOLUTION, LINEAR, WEIGHT, adaptable_layers
from dreambooth_core.adapters.weights import LowRank, applied
from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import CheckpointError, InputError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice
from dreambooth_core.stages.lora_sizes import adapter_sizes

UNET = "unet"
ALPHA_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Start:
    """The layers of a LoRA file by name; none where a training begins with an empty LoRA."""

    layers: Mapping[str, LowRank]
    path: Path | None = None


class Place(NamedTuple):
    """Where a LoRA's layer belongs: the network, its path there and the kind of layer."""

    component: str
    path: str
    kind: str


def lora_to_start_from(config: TrainConfig, context: RunContext, components: Components) -> Start:
    """Return the LoRA that a training begins with; raises InputError for one of another form.

    Layers that the file lacks begin anew, which is told.
    """
    if not (config.lora.enabled and config.lora.start_from.strip()):
        return Start({})
    path = context.workspace.find_lora(config.lora.start_from)
    layers, places = _read(path), lora_places(components)
    strangers = [name for name in layers if name not in places]
    if strangers:
        raise _misfit(
            f"{path} has a layer that this model lacks: {strangers[0]}.",
            f"Give a LoRA for {FAMILIES[components.family].label}.",
        )
    # A text encoder's layers may have the UNet's rank, so that of the UNet is judged first.
    for name in sorted(layers, key=lambda name: places[name].component != UNET):
        _require_same_form(config, layers[name], places[name], path)
    parts = {places[name].component for name in layers}
    lacking = _to_learn(config, places) - layers.keys()
    words = f"The training begins with {path.name}: {len(layers)} layers of {', '.join(parts)}."
    more = f" {len(lacking)} layers that it lacks begin anew." if lacking else ""
    context.emit(Notice("info", words + more))
    return Start(layers, path)


@torch.no_grad()
def begin_with(start: Start, parts: Mapping[str, nn.Module]) -> None:
    """Copy a LoRA's layers into new adapters, by component; raises CheckpointError on a misfit."""
    tensors = layer_tensors(start.layers)
    for part in parts.values():
        for key, parameter in part.named_parameters():
            if key not in tensors:
                continue
            if tensors[key].numel() != parameter.numel():
                raise CheckpointError(
                    f"{start.path} is for a model of another size: {key} has the shape"
                    f" {list(tensors[key].shape)}, and here it is {list(parameter.shape)}.",
                    remedy="Give a LoRA that was trained on a model of this form.",
                )
            parameter.copy_(tensors[key].reshape(parameter.shape))


@torch.no_grad()
def put_in(components: Components, path: Path, strength: float = 1.0) -> None:
    """Change a model's weights as a LoRA file does; raises CheckpointError if nothing of it fits.

    As in the WebUI, layers that the model lacks do nothing.
    """
    layers, places = _read(path), dict(_weights(components))
    found = [name for name in layers if name in places]
    if not found:
        raise CheckpointError(
            f"{path} fits no layer of the model: it names {next(iter(layers))}, for instance.",
            remedy=f"Give a LoRA for {FAMILIES[components.family].label}.",
        )
    for name in found:
        weight = places[name]
        weight.copy_(applied(weight.float(), layers[name], strength))


def lora_places(components: Components) -> dict[str, Place]:
    """Return every layer that can carry an adapter, by its name in LoRA files."""
    family, places = FAMILIES[components.family], {}
    for component in (UNET, *components.text_encoders()):
        network = components.modules()[component]
        config: Any = network.config
        shapes = {key: tuple(p.shape) for key, p in network.named_parameters()}
        for path, kind in adaptable_layers(component, shapes).items():
            name = family.lora_name(component, path, config)
            places[name] = Place(component, path, kind)
    return places


def _read(path: Path) -> dict[str, LowRank]:
    with CheckpointReader(path) as reader:
        return read_lora(reader)


def _weights(components: Components) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights of layers by the layers' names in LoRA files."""
    family = FAMILIES[components.family]
    for component in (UNET, *components.text_encoders()):
        network = components.modules()[component]
        config: Any = network.config
        for key, weight in network.named_parameters():
            if key.endswith(WEIGHT) and weight.dim() > 1:
                path = key.removesuffix(WEIGHT)
                yield family.lora_name(component, path, config), weight


def _require_same_form(config: TrainConfig, layer: LowRank, place: Place, path: Path) -> None:
    """Raise InputError naming the setting that the file is at odds with."""
    lora = config.lora
    _require_learning(config, place, path)
    rank_name, alpha_name = _setting_names(place)
    size = adapter_sizes(lora, place.component).get(place.kind)
    if size is None or layer.rank != size.rank:
        rank = "none" if size is None else f"rank {size.rank}"
        raise _misfit(
            f"{path} has rank {layer.rank} where this training has {rank} ({place.path}).",
            f"Set lora.{rank_name} to {layer.rank} and lora.{alpha_name} to {layer.alpha:g}.",
            f"lora.{rank_name}",
        )
    if not math.isclose(layer.alpha, size.alpha, rel_tol=ALPHA_TOLERANCE):
        raise _misfit(
            f"{path} has alpha {layer.alpha:g} where this training has {size.alpha:g}"
            f" ({place.path}).",
            f"Set lora.{alpha_name} to {layer.alpha:g}.",
            f"lora.{alpha_name}",
        )
    if (layer.dora_scale is not None) != lora.dora:
        kind, turn = ("no DoRA", "off") if lora.dora else ("a DoRA", "on")
        raise _misfit(f"{path} is {kind}.", f"Switch lora.dora {turn}.", "lora.dora")


def _require_learning(config: TrainConfig, place: Place, path: Path) -> None:
    """Raise InputError if a part of the file would be lost, as it does not learn here."""
    if _learns(config, place.component):
        return
    name, remedy = "the text encoder", "Raise text_encoder.train_ratio."
    if place.component == UNET:
        name, remedy = "the UNet", "Switch on unet.train."
    raise _misfit(f"{path} has layers of {name}, which this training leaves alone.", remedy)


def _to_learn(config: TrainConfig, places: Mapping[str, Place]) -> set[str]:
    """Return the layers that get an adapter in this training."""
    return {
        name
        for name, (component, _, kind) in places.items()
        if _learns(config, component) and kind in adapter_sizes(config.lora, component)
    }


def _learns(config: TrainConfig, component: str) -> bool:
    return config.unet.train if component == UNET else config.text_encoder.train_ratio > 0


def _setting_names(place: Place) -> tuple[str, str]:
    """Return which settings say the rank and the alpha of a layer."""
    if place.component != UNET:
        return "text_encoder_rank", "text_encoder_alpha"
    return {LINEAR: ("rank", "alpha"), CONVOLUTION: ("conv_rank", "conv_alpha")}[place.kind]


def _misfit(message: str, remedy: str, field: str = "lora.start_from") -> InputError:
    return InputError(message, remedy=remedy, field=field)
