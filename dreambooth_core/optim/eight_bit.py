"""bitsandbytes, which the 8-bit optimizers are of: whether it can be used here, tried for real."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import ConfigError, OverlayError, Problem

PACKAGE = "bitsandbytes"
CLASSES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion_8bit": "Lion8bit",
    "paged_lion_8bit": "PagedLion8bit",
}
ALIKE = {"adamw_8bit": "adamw", "lion_8bit": "lion"}
"""What computes the same with a memory of 32 bits; for the paged ones too."""

FIELD = "optimizer.name"
TRIED_SHAPE = (64, 64)
"""The fewest numbers of which the memory is kept in 8 bits."""


def why_not(device: torch.device) -> str:
    """Return why no 8-bit optimizer can run on a device; "" if nothing is known against it."""
    if device.type == "cuda" and torch.version.cuda:
        return ""
    return f"needs an NVIDIA GPU, and training runs on the {device.type} here"


def load() -> Any:
    """Return bitsandbytes, which is kept from all other packages; raises what its import raises.

    The worker hides it, as a broken one would break the import of diffusers.
    """
    if sys.modules.get(PACKAGE, torch) is None:
        del sys.modules[PACKAGE]
    return importlib.import_module(PACKAGE)


def require_eight_bit(name: str, device: torch.device) -> None:
    """Raise ConfigError if this 8-bit optimizer cannot make a step on the device."""
    remedy = f"Choose {ALIKE[name.removeprefix('paged_')]}."
    reason = why_not(device)
    if reason:
        raise ConfigError([Problem(FIELD, f"is {name}, which {reason}.", remedy)])
    try:
        try_step(name, device)
    except ModuleNotFoundError as error:
        problem = (
            f"is {name}, which needs the package {error.name or PACKAGE}; it is not installed."
        )
        found = f"{remedy} Or start the training from the page, which installs it,"
        found += " or install requirements/eight-bit.txt into this Python yourself."
        raise ConfigError([Problem(FIELD, problem, found)]) from error
    except (ImportError, OSError, RuntimeError, AttributeError, NameError, ValueError) as error:
        problem = f"is {name}, but bitsandbytes does not work here: {type(error).__name__}: {error}"
        raise ConfigError([Problem(FIELD, problem, remedy)]) from error


def try_step(name: str, device: torch.device) -> None:
    """Make one step of an optimizer and look whether it is right; raises RuntimeError if not."""
    weight = torch.nn.Parameter(torch.ones(TRIED_SHAPE, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = getattr(load().optim, CLASSES[name])([weight], lr=0.5, weight_decay=0.0)
    optimizer.step()
    moved_to = float(weight.detach().mean())
    if abs(moved_to - 0.5) > 0.05:
        raise RuntimeError(f"a step from 1 led to {moved_to:.3g} instead of 0.5")


def self_test(folder: Path) -> None:
    """Raise OverlayError unless bitsandbytes is taken from `folder` and all optimizers step."""
    origin = Path(load().__file__ or "").resolve()
    if folder.resolve() not in origin.parents:
        raise OverlayError(f"{PACKAGE} is taken from {origin} and not from {folder}.")
    for name in CLASSES:
        require_eight_bit(name, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
