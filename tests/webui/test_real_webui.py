"""Create, train, generate, compare, merge and "Reload UI" in a real WebUI, over HTTP.

WEBUI_DIR=/path/to/stable-diffusion-webui python -m pytest tests/webui
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth_core import demo
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.families import load_components
from dreambooth_core.host.a1111 import HOLD_MESSAGE, JOB_NAME
from dreambooth_core.stages.prompt_encoder import PromptEncoder
from tests.browser.driver import browsing, wait_until
from tests.webui.real import RealWebui

MODEL = "bob"
SIZE, STEPS = 128, 4
PROMPT = {"prompt": "photo of a ohwx man", "steps": STEPS, "width": SIZE, "height": SIZE, "seed": 7}
MERGED, OURS = "bob_merged", "bob_ours"
LONG = ", ".join(f"photo of a tall man with a red hat number {n}" for n in range(15))
PROMPTS = ("", "photo of a ohwx man!", "red, " * 40, LONG, LONG.replace(",", ""))
"""Up to three chunks of 75 tokens, with commas near a chunk's end and without.

There is no emphasis, which the WebUI reads in brackets and training does not.
"""
SETTLING_SECONDS = 15
ENDLESS = 10_000
LISTS = (
    ("txt2img", "setting_sd_model_checkpoint"),
    ("Checkpoint Merger", "modelmerger_primary_model_name"),
    ("Checkpoint Merger", "modelmerger_tertiary_model_name"),
)
"""Where the WebUI's page lists checkpoints: the tab and the element."""
OUR_TAB, OUR_BUTTON = "tab_dreambooth", "dreambooth_run_train"
"""Elements that are on the page once, however often it was built."""


@dataclass
class Trained:
    """What was seen while a model was made and trained."""

    webui: RealWebui
    packages_before: str
    job: Any = None
    files: list[str] = field(default_factory=list)
    """Saved checkpoints in their order."""
    titles: dict[str, str] = field(default_factory=dict)
    """As the WebUI listed them after each save."""

    @property
    def built_in(self) -> str:
        """The title of the checkpoint that the model was made of."""
        [title] = [t for path, t in self.webui.titles().items() if "built-in" in Path(path).name]
        return title


def training(epochs: int, save_every: int = 0) -> dict[str, Any]:
    """The demo's training without class images; three steps are one epoch."""
    config = demo.training_config(MODEL)
    concept = dataclasses.replace(config.concepts[0], class_images_per_instance_image=0)
    saving = dataclasses.replace(config.saving, save_every_epochs=save_every, save_at_end=False)
    intervals = dataclasses.replace(config.intervals, epochs=epochs)
    config = dataclasses.replace(config, concepts=[concept], saving=saving, intervals=intervals)
    return to_dict(config)


@pytest.fixture(scope="module")
def webui(module_folder: Path) -> Iterator[RealWebui]:
    """A running WebUI with our extension and one checkpoint."""
    webui = RealWebui(module_folder / "webui")
    webui.prepare()
    try:
        webui.start()
        yield webui
    finally:
        webui.close()


@pytest.fixture(scope="module")
def trained(webui: RealWebui) -> Trained:
    """A model made and trained for six steps over REST, saved after three and after six."""
    seen = Trained(webui, webui.freeze())
    created = webui.start_job("create", {"name": MODEL, "source": seen.built_in})
    assert webui.wait_for_job(created)["state"] == "finished", webui.job(created)
    run_id = webui.start_job("train", training(epochs=2, save_every=1))

    def look() -> bool:
        """Note each new file as soon as the WebUI lists it with its hash."""
        job, listed = webui.job(run_id), webui.titles()
        seen.job = job
        assert job["state"] != "failed", job
        seen.files = [saved["path"] for saved in job["view"]["files"]]
        hashed = {path: t for path, t in listed.items() if path in seen.files and t.endswith("]")}
        seen.titles = {**hashed, **seen.titles}
        return job["state"] == "finished" and len(seen.titles) == len(seen.files)

    wait_until(look, lambda: f"{seen}\n{webui.last_words()}", 1200.0)
    return seen


def txt2img(webui: RealWebui, checkpoint: str, **more: Any) -> tuple[Image.Image, str]:
    """A picture of a checkpoint, and the text that the WebUI keeps in it."""
    settings = {"sd_model_checkpoint": checkpoint}
    answer = webui.post(
        "/sdapi/v1/txt2img", {**PROMPT, "override_settings": settings, "save_images": False, **more}
    )
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    return image.convert("RGB"), str(answer["info"])


def short_hash(title: str) -> str:
    """The hash that a title ends with."""
    return title.rpartition("[")[2].rstrip("]")


def test_the_page_has_one_tab_of_ours(webui: RealWebui) -> None:
    there = webui.elem_ids()
    assert (there[OUR_TAB], there[OUR_BUTTON]) == (1, 1)
    assert "Error running install.py" not in webui.last_words()


def test_each_saved_checkpoint_is_listed_with_its_hash(trained: Trained) -> None:
    assert [Path(path).name for path in trained.files] == ["bob_3.safetensors", "bob_6.safetensors"]
    for path in trained.files:
        title = trained.titles[path]
        assert title.startswith(f"{Path(path).name} [")
        assert len(short_hash(title)) == 10
        assert not trained.webui.has_hashed(path), "it was told the hash"


def test_a_picture_is_made_with_the_trained_checkpoint(trained: Trained) -> None:
    """Also: the checkpoint that was unloaded before the training has come back by itself."""
    before, _ = txt2img(trained.webui, trained.built_in)
    title = trained.titles[trained.files[-1]]
    after, info = txt2img(trained.webui, title)
    assert after.size == (SIZE, SIZE)
    assert f"Model hash: {short_hash(title)}" in info
    assert len(set(after.getdata())) > 100, "not a picture but a colour"
    assert list(after.getdata()) != list(before.getdata())


def test_the_plot_compares_the_checkpoints(trained: Trained) -> None:
    info = trained.webui.get("/sdapi/v1/script-info")
    [script] = [s for s in info if s["name"] == "x/y/z plot" and not s["is_img2img"]]
    kind = script["args"][0]["choices"].index("Checkpoint name")
    names = [trained.titles[path] for path in trained.files]
    nothing = [0, "", []]
    arguments = [kind, "", names, *nothing, *nothing, True, *[False] * 6, 0, False]
    grid, _ = txt2img(
        trained.webui, trained.built_in, script_name="x/y/z plot", script_args=arguments
    )
    assert grid.width >= len(names) * SIZE
    width, height = grid.size
    places = [(width - n * SIZE, height - SIZE) for n in (1, 2)]
    cells = [grid.crop((x, y, x + SIZE, y + SIZE)) for x, y in places]
    assert all(len(set(cell.getdata())) > 100 for cell in cells), "a cell failed"


def test_the_merger_adds_the_difference(trained: Trained) -> None:
    """With metadata copied, as is the merger's default: ours must be text that it can copy."""
    webui, [first, second] = trained.webui, trained.files
    titles = [trained.titles[first], trained.titles[second], trained.built_in]
    choices = [
        *titles,
        "Add difference",
        1.0,
        False,
        MERGED,
        "safetensors",
        "A, B or C",
        "None",
        "",
    ]
    said = webui.press("modelmerger", ["task(merge)", *choices, True, True, True, "{}"])
    assert "Checkpoint saved" in str(said[-1]), said[-1]
    path = webui.workspace.checkpoints_dir / f"{MERGED}.safetensors"
    merged, a, b = load_file(path), load_file(first), load_file(second)
    c = load_file(webui.workspace.find_checkpoint(trained.built_in))
    keys = [key for key in a if "model" in key and a[key].dtype.is_floating_point]
    assert any(not (b[key] == c[key]).all() for key in keys)
    for key in keys:
        wanted = a[key].float() + (b[key].float() - c[key].float())
        assert (merged[key].float() - wanted).abs().max() <= 2e-3 * max(1.0, wanted.abs().max())
    image, info = txt2img(webui, webui.titles()[str(path.resolve())])
    assert f"Model: {MERGED}" in info and len(set(image.getdata())) > 100


def test_our_merge_is_the_mergers_to_the_bit(trained: Trained) -> None:
    """Of the files that the test above merged, in their own number formats."""
    webui, [first, second] = trained.webui, trained.files
    config = {"name": OURS, "primary": first, "secondary": second, "tertiary": trained.built_in}
    merged = webui.start_job("merge", {**config, "dtype": "source"})
    assert webui.wait_for_job(merged)["state"] == "finished", webui.job(merged)
    theirs, ours = (
        load_file(webui.workspace.checkpoints_dir / f"{name}.safetensors")
        for name in (MERGED, OURS)
    )
    different = [key for key in theirs if not torch.equal(theirs[key], ours[key])]
    assert different == []


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_prompts_are_read_as_the_webui_reads_them(trained: Trained, clip_skip: int) -> None:
    webui = trained.webui
    chosen = {"sd_model_checkpoint": trained.built_in, "CLIP_stop_at_last_layers": clip_skip}
    webui.post("/sdapi/v1/options", chosen)
    theirs = torch.tensor(webui.post("/probe/conditioning", list(PROMPTS)))
    encode = PromptEncoder(load_components(webui.workspace.model(MODEL)), clip_skip)
    ours = encode(PROMPTS).encoder_hidden_states.detach()
    assert ours.shape == theirs.shape == (len(PROMPTS), 3 * 77, ours.shape[-1])
    assert (ours - theirs).abs().max() < 1e-4


def test_a_page_that_is_open_offers_a_new_checkpoint(trained: Trained) -> None:
    """In the WebUI's own lists, whose refresh buttons nobody presses."""
    webui, name = trained.webui, "bob_late"
    with browsing(webui.url) as person:
        person.page.goto(webui.url)
        person.sees("#dreambooth_run_progress", MODEL)
        saved = webui.start_job("save", {"model": MODEL, "name": name})
        assert webui.wait_for_job(saved)["state"] == "finished", webui.job(saved)
        tabs = person.page.locator("#tabs > .tab-nav button")
        for tab, elem_id in LISTS:
            tabs.filter(has_text=tab).first.click()
            place = person.page.locator(f"#{elem_id}")

            def look(place: Any = place) -> str:
                """Open the list and close it; gradio shows what is new when it is opened next."""
                place.locator("input").first.click()
                shown = " ".join(place.locator("ul.options li").all_inner_texts())
                person.page.evaluate("document.activeElement.blur()")
                return shown

            person.waits(look, lambda shown: f"{name}_6.safetensors [" in shown, name)


def test_reload_ui_comes_back_with_a_page_open(webui: RealWebui) -> None:
    """What waits for a page that went away would keep the server from being closed."""
    with browsing(webui.url) as person:
        person.page.goto(webui.url)
        person.waits(lambda: person.text("#dreambooth_run_progress"), bool, "the panel")
        # What the WebUI itself still loads into a fresh page would have the same effect.
        person.page.wait_for_timeout(SETTLING_SECONDS * 1000)
        webui.reload_ui()


def test_reload_ui_leaves_one_tab_and_the_running_job(trained: Trained) -> None:
    webui = trained.webui
    run_id = webui.start_job("train", training(epochs=ENDLESS))
    assert webui.wait_for_job(run_id, "running")["state"] == "running", webui.job(run_id)
    progress = webui.get("/sdapi/v1/progress", skip_current_image="true")
    assert (progress["state"]["job"], progress["textinfo"]) == (JOB_NAME, HOLD_MESSAGE)
    for _ in range(2):
        webui.reload_ui()
        there = webui.elem_ids()
        assert (there[OUR_TAB], there[OUR_BUTTON]) == (1, 1)
        assert webui.get("/dreambooth/status")["current_state"]["job_id"] == run_id
        assert webui.job(run_id)["state"] == "running"
    webui.post(f"/dreambooth/jobs/{run_id}/commands", {"command": "stop"})
    assert webui.wait_for_job(run_id)["state"] == "stopped"
    image, _ = txt2img(webui, trained.built_in)
    assert image.size == (SIZE, SIZE), "the queue was given back"


def test_the_webuis_packages_are_as_before(trained: Trained) -> None:
    assert trained.webui.freeze() == trained.packages_before
