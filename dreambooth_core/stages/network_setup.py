"""The networks of a training run: what of them learns, with what a saved state remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families.base import Components
from dreambooth_core.optim.spectral import SpectralNorms
from dreambooth_core.stages.learning_weights import learning_weights
from dreambooth_core.stages.lora_training import add_adapters
from dreambooth_core.stages.training_plan import TrainingPlan
from dreambooth_core.stages.training_state import Tensors, TrainingState


class SomeWeights(nn.Module):
    """Some of a network's weights, under the names that they have there; nothing is copied."""

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        """Show the weights of these names, in the network's order."""
        super().__init__()
        chosen = set(names)
        self._chosen = [(name, p) for name, p in network.named_parameters() if name in chosen]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights by name."""
        return ((f"{prefix}.{name}" if prefix else name, p) for name, p in self._chosen)


def prepare_networks(
    config: TrainConfig,
    components: Components,
    plan: TrainingPlan,
    state: TrainingState | None,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Put the saved weights in, mark what learns from here on, and return the trained parts.

    A part holds the weights that differ from the base's during this run or before it.
    """
    remembered = state.weights if state else {}
    networks = trained_networks(config, components, plan, state)
    parts, names = _parts_of(config, components, networks, remembered)
    for name, weights in remembered.items():
        _put_weights(parts[name], weights, name)
    learning = _what_learns(config, components, plan)
    for name, module in components.modules().items():
        module.requires_grad_(False)
        module.train(learning.get(name, False))
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            parameter.requires_grad_(learning[name] and key in names[name])
    if config.batch.gradient_checkpointing:
        _checkpoint_gradients(components, learning)
    for module in (components.unet, *components.text_encoders().values()):
        module.to(device)
    components.vae.to(device if components.paints_into_pictures() else "cpu")
    return parts


def _parts_of(
    config: TrainConfig,
    components: Components,
    networks: Mapping[str, nn.Module],
    remembered: Mapping[str, Tensors],
) -> tuple[dict[str, nn.Module], dict[str, set[str]]]:
    """Return the part of each network, and the names of the weights in it that are to learn."""
    if config.lora.enabled:
        adapters = dict(add_adapters(config.lora, config.seed, components, networks))
        return {**adapters}, {name: _names(adapter) for name, adapter in adapters.items()}
    names = {
        name: learning_weights(config, name, _names(network)) for name, network in networks.items()
    }
    parts: dict[str, nn.Module] = {
        name: SomeWeights(network, names[name] | {*remembered.get(name, {})})
        for name, network in networks.items()
    }
    return parts, names


def trained_networks(
    config: TrainConfig, components: Components, plan: TrainingPlan, state: TrainingState | None
) -> dict[str, nn.Module]:
    """Return the networks of which something differs from the base during this run or before."""
    encoders = dict.fromkeys(components.text_encoders(), plan.text_encoder_steps > 0)
    learn = {"unet": config.unet.train, **encoders}
    learnt = state.weights if state else {}
    modules = components.modules()
    return {name: modules[name] for name in learn if learn[name] or name in learnt}


def first_norms(config: TrainConfig, components: Components) -> SpectralNorms | None:
    """Return the spectral norms that the untrained UNet's learning layers are to keep, if any."""
    if not config.unet.freeze_spectral_norm:
        return None
    weights = _layer_weights(components.unet)
    names = learning_weights(config, "unet", weights)
    return SpectralNorms({name: weights[name] for name in weights if name in names})


def keep_norms(norms: SpectralNorms, unet: nn.Module) -> None:
    """Scale the UNet's layers back to their first spectral norms."""
    norms.restore(_layer_weights(unet))


def _layer_weights(network: nn.Module) -> Tensors:
    """Return the weights of the linear layers and convolutions by name."""
    return {
        f"{path}.weight": layer.weight
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def _what_learns(
    config: TrainConfig, components: Components, plan: TrainingPlan
) -> dict[str, bool]:
    encoders_learn = plan.start.step < plan.text_encoder_steps
    encoders = dict.fromkeys(components.text_encoders(), encoders_learn)
    return {"unet": config.unet.train, **encoders}


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def _checkpoint_gradients(components: Components, learning: Mapping[str, bool]) -> None:
    components.unet.enable_gradient_checkpointing()
    for name, encoder in components.text_encoders().items():
        if learning[name]:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})


@torch.no_grad()
def _put_weights(part: nn.Module, weights: Tensors, name: str) -> None:
    parameters = dict(part.named_parameters())
    for key, tensor in weights.items():
        if key not in parameters or parameters[key].shape != tensor.shape:
            raise CheckpointError(
                f"The training state's {name} is of another model than {name} in the model's"
                " folder.",
                remedy="Resume the model that the state was saved from, or start a new run.",
            )
        parameters[key].copy_(tensor)
