"""Model families: which one a file belongs to, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.checkpoint.recognise import unsupported
from dreambooth_core.errors import UnsupportedFamilyError
from dreambooth_core.families.base import Components, Family, Weights
from dreambooth_core.families.loading import load_file, load_folder
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.families.sd2 import StableDiffusion2
from dreambooth_core.families.sdxl import StableDiffusionXL
from dreambooth_core.job.workspace import ModelFolder

FAMILIES: dict[str, Family] = {
    family.name: family for family in (StableDiffusion1(), StableDiffusion2(), StableDiffusionXL())
}


def detect(header: Header) -> Family:
    """Return the family of a file; raises UnsupportedFamilyError saying what the file is."""
    for family in FAMILIES.values():
        if family.matches(header):
            return family
    raise unsupported(header)


def family_of(folder: ModelFolder) -> Family:
    """Return the family of a created model."""
    name = folder.read_info().family
    if name not in FAMILIES:
        raise UnsupportedFamilyError(
            f"The model {folder.name} is of the family {name!r}, which this version does not know.",
            remedy="Use the version that created it.",
        )
    return FAMILIES[name]


def load_components(
    folder: ModelFolder,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Weights] | None = None,
) -> Components:
    """Load a created model, with `weights` (component, then name) in place of the base's."""
    return load_folder(family_of(folder), folder, dtype, weights or {})


def load_checkpoint(
    path: Path, folder: ModelFolder, dtype: torch.dtype = torch.float32
) -> Components:
    """Load a single file into networks of the form of a created model's.

    Raises CheckpointError if the file does not fit them.
    """
    return load_file(family_of(folder), folder, path, dtype)
