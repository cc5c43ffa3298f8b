"""kohya's settings: TOML of sd-scripts, JSON of the page, lists of folders, folders by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config.imports import apply_import, read_import, read_settings_text
from dreambooth_core.config.imports.kohya_dataset import MOST_FOLDERS, named
from dreambooth_core.config.imports.kohya_rows import ROWS
from dreambooth_core.config.imports.mapping import TRAINING
from dreambooth_core.config.imports.report import (
    AS_IT_WAS,
    AS_LABELLED,
    CHANGED,
    KEPT,
    LEFT,
    UNKNOWN,
    UNUSABLE,
    YOURS,
    Import,
    Line,
)
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.settings_store import value_at
from dreambooth_core.errors import InputError

# What the page writes for a LoRA of SDXL: numbers often as texts, and what is not set as "".
PAGE: dict[str, Any] = {
    **{"LoRA_type": "Standard", "additional_parameters": "", "bucket_no_upscale": False},
    **{"cache_latents": True, "cache_latents_to_disk": True, "caption_extension": ".txt"},
    **{"clip_skip": "2", "conv_alpha": 4, "conv_dim": 8, "enable_bucket": True, "epoch": 12},
    **{"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "keep_tokens": 3},
    **{"learning_rate": 0.0001, "lr_scheduler": "cosine_with_restarts", "lr_warmup": 10},
    **{"lr_scheduler_num_cycles": "3", "lr_scheduler_power": "", "max_resolution": "1024,1024"},
    **{"max_token_length": "150", "max_train_epochs": "", "max_train_steps": "", "sdxl": True},
    **{"min_snr_gamma": 5, "mixed_precision": "bf16", "network_alpha": 64, "network_dim": 128},
    **{"noise_offset": 0.0357, "noise_offset_type": "Original", "optimizer": "Adafactor"},
    **{"optimizer_args": "scale_parameter=False relative_step=False warmup_init=False"},
    **{"output_name": "ada v1", "prior_loss_weight": 1.0, "random_crop": False, "seed": "12345"},
    **{"save_every_n_epochs": 2, "save_precision": "bf16", "shuffle_caption": True},
    **{"stop_text_encoder_training_pct": 50, "text_encoder_lr": 4e-5, "unet_lr": 4e-4},
    **{"train_batch_size": 4, "xformers": "xformers", "full_bf16": False, "flip_aug": True},
    **{"huggingface_token": "hf_secret", "wandb_api_key": "secret too", "weighted_captions": False},
    **{"sample_prompts": "a zwx dog --w 512 --s 20\n# no\nzwx dog in snow", "max_timestep": 1000},
    **{"sample_sampler": "euler_a", "pretrained_model_name_or_path": "C:/sdxl.safetensors"},
    **{"train_data_dir": "C:\\pictures\\img", "reg_data_dir": "C:\\pictures\\reg", "vae": ""},
}
TOML = """
pretrained_model_name_or_path = "base.safetensors"  # a remark
[training]
max_train_steps = 1000
learning_rate = 1e-6
lr_scheduler = "warmup_stable_decay"
lr_warmup_steps = 0.1
lr_decay_steps = 200
optimizer_type = "Lion"
optimizer_args = ["weight_decay=0.05", "betas=.95,.98"]
train_batch_size = 2
resolution = "768,512"
stop_text_encoder_training = 750
loss_type = "huber"
huber_c = 0.2
prior_loss_weight = 0.5
"""
DATASET = """
[general]
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 768
batch_size = 4

  [[datasets.subsets]]
  image_dir = 'C:\\hoge'
  class_tokens = 'hoge girl'
  num_repeats = 9
  flip_aug = true

  [[datasets.subsets]]
  image_dir = 'fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'girl'
  num_repeats = 2

[[datasets]]
resolution = [512, 512]
  [[datasets.subsets]]
  metadata_file = 'list.json'
"""


def read(values: Any, behaviour: str = AS_LABELLED, name: str = "x.json") -> Import:
    text = values if isinstance(values, str) else json.dumps(values)
    return read_settings_text(text, name, behaviour)


def line_of(found: Import, old: str) -> Line:
    return next(line for line in found.lines if line.old == old)


def test_every_row_names_a_setting_that_there_is_or_says_why_not() -> None:
    for row in ROWS:
        assert row.new in TRAINING if row.new else row.words, row.old


def test_what_the_page_wrote_for_a_lora() -> None:
    found = read(PAGE)
    assert found.origin == "settings of kohya's trainer"
    assert not [line for line in found.lines if line.verdict in (UNKNOWN, UNUSABLE)]
    config = apply_import(found, TrainConfig(model="ada"))
    lora, rates = config.lora, config.learning_rate
    assert lora.enabled and (lora.rank, lora.alpha) == (128, 64.0)
    assert (lora.conv_rank, lora.conv_alpha) == (8, 4.0)
    assert (lora.unet_learning_rate, lora.text_encoder_learning_rate) == (4e-4, 4e-5)
    assert rates.unet == TrainConfig(model="x").learning_rate.unet  # it is not the model's rate
    assert (rates.schedule, rates.cycles) == ("cosine_with_restarts", 3)
    assert (config.optimizer.name, config.optimizer.scale_parameter) == ("adafactor", False)
    assert (config.intervals.epochs, config.seed) == (12, 12345)
    assert config.text_encoder.train_ratio == 0.5 and config.text_encoder.clip_skip == 2
    assert config.images.resolution == 1024 and config.images.cache_latents == "disk"
    assert config.captions.shuffle_tags and config.captions.keep_tags == 3
    assert config.captions.max_token_length == 150 and config.loss.offset_noise == 0.0357
    assert (config.saving.name, config.saving.dtype) == ("ada v1", "bf16")
    assert config.previews.prompts == ["a zwx dog", "zwx dog in snow"]
    assert config.previews.sampler == "euler_a" and config.precision.attention == "default"
    assert config.loss.max_timestep == 999
    (only,) = config.concepts
    assert only.instance_folder == "C:\\pictures\\img" and only.folder_names
    assert (only.class_folder, only.class_images_source) == ("C:\\pictures\\reg", "own")
    assert line_of(found, "lr_warmup").verdict == YOURS  # percent of steps that nobody knows


def test_secrets_are_not_shown() -> None:
    text = json.dumps([line.__dict__ for line in read(PAGE).lines])
    assert "hf_secret" not in text and "secret too" not in text


def test_a_toml_file_of_the_scripts(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(TOML, encoding="utf-8")
    config = apply_import(read_import(str(path)), TrainConfig(model="ada"))
    assert (config.intervals.epochs, config.intervals.max_steps) == (0, 1000)
    assert config.learning_rate.unet == config.learning_rate.text_encoder == 1e-6
    assert config.learning_rate.schedule == "warmup_stable_decay"
    assert (config.learning_rate.warmup_steps, config.learning_rate.decay_share) == (100, 0.2)
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("lion", 0.05)
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.95, 0.98)
    assert config.text_encoder.train_ratio == 0.75
    assert config.images.resolution == 640  # the square of 768 x 512 is 627 wide
    assert (config.loss.loss_type, config.loss.huber_delta) == ("pseudo_huber", 0.2)
    assert not config.lora.enabled and config.batch.batch_size == 2


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"optimizer": "AdamW8bit"}, "optimizer.name", "adamw_8bit"),
        ({"optimizer": "PagedLion8bit"}, "optimizer.name", "paged_lion_8bit"),
        ({"optimizer": "pytorch_optimizer.CAME"}, "optimizer.name", "came"),
        ({"optimizer": "AdamWScheduleFree"}, "optimizer.name", "adamw_schedule_free"),
        ({"optimizer": "DAdaptAdam", "optimizer_args": "d0=1e-5"}, "optimizer.d0", 1e-5),
        (
            {"optimizer": "Prodigy", "optimizer_args": "d_coef=2 use_bias_correction=False"},
            "optimizer.bias_correction",
            False,
        ),
        ({"optimizer": "Adafactor", "optimizer_args": ""}, "optimizer.scale_parameter", True),
        ({"text_encoder_lr": 0}, "text_encoder.train_ratio", 0.0),
        ({"text_encoder_lr": [3e-5, 2e-5]}, "lora.text_encoder_learning_rate", 3e-5),
        ({"network_train_unet_only": True}, "text_encoder.train_ratio", 0.0),
        ({"network_train_text_encoder_only": True}, "unet.train", False),
        ({"no_token_padding": True}, "captions.pad_tokens", False),
        ({"random_crop": True}, "images.crop", "random"),
        ({"max_resolution": "640x640"}, "images.resolution", 640),
        ({"save_precision": "float"}, "saving.dtype", "fp32"),
        ({"mixed_precision": "no"}, "precision.mixed_precision", "no"),
        ({"full_bf16": True}, "precision.weights", "bf16"),
        (
            {"noise_offset_type": "Multires", "multires_noise_iterations": 6},
            "loss.multires_noise_iterations",
            6,
        ),
        ({"alpha_mask": True}, "images.masks", "alpha"),
        ({"alpha_mask": True}, "loss.unmasked_weight", 0.0),
        ({"debiased_estimation_loss": True}, "loss.debiased_estimation", True),
        ({"max_timestep": 800}, "loss.max_timestep", 799),
        ({"max_train_steps": 500, "lr_warmup": 10}, "learning_rate.warmup_steps", 50),
        ({"max_train_steps": 500}, "intervals.epochs", 0),
        ({"max_train_epochs": 4, "max_train_steps": 500}, "intervals.epochs", 4),
        ({"output_name": "a/b:c"}, "saving.name", "bc"),
        ({"network_args": ["conv_dim=6", "conv_alpha=3"]}, "lora.conv_rank", 6),
    ],
)
def test_values_of_the_page(changes: dict[str, Any], path: str, expected: Any) -> None:
    config = apply_import(read({**PAGE, **changes}), TrainConfig(model="ada"))
    assert value_at(config, path) == expected


@pytest.mark.parametrize(
    ("changes", "old", "verdict"),
    [
        ({"LoRA_type": "LyCORIS/LoHa"}, "LoRA_type", YOURS),
        ({"optimizer": "prodigyplus.ProdigyPlusScheduleFree"}, "optimizer", LEFT),
        ({"optimizer": "Adafactor", "optimizer_args": ""}, "optimizer", CHANGED),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler", LEFT),
        ({"loss_type": "l1"}, "loss_type", LEFT),
        ({"loss_type": "smooth_l1"}, "loss_type", CHANGED),
        ({"sample_prompts": "C:/prompts.txt"}, "sample_prompts", YOURS),
        ({"masked_loss": True}, "masked_loss", YOURS),
        ({"unet_lr": 0}, "unet_lr", YOURS),
        ({"seed": 0}, "seed", LEFT),
        ({"max_resolution": "large"}, "max_resolution", UNUSABLE),
        ({"max_token_length": "150"}, "max_token_length", CHANGED),
        ({"max_token_length": "75"}, "max_token_length", KEPT),
        ({"clip_skip": 0}, "clip_skip", LEFT),
        ({"network_weights": "old.safetensors"}, "network_weights", LEFT),
    ],
)
def test_what_cannot_be_taken_is_told(changes: dict[str, Any], old: str, verdict: str) -> None:
    line = line_of(read({**PAGE, **changes}), old)
    assert line.verdict in (verdict, "translated" if verdict == KEPT else verdict)
    assert line.words or verdict in (KEPT, UNUSABLE)


def test_settings_of_other_families_are_told_in_one_line() -> None:
    others = {"flux1_checkbox": False, "sd3_clip_l": "x", "hunyuan_vae": "", "t5xxl_dtype": "bf16"}
    found = read({**PAGE, **others, "blocks_to_swap": 2})
    (line,) = [line for line in found.lines if "families" in line.words]
    assert line.old == "(5 settings, such as flux1_checkbox)" and line.verdict == LEFT
    chosen = read({**PAGE, **others, "sd3_checkbox": True})
    assert line_of(chosen, "sd3_checkbox").verdict == UNUSABLE


def test_the_prior_weight_of_whole_sdxl_models_was_not_read() -> None:
    full = {name: PAGE[name] for name in PAGE if name not in ("LoRA_type", "unet_lr")}
    full = {name: value for name, value in full.items() if not name.startswith("network")}
    full["prior_loss_weight"] = 0.5
    assert read(full).settings["loss.prior_loss_weight"] == 0.5
    assert read(full, AS_IT_WAS).settings["loss.prior_loss_weight"] == 1.0
    lora = {**PAGE, "prior_loss_weight": 0.5}
    assert read(lora, AS_IT_WAS).settings["loss.prior_loss_weight"] == 0.5


def test_a_list_of_folders(tmp_path: Path) -> None:
    for name in ("fuga", "reg"):
        (tmp_path / name).mkdir()
    path = tmp_path / "data.toml"
    path.write_text(DATASET, encoding="utf-8")
    found = read_import(str(path))
    config = apply_import(found, TrainConfig(model="ada"))
    first, second = config.concepts
    assert (first.instance_folder, first.repeats) == ("C:\\hoge", 9)
    assert (first.instance_token, first.class_token) == ("hoge", "girl")
    assert first.class_folder == second.class_folder == str(tmp_path / "reg")
    assert (first.class_prompt, first.class_images_source) == ("girl", "own")
    assert second.instance_folder == str(tmp_path / "fuga") and second.repeats == 1
    assert config.images.resolution == 768 and config.batch.batch_size == 4
    assert config.captions.shuffle_tags and config.images.horizontal_flip
    told = {line.old: line for line in found.lines}
    assert told["datasets[0].subsets[1].keep_tokens"].verdict == UNUSABLE  # one for all here
    assert told["datasets[1].resolution"].verdict == UNUSABLE
    assert told["datasets[1].subsets[0]"].verdict == UNUSABLE  # it names no folder
    assert told["datasets[1].subsets[0].metadata_file"].verdict == YOURS
    assert "not on this computer" in told["hoge"].words


def test_class_images_go_to_the_concept_of_their_class() -> None:
    def subset(folder: str, tokens: str, **more: Any) -> dict[str, Any]:
        return {"image_dir": folder, "class_tokens": tokens, **more}

    subsets = [
        subset("/a", "zwx dog"),
        subset("/b", "qvk cat"),
        subset("/n", "rare", num_repeats=0),
    ]
    subsets += [subset("/dogs", "dog", is_reg=True), subset("/x", "owl", is_reg=True)]
    found = read({"datasets": [{"subsets": subsets}]})
    first, second, third = found.concepts
    assert first["class_folder"] == "/dogs" and "class_folder" not in second
    assert "repeats" not in third and third["class_token"] == ""
    assert line_of(found, "x").verdict == YOURS
    assert line_of(found, "n: repeats").verdict == UNUSABLE


@pytest.mark.parametrize(
    "values",
    [
        {"datasets": 1},
        {"datasets": [1]},
        {"datasets": [{"subsets": {}}]},
        {"datasets": [], "general": 3},
        {"datasets": [{"subsets": [{"image_dir": "/a"}] * (MOST_FOLDERS + 1)}]},
    ],
)
def test_a_list_of_folders_that_is_none(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"no list of tables|no table|201 folders"):
        read(values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("9_w0ut3r man", (9, "w0ut3r man")),
        ("10_zwx", (10, "zwx")),
        ("1_", (1, "")),
        ("pictures", None),
        ("_zwx", None),
        ("9 zwx", None),
    ],
)
def test_names_of_folders(name: str, expected: tuple[int, str] | None) -> None:
    assert named(name) == expected


def put_pictures(folder: Path, count: int, captions: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"x")
        if number < captions:
            (folder / f"{number}.txt").write_text("a caption")
    return folder


@pytest.mark.parametrize("inside", ["", "img"])
def test_folders_of_pictures(tmp_path: Path, inside: str) -> None:
    first = put_pictures(tmp_path / inside / "9_w0ut3r man", 3, captions=3)
    second = put_pictures(tmp_path / inside / "2_qvk", 2)
    classes = put_pictures(tmp_path / "reg" / "1_man", 4)
    put_pictures(tmp_path / inside / "notes", 1)
    found = read_import(str(tmp_path))
    config = apply_import(found, TrainConfig(model="ada"))
    by_folder = {each.instance_folder: each for each in config.concepts}
    assert set(by_folder) == {str(first), str(second)}
    man = by_folder[str(first)]
    assert (man.repeats, man.instance_token, man.class_token) == (9, "w0ut3r", "man")
    assert (man.class_folder, man.class_prompt) == (str(classes), "man")
    assert not man.folder_names  # every picture has its caption
    assert by_folder[str(second)].folder_names
    assert not found.settings and found.origin == "data of kohya's trainer"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    put_pictures(tmp_path / "pictures", 1)
    with pytest.raises(InputError, match="nothing that can be imported"):
        read_import(str(tmp_path))
