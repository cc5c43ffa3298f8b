"""Another trainer's folder is taken over on the page: its settings, and a model by a real job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config.settings_store import kept_settings
from dreambooth_core.job.workspace import Workspace
from tests.browser.driver import App, Person, browsing, served
from tests.tiny import tiny_model

HOSTILE = "<img src=x onerror=document.title='taken'>"
MESSAGE, REPORT = "#dreambooth_import_message", "#dreambooth_import_report"
SETTINGS = {
    **{"learning_rate": 3e-6, "min_snr_gamma": 5, "num_train_epochs": 7, "resolution": 64},
    **{HOSTILE: 1, "attention": HOSTILE},
    "concepts_list": [{"instance_data_dir": HOSTILE, "instance_token": "zwx"}],
}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A model folder of the abandoned extension."""
    made = tiny_model(Workspace(tmp_path / "made"), "tiny")
    folder = tmp_path / "theirs"
    shutil.copytree(made.path, folder / "working")
    for name in ("model.json", "layout.json", "extras.safetensors", "source.yaml"):
        (folder / "working" / name).unlink()
    (folder / "db_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The page of a folder with one model of ours."""
    root = tmp_path / "root"
    tiny_model(Workspace(root), "ours")
    with served(root) as app:
        yield app


@pytest.fixture
def person(app: App) -> Iterator[Person]:
    """Somebody who has opened the page."""
    with browsing(app.url) as person:
        person.open()
        yield person
        assert person.errors == []


def test_settings_and_a_model_are_taken_over(app: App, person: Person, theirs: Path) -> None:
    person.sees("#dreambooth_status", "ours")
    person.tab("Select")
    person.page.get_by_text("Import from another trainer").click()
    assert not person.page.locator("#dreambooth_import_apply").is_visible()
    person.type("dreambooth_import_source", str(theirs / "gone.json"))
    person.press("dreambooth_import_read")
    person.sees(MESSAGE, "There is no file")
    person.type("dreambooth_import_source", str(theirs))
    person.press("dreambooth_import_read")
    shown = person.sees(REPORT, "model folder of sd_dreambooth_extension")
    assert HOSTILE in shown and "Never worked there" in shown
    epochs, rate = "dreambooth_train_intervals_epochs", "dreambooth_train_learning_rate_unet"
    person.press("dreambooth_import_apply")
    person.sees(MESSAGE, "Taken over")
    person.waits(lambda: person.value(epochs), lambda text: text == "7", "7 epochs")
    person.page.get_by_text("Do what it did there").click()
    person.sees(REPORT, "Set so that it does what it did there")
    name = "dreambooth_import_name"
    person.waits(lambda: person.value(name), lambda text: text == "theirs", "a name")
    person.press("dreambooth_import_create")
    person.sees("#dreambooth_status", "theirs")
    person.waits(lambda: person.value(rate), lambda text: float(text or 0) == 3e-6, "its settings")
    kept = kept_settings(Workspace(app.root).model("theirs"))
    assert kept is not None and kept.loss.min_snr_gamma == 5
    assert person.page.title() != "taken" and person.repeated_ids() == []
