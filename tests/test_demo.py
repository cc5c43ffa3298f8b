"""The demo's jobs: complete, valid, about a subject of the world, repeatable in one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dreambooth_core import demo
from dreambooth_core.config.schema import CompareConfig, Concept, CreateConfig, TrainConfig
from dreambooth_core.config.validate import check_fields, validate
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.world.captions import parse_prompt
from dreambooth_core.world.palette import BACKGROUNDS
from dreambooth_core.world.subjects import SUBJECTS, subject_folder


def training(workspace: Workspace) -> TrainConfig:
    config = dict(demo.steps(workspace))["train"]
    assert isinstance(config, TrainConfig)
    return config


def test_the_jobs_are_create_class_images_train_compare(workspace: Workspace) -> None:
    steps = demo.steps(workspace)
    assert [kind for kind, _ in steps] == ["create", "class-images", "train", "compare"]
    create, _, train, compare = (config for _, config in steps)
    assert isinstance(create, CreateConfig) and create.name == "demo"
    assert isinstance(train, TrainConfig) and train.model == "demo"
    assert isinstance(compare, CompareConfig) and compare.model == "demo"


def test_the_settings_are_valid(workspace: Workspace) -> None:
    steps = demo.steps(workspace)
    assert validate(steps[0][1], workspace) == []
    for _, config in steps:
        assert check_fields(config) == []
    assert validate(steps[2][1], None) == [] and validate(steps[3][1], None) == []


def test_training_shows_what_the_product_does(workspace: Workspace) -> None:
    config = training(workspace)
    concept = config.concepts[0]
    assert concept.class_images_per_instance_image > 0 and config.loss.prior_loss_weight > 0
    assert config.optimizer.name == "lion" and config.ema.enabled and config.saving.use_ema
    assert config.text_encoder.train_ratio == 0.75
    epochs, every = config.intervals.epochs, config.saving.save_every_epochs
    assert epochs // every >= 3 and epochs % every == 0
    assert config.saving.name == config.saving.subfolder == ""


def test_the_subject_is_one_of_the_world() -> None:
    subject = SUBJECTS[demo.SUBJECT]
    assert (subject.token, subject.class_noun) == (demo.TOKEN, demo.CLASS_WORD)
    assert subject_folder(demo.SUBJECT) == demo.INSTANCE_FOLDER
    assert demo.CHECKPOINT.is_file() and demo.CHECKPOINT.with_suffix(".yaml").is_file()
    pictures = sorted(demo.INSTANCE_FOLDER.glob("*.png"))
    assert len(pictures) >= 5
    assert all(path.with_suffix(".txt").is_file() for path in pictures)


def test_the_prompts_show_subject_new_setting_and_class() -> None:
    subject = SUBJECTS[demo.SUBJECT]
    with_token = [prompt for prompt in demo.PROMPTS if demo.TOKEN in prompt]
    without = [prompt for prompt in demo.PROMPTS if demo.TOKEN not in prompt]
    kinds = [parse_prompt(prompt)["kind"] for prompt in demo.PROMPTS]
    assert kinds.count(subject.class_noun) >= 3 and set(kinds) > {subject.class_noun}
    settings = {parse_prompt(prompt).get("background") for prompt in with_token}
    assert settings & set(subject.unseen) and settings <= {None, *BACKGROUNDS}
    assert f"photo of a {subject.class_noun}" in without


def test_a_second_demo_in_the_folder_takes_another_name(workspace: Workspace) -> None:
    workspace.model("demo").path.mkdir(parents=True)
    assert demo.free_name(workspace) == "demo-2"
    (workspace.checkpoints_dir / "demo-2_100.safetensors").write_bytes(b"")
    assert demo.free_name(workspace) == "demo-3"
    assert [getattr(config, "model", "demo-3") for _, config in demo.steps(workspace)] == [
        "demo-3"
    ] * 4


def test_the_judge_knows_the_built_in_subject_and_nobody_else() -> None:
    own = Concept(instance_folder="pictures/anna")
    assert demo.known_subject([demo.concept()]) == demo.SUBJECT
    assert demo.known_subject([own]) == demo.known_subject([]) == ""
    assert demo.known_subject([demo.concept(), own]) == ""


def test_listing_the_jobs_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dreambooth_core import demo\n"
        "from dreambooth_core.job.workspace import Workspace\n"
        "demo.steps(Workspace(Path(sys.argv[1])))\n"
        "assert not {'torch', 'diffusers', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
