"""Changes of a training's settings that need less memory: the least harmful one first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dreambooth_core.config.rules.training import RULES
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import from_dict, put_value, to_dict
from dreambooth_core.config.settings_store import shown

Changes = dict[str, Any]
"""New values by the paths of their settings."""

Saver = Callable[[TrainConfig, bool], Changes]
"""From settings, and whether a GPU trains, to what saves memory; empty if there is no more."""

LOWEST_RESOLUTION, RESOLUTION_STEP = 256, 64


def change(
    saver: Saver, config: TrainConfig, *, on_gpu: bool
) -> tuple[Changes, TrainConfig] | None:
    """Return a change with the settings after it; None if it is made, or the rules refuse it."""
    changes = saver(config, on_gpu)
    if not changes:
        return None
    changed = with_changes(config, changes)
    return None if _conflicts(changed) > _conflicts(config) else (changes, changed)


def all_changes(config: TrainConfig, phase: str, *, on_gpu: bool) -> list[Changes]:
    """Return everything that may make a part of a training smaller, each as far as it goes."""
    found = []
    for saver in savers_of(phase):
        together: Changes = {}
        while step := change(saver, config, on_gpu=on_gpu):
            changes, config = step
            together |= changes
        found += [together] if together else []
    return found


def savers_of(phase: str) -> tuple[Saver, ...]:
    """Return what makes a part of a training smaller, the least harmful first."""
    return _SAVERS.get(phase, _AT_REST)


def with_changes(config: TrainConfig, changes: Changes) -> TrainConfig:
    """Return the settings with some of them changed."""
    data = to_dict(config)
    for path, value in changes.items():
        put_value(data, TrainConfig, path, value)
    return from_dict(TrainConfig, data)


def in_words(changes: Changes) -> str:
    """Return changes as a person types them: "batch.batch_size 1, lora.enabled on"."""
    return ", ".join(f"{path} {shown(value)}" for path, value in changes.items())


def _conflicts(config: TrainConfig) -> int:
    return sum(len(rule(config)) for rule in RULES)


def _checkpointing(config: TrainConfig, on_gpu: bool) -> Changes:
    return {} if config.batch.gradient_checkpointing else {"batch.gradient_checkpointing": True}


def _smaller_batch(config: TrainConfig, on_gpu: bool) -> Changes:
    """Halve the batch; as many more of them are added up, so that training stays the same."""
    batch = config.batch
    half = max(1, batch.batch_size // 2)
    changes: Changes = {}
    if half < batch.batch_size:
        together = batch.batch_size * batch.gradient_accumulation_steps
        changes["batch.batch_size"] = half
        changes["batch.gradient_accumulation_steps"] = min(100, math.ceil(together / half))
    return changes | _smaller_class_batch(config, on_gpu)


def _smaller_rows(config: TrainConfig, on_gpu: bool) -> Changes:
    changes = _smaller_batch(config, on_gpu)
    return {p: v for p, v in changes.items() if p == "batch.batch_size"}


def _smaller_class_batch(config: TrainConfig, on_gpu: bool) -> Changes:
    rows = config.batch.class_batch_size
    return {"batch.class_batch_size": rows // 2} if rows > 1 else {}


def _one_class_image(config: TrainConfig, on_gpu: bool) -> Changes:
    rows = config.batch.class_batch_size or config.batch.batch_size
    return {"batch.class_batch_size": rows // 2} if rows > 1 else {}


def _latents_on_disk(config: TrainConfig, on_gpu: bool) -> Changes:
    return {} if config.images.cache_latents == "disk" else {"images.cache_latents": "disk"}


def _average_elsewhere(config: TrainConfig, on_gpu: bool) -> Changes:
    ema = config.ema
    if not ema.enabled:
        return {}
    if on_gpu:
        return {} if ema.device == "cpu" else {"ema.device": "cpu"}
    return {"ema.enabled": False}


def _mixed(config: TrainConfig, on_gpu: bool) -> Changes:
    wanted = on_gpu and config.precision.mixed_precision == "no"
    return {"precision.mixed_precision": "bf16"} if wanted else {}


def _small_weights(config: TrainConfig, on_gpu: bool) -> Changes:
    if config.precision.weights == "bf16" or config.lora.enabled:
        return {}
    return {"precision.mixed_precision": "bf16", "precision.weights": "bf16"}


def _no_text_encoder(config: TrainConfig, on_gpu: bool) -> Changes:
    learns = config.text_encoder.train_ratio > 0 and config.unet.train
    return {"text_encoder.train_ratio": 0.0} if learns else {}


def _lora(config: TrainConfig, on_gpu: bool) -> Changes:
    return {} if config.lora.enabled else {"lora.enabled": True}


def _smaller_pictures(config: TrainConfig, on_gpu: bool) -> Changes:
    side = config.images.resolution * 3 // 4 // RESOLUTION_STEP * RESOLUTION_STEP
    return {"images.resolution": side} if side >= LOWEST_RESOLUTION else {}


_AT_REST: tuple[Saver, ...] = (
    *(_latents_on_disk, _average_elsewhere, _mixed, _small_weights, _no_text_encoder, _lora),
    _smaller_pictures,
)
"""What a training holds all the time, and its pictures."""

_SAVERS: dict[str, tuple[Saver, ...]] = {
    "class images": (_one_class_image, _smaller_pictures),
    "caching latents": (_smaller_rows, _latents_on_disk, _smaller_pictures),
    "training": (_checkpointing, _smaller_batch, *_AT_REST),
}
