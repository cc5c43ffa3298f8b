"""What a checkpoint says about the model that it is, and about the training that made it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PureWindowsPath

from dreambooth_core.checkpoint.metadata import (
    Description,
    checkpoint_metadata,
    flat_metadata,
    told_name,
    training_metadata,
)
from dreambooth_core.config.control import number_text
from dreambooth_core.config.schema import LossSection, TrainConfig
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.families import family_of
from dreambooth_core.families.loading import read_configs
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.saved_states import Progress

ZERO_SNR_METADATA = "ss_zero_terminal_snr"


def model_metadata(folder: ModelFolder, path: Path) -> dict[str, str]:
    """Return what every checkpoint of a model says: modelspec, and where it comes from."""
    info, family = folder.read_info(), family_of(folder)
    described = checkpoint_metadata(
        Description(
            title=path.stem,
            architecture=family.architecture(read_configs(folder, family)),
            resolution=info.resolution,
            prediction_type=info.prediction_type,
            source_sha256=info.source_sha256,
        )
    )
    told = {
        "ss_output_name": path.stem,
        "ss_sd_model_name": told_name(PureWindowsPath(info.source)),
        "ss_new_sd_model_hash": info.source_sha256,
        "ss_base_model_version": family.lora_base_version,
        "ss_v2": str(family.lora_base_version.startswith("sd_v2")),
    }
    return {**described, **flat_metadata(told)}


def run_metadata(config: TrainConfig, progress: Progress, averaged: bool) -> dict[str, str]:
    """Return what a training adds: how far it was, with which settings and trigger words."""
    side = config.images.resolution
    told = {
        "ss_resolution": f"({side}, {side})",
        "ss_clip_skip": str(config.text_encoder.clip_skip),
        "ss_seed": str(config.seed),
        "ss_steps": str(progress.step),
        "ss_epoch": str(progress.epoch),
        "ss_num_epochs": str(config.intervals.epochs or progress.epoch),
        "ss_batch_size_per_device": str(config.batch.batch_size),
        "ss_gradient_accumulation_steps": str(config.batch.gradient_accumulation_steps),
        "ss_unet_lr": number_text(config.learning_rate.unet),
        "ss_text_encoder_lr": number_text(config.learning_rate.text_encoder),
        "ss_lr_scheduler": config.learning_rate.schedule,
        "ss_optimizer": config.optimizer.name,
        "ss_mixed_precision": config.precision.mixed_precision,
        "ss_prior_loss_weight": number_text(config.loss.prior_loss_weight),
        **_loss_metadata(config.loss),
        "dreambooth.config_sha256": settings_sha256(config),
    }
    words = trigger_words(config)
    trained = training_metadata(progress.step, progress.epoch, words, uses_ema=averaged)
    return {**trained, **flat_metadata(told)}


def _loss_metadata(loss: LossSection) -> dict[str, str]:
    """Return what was switched on of the loss and the noise, under the names that are known."""
    settings = {
        "ss_noise_offset": loss.offset_noise,
        "ss_multires_noise_iterations": loss.multires_noise_iterations,
        "ss_multires_noise_discount": loss.multires_noise_iterations
        and loss.multires_noise_discount,
        "ss_ip_noise_gamma": loss.input_perturbation,
        "ss_min_snr_gamma": loss.min_snr_gamma,
    }
    numbers = {name: number_text(value) for name, value in settings.items() if value}
    marks = {
        "ss_debiased_estimation": loss.debiased_estimation,
        ZERO_SNR_METADATA: loss.zero_terminal_snr,
    }
    return {**numbers, **{name: str(value) for name, value in marks.items() if value}}


def trigger_words(config: TrainConfig) -> list[str]:
    """Return the words that call the subjects up, each once."""
    tokens = (concept.instance_token.strip() for concept in config.concepts)
    return list(dict.fromkeys(token for token in tokens if token))


def settings_sha256(config: TrainConfig) -> str:
    """Return a digest that is the same for the same settings, whatever their order."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
