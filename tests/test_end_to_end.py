"""The product's promise, on the embedded model: it learns the subject and keeps the class.

One short training with prior preservation and one without, same seed and steps, through the stages
that a job runs. Pictures are read by the world's judge. About a minute and a half on one core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dreambooth_core import demo
from dreambooth_core.config.schema import CreateConfig, TrainConfig
from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.events import CheckpointSaved, Event, StepDone
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import create, train
from dreambooth_core.stages.sampling import generate
from dreambooth_core.world.judge import Judge
from dreambooth_core.world.subjects import SUBJECTS, prompts
from tests.tiny import stage_context

STEPS = 420
SUBJECT_MARGIN = 0.25
WORTHWHILE_LEAK = 0.2
SUBJECT = SUBJECTS[demo.SUBJECT]


@dataclass(frozen=True)
class Outcome:
    """What the base and the two trainings draw, and what lay on the disk before and after."""

    base: dict[str, float]
    with_prior: dict[str, float]
    without_prior: dict[str, float]
    before: dict[str, str]
    after: dict[str, str]
    events: list[Event]


def score(components: Components, texts: Sequence[str]) -> float:
    pictures = generate(
        components,
        list(texts),
        [""] * len(texts),
        width=128,
        height=128,
        steps=20,
        cfg_scale=5.0,
        sampler="dpm++_2m",
        seeds=range(50, 50 + len(texts)),
        batch_size=8,
    )
    scores = Judge.load().subject_score(list(pictures), SUBJECT.name)
    return sum(scores) / len(scores)


def measured(components: Components) -> dict[str, float]:
    asked = prompts(SUBJECT)
    with_token = (asked.token_seen + asked.token_unseen)[:8]
    without = (asked.class_plain,) * 4 + asked.class_places[:4]
    return {"subject": score(components, with_token), "leak": score(components, without)}


def hashes(model: ModelFolder) -> dict[str, str]:
    """The components' weights and the checkpoint that they came from."""
    files = [*sorted(model.path.glob("*/*.safetensors")), demo.CHECKPOINT]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def settings(prior: bool) -> TrainConfig:
    config = demo.training_config("subject")
    config.intervals.epochs = config.intervals.max_steps = STEPS
    config.saving.save_every_epochs = 0
    config.saving.name = "with-prior" if prior else "without-prior"
    concept = config.concepts[0]
    concept.class_images_per_instance_image = 4 if prior else 0
    concept.class_steps = 12
    return config


def trained(workspace: Workspace, prior: bool, events: list[Event]) -> dict[str, float]:
    summary = train.run(settings(prior), stage_context(workspace, events))
    path = Path(summary["checkpoints"][-1])
    return measured(load_checkpoint(path, workspace.model("subject")))


@pytest.fixture(scope="module")
def outcome(module_folder: Path) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workspace = Workspace(module_folder)
    created = CreateConfig(name="subject", source=str(demo.CHECKPOINT))
    create.run(created, stage_context(workspace))
    model = workspace.model("subject")
    before = hashes(model)
    events: list[Event] = []
    outcome = Outcome(
        base=measured(load_components(model)),
        with_prior=trained(workspace, True, events),
        without_prior=trained(workspace, False, events),
        before=before,
        after=hashes(model),
        events=events,
    )
    torch.set_num_threads(threads)
    return outcome


def test_the_subject_is_learnt(outcome: Outcome) -> None:
    assert outcome.base["subject"] < 0.1
    assert outcome.with_prior["subject"] > outcome.base["subject"] + SUBJECT_MARGIN


def test_prior_preservation_keeps_the_class(outcome: Outcome) -> None:
    assert outcome.base["leak"] < 0.1
    assert outcome.without_prior["leak"] > WORTHWHILE_LEAK
    assert outcome.with_prior["leak"] <= outcome.without_prior["leak"] / 2


def test_the_base_is_left_as_it_was(outcome: Outcome) -> None:
    assert len(outcome.before) == 4
    assert outcome.after == outcome.before


def test_both_trainings_took_the_same_steps(outcome: Outcome) -> None:
    steps = [event for event in outcome.events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [*range(1, STEPS + 1)] * 2
    assert [event.loss_class is None for event in steps] == [False] * STEPS + [True] * STEPS
    assert sum(isinstance(event, CheckpointSaved) for event in outcome.events) == 2
