"""Where a stage computes and in which number format."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from dreambooth_core.config.schema import PrecisionSection
from dreambooth_core.errors import ConfigError, InputError, Problem
from dreambooth_core.families.base import Components

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is here; raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise InputError(
            f"There is no device called {name!r}.",
            remedy="Use auto, cpu, cuda or cuda:0, cuda:1, ...",
            field="precision.device",
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= found:
        raise InputError(
            f"The device {name} was asked for, but torch sees {found} CUDA devices.",
            remedy="Use auto or cpu, or install a torch that was built for your GPU.",
            field="precision.device",
        )
    return torch.device(name)


def require_support(settings: PrecisionSection, device: torch.device) -> None:
    """Raise ConfigError with all of the settings that this machine cannot do, and why."""
    problems = [*_check_formats(settings, device), *_check_attention(settings, device)]
    if problems:
        raise ConfigError(problems)


def _check_formats(settings: PrecisionSection, device: torch.device) -> Iterator[Problem]:
    on_gpu, precision = device.type == "cuda", settings.mixed_precision
    if precision == "fp16" and not on_gpu:
        problem = f"is fp16, but training runs on the {device.type} here."
        yield Problem("precision.mixed_precision", problem, "Choose no or bf16.")
    if precision == "bf16" and on_gpu and not _has_ampere(device):
        problem = f"is bf16, which {torch.cuda.get_device_name(device)} does not have."
        yield Problem("precision.mixed_precision", problem, "Choose fp16 or no.")
    if settings.tf32 and not (on_gpu and _has_ampere(device)):
        name = torch.cuda.get_device_name(device) if on_gpu else f"the {device.type}"
        problem = f"is on, but {name} has no TF32: it takes an NVIDIA GPU of 2020 or later."
        yield Problem("precision.tf32", problem, "Switch it off.")


def _check_attention(settings: PrecisionSection, device: torch.device) -> Iterator[Problem]:
    if settings.attention != "xformers":
        return
    if device.type != "cuda":
        problem = f"is xformers, which needs a GPU; training runs on the {device.type} here."
        yield Problem("precision.attention", problem, "Choose default or sliced.")
    elif importlib.util.find_spec("xformers") is None:
        problem = "is xformers, but that package is not installed."
        remedy = "Choose default, which is as fast, or install the xformers that fits your torch."
        yield Problem("precision.attention", problem, remedy)


def _has_ampere(device: torch.device) -> bool:
    """Return whether the GPU computes in bf16 and TF32 (compute capability 8.0)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def apply_precision(settings: PrecisionSection, components: Components) -> None:
    """Bring a model as it was loaded into the settings' number format and kind of attention.

    The VAE stays in fp32, as SDXL's overflows in 16 bits.
    """
    if settings.weights == "bf16":
        for network in (components.unet, *components.text_encoders().values()):
            network.to(torch.bfloat16)
    if settings.attention == "xformers":
        components.unet.enable_xformers_memory_efficient_attention()
    elif settings.attention == "sliced":
        components.unet.set_attention_slice("auto")
    torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")


def place(components: Components, device: torch.device) -> None:
    """Move every module of a model to `device`."""
    for module in components.modules().values():
        module.to(device)


def autocast(components: Components, mixed_precision: str) -> AbstractContextManager[object]:
    """Return the context in which forward passes compute in 16 bits, or one that does nothing."""
    if mixed_precision == "no":
        return nullcontext()
    device = next(components.unet.parameters()).device
    return torch.autocast(device.type, dtype=_AUTOCAST_DTYPES[mixed_precision])
