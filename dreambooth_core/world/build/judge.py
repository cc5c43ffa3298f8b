"""Trains the judge on drawn pictures, damaged in many ways, and on their reconstructions.

Shapes: B pictures, H W pixels, C latent channels, h w latents.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dreambooth_core.world.judge import SIDE, ColorCells, JudgeNetwork, reduce_pixels, to_pixels
from dreambooth_core.world.palette import ALL_COLORS, ATTRIBUTES, PEOPLE
from dreambooth_core.world.pictures import Scene, render, sample_scene

UNSEEN = -100
"""The class of an attribute that the scene does not have, which cross entropy leaves out."""

BATCH = 32
RECONSTRUCTED_SHARE = 0.4
_COLORED = ("color", "hat_color", "legs_color", "second", "collar")


def varied_scene(rng: random.Random) -> Scene:
    """Draw a scene; in every second one all colours are equally likely, unnamed ones too."""
    scene = sample_scene(rng)
    if rng.random() < 0.5:
        return scene
    parts = dict(scene.parts)
    for name in _COLORED:
        if parts.get(name, "none") != "none":
            taken = parts["color"] if name in ("second", "collar") else ""
            parts[name] = rng.choice([color for color in ALL_COLORS if color != taken])
    return Scene(parts, scene.shift, scene.scale, scene.mirrored, scene.seed)


def visible(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes that can be seen: no colour of a hat or pattern that is not there."""
    shown = dict(parts)
    if parts.get("hat") == "none":
        del shown["hat_color"]
    if parts.get("pattern") == "plain":
        del shown["second"]
    if parts["kind"] in PEOPLE and parts["kind"] != "man":
        shown.pop("beard", None)
    return shown


def labels(scenes: Sequence[Scene]) -> Tensor:
    """Return the class of each visible attribute (B, attributes), UNSEEN for the others."""
    shown = [visible(scene.parts) for scene in scenes]
    rows = [
        [values.index(one[name]) if name in one else UNSEEN for name, values in ATTRIBUTES.items()]
        for one in shown
    ]
    return torch.tensor(rows)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Return the picture after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def drawn(scenes: Sequence[Scene], rng: random.Random) -> Tensor:
    """Render scenes at the judge's size, some after JPEG compression: uint8 (B, 3, 64, 64)."""
    rows = []
    for scene in scenes:
        if rng.random() < 0.25:
            pixels = to_pixels([compressed(render(scene), rng.randint(20, 90))])
            rows.append(reduce_pixels(pixels)[0])
        else:
            rows.append(to_pixels([render(scene, SIDE)])[0])
    return (torch.stack(rows) * 255).round().to(torch.uint8)


@torch.no_grad()
def reconstructed(vae: Any, scenes: Sequence[Scene], generator: torch.Generator) -> Tensor:
    """Return scenes through the VAE at the judge's size, uint8 (B, 3, 64, 64).

    Two thirds get noise of 0.03 to 0.2 of the latents' deviation, which is how sampled latents err.
    """
    latents = vae.encode(to_pixels([render(scene) for scene in scenes]) * 2 - 1).latent_dist.mean
    sigma = 0.03 + 0.17 * torch.rand((len(scenes), 1, 1, 1), generator=generator)
    sigma *= torch.rand((len(scenes), 1, 1, 1), generator=generator) < 2 / 3
    noise = torch.randn(latents.shape, generator=generator) * latents.std((0, 2, 3), keepdim=True)
    pixels = vae.decode(latents + sigma * noise, return_dict=False)[0] / 2 + 0.5
    return (reduce_pixels(pixels.clamp(0, 1)) * 255).round().to(torch.uint8)


def _blurred(pixels: Tensor, rng: random.Random) -> Tensor:
    sigma = rng.uniform(0.3, 1.6)
    taps = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    kernel = (taps / taps.sum()).expand(3, 1, 1, 9)
    padded = F.pad(pixels, (4, 4, 4, 4), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3)


def _coarse(pixels: Tensor, rng: random.Random) -> Tensor:
    side = rng.randint(24, 56)
    small = F.interpolate(pixels, size=(side, side), mode="area")
    return F.interpolate(small, size=pixels.shape[2:], mode="bilinear")


def _noisy(pixels: Tensor, rng: random.Random) -> Tensor:
    side = rng.choice((8, 16, 32, SIDE))
    noise = torch.randn((len(pixels), 3, side, side)) * rng.uniform(0.01, 0.07)
    return pixels + F.interpolate(noise, size=pixels.shape[2:], mode="bilinear")


def _recolored(pixels: Tensor, rng: random.Random) -> Tensor:
    count = len(pixels)
    contrast = 0.85 + 0.3 * torch.rand(count, 1, 1, 1)
    gain = 0.95 + 0.1 * torch.rand(count, 3, 1, 1)
    shift = 0.12 * torch.rand(count, 1, 1, 1) - 0.06
    return (pixels - 0.5) * contrast * gain + 0.5 + shift


def _moved(pixels: Tensor, rng: random.Random) -> Tensor:
    """Shift and warp: every point moves by a few pixels, neighbours nearly alike."""
    count = len(pixels)
    shift = (torch.rand(count, 2, 1, 1) - 0.5) * 0.16
    waves = F.interpolate(torch.randn(count, 2, 5, 5) * 0.02, size=(SIDE, SIDE), mode="bicubic")
    identity = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pixels.shape), False)
    grid = identity + (shift + waves).permute(0, 2, 3, 1)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


DAMAGES: tuple[tuple[float, Callable[[Tensor, random.Random], Tensor]], ...] = (
    (0.5, _moved),
    (0.35, _blurred),
    (0.35, _coarse),
    (0.6, _recolored),
    (0.4, _noisy),
)


def damaged(pixels: Tensor, rng: random.Random) -> Tensor:
    """Return pixels (B, 3, 64, 64) with chance damages, the same kinds for groups of eight."""
    groups = []
    for group in pixels.split(8):
        for chance, damage in DAMAGES:
            if rng.random() < chance:
                group = damage(group, rng)
        groups.append(group.clamp(0, 1))
    return torch.cat(groups)


def loss_of(logits: Mapping[str, Tensor], classes: Tensor) -> Tensor:
    """Return the cross entropy summed over attributes, each averaged where it is visible."""
    losses = []
    for column, name in enumerate(ATTRIBUTES):
        wanted = classes[:, column]
        if bool((wanted != UNSEEN).any()):
            losses.append(F.cross_entropy(logits[name], wanted, label_smoothing=0.02))
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 (B, 3, 64, 64) and the classes of their attributes (B, attributes)."""

    pixels: Tensor
    classes: Tensor


@dataclass(frozen=True)
class CellPool:
    """The colour cells of pictures, uint8 (B, channels, 16, 16), and their classes."""

    cells: Tensor
    classes: Tensor

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw some by chance: cells in 0..1 and classes."""
        chosen = torch.randint(len(self.cells), (count,))
        return self.cells[chosen].float() / 255, self.classes[chosen]


def cell_pool(pool: Pool, rng: random.Random, times: int = 1) -> CellPool:
    """Damage every picture `times` times and keep the cells: far cheaper than in every step."""
    cells = ColorCells()
    kept = [
        (cells(damaged(pixels.float() / 255, rng)) * 255).round().to(torch.uint8)
        for _ in range(times)
        for pixels in pool.pixels.split(8)
    ]
    return CellPool(torch.cat(kept), pool.classes.repeat(times, 1))


def train(
    network: JudgeNetwork,
    pools: Mapping[str, CellPool],
    steps: int,
    on_step: Callable[[int, float], None],
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> None:
    """Train on the pools `drawn` and `reconstructed` with a cosine schedule, in place."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    many = round(BATCH * RECONSTRUCTED_SHARE)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in range(steps):
        rate = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50) * max(rate, 0.01)
        parts = [pools["drawn"].pick(BATCH - many), pools["reconstructed"].pick(many)]
        cells = torch.cat([cells for cells, _ in parts])
        classes = torch.cat([classes for _, classes in parts])
        _, logits = network.read_cells(cells.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits, classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        on_step(step + 1, loss.item())
    network.eval()


@torch.no_grad()
def accuracy(network: JudgeNetwork, pool: Pool) -> dict[str, float]:
    """Return the share of visible attributes read right, by attribute."""
    parts = [network(pixels.float() / 255)[1] for pixels in pool.pixels.split(BATCH)]
    shares = {}
    for column, name in enumerate(ATTRIBUTES):
        read = torch.cat([part[name].argmax(1) for part in parts])
        wanted = pool.classes[:, column]
        known = wanted != UNSEEN
        shares[name] = float((read == wanted)[known].float().mean())
    return shares


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they are shipped: fp16."""
    return {name: np_safe(weight).half().contiguous() for name, weight in weights.items()}


def np_safe(weight: Tensor) -> Tensor:
    """Return a detached copy; raises ValueError for a value that fp16 cannot hold."""
    if not bool(np.isfinite(weight.detach().half().numpy()).all()):
        raise ValueError("a weight of the judge does not fit into fp16")
    return weight.detach()
