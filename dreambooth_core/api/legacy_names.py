"""The setting names of the older extension's API, and what they are called here.

Only what means the same is translated. A name that is known but has no meaning here is told apart
from one that nobody knows, and so is a value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config.imports.words_there import optimizer_here
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import put_value
from dreambooth_core.errors import ConfigError, Problem
from dreambooth_core.job.workspace import ModelFolder, ModelInfo

Convert = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Name:
    """Our path of an older setting, and how its value is translated in and out."""

    path: str
    read: Convert = _same
    write: Convert = _same


OPTIMIZERS = {
    "adamw": "Torch AdamW",
    "adamw_8bit": "8bit AdamW",
    "paged_adamw_8bit": "Paged 8bit AdamW",
    "lion_8bit": "8bit Lion",
    "paged_lion_8bit": "Paged 8bit Lion",
    "lion": "Lion",
    "adafactor": "Adafactor",
    "came": "CAME",
    "prodigy": "Prodigy",
    "dadapt_adam": "AdamW Dadaptation",
}
"""Those of ours that the older extension had; others keep their name."""


def _optimizer(value: Any) -> Any:
    name, _ = optimizer_here(str(value))
    return name or value


def _older_optimizer(value: Any) -> Any:
    return OPTIMIZERS.get(value, value)


def _first(value: Any) -> Any:
    return value[0] if value else ""


def _as_list(value: Any) -> Any:
    return [value] if value else []


SETTINGS = {
    "learning_rate": Name("learning_rate.unet"),
    "txt_learning_rate": Name("learning_rate.text_encoder"),
    "lr_scheduler": Name("learning_rate.schedule"),
    "lr_warmup_steps": Name("learning_rate.warmup_steps"),
    "lr_cycles": Name("learning_rate.cycles"),
    "lr_power": Name("learning_rate.power"),
    "num_train_epochs": Name("intervals.epochs"),
    "epoch_pause_frequency": Name("intervals.pause_every_epochs"),
    "epoch_pause_time": Name("intervals.pause_seconds"),
    "train_batch_size": Name("batch.batch_size"),
    "sample_batch_size": Name("batch.class_batch_size"),
    "gradient_accumulation_steps": Name("batch.gradient_accumulation_steps"),
    "gradient_checkpointing": Name("batch.gradient_checkpointing"),
    "gradient_set_to_none": Name("batch.set_to_none"),
    "optimizer": Name("optimizer.name", _optimizer, _older_optimizer),
    "weight_decay": Name("optimizer.weight_decay"),
    "tenc_weight_decay": Name("optimizer.text_encoder_weight_decay"),
    "mixed_precision": Name("precision.mixed_precision"),
    "use_ema": Name("ema.enabled"),
    "resolution": Name("images.resolution"),
    "hflip": Name("images.horizontal_flip"),
    "clip_skip": Name("text_encoder.clip_skip"),
    "stop_text_encoder": Name("text_encoder.train_ratio"),
    "freeze_clip_normalization": Name("text_encoder.freeze_norm_layers"),
    "train_unet": Name("unet.train"),
    "freeze_spectral_norm": Name("unet.freeze_spectral_norm"),
    "offset_noise": Name("loss.offset_noise"),
    "min_snr_gamma": Name("loss.min_snr_gamma"),
    "prior_loss_weight": Name("loss.prior_loss_weight"),
    "prior_loss_scale": Name("loss.prior_loss_scale"),
    "prior_loss_target": Name("loss.prior_loss_target"),
    "prior_loss_weight_min": Name("loss.prior_loss_weight_min"),
    "use_dream": Name("loss.dream"),
    "dream_detail_preservation": Name("loss.dream_detail_preservation"),
    "save_embedding_every": Name("saving.save_every_epochs"),
    "save_preview_every": Name("previews.every_epochs"),
    "save_ckpt_after": Name("saving.save_at_end"),
    "save_ckpt_cancel": Name("saving.save_on_stop"),
    "save_ema": Name("saving.use_ema"),
    "custom_model_name": Name("saving.name"),
    "infer_ema": Name("previews.use_ema"),
    "sanity_prompt": Name("previews.prompts", _as_list, _first),
    "sanity_seed": Name("previews.seed"),
}

CONCEPT = {
    "instance_data_dir": Name("instance_folder"),
    "class_data_dir": Name("class_folder"),
    "instance_prompt": Name("instance_prompt"),
    "class_prompt": Name("class_prompt"),
    "instance_token": Name("instance_token"),
    "class_token": Name("class_token"),
    "num_class_images_per": Name("class_images_per_instance_image"),
    "class_negative_prompt": Name("class_negative_prompt"),
    "class_guidance_scale": Name("class_cfg_scale"),
    "class_infer_steps": Name("class_steps"),
    "save_sample_prompt": Name("sample_prompts", _as_list, _first),
}
CONCEPT_WITHOUT_MEANING = """
    n_save_sample sample_seed save_guidance_scale save_infer_steps
    save_sample_negative_prompt save_sample_template
""".split()  # noqa: SIM905 (a list of words is read more easily)

TOLD_OF_A_CONCEPT = "is_valid"

OF_THE_MODEL = """
    epoch model_dir model_name model_path not_used pretrained_model_name_or_path revision
    src
""".split()  # noqa: SIM905 (a list of words is read more easily)
"""Told in answers; what is sent back under these names changes nothing."""

WITHOUT_MEANING = """
    attention cache_latents concepts_path deterministic disable_class_matching
    disable_logging dynamic_img_norm ema_predict epochs full_mixed_precision graph_smoothing
    half_model has_ema initial_revision input_pertubation learning_rate_min
    lifetime_revision lora_learning_rate lora_model_name lora_txt_learning_rate
    lora_txt_rank lora_unet_rank lora_use_buggy_requires_grad lora_weight lr_factor
    lr_scale_pos max_token_length model_type noise_scheduler pad_tokens
    pretrained_vae_name_or_path
    save_ckpt_during save_lora_after save_lora_cancel save_lora_during
    save_lora_for_extra_net save_safetensors save_state_after save_state_cancel
    save_state_during scheduler shared_diffusers_path shuffle_tags snapshot split_loss
    strict_tokens tenc_grad_clip_norm tomesd train_imagic train_unfrozen use_concepts
    use_lora use_lora_extended use_shared_src use_subdir v2
""".split()  # noqa: SIM905 (a list of words is read more easily)


def put_settings(data: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Put older settings into a configuration's JSON form; return the names without meaning here.

    Raises ConfigError for names that nobody knows.
    """
    unused = []
    problems = []
    for name, value in given.items():
        if name == "concepts_list":
            data["concepts"], more = concepts_in(value)
            unused += more
        elif name in SETTINGS:
            put_value(data, TrainConfig, SETTINGS[name].path, SETTINGS[name].read(value))
        elif name in WITHOUT_MEANING:
            unused.append(name)
        elif name not in OF_THE_MODEL:
            problems.append(Problem(name, "is not a setting."))
    if problems:
        raise ConfigError(problems)
    return sorted(set(unused))


def concepts_in(value: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return older concepts in our form, and the names in them without meaning here."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError([Problem("concepts_list", "is not a list of concepts.")])
    unused: set[str] = set()
    concepts = []
    for index, item in enumerate(value):
        concept = {}
        for name, inner in item.items():
            if name in CONCEPT:
                concept[CONCEPT[name].path] = CONCEPT[name].read(inner)
            elif name in CONCEPT_WITHOUT_MEANING:
                unused.add(name)
            elif name != TOLD_OF_A_CONCEPT:
                raise ConfigError([Problem(f"concepts_list.{index}.{name}", "is not known.")])
        concepts.append(concept)
    return concepts, sorted(unused)


def concept_out(concept: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of our concepts, given in its JSON form, under the older names."""
    found = {old: name.write(concept[name.path]) for old, name in CONCEPT.items()}
    return {**found, TOLD_OF_A_CONCEPT: os.path.isdir(concept["instance_folder"])}


def settings_out(data: Mapping[str, Any], model: ModelFolder, info: ModelInfo) -> dict[str, Any]:
    """Return a model's settings, given in their JSON form, as the older flat object."""
    found: dict[str, Any] = {
        "model_name": model.name,
        "model_dir": str(model.path),
        "src": info.source,
        "revision": info.steps,
        "epoch": info.epochs,
    }
    for old, name in SETTINGS.items():
        section, _, field = name.path.partition(".")
        found[old] = name.write(data[section][field])
    found["concepts_list"] = [concept_out(concept) for concept in data["concepts"]]
    return found
