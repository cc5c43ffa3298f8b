"""The latents of a training set: every picture goes through the VAE once, before the first step."""

from __future__ import annotations

from functools import partial

import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.cache import LatentCache
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.data.loading import LatentSource
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseProgress, PhaseStarted
from dreambooth_core.stages.full_disk import Room
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.training_pictures import remarks

PHASE = "caching latents"
LATENTS = "A picture's latents"


def cache_latents(
    config: TrainConfig,
    context: RunContext,
    components: Components,
    training_set: TrainingSet,
    requests: Requests,
) -> LatentSource:
    """Encode every picture in every form it can appear in; the VAE is not needed after.

    But for inpainting models, which see the pictures behind a new mask in every step. Always in
    fp32, so that latents do not depend on the run's precision. Tells first how the prompts are
    used. Raises StopRequested.
    """
    model = context.workspace.model(config.model)
    family, device = FAMILIES[components.family], components.vae.device

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, deviation = family.encode_images(components, pixels.to(device))
        # In one order of memory, whatever the convolutions chose: latents from disk have that one.
        return mean.contiguous(), deviation.contiguous()

    def progress(done: int, total: int) -> None:
        context.emit(PhaseProgress(PHASE, done, total))
        requests.stop_if_asked()

    for line in remarks(config, training_set):
        context.emit(Notice("info", line))
    room = Room(config.saving.on_full_disk, context.emit, requests)
    cache = LatentCache(
        model.cache_dir if config.images.cache_latents == "disk" else None,
        partial(room.write, LATENTS),
    )
    source = LatentSource(
        cache,
        encode,
        vae_hash=model.read_info().source_sha256,
        with_pixels=components.paints_into_pictures(),
        normalize=config.images.dynamic_normalization,
        masks=config.images.masks,
    )
    variants = training_set.variants()
    context.emit(PhaseStarted(PHASE, len(variants), "images"))
    source.fill(variants, batch_size=config.batch.batch_size, on_progress=progress)
    if cache.damaged:
        context.emit(Notice("warning", f"Encoded anew: {len(cache.damaged)} damaged cache files."))
    return source
