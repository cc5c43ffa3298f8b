"""From files to networks: each weight is read, cast and put in place before the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.checkpoint.stored import shapes_of
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families.base import Components, Config, Family, KeyPair, Weights
from dreambooth_core.families.noise_schedule import ZERO_SNR_KEY, ending_in_noise
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.workspace import ModelFolder

WEIGHTS_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
CONFIG_FILES = {"scheduler": "scheduler_config.json"}


def weights_file(folder: ModelFolder, component: str) -> Path:
    """Return where a component's weights lie."""
    return folder.component(component) / WEIGHTS_FILES[component]


def config_file(folder: ModelFolder, component: str) -> Path:
    """Return where a component's config lies."""
    return folder.component(component) / CONFIG_FILES.get(component, "config.json")


def read_configs(folder: ModelFolder, family: Family) -> dict[str, Config]:
    """Return the configs of a model's components; raises CheckpointError naming a bad file."""
    configs = {}
    for component in (*family.networks, "scheduler"):
        path = config_file(folder, component)
        try:
            configs[component] = plain_json.parse(disk.read(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}.", remedy="Create the model again."
            ) from error
    return configs


def load_folder(
    family: Family,
    folder: ModelFolder,
    dtype: torch.dtype,
    weights: Mapping[str, Weights],
) -> Components:
    """Load a created model, with `weights` in place of the base's where given."""
    configs = read_configs(folder, family)
    modules = {}
    for component in family.networks:
        overlay = weights.get(component, {})
        module = family.build(component, configs[component])
        _check_overlay(component, overlay, module)
        with CheckpointReader(weights_file(folder, component)) as reader:
            _fill(module, reader.read, dtype, overlay)
        modules[component] = module
    return _assemble(family, folder, modules, configs)


def load_file(family: Family, folder: ModelFolder, path: Path, dtype: torch.dtype) -> Components:
    """Load the weights of a single file into networks of the form of a created model's."""
    configs = read_configs(folder, family)
    modules = {}
    with CheckpointReader(path) as reader:
        if ZERO_SNR_KEY in reader.header.tensors:
            configs["scheduler"] = ending_in_noise(configs["scheduler"])
        pairs = family.key_map(reader.header, configs)
        for component in family.networks:
            module = family.build(component, configs[component])
            table = {pair.target: pair for pair in pairs if pair.component == component}
            _fill(module, partial(_from_file, reader, table), dtype, {})
            modules[component] = module
    return _assemble(family, folder, modules, configs)


def end_in_noise(components: Components) -> None:
    """Give a loaded model a noise schedule whose last step is pure noise."""
    schedule = ending_in_noise(components.noise_scheduler.config)
    schedule.pop("_use_default_values", None)  # diffusers would leave these as they were
    components.noise_scheduler = DDPMScheduler.from_config(schedule)


def _from_file(reader: CheckpointReader, table: Mapping[str, KeyPair], target: str) -> Tensor:
    return table[target].to_target(reader.read(table[target].source))


def _fill(
    module: torch.nn.Module,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    overlay: Weights,
) -> None:
    """Give every weight of a network on the meta device its memory and value."""
    state = {}
    for target, expected in module.state_dict().items():
        if target in overlay:
            state[target] = overlay[target].detach().to(dtype, copy=True)
        else:
            state[target] = read(target).to(dtype).reshape(expected.shape)
    module.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            _restore_buffer(module, name, buffer)
    module.eval()


def _restore_buffer(module: torch.nn.Module, name: str, buffer: torch.Tensor) -> None:
    """Give a buffer that no file holds its value: position ids are the only ones there are."""
    owner, _, leaf = name.rpartition(".")
    if leaf != "position_ids":
        raise RuntimeError(f"no value is known for the buffer {name}")
    positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
    module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)


def _check_overlay(component: str, overlay: Weights, module: torch.nn.Module) -> None:
    expected = shapes_of(module.state_dict())
    for key, shape in shapes_of(overlay).items():
        if expected.get(key) != shape:
            raise CheckpointError(
                f"The trained weight {key} of {component} does not fit the model.",
                remedy="The training state belongs to another model.",
            )


def _assemble(
    family: Family,
    folder: ModelFolder,
    modules: Mapping[str, torch.nn.Module],
    configs: Mapping[str, Config],
) -> Components:
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(folder.component(name), local_files_only=True)
        for name in family.tokenizers
    }
    return Components(
        family=family.name,
        noise_scheduler=DDPMScheduler.from_config(configs["scheduler"]),
        prediction_type=configs["scheduler"]["prediction_type"],
        **modules,
        **tokenizers,
    )
