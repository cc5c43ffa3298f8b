"""What a checkpoint tells of its model and its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core import __version__
from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import LossSection, TrainConfig
from dreambooth_core.config.serialize import from_dict, to_dict
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.run_metadata import (
    model_metadata,
    run_metadata,
    settings_sha256,
    trigger_words,
)
from dreambooth_core.stages.saved_states import Progress


def test_a_checkpoint_tells_what_it_is_and_where_it_comes_from(
    tiny_model_folder: ModelFolder, tmp_path: Path
) -> None:
    info = tiny_model_folder.read_info()
    told = model_metadata(tiny_model_folder, tmp_path / "rex_400.safetensors")
    assert told.pop("modelspec.date")
    assert told == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "rex_400",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "dreambooth.version": __version__,
        "dreambooth.source_sha256": info.source_sha256,
        "ss_output_name": "rex_400",
        "ss_sd_model_name": "tiny-source.safetensors",
        "ss_new_sd_model_hash": info.source_sha256,
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
    }


def test_a_training_tells_its_steps_settings_and_words() -> None:
    config = TrainConfig(
        model="rex", seed=7, concepts=[Concept(instance_folder="x", instance_token="ohwx")]
    )
    config.images.resolution = 768
    config.learning_rate.unet = 1.5e-6
    told = run_metadata(config, Progress(400, 3, 0), averaged=True)
    assert told["dreambooth.step"] == told["ss_steps"] == "400"
    assert told["dreambooth.epoch"] == told["ss_epoch"] == "3"
    assert told["dreambooth.ema"] == "true"
    assert told["modelspec.trigger_phrase"] == "ohwx"
    assert told["ss_resolution"] == "(768, 768)"
    assert told["ss_unet_lr"] == "1.5e-06"
    assert told["ss_seed"] == "7"
    assert told["ss_optimizer"] == config.optimizer.name
    assert told["dreambooth.config_sha256"] == settings_sha256(config)


def test_what_is_switched_on_of_the_loss_is_told_under_known_names() -> None:
    def told(**loss: object) -> dict[str, str]:
        config = TrainConfig(model="rex", loss=LossSection(**loss))  # type: ignore[arg-type]
        words = run_metadata(config, Progress(1, 0, 0), averaged=False)
        return {name.removeprefix("ss_"): value for name, value in words.items()}

    assert told(min_snr_gamma=5.0)["min_snr_gamma"] == "5"
    assert told(offset_noise=0.05)["noise_offset"] == "0.05"
    assert told(input_perturbation=0.1)["ip_noise_gamma"] == "0.1"
    layered = told(multires_noise_iterations=6)
    assert layered["multires_noise_iterations"] == "6"
    assert layered["multires_noise_discount"] == "0.3"
    assert told(zero_terminal_snr=True)["zero_terminal_snr"] == "True"
    assert told(debiased_estimation=True)["debiased_estimation"] == "True"
    assert not {"min_snr_gamma", "multires_noise_discount", "zero_terminal_snr"} & set(told())


def test_every_word_is_flat_text_that_the_webui_reads() -> None:
    told = run_metadata(TrainConfig(model="rex"), Progress(1, 0, 0), averaged=False)
    for value in told.values():
        assert isinstance(value, str)
        assert not value.lstrip().startswith("{")
    braced = Concept(instance_folder="x", instance_token="{ohwx}")
    config = TrainConfig(model="rex", concepts=[braced])
    with pytest.raises(InputError, match="begins with a brace"):
        run_metadata(config, Progress(1, 0, 0), averaged=False)


def test_the_settings_digest_depends_on_every_value_and_on_nothing_else() -> None:
    config = TrainConfig(model="rex")
    shuffled = json.loads(json.dumps(dict(reversed(to_dict(config).items()))))
    assert settings_sha256(from_dict(TrainConfig, shuffled)) == settings_sha256(config)
    config.loss.prior_loss_weight += 0.1
    assert settings_sha256(config) != settings_sha256(TrainConfig(model="rex"))


def test_trigger_words_come_once_each_in_their_order() -> None:
    concepts = [
        Concept(instance_folder="x", instance_token=token) for token in ("b", "a", "", "b ", "a")
    ]
    assert trigger_words(TrainConfig(model="rex", concepts=concepts)) == ["b", "a"]
