"""Where a stage computes and in which number format."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from dreambooth_core.errors import InputError
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
