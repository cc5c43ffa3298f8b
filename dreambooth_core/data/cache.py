"""Encoded pictures, kept by content: an edited picture or another VAE is simply another key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dreambooth_core.job.storage import atomic_file


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
    and the latents are those of the whole picture.
    """
    parts = [file_hash, f"{size[0]}x{size[1]}", f"flip{int(flip)}", f"crop{crop:.4f}", vae_hash]
    parts += ["normalized"] if normalized else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class LatentCache:
    """Latents by key, in memory (folder None) or as one safetensors file per key.

    A file that is cut short or whose bytes do not match their checksum is not used: it counts as
    absent, is listed in `damaged` and is written anew by the next `put`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, which is made when first needed, or memory."""
        self.folder = folder
        self.damaged: list[Path] = []
        self._memory: dict[str, Latents] = {}

    def get(self, key: str) -> Latents | None:
        """Return what is stored under `key`, or None if nothing usable is."""
        if self.folder is None:
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
        with atomic_file(self._path(key)) as temporary:
            temporary.write_bytes(data)

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
        opened: Any = safe_open(path, framework="pt")  # type: ignore[no-untyped-call]
        with opened as file:
            metadata = file.metadata() or {}
            latents = Latents(file.get_tensor("mean"), file.get_tensor("deviation"))
    except (SafetensorError, OSError):
        return None
    return latents if metadata.get("sha256") == _checksum(latents) else None
