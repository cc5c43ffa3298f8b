"""The whole page without a browser: handlers are called with what a browser would send."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from dreambooth_core import demo
from dreambooth_core.config.control import field_specs
from dreambooth_core.config.schema import (
    BakeLoraConfig,
    CompareConfig,
    Concept,
    CreateConfig,
    ExtractLoraConfig,
    MergeConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.config.settings_store import keep_settings, kept_settings
from dreambooth_core.errors import ConfigError
from dreambooth_core.host.base import set_host
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.runs import Run, create_run_folder, write_run
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.app import Page, build_blocks
from dreambooth_core.ui.tabs.concepts import add, duplicate, pick, remove
from dreambooth_core.ui.training_form import blank_concept, guarded
from tests.test_job_comparison import compared

HOSTILE = "<img src=x onerror=alert(1)>"
TRANSFERS = {"merge": MergeConfig, "extract_lora": ExtractLoraConfig, "bake_lora": BakeLoraConfig}


class Browser:
    """Keeps the values of all components, as an open page does."""

    def __init__(self, page: Page) -> None:
        self.page = page
        everything = {*page.form.inputs(), page.known, page.presets.choice, page.presets.against}
        everything |= {page.presets.name, page.presets.upload, page.filled, *page.compare.inputs()}
        self.values = {part: getattr(part, "value", None) for part in everything}

    def show(self, updates: dict[Any, Any]) -> dict[Any, Any]:
        for part, update in updates.items():
            is_update = isinstance(update, dict) and "__type__" in update
            if not is_update:
                self.values[part] = update
            elif "value" in update:
                self.values[part] = update["value"]
        self.values[self.page.filled] = self.values[self.page.form.state]["model"]
        return updates

    def set(self, path: str, value: Any) -> None:
        self.values[self.page.form.train.components()[path]] = value

    def set_concept(self, path: str, value: Any) -> None:
        self.values[self.page.form.concept.components()[path]] = value

    def concept(self, path: str) -> Any:
        return self.values[self.page.form.concept.components()[path]]

    def edit(self, change: Any) -> dict[Any, Any]:
        return self.show(self.page.concepts._edit(change)(self.values))


def add_model(workspace: Workspace, name: str, **more: Any) -> None:
    info = ModelInfo(**{"name": name, "family": "sd1", "source": "/x/base.safetensors", **more})
    workspace.model(name).write_info(info)


class MovingHost(StandaloneHost):
    """Works in another folder for each test, so that the page is built only once."""

    def move(self, workspace: Workspace) -> None:
        self._workspace = workspace


@pytest.fixture(scope="module")
def built(module_folder: Path) -> tuple[Page, Any]:
    host = MovingHost(Workspace(module_folder))
    with gr.Blocks() as blocks:
        return Page(host), blocks


@pytest.fixture
def page(built: tuple[Page, Any], workspace: Workspace) -> Page:
    page = built[0]
    page.host.move(workspace)  # type: ignore[attr-defined]
    set_host(page.host)
    return page


@pytest.fixture
def browser(page: Page) -> Browser:
    return Browser(page)


@pytest.fixture
def opened(page: Page, browser: Browser, workspace: Workspace) -> Browser:
    """A page with one model, freshly opened."""
    add_model(workspace, "ada", resolution=128)
    browser.show(page.open(browser.values))
    return browser


def test_each_setting_is_on_the_page_exactly_once(built: tuple[Page, Any]) -> None:
    blocks = built[1]
    ids = Counter(part.elem_id for part in blocks.blocks.values() if getattr(part, "elem_id", None))
    forms = {"train": TrainConfig, "create": CreateConfig, "concept": Concept, **TRANSFERS}
    for prefix, cls in forms.items():
        for spec in field_specs(cls):
            assert ids[f"dreambooth_{prefix}_{spec.path.replace('.', '_')}"] == 1, spec.path
    compared = {spec.path for spec in field_specs(CompareConfig)} - {"model", "subject", "output"}
    assert all(ids[f"dreambooth_compare_{path}"] == 1 for path in compared)
    assert all(count == 1 and name.startswith("dreambooth") for name, count in ids.items())


def test_no_value_of_ours_is_frozen_by_the_webui(workspace: Workspace) -> None:
    set_host(StandaloneHost(workspace))
    blocks = build_blocks(StandaloneHost(workspace))
    kinds = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Dropdown, gr.Radio)
    parts = [part for part in blocks.blocks.values() if isinstance(part, kinds)]
    assert len(parts) > 80
    assert all(part.do_not_save_to_config for part in parts)


def test_a_page_without_models_says_where_to_go(page: Page, browser: Browser) -> None:
    updates = browser.show(page.open(browser.values))
    assert "Create tab" in updates[page.status]
    with pytest.raises(ConfigError, match="not chosen"):
        page.training(browser.values)


def test_a_new_page_shows_the_model_and_fitting_settings(page: Page, opened: Browser) -> None:
    config = page.training(opened.values)
    assert config.model == "ada" and config.images.resolution == 128 and config.concepts == []


def test_kept_settings_are_shown_again(page: Page, browser: Browser, workspace: Workspace) -> None:
    add_model(workspace, "ada")
    config = demo.training_config("ada")
    config.concepts.append(Concept(instance_folder="b", sample_prompts=["x", "y"]))
    keep_settings(workspace.model("ada"), config)
    browser.show(page.open(browser.values))
    assert page.training(browser.values) == config


def test_a_model_trained_from_a_shell_is_shown_as_it_was_trained(
    page: Page, browser: Browser, workspace: Workspace
) -> None:
    add_model(workspace, "ada")
    config = TrainConfig(
        model="ada", concepts=[Concept(instance_folder="a", instance_token="zwx")], seed=7
    )
    folder = create_run_folder(workspace, "train")
    write_run(folder, Run(folder.name, "train", workspace.root, config))
    browser.show(page.open(browser.values))
    assert page.training(browser.values) == config


def test_settings_that_cannot_be_used_are_told(
    page: Page, browser: Browser, workspace: Workspace
) -> None:
    add_model(workspace, "ada", resolution=64)
    workspace.model("ada").settings_path.write_text('{"model": "ada", "speed": 9}')
    browser.show(page.open(browser.values))
    assert "speed" in browser.values[page.status]
    assert page.form.read(browser.values).images.resolution == 64


def test_training_keeps_the_settings(page: Page, opened: Browser, workspace: Workspace) -> None:
    opened.set("intervals.epochs", 7)
    opened.set_concept("instance_folder", "pictures")
    config = page.training(opened.values)
    assert config.intervals.epochs == 7 and config.concepts[0].instance_folder == "pictures"
    assert kept_settings(workspace.model("ada")) == config


def test_another_model_brings_its_own_settings(
    page: Page, opened: Browser, workspace: Workspace
) -> None:
    add_model(workspace, "bob", resolution=256)
    opened.set("intervals.epochs", 33)
    opened.set("model", "bob")
    opened.show(page.choose(opened.values))
    assert page.form.read(opened.values).images.resolution == 256
    kept = kept_settings(workspace.model("ada"))
    assert kept is not None and kept.intervals.epochs == 33 and kept.model == "ada"
    opened.set("model", "ada")
    opened.show(page.choose(opened.values))
    assert page.form.read(opened.values).intervals.epochs == 33


def test_a_model_that_was_just_created_is_chosen(
    page: Page, opened: Browser, workspace: Workspace
) -> None:
    before = page.fingerprint()
    add_model(workspace, "zoe", resolution=512)
    assert page.fingerprint() != before
    opened.show(page.refresh(opened.values))
    assert opened.values[page.form.model] == "zoe"
    assert page.form.read(opened.values).images.resolution == 512


def test_a_refresh_leaves_what_is_being_edited(page: Page, opened: Browser) -> None:
    opened.set("intervals.epochs", 44)
    opened.show(page.refresh(opened.values))
    assert page.form.read(opened.values).intervals.epochs == 44


def test_a_page_that_outlived_the_server_does_not_lose_concepts(
    page: Page, opened: Browser
) -> None:
    opened.values[page.form.state] = Browser(page).values[page.form.state]
    with pytest.raises(ConfigError, match="restarted"):
        page.training(opened.values)


def test_settings_are_not_kept_while_they_cannot_be_read(
    page: Page, opened: Browser, workspace: Workspace
) -> None:
    opened.set("intervals.epochs", None)
    page.keep(opened.values)
    assert kept_settings(workspace.model("ada")) is None
    with pytest.raises(ConfigError, match="epochs"):
        page.training(opened.values)


def test_the_concepts_list_can_grow_without_end(page: Page, opened: Browser) -> None:
    for number in range(30):
        opened.set_concept("instance_token", f"token{number}")
        opened.edit(add)
    concepts = page.form.read(opened.values).concepts
    assert [c.instance_token for c in concepts] == [*(f"token{n}" for n in range(30)), ""]


def test_concepts_are_edited_copied_and_removed(page: Page, opened: Browser) -> None:
    opened.set_concept("instance_token", "one")
    opened.set_concept("sample_prompts", "a\nb")
    opened.edit(duplicate)
    opened.set_concept("instance_token", "two")
    opened.values[page.form.picker] = 0
    opened.edit(pick)
    assert opened.concept("instance_token") == "one"
    concepts = page.form.read(opened.values).concepts
    assert [(c.instance_token, c.sample_prompts) for c in concepts] == [
        ("one", ["a", "b"]),
        ("two", ["a", "b"]),
    ]
    opened.edit(remove)
    assert [c.instance_token for c in page.form.read(opened.values).concepts] == ["two"]
    opened.edit(remove)
    assert page.form.concepts(opened.values) == [blank_concept()]
    assert page.form.read(opened.values).concepts == []


def test_a_missing_number_in_a_concept_keeps_the_editor_where_it_is(
    page: Page, opened: Browser
) -> None:
    opened.edit(add)
    opened.set_concept("class_seed", None)
    opened.values[page.form.picker] = 0
    updates = opened.edit(pick)
    assert "Class images seed" in updates[page.concepts.message]
    assert opened.values[page.form.picker] == 1
    with pytest.raises(ConfigError, match=r"concepts\.1\.class_seed"):
        page.form.read(opened.values)


def test_the_example_needs_a_model_and_then_can_be_trained(
    page: Page, browser: Browser, workspace: Workspace
) -> None:
    browser.show(page.open(browser.values))
    updates = page.load_example(browser.values)
    assert list(updates) == [page.concepts.message] and "Create" in updates[page.concepts.message]
    add_model(workspace, "demo")
    browser.show(page.refresh(browser.values))
    browser.show(page.load_example(browser.values))
    config, wanted = page.training(browser.values), demo.training_config("demo")
    wanted.concepts[0].sample_prompts = config.concepts[0].sample_prompts
    assert config == wanted and config.concepts[0].sample_prompts


def test_generate_checkpoint_takes_the_saving_tab(page: Page, opened: Browser) -> None:
    opened.set("saving.name", "best")
    opened.set("saving.subfolder", "mine")
    opened.set("saving.dtype", "bf16")
    opened.set("saving.use_ema", False)
    made = page.checkpoint(opened.values)
    wanted = SaveConfig(model="ada", name="best", subfolder="mine", dtype="bf16", use_ema=False)
    assert made == wanted


def test_a_comparison_takes_the_compare_tab_and_measures_the_example(
    page: Page, opened: Browser
) -> None:
    opened.values[page.compare.fields.components()["seeds_per_prompt"]] = 5
    assert page.comparison(opened.values) == CompareConfig(model="ada", seeds_per_prompt=5)
    opened.show(page.load_example(opened.values))
    assert page.comparison(opened.values).subject == demo.SUBJECT


def test_a_page_shows_the_comparison_of_the_chosen_model(
    page: Page, opened: Browser, workspace: Workspace
) -> None:
    assert "press Compare" in opened.values[page.compare.verdict]
    Image.new("RGB", (90, 60)).save(compared(workspace, "ada") / "compare.png")
    updates = opened.show(page.show_comparison("ada"))
    assert "Keep ada_12." in opened.values[page.compare.verdict]
    assert updates[page.compare.grid]["value"].size == (90, 60)
    add_model(workspace, "bob")
    opened.set("model", "bob")
    opened.show(page.choose(opened.values))
    assert "press Compare" in opened.values[page.compare.verdict]


def test_hostile_names_are_shown_as_text(
    page: Page, browser: Browser, workspace: Workspace
) -> None:
    name = "b&b 'x'"
    add_model(workspace, name, source=f"/x/{HOSTILE}.safetensors")
    browser.show(page.open(browser.values))
    shown = browser.values[page.select.history] + browser.values[page.status]
    assert "<img" not in shown and "&lt;img" in shown
    assert name not in shown and "b&amp;b" in shown


def test_presets_are_loaded_saved_and_shared(
    page: Page, opened: Browser, workspace: Workspace, tmp_path: Path
) -> None:
    presets = page.presets
    opened.values[presets.choice] = "Style"
    updates = opened.show(guarded(presets.message, presets._load)(opened.values))
    assert "settings changed" in updates[presets.message]
    assert page.form.read(opened.values).intervals.epochs == 60
    opened.set("intervals.epochs", 61)
    opened.values[presets.name] = "my & own"
    saved = opened.show(guarded(presets.message, presets._save)(opened.values))
    assert ("my & own", "my & own") in [tuple(c) for c in _pairs(saved[presets.choice]["choices"])]
    compared = guarded(presets.message, presets._compare)(
        {**opened.values, presets.choice: "Style"}
    )
    assert ">60<" in compared[presets.differences] and ">61<" in compared[presets.differences]
    file = guarded(presets.message, presets._export)(opened.values)[presets.file]["value"]
    assert json.loads(Path(file).read_text())["settings"]["intervals.epochs"] == 61
    deleted = guarded(presets.message, presets._delete)(opened.values)
    assert "my &amp; own is deleted" in deleted[presets.message]
    imported = guarded(presets.message, presets._import)({presets.upload: file})
    assert "Took in my &amp; own" in imported[presets.message]


def _pairs(choices: list[Any]) -> list[Any]:
    return [choice if isinstance(choice, tuple | list) else (choice, choice) for choice in choices]


def test_preset_errors_are_told_on_the_page(page: Page, opened: Browser) -> None:
    presets = page.presets
    opened.values[presets.name] = f"../{HOSTILE}"
    told = guarded(presets.message, presets._save)(opened.values)[presets.message]
    assert "dreambooth-error" in told and "<img" not in told
    opened.values[presets.choice] = "Face"
    told = guarded(presets.message, presets._delete)(opened.values)[presets.message]
    assert "own presets" in told
    opened.values[presets.against] = "The last run"
    assert "not been trained" in presets._differ(opened.values)[presets.differences]


def test_search_and_views_hide_and_show(page: Page, opened: Browser) -> None:
    parts = page.form.train.components()
    basic = page.select.filter("Basic", "")
    assert basic[parts["batch.batch_size"]]["visible"] is True
    assert basic[parts["optimizer.beta1"]]["visible"] is not True
    assert page.form.model not in basic
    advanced = page.select.filter("Advanced", "")
    assert advanced[parts["optimizer.beta1"]]["visible"] is True
    found = page.select.filter("Basic", "Gradient CLIPPING")
    assert found[parts["batch.max_grad_norm"]]["visible"] is True
    assert found[parts["batch.batch_size"]]["visible"] is not True
    assert found[page.select.sections["batch"]]["open"] is True
    assert found[page.select.sections["ema"]]["visible"] is not True
    assert found[parts["saving.dtype"]]["visible"] is True
    nothing = page.select.filter("Basic", HOSTILE)
    assert "No setting" in nothing[page.select.nothing]
    assert "<img" not in nothing[page.select.nothing]


def test_a_page_that_is_not_filled_yet_keeps_nothing(
    page: Page, opened: Browser, workspace: Workspace
) -> None:
    """Its values are still those it was built with, though the server knows the model already."""
    built = Browser(page).values
    page.keep({**built, page.form.state: opened.values[page.form.state]})
    assert kept_settings(workspace.model("ada")) is None
    half = {**opened.values, page.filled: ""}  # the rest of its settings may still be to come
    page.keep(half)
    page.choose(half)
    assert kept_settings(workspace.model("ada")) is None
    page.keep(opened.values)
    assert kept_settings(workspace.model("ada")) is not None
