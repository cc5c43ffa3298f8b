from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core.config.control import field_specs
from dreambooth_core.config.pictures import IMAGE_SUFFIXES, picture_files
from dreambooth_core.config.schema import (
    JOB_CONFIGS,
    CompareConfig,
    Concept,
    CreateConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.config.serialize import apply_set
from dreambooth_core.config.validate import check, check_fields, validate
from dreambooth_core.errors import ConfigError
from dreambooth_core.job.workspace import ModelInfo, Workspace

EMPTY_SAFETENSORS = struct.pack("<Q", 2) + b"{}"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with one picture, by its name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "one.PNG").write_bytes(b"")
    return folder


@pytest.fixture
def trained(workspace: Workspace) -> Workspace:
    """A workspace with a model "ada" that has states of steps 2 and 4 of one run."""
    folder = workspace.model("ada")
    folder.write_info(ModelInfo("ada", "sd1", ""))
    for name in ("step_00000002", "step_00000004", "step_00000006.tmp"):
        state = folder.states_dir / "run1" / name
        state.mkdir(parents=True)
        (state / "progress.json").write_text("{}")
    return workspace


@pytest.fixture
def training(pictures: Path) -> TrainConfig:
    """Settings without a fault."""
    return TrainConfig(model="ada", concepts=[Concept(instance_folder=str(pictures))])


def _texts(config: object, workspace: Workspace | None = None, kind: str = "") -> list[str]:
    return [str(problem) for problem in validate(config, workspace, kind)]


def test_good_settings_have_no_problem(training: TrainConfig, trained: Workspace) -> None:
    assert _texts(training) == []
    assert _texts(training, trained) == []
    check(training, trained)


NUMBERS = [
    (cls, spec)
    for cls in dict.fromkeys(JOB_CONFIGS.values())
    for spec in field_specs(cls)
    if spec.type in (int, float)
]


@pytest.mark.parametrize(
    ("cls", "spec"), NUMBERS, ids=[f"{cls.__name__}.{spec.path}" for cls, spec in NUMBERS]
)
def test_every_number_is_held_to_its_range(cls: type, spec: object) -> None:
    needed = {s.name: "x" for s in field_specs(cls) if s.required}
    good = cls(**needed)
    low, high = spec.control.minimum, spec.control.maximum
    step = 1 if spec.type is int else 0.5
    for value, allowed in ((low, True), (high, True), (low - step, False), (high + step, False)):
        text = str(int(value)) if spec.type is int else repr(float(value))
        changed = apply_set(good, f"{spec.path}={text}")
        named = [problem.field for problem in check_fields(changed)]
        assert (spec.path not in named) == allowed, (value, named)


def test_out_of_range_says_what_is_allowed(training: TrainConfig) -> None:
    training.intervals.epochs = -1
    training.concepts[0].class_steps = 501
    assert _texts(training) == [
        "intervals.epochs: is -1 epochs. It must be at least 0 and at most 10000.",
        "concepts.0.class_steps: is 501 steps. It must be at least 1 and at most 500.",
    ]


CHOICES = [
    "optimizer.name",
    "learning_rate.schedule",
    "precision.mixed_precision",
    "images.crop",
    "images.cache_latents",
    "saving.dtype",
    "previews.sampler",
]


@pytest.mark.parametrize("path", CHOICES)
def test_choices_are_held_to(training: TrainConfig, path: str) -> None:
    (text,) = _texts(apply_set(training, f"{path}=other"))
    assert text.startswith(f"{path}: is 'other'. Choose one of: ")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_good_devices(training: TrainConfig, device: str) -> None:
    training.precision.device = device
    assert _texts(training) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "cpu:0"])
def test_bad_devices(training: TrainConfig, device: str) -> None:
    training.precision.device = device
    assert "precision.device" in _texts(training)[0]


def _change(path: str, value: object) -> Callable[[TrainConfig], None]:
    def change(config: TrainConfig) -> None:
        *parts, last = path.split(".")
        place: object = config
        for part in parts:
            place = place[int(part)] if isinstance(place, list) else getattr(place, part)
        setattr(place, last, value)

    return change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concepts": []}, "concepts: there is nothing to learn."),
        ({"concepts.0.instance_folder": " "}, "concepts.0.instance_folder: is empty."),
        ({"concepts.0.instance_folder": "/no/such"}, "/no/such does not exist"),
        ({"concepts.0.class_folder": "/no/such"}, "/no/such does not exist"),
        ({"concepts.0.class_folder": str(Path(__file__).parent)}, "class_folder would not be used"),
        ({"concepts.0.instance_folder": __file__}, "is a file"),
        ({"concepts.0.instance_prompt": " "}, "concepts.0.instance_prompt: is empty."),
        (
            {"concepts.0.instance_token": " {ohwx}"},
            "concepts.0.instance_token: begins with a brace",
        ),
        ({"saving.name": "{ohwx"}, "saving.name: The name name '{ohwx' begins with a brace"),
        (
            {"concepts.0.class_images_per_instance_image": 3},
            "concepts.0.class_prompt: is empty, but class images are asked for.",
        ),
        (
            {
                "concepts.0.class_images_per_instance_image": 3,
                "concepts.0.class_token": "dog",
                "loss.prior_loss_weight": 0.0,
            },
            "prior_loss_weight is 0",
        ),
        ({"unet.train": False, "text_encoder.train_ratio": 0.0}, "nothing is trained"),
        ({"learning_rate.unet": 0.0}, "learning_rate.unet: is 0"),
        ({"learning_rate.text_encoder": 0.0}, "learning_rate.text_encoder: is 0"),
        (
            {"learning_rate.schedule": "constant", "learning_rate.warmup_steps": 5},
            "constant has no warm-up",
        ),
        (
            {"precision.mixed_precision": "fp16", "precision.device": "cpu"},
            "precision.mixed_precision: is fp16 on the cpu.",
        ),
        ({"previews.every_epochs": 1}, "previews.prompts: are empty"),
        ({"previews.every_steps": 1, "previews.prompts": [" "]}, "previews.prompts: are empty"),
        ({"saving.name": "a/b"}, "saving.name: The name name 'a/b' holds a slash"),
        ({"saving.subfolder": ".."}, "saving.subfolder"),
        ({"model": "a/b"}, "model: The model name"),
    ],
)
def test_each_conflict_is_named(
    training: TrainConfig, changes: dict[str, object], words: str
) -> None:
    for path, value in changes.items():
        _change(path, value)(training)
    texts = _texts(training)
    assert len(texts) == 1
    assert words in texts[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"unet.train": False, "learning_rate.unet": 0.0},
        {"text_encoder.train_ratio": 0.0, "learning_rate.text_encoder": 0.0},
        {"learning_rate.schedule": "constant"},
        {"learning_rate.warmup_steps": 5},
        {"previews.every_epochs": 1, "concepts.0.sample_prompts": ["a dog"]},
        {"previews.every_steps": 1, "previews.prompts": ["a dog"]},
        {
            "concepts.0.class_images_per_instance_image": 3,
            "concepts.0.class_prompt": "a dog",
        },
        {"concepts.0.class_images_per_instance_image": 3, "concepts.0.class_token": "dog"},
        {"precision.mixed_precision": "bf16", "precision.device": "cpu"},
    ],
)
def test_what_is_no_conflict(training: TrainConfig, changes: dict[str, object]) -> None:
    for path, value in changes.items():
        _change(path, value)(training)
    assert _texts(training) == []


def test_an_empty_folder_and_an_empty_class_folder(training: TrainConfig, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    training.concepts[0].class_folder = str(empty)
    training.concepts[0].class_images_per_instance_image = 1
    training.concepts[0].class_token = "dog"
    assert _texts(training) == []
    training.concepts[0].instance_folder = str(empty)
    assert "holds no pictures" in _texts(training)[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_unreadable_pictures(training: TrainConfig, pictures: Path) -> None:
    (pictures / "one.PNG").chmod(0)
    assert "one.PNG cannot be read" in _texts(training)[0]
    pictures.chmod(0)
    assert "cannot be read" in _texts(training)[0]
    pictures.chmod(0o700)


def test_unreadable_pictures_are_named(
    training: TrainConfig, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("PNG"))
    assert "one.PNG cannot be read" in _texts(training)[0]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"the folder {pictures} cannot be read" in _texts(training)[0]


def test_pictures_are_found_below_and_hidden_ones_are_not(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b/c.webp", "b/d.JPEG"]
    for name in [*wanted, ".hidden.png", ".folder/x.png", "text.txt", "._a.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert picture_files(tmp_path) == [tmp_path / name for name in wanted]


def test_both_sides_count_the_same_files_as_pictures() -> None:
    images = pytest.importorskip("dreambooth_core.data.picture_files")
    assert set(IMAGE_SUFFIXES) == set(images.IMAGE_SUFFIXES)


def test_the_model_must_exist(training: TrainConfig, workspace: Workspace) -> None:
    assert "model: There is no model 'ada'" in _texts(training, workspace)[0]


def test_resume_needs_a_state(training: TrainConfig, trained: Workspace) -> None:
    training.resume = True
    assert _texts(training, trained) == []
    trained.model("bob").write_info(ModelInfo("bob", "sd1", ""))
    training.model = "bob"
    assert "no training state to go on from" in _texts(training, trained)[0]


def test_class_images_must_be_asked_for(training: TrainConfig) -> None:
    assert "ask for no class images" in _texts(training, None, "class-images")[0]
    assert _texts(training, None, "train") == []
    training.concepts[0].class_images_per_instance_image = 2
    training.concepts[0].class_prompt = "a dog"
    assert _texts(training, None, "class-images") == []


def test_create(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(EMPTY_SAFETENSORS)
    config = CreateConfig(name="ada", source=str(source))
    assert _texts(config) == []
    assert _texts(config, workspace) == []
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", ""))
    assert "name: there is a model 'ada' already." in _texts(config, workspace)[0]


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint at all"])
def test_create_from_what_is_no_checkpoint(
    workspace: Workspace, tmp_path: Path, content: bytes | None
) -> None:
    source = tmp_path / "a.safetensors"
    if content is not None:
        source.write_bytes(content)
    (text,) = _texts(CreateConfig(name="ada", source=str(source)), workspace)
    assert text.startswith("source: ")
    assert "a.safetensors" in text


def test_sample(trained: Workspace) -> None:
    assert _texts(SampleConfig(model="ada", prompts=["a"]), trained) == []
    assert _texts(SampleConfig(model="ada"), trained) == ["prompts: are empty. Say what to draw."]
    assert "prompts" in _texts(SampleConfig(model="ada", prompts=["", " "]))[0]
    wide = SampleConfig(model="ada", prompts=["a"], width=16, height=64)
    assert _texts(wide) == ["width: is 16 pixels. Use 0 or at least 32."]
    missing = SampleConfig(model="ada", prompts=["a"], checkpoint="none")
    assert "checkpoint: There is no checkpoint file 'none'" in _texts(missing, trained)[0]


def test_an_output_folder_may_be_new_but_no_file(tmp_path: Path) -> None:
    sample = SampleConfig(model="ada", prompts=["a"], output=str(tmp_path / "new"))
    assert _texts(sample) == []
    (tmp_path / "new").write_text("")
    assert "output" in _texts(sample)[0]


def test_save(trained: Workspace) -> None:
    for good in (
        SaveConfig(model="ada"),
        SaveConfig(model="ada", run="run1"),
        SaveConfig(model="ada", run="run1", step=2),
        SaveConfig(model="ada", step=4),
    ):
        assert _texts(good, trained) == []
    assert _texts(SaveConfig(model="ada", run="run2"), trained) == [
        "run: there is no run 'run2'. There are: run1."
    ]
    assert _texts(SaveConfig(model="ada", step=6), trained) == [
        "step: run1 has no state of step 6. Kept: 2, 4."
    ]
    assert _texts(SaveConfig(model="ada")) == []
    trained.model("bob").write_info(ModelInfo("bob", "sd1", ""))
    assert "no training state yet" in _texts(SaveConfig(model="bob"), trained)[0]
    assert "no model" in _texts(SaveConfig(model="eve"), trained)[0]


def test_compare(trained: Workspace) -> None:
    assert _texts(CompareConfig(model="ada"), trained) == []
    config = CompareConfig(model="ada", checkpoints=["one", "two"])
    assert len(_texts(config, trained)) == 2
    (trained.checkpoints_dir / "one.safetensors").write_bytes(EMPTY_SAFETENSORS)
    assert "'two'" in _texts(config, trained)[0]


def test_check_raises_all_problems(training: TrainConfig) -> None:
    training.intervals.epochs = -1
    training.batch.batch_size = 0
    with pytest.raises(ConfigError) as caught:
        check(training, None)
    assert len(caught.value.problems) == 2


# -- LoRA


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["lora.unet_learning_rate=0"], "lora.unet_learning_rate: is 0, so that part"),
        (["lora.text_encoder_learning_rate=0"], "lora.text_encoder_learning_rate: is 0"),
        (["saving.dtype=source"], "saving.dtype: is source, but a LoRA has no source"),
        (["lora.conv_rank=4", "unet.train=off"], "lora.conv_rank: is set, but only the UNet"),
        (["lora.rank=0"], "lora.rank: is 0 dimensions. It must be at least 1"),
        (["lora.alpha=0"], "lora.alpha: is 0"),
        (["saving.ema_keys=on"], "saving.ema_keys: asks for the running average, but a LoRA"),
    ],
)
def test_settings_that_a_lora_cannot_have(
    training: TrainConfig, changes: list[str], text: str
) -> None:
    training.lora.enabled = True
    assert _texts(training) == []
    for change in changes:
        training = apply_set(training, change)
    assert _texts(training)[0].startswith(text)
    training.lora.enabled = False
    if "rank=0" not in changes[0] and "alpha" not in changes[0]:
        assert _texts(training) == []


def test_a_lora_does_not_need_the_models_learning_rates(training: TrainConfig) -> None:
    training.learning_rate.unet = training.learning_rate.text_encoder = 0.0
    assert len(_texts(training)) == 2
    training.lora.enabled = True
    assert _texts(training) == []
