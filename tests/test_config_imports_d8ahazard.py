"""Settings of the abandoned extension: every key of every year has an answer, and the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.imports import apply_import, read_import, read_settings_text
from dreambooth_core.config.imports.d8ahazard_concepts import NAMES
from dreambooth_core.config.imports.d8ahazard_rows import ROWS
from dreambooth_core.config.imports.mapping import TRAINING
from dreambooth_core.config.imports.report import (
    AS_IT_WAS,
    AS_LABELLED,
    CHANGED,
    KEPT,
    LEFT,
    REVIVED,
    TRANSLATED,
    UNKNOWN,
    UNUSABLE,
    YOURS,
    Import,
    Line,
    in_order,
    summary,
)
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.settings_store import value_at
from dreambooth_core.errors import InputError

# The fields of the last version's file with the values that it has for them by itself.
LAST: dict[str, Any] = {
    **dict.fromkeys(
        [
            "deterministic",
            "disable_class_matching",
            "disable_logging",
            "ema_predict",
            "freeze_clip_normalization",
            "half_model",
            "has_ema",
            "hflip",
            "infer_ema",
            "lora_use_buggy_requires_grad",
            "use_dream",
            "freeze_spectral_norm",
            "prior_loss_scale",
            "save_ckpt_cancel",
            "save_lora_cancel",
            "save_state_after",
            "save_state_cancel",
            "save_state_during",
            "strict_tokens",
            "dynamic_img_norm",
            "train_imagic",
            "use_concepts",
            "use_lora",
            "use_lora_extended",
            "use_subdir",
            "v2",
        ],
        False,
    ),
    **dict.fromkeys(
        [
            "cache_latents",
            "full_mixed_precision",
            "gradient_checkpointing",
            "gradient_set_to_none",
            "input_pertubation",
            "pad_tokens",
            "save_ckpt_after",
            "save_ckpt_during",
            "save_ema",
            "save_lora_after",
            "save_lora_during",
            "save_lora_for_extra_net",
            "save_safetensors",
            "shuffle_tags",
            "split_loss",
            "train_unet",
            "train_unfrozen",
            "use_ema",
        ],
        True,
    ),
    **dict.fromkeys(
        [
            "concepts_path",
            "custom_model_name",
            "lora_model_name",
            "sanity_prompt",
            "shared_diffusers_path",
            "snapshot",
            "src",
        ],
        "",
    ),
    **{"weight_decay": 0.01, "attention": "xformers", "clip_skip": 1, "concepts_list": []},
    **{"epoch": 0, "epoch_pause_frequency": 0, "epoch_pause_time": 0, "initial_revision": 0},
    **{"gradient_accumulation_steps": 1, "graph_smoothing": 50, "learning_rate": 2e-6},
    **{"learning_rate_min": 1e-6, "lifetime_revision": 0, "lora_learning_rate": 1e-4},
    **{"lora_txt_learning_rate": 5e-5, "lora_txt_rank": 4, "lora_unet_rank": 4},
    **{"lora_weight": 0.8, "lr_cycles": 1, "lr_factor": 0.5, "lr_power": 1.0, "lr_scale_pos": 0.5},
    **{"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 500, "max_token_length": 75},
    **{"min_snr_gamma": 0.0, "dream_detail_preservation": 0.5, "mixed_precision": "fp16"},
    **{"model_dir": "models/dreambooth/ada", "model_name": "ada", "model_path": ""},
    **{"model_type": "v1x", "noise_scheduler": "DDPM", "num_train_epochs": 100},
    **{"offset_noise": 0.0, "optimizer": "8bit AdamW", "pretrained_model_name_or_path": "x"},
    **{"pretrained_vae_name_or_path": None, "prior_loss_target": 100, "prior_loss_weight": 0.75},
    **{"prior_loss_weight_min": 0.1, "resolution": 512, "revision": "0", "sample_batch_size": 1},
    **{"sanity_seed": 420420, "save_embedding_every": 25, "save_preview_every": 5},
    **{"scheduler": "ddim", "stop_text_encoder": 1.0, "tenc_weight_decay": 0.01},
    **{"tenc_grad_clip_norm": 0.0, "tomesd": 0.0, "train_batch_size": 1},
    **{"txt_learning_rate": 5e-6, "use_shared_src": [False], "epochs": 3},
}
OLDER = [
    "adamw_weight_decay",
    "adam_weight_decay",
    "use_8bit_adam",
    "not_cache_latents",
    "train_text_encoder",
    "train_text_encoder_steps",
    "max_train_steps",
    "total_steps",
    "lora_rank",
    "lora_txt_weight",
    "deis_train_scheduler",
    "half_lora",
    "center_crop",
    "scale_lr",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "adaptation_beta1",
    "adaptation_beta2",
    "adaptation_d0",
    "adaptation_eps",
    "adaptation_growth_rate",
    "adaptation_momentum",
    "save_use_global_counts",
    "save_use_epochs",
    "seed",
    "tf32_enable",
    "use_cpu",
    "unfreeze_model",
    "enable_tomesd",
    "shuffle_after_epoch",
    "with_prior_preservation",
    "min_learning_rate",
    "save_class_txt",
    "output_dir",
    "working_dir",
    "name",
    "train_conditioning",
    "loaded",
]
OF_CONCEPTS = [
    "instance_data_dir",
    "class_data_dir",
    "instance_prompt",
    "class_prompt",
    "save_sample_prompt",
    "save_sample_template",
    "instance_token",
    "class_token",
    "num_class_images_per",
    "class_negative_prompt",
    "class_guidance_scale",
    "class_infer_steps",
    "save_sample_negative_prompt",
    "n_save_sample",
    "sample_seed",
    "save_guidance_scale",
    "save_infer_steps",
    "is_valid",
    "max_steps",
    "num_class_images",
    "file_prompt_contents",
]
OFF = ("min_snr_gamma", "prior_loss_weight", "max_token_length")


def read(behaviour: str = AS_LABELLED, **changes: Any) -> Import:
    return read_import(json.dumps({**LAST, **changes}), behaviour)


def line_of(found: Import, old: str) -> Line:
    return next(line for line in found.lines if line.old == old)


def settings(behaviour: str = AS_LABELLED, **changes: Any) -> TrainConfig:
    return apply_import(read(behaviour, **changes), TrainConfig(model="ada"))


def concept(**changes: Any) -> dict[str, Any]:
    return {"instance_data_dir": "pictures", "instance_token": "zwx", **changes}


def test_every_field_of_every_year_is_known() -> None:
    known = {row.old for row in ROWS}
    assert not (set(LAST) | set(OLDER)) - known
    assert set(OF_CONCEPTS) == NAMES


def test_every_row_names_a_setting_that_there_is_or_says_why_not() -> None:
    for row in ROWS:
        assert row.new in TRAINING if row.new else row.words, row.old


def test_a_file_of_the_last_version_is_understood_whole() -> None:
    found = read()
    assert not [line for line in found.lines if line.verdict in (UNKNOWN, UNUSABLE)]
    assert {line.old for line in found.lines} >= set(LAST)
    assert summary(found).startswith("text, settings of sd_dreambooth_extension: ")
    assert all(path in TRAINING for path in found.settings)


def test_values_arrive_under_their_new_names() -> None:
    config = settings(
        num_train_epochs=7,
        learning_rate=3e-6,
        txt_learning_rate=4e-7,
        train_batch_size=3,
        resolution="768",
        hflip=True,
        optimizer="Lion",
        use_subdir=True,
        half_model=True,
        save_preview_every=9,
        offset_noise=-0.05,
        scheduler="EulerAncestralDiscrete",
        epoch_pause_frequency=2,
        freeze_spectral_norm=True,
    )
    assert config.intervals.epochs == 7 and config.intervals.pause_every_epochs == 2
    assert config.learning_rate.unet == 3e-6 and config.learning_rate.text_encoder == 4e-7
    assert config.batch.batch_size == 3 and config.images.resolution == 768
    assert config.images.horizontal_flip and config.unet.freeze_spectral_norm
    assert (config.optimizer.name, config.optimizer.beta2) == ("lion", 0.99)
    assert (config.saving.subfolder, config.saving.dtype) == ("ada", "fp16")
    assert config.previews.every_epochs == 9 and config.previews.sampler == "euler_a"
    assert config.loss.offset_noise == 0.05


@pytest.mark.parametrize(
    ("changes", "path", "labelled", "as_it_was"),
    [
        ({"txt_learning_rate": 1e-7}, "learning_rate.text_encoder", 1e-7, 2e-6),
        (
            {"use_lora": True, "lora_txt_learning_rate": 1e-5},
            "lora.text_encoder_learning_rate",
            1e-5,
            1e-4,
        ),
        ({"min_snr_gamma": 5}, "loss.min_snr_gamma", 5.0, 0.0),
        ({"tenc_weight_decay": 0.2}, "optimizer.text_encoder_weight_decay", 0.2, 0.01),
        ({"max_token_length": 225}, "captions.max_token_length", 225, 75),
        ({"freeze_clip_normalization": True}, "text_encoder.freeze_norm_layers", True, False),
        ({"use_ema": True}, "ema.decay", 0.995, 0.9999),
        ({"lr_warmup_steps": 500, "train_batch_size": 5}, "learning_rate.warmup_steps", 500, 100),
        ({"mixed_precision": "bf16"}, "precision.weights", "fp32", "bf16"),
        ({"mixed_precision": "fp16"}, "precision.weights", "fp32", "fp32"),
        ({}, "captions.extension_rules", False, True),
        ({"model_type": "SDXL", "stop_text_encoder": 0.5}, "text_encoder.train_ratio", 0.5, 0.0),
        ({"stop_text_encoder": 0.5}, "text_encoder.train_ratio", 0.5, 0.5),
        (
            {"concepts_list": [concept(num_class_images_per=2)], "prior_loss_weight": 0.5},
            "loss.prior_loss_weight",
            0.5,
            1.0,
        ),
        (
            {
                "concepts_list": [concept(num_class_images_per=2)],
                "prior_loss_weight": 0.5,
                "model_type": "SDXL",
            },
            "loss.prior_loss_weight",
            0.5,
            0.5,
        ),
    ],
)
def test_the_label_or_what_it_did(
    changes: dict[str, Any], path: str, labelled: Any, as_it_was: Any
) -> None:
    assert value_at(settings(AS_LABELLED, **changes), path) == labelled
    assert value_at(settings(AS_IT_WAS, **changes), path) == as_it_was


def test_class_images_that_were_thrown_away_are_none_if_it_is_to_be_as_it_was() -> None:
    given = {"concepts_list": [concept(num_class_images_per=2, class_data_dir="c")]}
    of_one = settings(AS_IT_WAS, train_batch_size=1, **given).concepts[0]
    assert (of_one.class_images_per_instance_image, of_one.class_folder) == (2, "c")
    of_two = settings(AS_IT_WAS, train_batch_size=2, **given).concepts[0]
    assert (of_two.class_images_per_instance_image, of_two.class_folder) == (0, "")
    labelled = settings(AS_LABELLED, train_batch_size=2, **given).concepts[0]
    assert labelled.class_images_per_instance_image == 2


@pytest.mark.parametrize("name", OFF)
def test_what_made_no_difference_is_just_kept(name: str) -> None:
    assert line_of(read(), name).verdict in (KEPT, TRANSLATED)
    assert line_of(read(min_snr_gamma=5), "min_snr_gamma").verdict == REVIVED


@pytest.mark.parametrize(
    ("name", "schedule", "words"),
    [
        ("constant", "constant_with_warmup", "rose"),
        ("linear", "constant_with_warmup", "rose"),
        ("linear_with_warmup", "linear", ""),
        ("cosine", "cosine", "came back"),
        ("cosine_annealing", "cosine", "lowest rate"),
        ("cosine_with_restarts", "cosine_with_restarts", ""),
        ("polynomial", "polynomial", ""),
        ("constant_with_warmup", "constant_with_warmup", ""),
    ],
)
def test_learning_rate_schedules(name: str, schedule: str, words: str) -> None:
    found = read(lr_scheduler=name)
    assert found.settings["learning_rate.schedule"] == schedule
    assert words in line_of(found, "lr_scheduler").words


def test_annealing_has_its_lowest_rate_and_its_restarts() -> None:
    given = {"lr_scheduler": "cosine_annealing_with_restarts", "learning_rate_min": 5e-7}
    rates = settings(learning_rate=2e-6, lr_scale_pos=0.5, lr_cycles=9, **given).learning_rate
    assert (rates.min_factor, rates.cycles, rates.warmup_steps) == (0.25, 4, 0)
    assert settings(lr_scheduler="cosine_with_restarts", lr_cycles=3).learning_rate.cycles == 3


def test_warmup_stays_out_of_schedules_without_it() -> None:
    assert "learning_rate.warmup_steps" not in read(lr_scheduler="constant").settings
    assert line_of(read(), "lr_warmup_steps").verdict == KEPT  # one image is one step
    assert line_of(read(train_batch_size=2), "lr_warmup_steps").verdict == CHANGED


@pytest.mark.parametrize(
    ("name", "ours", "beta2"),
    [
        ("Torch AdamW", "adamw", 0.999),
        ("8Bit Adam", "adamw", 0.999),
        ("8bit AdamW", "adamw", 0.999),
        ("Paged 8bit AdamW", "adamw", 0.999),
        ("Lion", "lion", 0.99),
        ("8bit Lion", "lion", 0.99),
        ("Apollo", "", 0),
        ("Sophia", "", 0),
    ],
)
def test_optimizers(name: str, ours: str, beta2: float) -> None:
    found = read(optimizer=name)
    if not ours:
        assert "optimizer.name" not in found.settings
        assert "none is put in its place" in line_of(found, "optimizer").words
        return
    assert ours in found.settings["optimizer.name"]
    if "optimizer.beta2" in TRAINING:
        assert found.settings["optimizer.beta2"] == beta2


def test_a_lora_acts_as_it_was_trained() -> None:
    found = read(use_lora=True, lora_unet_rank=32, lora_txt_rank=8, lora_weight=0.8)
    lora = apply_import(found, TrainConfig(model="ada")).lora
    assert lora.enabled and (lora.rank, lora.alpha) == (32, 32.0)
    assert (lora.text_encoder_rank, lora.text_encoder_alpha) == (8, 8.0)
    assert "<lora:name:0.8>" in line_of(found, "lora_weight").words
    assert settings(use_lora=True, lora_unet_rank=6, use_lora_extended=True).lora.conv_rank == 6


def test_files_of_ema_weights_only_where_there_is_an_average() -> None:
    assert settings(use_ema=True, save_ema=True).saving.ema_keys
    assert not settings(use_ema=False, save_ema=True).saving.ema_keys
    assert not settings(use_ema=True, use_lora=True, save_ema=True).saving.ema_keys
    assert settings(infer_ema=True).saving.use_ema and not settings().saving.use_ema


def test_saving_during_training_is_one_setting() -> None:
    assert settings(save_embedding_every=30).saving.save_every_epochs == 30
    assert settings(save_embedding_every=30, save_ckpt_during=False).saving.save_every_epochs == 0
    assert settings(save_embedding_every=30, save_state_during=True).saving.state_every_epochs == 30


FIRST: dict[str, Any] = {
    **{"model_name": "ada", "instance_data_dir": "pictures", "class_data_dir": "c"},
    **{"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog"},
    **{"num_class_images": 200, "resolution": 512, "center_crop": False, "seed": None},
    **{"train_text_encoder": True, "num_train_epochs": 1, "max_train_steps": 1200},
    **{"learning_rate": 1.72e-6, "scale_lr": False, "lr_scheduler": "constant"},
    **{"use_8bit_adam": True, "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_weight_decay": 0.02},
    **{"adam_epsilon": 1e-7, "max_grad_norm": 2, "save_preview_every": 500},
    **{"save_embedding_every": 400, "mixed_precision": "no", "not_cache_latents": True},
    **{"concepts_list": None, "use_cpu": False, "db_attention": "flash_attention"},
    **{"prior_loss_weight": 1, "total_steps": 0, "n_save_sample": 2, "save_sample_prompt": "zwx"},
}


def test_a_file_of_november_2022() -> None:
    found = read_import(json.dumps(FIRST))
    assert not [line for line in found.lines if line.verdict in (UNKNOWN, UNUSABLE)]
    config = apply_import(found, TrainConfig(model="ada"))
    assert (config.intervals.epochs, config.intervals.max_steps) == (0, 1200)
    assert (config.saving.save_every_steps, config.previews.every_steps) == (400, 500)
    assert (config.saving.save_every_epochs, config.previews.every_epochs) == (0, 0)
    assert config.images.crop == "random" and config.text_encoder.train_ratio == 1.0
    assert "adamw" in config.optimizer.name and config.optimizer.beta2 == 0.98
    assert config.optimizer.weight_decay == 0.02 and config.batch.max_grad_norm == 2.0
    (only,) = config.concepts
    assert only.instance_prompt == "photo of zwx dog" and only.sample_prompts == ["zwx", "zwx"]
    total = line_of(found, "concepts[0].num_class_images")
    assert total.verdict == YOURS and "200 class images" in total.words
    assert line_of(found, "attention").new_value == "default"


def test_a_file_of_the_first_days() -> None:
    old = {"model_name": "ada", "learn_rate": 2e-6, "steps": 900, "batch_size": 2, "use_adam": True}
    old |= {"warmup_steps": 50, "grad_acc_steps": 3, "instance_data_dir": "pictures"}
    config = apply_import(read_import(json.dumps(old)), TrainConfig(model="ada"))
    assert (config.learning_rate.unet, config.learning_rate.warmup_steps) == (2e-6, 50)
    assert (config.intervals.max_steps, config.intervals.epochs) == (900, 0)
    assert (config.batch.batch_size, config.batch.gradient_accumulation_steps) == (2, 3)
    assert config.optimizer.name == "adamw_8bit" and len(config.concepts) == 1


def test_the_file_of_another_trainer_is_not_taken_for_this_one() -> None:
    other = {"learning_rate": 1e-6, "resolution": "512", "epoch": 3, "optimizer": {"name": "X"}}
    other |= {f"setting_{number}": number for number in range(20)}
    with pytest.raises(InputError, match="no settings that are known"):
        read_import(json.dumps(other))


def test_concepts_with_numbers_of_december_2022() -> None:
    given = {"c1_instance_data_dir": "a", "c1_class_token": "dog", "c2_instance_data_dir": ""}
    config = settings(**given, c3_instance_data_dir="b")
    assert [each.instance_folder for each in config.concepts] == ["a", "b"]
    assert config.concepts[0].class_token == "dog"


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"stop_text_encoder": 0.3}, 0.3),
        ({"stop_text_encoder": -1}, 1.0),
        ({"stop_text_encoder": 25}, 0.25),
        ({"stop_text_encoder": 0}, 0.0),
        ({"train_text_encoder": False}, 1.0),  # the newer one counts
    ],
)
def test_the_share_of_the_text_encoder(changes: dict[str, Any], ratio: float) -> None:
    assert settings(num_train_epochs=100, **changes).text_encoder.train_ratio == ratio


def test_the_steps_of_the_text_encoder_of_2022() -> None:
    old = {**FIRST, "train_text_encoder_steps": 300}
    found = read_import(json.dumps(old))
    assert found.settings["text_encoder.train_ratio"] == 0.25
    without = {name: value for name, value in old.items() if name != "max_train_steps"}
    found = read_import(json.dumps(without))
    assert line_of(found, "train_text_encoder_steps").verdict == YOURS


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"train_batch_size": 5000}, "train_batch_size"),
        ({"train_batch_size": 1.5}, "train_batch_size"),
        ({"train_batch_size": [1]}, "train_batch_size"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": 10**40}, "learning_rate"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"hflip": "perhaps"}, "hflip"),
        ({"resolution": -1}, "resolution"),
        ({"sanity_seed": 2**40}, "sanity_seed"),
    ],
)
def test_a_value_that_cannot_be_is_told_and_not_bent(changes: dict[str, Any], name: str) -> None:
    found = read(**changes)
    line = line_of(found, name)
    assert line.verdict == UNUSABLE and "stays as it is" in line.words
    assert line.new not in found.settings
    apply_import(found, TrainConfig(model="ada"))


def test_odd_types_that_files_really_have() -> None:
    config = settings(revision="1200", resolution="640", hflip="true", train_batch_size=2.0)
    assert config.images.resolution == 640 and config.images.horizontal_flip
    assert config.batch.batch_size == 2
    assert line_of(read(pretrained_vae_name_or_path=None), "pretrained_vae_name_or_path")
    src = line_of(read(src="C:\\models\\base.ckpt [a2a802b2]"), "src")
    assert src.old_value == "C:\\models\\base.ckpt [a2a802b2]" and "Create" in src.words


def test_names_are_as_there() -> None:
    assert settings(custom_model_name="a/b:c.d").saving.name == "abc.d"
    assert settings(custom_model_name="x", use_subdir=True).saving.subfolder == "x"


def test_nothing_unknown_is_shown_but_its_name() -> None:
    found = read(strange_key="a secret", api_key="another secret")
    assert line_of(found, "strange_key").verdict == UNKNOWN
    text = json.dumps([line.__dict__ for line in found.lines])
    assert "a secret" not in text and "another secret" not in text
    many = read(**{f"k{number}": 1 for number in range(100)})
    unknown = [line for line in many.lines if line.verdict == UNKNOWN]
    assert len(unknown) == 51 and "50 more" in unknown[-1].old


def test_what_asks_most_of_the_person_comes_first() -> None:
    found = read(strange=1, hflip="perhaps", min_snr_gamma=5)
    verdicts = [line.verdict for line in in_order(found.lines)]
    assert verdicts[0] == UNUSABLE and verdicts.index(UNKNOWN) < verdicts.index(REVIVED)
    assert verdicts.index(REVIVED) < verdicts.index(KEPT) < verdicts.index(LEFT)


def test_all_but_what_the_file_says_stays_as_it_was() -> None:
    before = TrainConfig(model="ada")
    before.previews.negative_prompt = "blurry"
    before.batch.batch_size = 9
    found = read_settings_text(json.dumps({"learning_rate": 1e-6, "hflip": True, "epoch": 1}), "x")
    after = apply_import(found, before)
    assert after.previews.negative_prompt == "blurry" and after.batch.batch_size == 9
    assert after.images.horizontal_flip and after.concepts == before.concepts


def test_a_list_of_concepts_in_the_settings_is_found_wherever_it_stands() -> None:
    listed = [concept(), concept(instance_data_dir="more")]
    for given in ({"concepts_list": listed}, {"concepts_list": json.dumps(listed)}):
        assert len(settings(**given).concepts) == 2
    assert len(settings(concepts_path=json.dumps(listed)).concepts) == 2
    elsewhere = read(concepts_list="C:\\lists\\concepts.json")
    assert line_of(elsewhere, "concepts_path").verdict == YOURS
    with pytest.raises(InputError, match="no list of concepts"):
        read(concepts_list=[1, 2])


def test_a_behaviour_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not known"):
        read("odd")
