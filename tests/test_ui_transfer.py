"""The Transfer tab: the three models filled in, what it does in words, the job and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from dreambooth_core.config.schema import (
    BakeLoraConfig,
    ExtractLoraConfig,
    JobConfig,
    MergeConfig,
    TrainConfig,
)
from dreambooth_core.errors import BusyError
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.events import EventWriter, JobFailed, JobFinished, JobStopped, LoraSaved
from dreambooth_core.job.runs import Run, create_run_folder, events_path, write_run
from dreambooth_core.job.transfer import last_transfer
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.tabs.transfer import CHOOSE, TransferTab, meaning, show_result
from tests.original_layout import TINY_SDXL, checkpoint_shapes
from tests.tiny_header import write_header

HOSTILE = "<script>alert('x')</script>"
MERGE = MergeConfig(name="new", primary="a", secondary="b", tertiary="c")


class Page:
    """The tab as an open page has it: values in, updates out."""

    def __init__(self, workspace: Workspace) -> None:
        self.started: list[tuple[str, JobConfig]] = []
        self.refusal: BusyError | None = None
        with gr.Blocks() as blocks:
            model = gr.Textbox()
            self.tab = TransferTab(StandaloneHost(workspace))
            self.tab.wire(self.start, model, gr.Button().click, gr.HTML().change)
        self.blocks = blocks
        forms = (self.tab.merge, self.tab.extract, self.tab.bake)
        parts = [part for form in forms for part in form.fields.components().values()]
        self.values = {part: getattr(part, "value", None) for part in parts}

    def start(self, kind: str, config: JobConfig) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.started.append((kind, config))

    def show(self, updates: dict[Any, Any]) -> dict[Any, Any]:
        for part, update in updates.items():
            if not isinstance(update, dict):
                self.values[part] = update
            elif "value" in update:
                self.values[part] = update["value"]
        return updates

    def press(self, form: Any) -> str:
        """Press a form's button as a browser does, and return what is said."""
        return str(self._handler(form.button)(self.values))

    def _handler(self, button: Any) -> Any:
        """Return the function that answers a button's click, in whichever gradio this is."""
        listed = getattr(self.blocks, "fns", None) or {}
        functions = listed.values() if isinstance(listed, dict) else listed
        for number, function in enumerate(functions):
            targets = getattr(function, "targets", None)
            if targets is None:
                found = self.blocks.dependencies[number]["targets"]
                targets = found if found and isinstance(found[0], (list, tuple)) else [(found[0],)]
            if any(target[0] == button._id for target in targets):
                return function.fn
        raise AssertionError("nothing listens to the button")


@pytest.fixture
def page(workspace: Workspace) -> Page:
    """The tab, of a workspace with a trained character, its source and another model."""
    for name in ("base", "zwx_40", "zwx_80", "paint"):
        write_header(workspace.checkpoints_dir / f"{name}.safetensors")
    write_header(workspace.checkpoints_dir / "big.safetensors", checkpoint_shapes(TINY_SDXL))
    folder = workspace.checkpoints_dir
    saved = [str(folder / f"{name}.safetensors") for name in ("zwx_40", "zwx_80", "zwx_gone")]
    info = ModelInfo(
        name="zwx", family="sd1", source=str(folder / "base.safetensors"), checkpoints=saved
    )
    workspace.model("zwx").write_info(info)
    return Page(workspace)


def value(page: Page, form: Any, name: str) -> Any:
    """What a setting on the page is now."""
    return page.values[form.part(name)]


def test_the_three_models_are_filled_in_for_a_trained_character(page: Page) -> None:
    tab = page.tab
    page.show(tab.fill("zwx"))
    assert value(page, tab.merge, "secondary") == "zwx_80.safetensors"
    assert value(page, tab.merge, "tertiary") == "base.safetensors"
    assert value(page, tab.merge, "method") == "add_difference"
    assert value(page, tab.merge, "primary") is None
    assert value(page, tab.extract, "trained") == "zwx_80.safetensors"
    assert value(page, tab.extract, "base") == "base.safetensors"
    assert value(page, tab.bake, "checkpoint") == "base.safetensors"
    assert page.values[tab.merge.message] == ""


def test_coming_to_the_tab_fills_it_in_only_once(page: Page) -> None:
    page.show(page.tab.fill_if_empty("zwx", None))
    assert value(page, page.tab.merge, "secondary") == "zwx_80.safetensors"
    assert list(page.tab.fill_if_empty("zwx", "mine.safetensors")) == [page.tab.merge.message]
    assert list(page.tab.fill_if_empty("", None)) == [page.tab.merge.message]


def test_what_cannot_be_filled_in_is_told(page: Page, workspace: Workspace) -> None:
    message = page.tab.merge.message
    assert "Choose a model" in page.tab.fill("")[message]
    info = ModelInfo(name="raw", family="sd1", source="/gone/base.safetensors")
    workspace.model("raw").write_info(info)
    told = page.tab.fill("raw")[message]
    assert "No checkpoint of it was saved" in told and "not there any more" in told
    workspace.model("raw").info_path.write_text("{")
    assert "model.json" in page.tab.fill("raw")[message]


def test_a_character_trained_as_a_lora_is_told_what_to_do(page: Page, workspace: Workspace) -> None:
    source = str(workspace.checkpoints_dir / "base.safetensors")
    workspace.model("rex").write_info(ModelInfo(name="rex", family="sd1", source=source))
    lora = workspace.lora_dir / "rex_9.safetensors"
    write_header(lora, {"lora_unet_x.lora_down.weight": (1, 1)})
    config = TrainConfig(model="rex", concepts=[])
    ended(workspace, "train", config, LoraSaved(str(lora), 9, 0, "", 1))
    told = page.show(page.tab.fill("rex"))[page.tab.merge.message]
    assert "trained as a LoRA" in told and "was saved yet" not in told
    assert value(page, page.tab.bake, "lora") == "rex_9.safetensors"
    assert value(page, page.tab.bake, "checkpoint") == "base.safetensors"


def test_it_says_in_words_what_it_does_and_proposes_a_name(page: Page) -> None:
    tab = page.tab
    page.show(tab.fill("zwx"))
    assert CHOOSE in tab.describe(page.values)[tab.meaning]
    page.values[tab.merge.part("primary")] = "paint.safetensors"
    page.values[tab.merge.part("multiplier")] = 0.8
    said = page.show(tab.describe(page.values))[tab.meaning]
    assert "What zwx_80.safetensors learned is what sets it apart from base.safetensors" in said
    assert "0.8 times it is added to paint.safetensors" in said
    assert value(page, tab.merge, "name") == "zwx_80_in_paint"
    page.values[tab.merge.part("name")] = "mine"
    page.show(tab.describe(page.values))
    assert value(page, tab.merge, "name") == "mine"


def test_a_mixture_is_described_as_one() -> None:
    told = {"method": "weighted_sum", "multiplier": 0.3, "primary": "x/a.ckpt", "secondary": "b"}
    said = meaning({**told, "tertiary": None})
    assert "70%" in said and "a.ckpt" in said and "30%" in said
    assert "choose A and B" in meaning({**told, "secondary": None, "tertiary": None})
    assert "<script" not in meaning({**told, "secondary": HOSTILE, "tertiary": None})


def test_transfer_starts_the_merge(page: Page) -> None:
    tab = page.tab
    page.show(tab.fill("zwx"))
    page.values[tab.merge.part("primary")] = "paint.safetensors"
    page.show(tab.describe(page.values))
    assert "run panel" in page.press(tab.merge)
    wanted = MergeConfig(
        name="zwx_80_in_paint",
        primary="paint.safetensors",
        secondary="zwx_80.safetensors",
        tertiary="base.safetensors",
    )
    assert page.started == [("merge", wanted)]


def test_lora_jobs_are_started_from_here_too(page: Page, workspace: Workspace) -> None:
    tab = page.tab
    page.show(tab.fill("zwx"))
    page.press(tab.extract)
    wanted = ExtractLoraConfig(name="zwx", base="base.safetensors", trained="zwx_80.safetensors")
    lora = workspace.lora_dir / "sub" / "z.safetensors"
    write_header(lora, {"lora_unet_x.lora_down.weight": (1, 1)})
    shown = tab.look()[tab.bake.part("lora")]["choices"]
    assert [choice if isinstance(choice, str) else choice[1] for choice in shown] == [
        "sub/z.safetensors"
    ]
    page.values[tab.bake.part("lora")] = "sub/z.safetensors"
    page.values[tab.bake.part("name")] = "baked"
    page.press(tab.bake)
    baked = BakeLoraConfig(name="baked", checkpoint="base.safetensors", lora="sub/z.safetensors")
    assert page.started == [("extract-lora", wanted), ("bake-lora", baked)]


def test_what_stands_in_the_way_is_told_with_the_labels_of_the_page(page: Page) -> None:
    tab = page.tab
    page.show(tab.fill("zwx"))
    page.values[tab.merge.part("primary")] = "big.safetensors"
    page.values[tab.merge.part("name")] = "x"
    told = page.press(tab.merge)
    assert "Trained checkpoint (model B)" in told and "family" in told
    page.values[tab.merge.part("primary")] = None
    assert "Target (model A)" in page.press(tab.merge)
    page.values[tab.merge.part("primary")] = "paint.safetensors"
    page.refusal = BusyError("The job x is still going on.")
    assert "still going on" in page.press(tab.merge)
    assert page.started == []


# -- the result


def ended(workspace: Workspace, kind: str, config: JobConfig, event: Any) -> str:
    """Write a run that ended, and return its id."""
    folder = create_run_folder(workspace, kind)
    write_run(folder, Run(folder.name, kind, workspace.root, config))
    if event is not None:
        EventWriter(events_path(folder)).emit(event)
    return folder.name


def test_the_result_is_shown(page: Page, workspace: Workspace) -> None:
    assert page.tab.look()[page.tab.result] == ""
    path = str(workspace.checkpoints_dir / "new.safetensors")
    done = JobFinished({"path": path, "sha256": "0123456789abcdef", "size": 2048})
    ended(workspace, "merge", MERGE, done)
    text = page.tab.look()[page.tab.result]
    assert "new.safetensors is ready" in text and "list of checkpoints" in text
    assert "a, b, c" in text and "0123456789<" in text and "2 KB" in text


def test_what_was_said_of_the_start_is_gone_at_the_end(page: Page) -> None:
    messages = [form.message for form in (page.tab.merge, page.tab.extract, page.tab.bake)]
    page.values[page.tab.merge.message] = "Making zwx_in_paint."
    page.show(page.tab.look_after_job())
    assert [page.values[message] for message in messages] == ["", "", ""]


def test_a_new_lora_is_shown_with_its_words(workspace: Workspace) -> None:
    config = ExtractLoraConfig(name="z", base="base", trained="x/zwx.safetensors")
    done = JobFinished({"path": str(workspace.lora_dir / "z.safetensors"), "size": 5})
    ended(workspace, "extract-lora", config, done)
    text = show_result(last_transfer(workspace))
    assert "&lt;lora:z:1&gt;" in text and "zwx.safetensors, base" in text


def test_failures_and_stops_are_told(workspace: Workspace) -> None:
    ended(workspace, "merge", MERGE, JobFailed("The disk is full.", HOSTILE))
    text = show_result(last_transfer(workspace))
    assert "new was not made: The disk is full." in text and "<script" not in text


def test_a_job_that_was_stopped_or_goes_on(workspace: Workspace) -> None:
    assert last_transfer(workspace) is None
    run_id = ended(workspace, "merge", MERGE, JobStopped(0, {"stopped": True}))
    end = last_transfer(workspace)
    assert end is not None and (end.run_id, end.kind, end.made_of) == (run_id, "merge", "a, b, c")
    assert "was stopped" in show_result(end)
    later = workspace.jobs_dir / "29991231-000000-merge"
    later.mkdir()
    write_run(later, Run(later.name, "merge", workspace.root, MERGE))
    assert last_transfer(workspace) is None


def test_runs_that_cannot_be_read_do_not_hide_others(workspace: Workspace) -> None:
    ended(workspace, "merge", MERGE, JobFinished({"path": "x"}))
    broken = workspace.jobs_dir / "29991231-000000-merge"
    broken.mkdir()
    (broken / "job.json").write_text("{")
    end = last_transfer(workspace)
    assert end is not None and Path(end.summary["path"]).name == "x"
