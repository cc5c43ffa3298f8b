"""The comparison: which checkpoints, the same seeds for all, the sheet, the table, the best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config.schema import CompareConfig, Concept, TrainConfig
from dreambooth_core.errors import InputError, ModelNotFoundError
from dreambooth_core.job.commands import Command, send
from dreambooth_core.job.events import Event, Notice, PhaseProgress, SampleSaved
from dreambooth_core.job.runs import Run, create_run_folder, write_run
from dreambooth_core.job.workspace import ModelFolder, Workspace
from dreambooth_core.stages import compare
from dreambooth_core.stages.compare import run
from dreambooth_core.stages.grid import MARK
from tests.tiny import stage_context, write_tiny_checkpoint


def config(**changes: Any) -> CompareConfig:
    settings: dict[str, Any] = {
        "model": "tiny",
        "prompts": ["photo of a zwx man", "photo of a man"],
        "steps": 1,
        "cfg_scale": 2.0,
        "seeds_per_prompt": 2,
        **changes,
    }
    return CompareConfig(**settings)


class FakeJudge:
    """Says that every picture with the token is the subject more, the later it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def subject_score(self, images: Sequence[Image.Image], subject: str) -> list[float]:
        assert subject == "bob"
        with_token = self.asked % 2 == 0
        score = 0.3 * (self.asked // 2) if with_token else 0.0
        self.asked += 1
        return [score] * len(images)

    def prompt_fidelity(self, images: Sequence[Image.Image], expected: Mapping[str, str]) -> float:
        assert expected == {"kind": "man"}
        return 1.0

    def diversity(self, images: Sequence[Image.Image]) -> float:
        return 0.25


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    judge = FakeJudge()
    monkeypatch.setattr(compare.Judge, "load", staticmethod(lambda: judge))
    monkeypatch.setattr(compare, "SUBJECTS", {"bob": SimpleNamespace(token="zwx")})
    return judge


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[int]]]:
    """Plain pictures instead of drawn ones; the prompts and seeds that were asked for."""
    asked: list[tuple[list[str], list[int]]] = []

    def paint(_: Any, prompts: Sequence[str], *__: Any, **settings: Any) -> list[Image.Image]:
        asked.append((list(prompts), list(settings["seeds"])))
        return [Image.new("RGB", (64, 64), (10, 20, 30 * len(asked))) for _ in prompts]

    monkeypatch.setattr(compare, "generate", paint)
    return asked


@pytest.fixture
def saved(workspace: Workspace, tiny_model_folder: ModelFolder) -> list[Path]:
    """Two saved checkpoints that the model remembers, and its last training."""
    paths = [workspace.checkpoints_dir / f"tiny_{step}.safetensors" for step in (100, 200)]
    for seed, path in enumerate(paths, start=1):
        write_tiny_checkpoint(path, seed=seed)
    info = tiny_model_folder.read_info()
    info.checkpoints = [str(path) for path in paths]
    tiny_model_folder.write_info(info)
    concept = Concept(
        instance_folder="x",
        instance_prompt="photo of a zwx man",
        class_prompt="photo of a man",
        instance_token="zwx",
        class_token="man",
    )
    folder = create_run_folder(workspace, "train")
    training = TrainConfig(model="tiny", concepts=[concept])
    write_run(folder, Run(folder.name, "train", workspace.root, training))
    return paths


@pytest.mark.turns("compare.model", "compare.subject")
def test_all_saved_checkpoints_are_compared_with_the_base(
    workspace: Workspace, saved: list[Path], judge: FakeJudge
) -> None:
    events: list[Event] = []
    summary = run(config(subject="bob"), stage_context(workspace, events))
    numbers = json.loads(Path(summary["numbers"]).read_text(encoding="utf-8"))
    rows = numbers["rows"]
    assert [row["checkpoint"] for row in rows] == ["as created", "tiny_100", "tiny_200"]
    assert [row["subject_fidelity"] for row in rows] == pytest.approx([0.0, 0.3, 0.6])
    assert [row["drift"] > 0 for row in rows] == [False, True, True]
    assert [row["keep"] for row in rows] == [False, False, True]
    assert rows[2]["diversity"] == 0.25 and rows[2]["prompt_fidelity"] == 1.0
    assert summary["keep"] == str(saved[1])
    assert numbers["settings"]["seeds_per_prompt"] == 2
    table = Path(summary["table"]).read_text(encoding="utf-8")
    assert "| tiny_200 | 0.60 | 1.00 | 0.00 | 0.25 |" in table and "bob" in table
    assert summary["comparison"][0].startswith("checkpoint")
    assert summary["comparison"][3].startswith("tiny_200") and len(summary["comparison"]) == 5
    assert [e.done for e in events if isinstance(e, PhaseProgress)] == [1, 2, 3]
    assert [e.path for e in events if isinstance(e, SampleSaved)] == [summary["grid"]]


@pytest.mark.usefixtures("painted")
def test_the_sheet_shows_every_picture_and_marks_the_best(
    workspace: Workspace, saved: list[Path], judge: FakeJudge
) -> None:
    assert saved
    folder = workspace.model("tiny").samples_dir / "compare-test"
    summary = run(config(subject="bob"), stage_context(workspace))
    assert summary["grid"] == str(folder / "compare.png")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["compare.json", "compare.md", "compare.png"]
    with Image.open(summary["grid"]) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 2 * (2 * 128) and pixels.shape[0] > 3 * 128
    marked = np.nonzero((pixels[:, 0] == MARK).all(axis=-1))[0]
    assert marked.min() > pixels.shape[0] / 2


@pytest.mark.turns(
    "compare.seed", "compare.checkpoints", "compare.prompts", "compare.seeds_per_prompt"
)
def test_every_checkpoint_draws_from_the_same_seeds(
    workspace: Workspace, saved: list[Path], painted: list[tuple[list[str], list[int]]]
) -> None:
    run(config(prompts=[], seed=5, checkpoints=[str(saved[0])]), stage_context(workspace))
    subject, elsewhere = "photo of a zwx man", "photo of a zwx man at the beach"
    prompts = [subject] * 2 + [elsewhere] * 2 + ["photo of a man"] * 2
    assert painted == [(prompts, [5, 6, 5, 6, 5, 6])] * 2


@pytest.mark.turns("compare.output")
@pytest.mark.usefixtures("painted")
def test_without_a_subject_there_is_the_sheet_and_a_word_about_it(
    workspace: Workspace, saved: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    asked = config(checkpoints=[saved[1].name], output=str(output))
    summary = run(asked, stage_context(workspace))
    assert summary["grid"] == str(output / "compare.png") and summary["keep"] == ""
    assert "built-in small world" in summary["comparison"][-1]
    table = (output / "compare.md").read_text(encoding="utf-8")
    assert "| checkpoint |" in table and "built-in small world" in table
    with Image.open(summary["grid"]) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert not (pixels[:, 0] == MARK).all(axis=-1).any()


@pytest.mark.turns(
    "compare.negative_prompt", "compare.steps", "compare.cfg_scale", "compare.sampler"
)
def test_everything_is_drawn_as_asked(
    workspace: Workspace, saved: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def paint(_: Any, prompts: list[str], negative: list[str], **more: Any) -> list[Image.Image]:
        asked.append({**more, "prompts": prompts, "negative": negative})
        return [Image.new("RGB", (64, 64)) for _ in prompts]

    monkeypatch.setattr(compare, "generate", paint)
    wanted = {"steps": 3, "cfg_scale": 4.5, "sampler": "euler_a"}
    settings = config(
        prompts=["a dog"], negative_prompt="a cat", seeds_per_prompt=3, checkpoints=[], **wanted
    )
    run(settings, stage_context(workspace))
    assert len(asked) == 1 + len(saved)
    for each in asked:
        assert {name: each[name] for name in wanted} == wanted
        assert list(each["prompts"]) == ["a dog"] * 3
        assert list(each["negative"]) == ["a cat"] * 3


@pytest.mark.usefixtures("painted")
def test_a_checkpoint_that_is_gone_is_left_out_aloud(
    workspace: Workspace, saved: list[Path]
) -> None:
    saved[0].unlink()
    events: list[Event] = []
    summary = run(config(), stage_context(workspace, events))
    assert [line.split()[0] for line in summary["comparison"][1:3]] == ["as", "tiny_200"]
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert len(notices) == 1 and str(saved[0]) in notices[0]


@pytest.mark.usefixtures("painted")
def test_a_stop_gives_the_sheet_of_what_is_drawn(workspace: Workspace, saved: list[Path]) -> None:
    assert saved
    context = stage_context(workspace)
    send(context.folder, Command("stop"))
    summary = run(config(), context)
    assert summary["stopped"] is True and Path(summary["grid"]).is_file()
    assert [line.split()[0] for line in summary["comparison"][1:-1]] == ["as"]


def test_what_cannot_be_compared_is_refused(
    workspace: Workspace, tiny_model_folder: ModelFolder, judge: FakeJudge
) -> None:
    assert tiny_model_folder.exists() and judge.asked == 0
    context = stage_context(workspace)
    with pytest.raises(InputError, match="no saved checkpoints"):
        run(config(), context)
    with pytest.raises(InputError, match=r"no subject 'rob'.*bob"):
        run(config(subject="rob"), context)
    with pytest.raises(InputError, match="absent"):
        run(config(checkpoints=["absent"]), context)
    with pytest.raises(InputError, match="nothing to draw"):
        run(config(prompts=[]), context)
    with pytest.raises(ModelNotFoundError):
        run(config(model="nobody"), context)
