"""Adapters in the networks of a tiny model: where they are, how they begin, what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_core.adapters.lora import LoraNetwork, add_lora
from dreambooth_core.adapters.targets import (
    CONVOLUTION,
    LINEAR,
    Size,
    adaptable_layers,
    adapter_numbers,
    layer_sizes,
)
from dreambooth_core.errors import InputError
from dreambooth_core.families import load_components
from dreambooth_core.job.workspace import ModelFolder
from tests.lora_reference import changed_weight

BOTH = {LINEAR: Size(3, 1.5), CONVOLUTION: Size(2, 4.0)}


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights."""
    return {key: tuple(weight.shape) for key, weight in network.named_parameters()}


def add(
    network: nn.Module,
    sizes: Mapping[str, Size],
    component: str = "unet",
    *,
    dora: bool = False,
    seed: int = 0,
) -> LoraNetwork:
    """Put adapters in whose names are the layers' paths with underscores."""
    generator = torch.Generator().manual_seed(seed)
    name_of = lambda path: "x_" + path.replace(".", "_")  # noqa: E731
    return add_lora(component, network, sizes, name_of, generator, dora=dora)


def scramble(network: LoraNetwork) -> None:
    """Let the adapters do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            factor = 1 + 0.3 * drawn if key.endswith("dora_scale") else None
            parameter.copy_(parameter * factor if factor is not None else 0.3 * drawn)


def unet_output(unet: nn.Module, seed: int = 1) -> torch.Tensor:
    """What a UNet says to fixed noise."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    width = unet.config["cross_attention_dim"]
    hidden = torch.randn(2, 77, width, generator=generator)
    output: torch.Tensor = unet(latents, torch.tensor([3, 700]), hidden).sample
    return output


# -- where they are


def types_say(unet: nn.Module) -> dict[str, str]:
    """The kinds of the UNet's layers by the types of the modules around them."""
    kinds = {}
    for path, block in unet.named_modules():
        for name, layer in block.named_modules():
            between = isinstance(block, ResnetBlock2D | Downsample2D | Upsample2D)
            if isinstance(block, Transformer2DModel) and isinstance(layer, nn.Linear | nn.Conv2d):
                kinds[f"{path}.{name}"] = LINEAR
            if between and isinstance(layer, nn.Conv2d):
                kinds[f"{path}.{name}"] = CONVOLUTION
    return kinds


def test_names_and_shapes_tell_the_same_as_the_modules_types(
    tiny_model_folder: ModelFolder,
) -> None:
    components = load_components(tiny_model_folder)
    assert adaptable_layers("unet", shapes_of(components.unet)) == types_say(components.unet)
    linear = {
        path
        for path, layer in components.text_encoder.named_modules()
        if isinstance(layer, nn.Linear)
    }
    text = adaptable_layers("text_encoder", shapes_of(components.text_encoder))
    assert set(text) == linear and set(text.values()) == {LINEAR}


# The counts are those that sd-scripts prints for Stable Diffusion 1.5 and XL ("create LoRA for
# U-Net: 192 modules", "Text Encoder: 72 modules"; XL 722).
@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"cross_attention_dim": 768}, 192),
        (
            {
                "cross_attention_dim": 2048,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "use_linear_projection": True,
            },
            722,
        ),
    ],
    ids=["sd1", "sdxl"],
)
def test_a_full_size_unet_has_as_many_layers_as_other_trainers_adapt(
    config: dict[str, Any], count: int
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    assert list(adaptable_layers("unet", shapes_of(unet)).values()).count(LINEAR) == count


def test_a_full_size_text_encoder_too() -> None:
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12))
    assert len(adaptable_layers("text_encoder", shapes_of(text_encoder))) == 72


def test_only_the_kinds_that_have_a_size_get_adapters(tiny_model_folder: ModelFolder) -> None:
    unet = load_components(tiny_model_folder).unet
    kinds = adaptable_layers("unet", shapes_of(unet))
    linear = add(unet, {LINEAR: Size(2, 1.0)})
    assert set(linear) == {"x_" + p.replace(".", "_") for p, k in kinds.items() if k == LINEAR}
    injected = {path for path, module in unet.named_modules() if isinstance(module, LoraLayer)}
    assert injected == {path for path, kind in kinds.items() if kind == LINEAR}


def test_ranks_alphas_and_shapes_are_as_asked_for(tiny_model_folder: ModelFolder) -> None:
    unet = load_components(tiny_model_folder).unet
    shapes = shapes_of(unet)
    network = add(unet, BOTH, dora=True)
    parameters, alphas = dict(network.named_parameters()), network.alphas()
    sizes = layer_sizes("unet", shapes, BOTH)
    for path, size in sizes.items():
        name, (outputs, *inputs) = "x_" + path.replace(".", "_"), shapes[f"{path}.weight"]
        ones = [1] * (len(inputs) - 1)
        assert parameters[f"{name}.lora_down.weight"].shape == (size.rank, *inputs)
        assert parameters[f"{name}.lora_up.weight"].shape == (outputs, size.rank, *ones)
        assert parameters[f"{name}.dora_scale"].shape == (1, inputs[0], *ones)
        assert alphas[name] == size.alpha
    assert len(parameters) == 3 * len(sizes)
    numbers = sum(parameter.numel() for parameter in parameters.values())
    assert numbers == sum(adapter_numbers("unet", shapes, BOTH, dora=True))


def test_projections_of_one_pixel_stay_convolutions(tiny_model_folder: ModelFolder) -> None:
    network = add(load_components(tiny_model_folder).unet, BOTH)
    down = network["x_mid_block_attentions_0_proj_in"].lora_down.weight
    assert down.dim() == 4 and down.shape[2:] == (1, 1)


def test_a_network_without_such_layers_is_told() -> None:
    with pytest.raises(InputError, match="no layer"):
        add(nn.Linear(2, 2), BOTH)


# -- how they begin and what they compute


@pytest.mark.parametrize("dora", [False, True])
def test_new_adapters_change_nothing(tiny_model_folder: ModelFolder, dora: bool) -> None:
    unet = load_components(tiny_model_folder).unet
    before = unet_output(unet)
    add(unet, BOTH, dora=dora)
    assert torch.allclose(unet_output(unet), before, atol=1e-5)


def test_the_beginning_depends_on_the_generator_alone(tiny_model_folder: ModelFolder) -> None:
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(starts))
        network = add(load_components(tiny_model_folder).unet, BOTH, seed=seed)
        starts.append({key: p.detach() for key, p in network.named_parameters()})
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    downs = [key for key in starts[0] if "down.weight" in key]
    assert all(not torch.equal(starts[0][key], starts[2][key]) for key in downs)
    for key in downs:
        bound = starts[0][key][0].numel() ** -0.5
        assert 0.5 * bound < starts[0][key].abs().max() <= bound


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_compute_what_the_changed_weights_would(
    tiny_model_folder: ModelFolder, dora: bool
) -> None:
    adapted, plain = (load_components(tiny_model_folder).unet for _ in range(2))
    network = add(adapted, BOTH, dora=dora)
    scramble(network)
    tensors = {key: p.detach() for key, p in network.named_parameters()}
    tensors |= {f"{name}.alpha": torch.tensor(alpha) for name, alpha in network.alphas().items()}
    with torch.no_grad():
        for path, module in plain.named_modules():
            name = "x_" + path.replace(".", "_")
            if name in network:
                module.weight.copy_(changed_weight(module.weight, tensors, name))
    before, after = unet_output(load_components(tiny_model_folder).unet), unet_output(adapted)
    assert (after - before).abs().max() > 0.1
    assert torch.allclose(after, unet_output(plain), atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_every_adapter_learns_and_no_base_weight_does(
    tiny_model_folder: ModelFolder, dora: bool
) -> None:
    unet = load_components(tiny_model_folder).unet
    unet.requires_grad_(False)
    network = add(unet, BOTH, dora=dora)
    scramble(network)
    network.requires_grad_(True)
    unet_output(unet).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    ours = {id(parameter) for parameter in network.parameters()}
    assert all(p.grad is None for p in unet.parameters() if id(p) not in ours)


def test_dora_is_computed_in_full_precision_under_autocast(tiny_model_folder: ModelFolder) -> None:
    unet = load_components(tiny_model_folder).unet
    exact = unet_output(unet)
    add(unet, BOTH, dora=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = unet_output(unet)
    assert (output - exact).abs().max() < 0.1
