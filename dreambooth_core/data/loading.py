"""From samples to tensors: encode once, then batches of latents, prompts and weights.

Shapes: B examples, C latent channels, h w latent, H W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.config.sections.images import NO_MASKS
from dreambooth_core.data.cache import LatentCache, Latents, latent_key
from dreambooth_core.data.dataset import MicroBatch, Sample
from dreambooth_core.data.images import fit_to_bucket, normalized
from dreambooth_core.data.loss_masks import fit_mask, open_mask
from dreambooth_core.data.pictures import open_image, told_sizes
from dreambooth_core.errors import InputError, NonFiniteError

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels (B,3,H,W) in -1..1 to latent mean and standard deviation, each (B,C,h,w), scaled."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch as tensors on the CPU."""

    latents_mean: Tensor  # (B,C,h,w)
    latents_deviation: Tensor  # (B,C,h,w)
    prompts: list[str]
    weights: Tensor  # (B,)
    is_class: Tensor  # (B,) bool
    sizes: Tensor  # (B,6): what `told_sizes` says of each picture
    pixels: Tensor | None = None  # (B,3,H,W) in -1..1, where they are asked for
    masks: Tensor | None = None  # (B,1,h,w) in 0..1: what the loss looks at, where it is masked

    def latents(self, generator: torch.Generator) -> Tensor:
        """Return a draw from each picture's posterior, mean + deviation * N(0, 1), (B,C,h,w)."""
        mean = self.latents_mean.to(generator.device)
        draw = torch.randn(mean.shape, generator=generator, device=generator.device)
        return mean + self.latents_deviation.to(generator.device) * draw


class LatentSource:
    """Encodes pictures through `encode` the first time and serves them from the cache after."""

    def __init__(
        self,
        cache: LatentCache,
        encode: Encode,
        vae_hash: str,
        *,
        with_pixels: bool = False,
        normalize: bool = False,
        masks: str = NO_MASKS,
    ) -> None:
        """Keep the cache, the encoder and the hash of the VAE that the encoder uses.

        `with_pixels` gives the pictures themselves with every batch, read anew each time.
        `normalize` is the setting of dynamic normalization, and `masks` where masks come from.
        """
        self.cache = cache
        self.with_pixels = with_pixels
        self.normalize = normalize
        self.masks = masks
        self._masks: dict[tuple[Path, str], Tensor] = {}
        self._encode = encode
        self._vae_hash = vae_hash

    def fill(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Encode what the cache lacks of `samples` and return how many that were.

        `on_progress(done, total)` counts all samples. Samples of one bucket are encoded
        `batch_size` at a time. The last bits depend on that number, so a batch that lacks one is
        encoded whole: it does not matter where an earlier run was ended. Once all of
        `TrainingSet.variants()` are in, the encoder is no longer needed.
        """
        batches = _batches(samples, batch_size)
        lacking = [[s for s in batch if self.cache.get(self._key(s)) is None] for batch in batches]
        done = len(samples) - sum(map(len, lacking))
        encoded = 0
        for batch, new in zip(batches, lacking, strict=True):
            if new:
                self._encode_samples(batch, new)
                encoded += len(new)
                if on_progress is not None:
                    on_progress(done + encoded, len(samples))
        if self.masks != NO_MASKS:
            for sample in samples:
                self.mask(sample)
        return encoded

    def latents(self, sample: Sample) -> Latents:
        """Return the latents of one sample, encoding it if the cache lacks it."""
        key = self._key(sample)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        return self._encode_samples([sample], [sample])[0]

    def batch(self, micro_batch: MicroBatch) -> Batch:
        """Return a micro-batch as tensors."""
        samples, masked = micro_batch.samples, self.masks != NO_MASKS
        latents = [self.latents(sample) for sample in samples]
        return Batch(
            latents_mean=torch.stack([one.mean for one in latents]),
            latents_deviation=torch.stack([one.deviation for one in latents]),
            prompts=[sample.prompt for sample in samples],
            weights=torch.tensor([sample.example.weight for sample in samples]),
            is_class=torch.tensor([sample.example.is_class for sample in samples]),
            sizes=torch.tensor([_sizes(sample) for sample in samples], dtype=torch.float32),
            pixels=torch.stack([*map(self._pixels, samples)]) if self.with_pixels else None,
            masks=torch.stack([*map(self.mask, samples)]) if masked else None,
        )

    def mask(self, sample: Sample) -> Tensor:
        """Return what of a sample the loss looks at, (1,h,w); ones where it has no mask."""
        key = (sample.example.path, self._key(sample))  # twins may have masks of their own
        if key not in self._masks:
            height, width = self.latents(sample).mean.shape[1:]
            self._masks[key] = self._read_mask(sample, (width, height))
        return self._masks[key]

    def _read_mask(self, sample: Sample, latents: tuple[int, int]) -> Tensor:
        """Return a sample's mask (1,h,w), read from its file; `latents` is (w, h)."""
        example = sample.example
        image = open_mask(example.path, self.masks) if example.masked else None
        if image is None:
            return torch.ones(1, latents[1], latents[0])
        mask = fit_mask(image, example.bucket, latents, sample.crop, flip=sample.flip)
        if not bool(mask.any()):
            raise InputError(
                f"The mask of {example.path} leaves nothing of it where it is cropped.",
                remedy="Correct or remove the mask, or choose another images.crop.",
                field="images.masks",
            )
        return mask

    def _encode_samples(self, samples: Sequence[Sample], new: Sequence[Sample]) -> list[Latents]:
        """Return the latents of a batch, of which the `new` ones go into the cache."""
        pixels = torch.stack([self._pixels(sample) for sample in samples])  # (B,3,H,W)
        with torch.no_grad():
            mean, deviation = (t.float().cpu() for t in self._encode(pixels))
        latents = [Latents(*pair) for pair in zip(mean, deviation, strict=True)]
        for sample, one in zip(samples, latents, strict=True):
            if not bool(one.mean.isfinite().all() and one.deviation.isfinite().all()):
                raise NonFiniteError(
                    f"The VAE turned {sample.example.path} into values that are not finite.",
                    remedy="Use a model with an intact VAE.",
                )
            if sample in new:
                self.cache.put(self._key(sample), one.mean, one.deviation)
        return latents

    def _key(self, sample: Sample) -> str:
        example = sample.example
        return latent_key(
            example.file_hash,
            example.bucket,
            sample.flip,
            sample.crop,
            self._vae_hash,
            normalized=self.normalize,
        )

    def _pixels(self, sample: Sample) -> Tensor:
        image, bucket = open_image(sample.example.path), sample.example.bucket
        pixels = fit_to_bucket(image, bucket, sample.crop, flip=sample.flip)
        return normalized(pixels) if self.normalize else pixels


def _batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Return samples of one bucket `batch_size` at a time."""
    members: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.example.bucket].append(sample)
    return [
        group[start : start + batch_size]
        for group in members.values()
        for start in range(0, len(group), batch_size)
    ]


def _sizes(sample: Sample) -> tuple[int, ...]:
    example = sample.example
    source = example.source_size if all(example.source_size) else example.bucket
    return told_sizes(source, example.bucket, sample.crop, flip=sample.flip)
