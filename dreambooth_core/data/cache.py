"""Encoded pictures, kept by content: an edited picture or another VAE is simply another key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreambooth_core.job import disk
from dreambooth_core.job.formats import LATENTS
from dreambooth_core.job.storage import atomic_write_bytes

LENGTH_BYTES = 8


class Latents(NamedTuple):
    """The posterior of one picture: mean and standard deviation, each (C,h,w) fp32, scaled."""

    mean: Tensor
    deviation: Tensor


def latent_key(
    file_hash: str,
    size: tuple[int, int],
    flip: bool,
    crop: float,
    vae_hash: str,
    *,
    normalized: bool = False,
) -> str:
    """Return the key of what a file's bytes become at (width, height), flip, crop and VAE.

    And `normalized` to their own mean and deviation. Masks are no part of it: they weigh the loss,
    and the latents are those of the whole picture. The format's version is, so that what another
    version keeps is another file.
    """
    parts = [file_hash, f"{size[0]}x{size[1]}", f"flip{int(flip)}", f"crop{crop:.4f}", vae_hash]
    parts += ["normalized"] if normalized else []
    parts += [f"version{LATENTS.version}"] if LATENTS.version else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


Write = Callable[[Callable[[], None]], bool]
"""Does what writes a file, and says whether it is written."""


def written(write: Callable[[], None]) -> bool:
    """Write a file, or raise what stands in the way."""
    write()
    return True


class LatentCache:
    """Latents by key, in memory (folder None) or as one safetensors file per key.

    A file that is cut short or whose bytes do not match their checksum is not used: it counts as
    absent, is listed in `damaged` and is written anew by the next `put`.
    """

    def __init__(self, folder: Path | None = None, write: Write = written) -> None:
        """Use `folder`, which is made when first needed, or memory.

        `write` is told how to write each file; what it says is not written is kept in memory.
        """
        self.folder = folder
        self._write = write
        self.damaged: list[Path] = []
        self._memory: dict[str, Latents] = {}

    def get(self, key: str) -> Latents | None:
        """Return what is stored under `key`, or None if nothing usable is."""
        if self.folder is None or key in self._memory:
            return self._memory.get(key)
        path = self._path(key)
        if not path.is_file():
            return None
        latents = _read(path)
        if latents is None and path not in self.damaged:
            self.damaged.append(path)
        return latents

    def put(self, key: str, mean: Tensor, deviation: Tensor) -> None:
        """Store mean and deviation, each (C,h,w), as fp32 on the CPU."""
        latents = Latents(
            *(t.detach().to("cpu", torch.float32, copy=True) for t in (mean, deviation))
        )
        if self.folder is None:
            self._memory[key] = latents
            return
        data = save(latents._asdict(), metadata={"sha256": _checksum(latents)})
        if not self._write(lambda: atomic_write_bytes(self._path(key), data)):
            self._memory[key] = latents

    def _path(self, key: str) -> Path:
        if self.folder is None:
            raise ValueError("a cache in memory has no files")
        return self.folder / f"{key}.safetensors"


def _checksum(latents: Latents) -> str:
    digest = hashlib.sha256()
    for tensor in latents:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Latents | None:
    """Return the latents of a file, or None if it is damaged."""
    try:
        data = disk.read(path)
        tensors = load(data)
        latents = Latents(tensors["mean"], tensors["deviation"])
    except (SafetensorError, OSError, KeyError):
        return None
    return latents if _told_checksum(data) == _checksum(latents) else None


def _told_checksum(data: bytes) -> str:
    """Return the checksum in the header of a file that was read without fault."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
    return str(header.get("__metadata__", {}).get("sha256", ""))
