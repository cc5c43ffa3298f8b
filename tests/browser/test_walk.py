"""A newcomer's way through the page, and the same page after crashes; screenshots if asked for.

DREAMBOOTH_SCREENSHOTS=1 keeps pictures of the tabs in docs/images/, of a training as long as the
demo's. They show the paths of the checkout and of pytest's --basetemp, where the newcomer then
works, so let both have names that may be seen.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dreambooth_core import demo
from dreambooth_core.job.workspace import Workspace
from tests.browser.driver import FOR_PICTURES, ROOT, App, Person, browsing, served

IMAGES = ROOT / "docs" / "images"
GRID = "#dreambooth_compare_grid"
NUMBERS = "#dreambooth_compare_table table"
PROGRESS, SUMMARY = "#dreambooth_run_progress", "#dreambooth_run_summary"
MODEL = "demo"
OTHER = "another-model.safetensors"
EPOCHS = demo.training_config(MODEL).intervals.epochs
LONG = 2000


@pytest.fixture
def app(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The page of an empty folder."""
    with served(tmp_path_factory.getbasetemp() if FOR_PICTURES else tmp_path) as app:
        yield app


@pytest.fixture
def person(app: App) -> Iterator[Person]:
    """Somebody who has opened the page."""
    with browsing(app.url) as person:
        person.open()
        yield person
        assert person.errors == []


def _keep_picture(person: Person, name: str) -> None:
    if FOR_PICTURES:
        person.picture(IMAGES / f"{name}.png")


def _create_the_example(person: Person) -> None:
    person.press("dreambooth_create_example")
    person.waits(lambda: person.value("dreambooth_create_name"), bool, "a name")
    person.sees("#dreambooth_create_found", "Stable Diffusion 1")
    _keep_picture(person, "tab-create")
    person.press("dreambooth_create_button")
    person.sees("#dreambooth_status", f"{MODEL}: Stable Diffusion 1")


def _set_up_the_example(person: Person) -> None:
    person.tab("Concepts")
    person.press("dreambooth_concept_example")
    person.sees("#dreambooth_concept_message", "filled in")
    assert Path(person.value("dreambooth_concept_instance_folder")).name == "bob"
    person.type("dreambooth_concept_class_images_per_instance_image", "1")
    person.type("dreambooth_concept_sample_prompts", "photo of a ohwx man")


def _set_epochs(person: Person, epochs: int) -> None:
    person.tab("Select")
    person.type("dreambooth_train_intervals_epochs", str(epochs))


def _check_the_pictures(person: Person) -> None:
    person.tab("Concepts")
    person.press("dreambooth_plan")
    person.sees("#dreambooth_plan_table", "ohwx man")
    assert "6 to generate" in person.text("#dreambooth_plan_summary")
    _keep_picture(person, "tab-concepts")
    person.tab("Saving")
    assert f"demo_{3 * EPOCHS}.safetensors" in person.text("#dreambooth_files")
    _keep_picture(person, "tab-saving")


def _train(person: Person) -> None:
    person.press("dreambooth_run_train")
    person.sees(PROGRESS, "Running")


def _step(person: Person) -> int:
    """How many steps are done, as the page says; 0 before the first."""
    found = re.search(r"Step\D{0,3}([\d,]+)", person.text(PROGRESS), re.IGNORECASE)
    return int(found[1].replace(",", "")) if found else 0


def _moves(person: Person) -> int:
    """Wait until two more steps are done; return how many are."""
    wanted = _step(person) + 2
    return int(person.waits(lambda: str(_step(person)), lambda n: int(n) >= wanted, f"{wanted}"))


def test_a_newcomer_trains_the_built_in_subject(app: App, person: Person) -> None:
    _create_the_example(person)
    _set_up_the_example(person)
    _check_the_pictures(person)
    assert person.repeated_ids() == []

    _set_epochs(person, LONG)
    _train(person)
    before = _moves(person)
    person.open()  # the page is loaded anew in the middle
    assert _moves(person) > before

    known = person.pictures()  # those of the class
    person.press("dreambooth_run_sample")
    person.waits(lambda: str(person.pictures()), lambda n: int(n) > known, "a new picture")
    person.tab("Select")
    _keep_picture(person, "tab-select")

    person.press("dreambooth_run_stop")
    person.sees(SUMMARY, "Stopped")
    reached = _step(person)
    assert reached > before

    person.page.get_by_label("Resume").check()
    _set_epochs(person, EPOCHS if FOR_PICTURES else reached // 3 + 2)
    _train(person)
    assert "training state to go on from" in person.sees(SUMMARY, "Finished")
    assert _step(person) > reached
    assert "_" in person.sees(SUMMARY, ".safetensors")
    _compare(person)
    if FOR_PICTURES:
        _transfer(app, person)


def _compare(person: Person) -> None:
    """Press the button and see the grid, the numbers and which checkpoint to keep."""
    person.press("dreambooth_run_compare")
    person.waits(person.tab_in_view, lambda tab: tab == "Compare", "tab Compare")
    person.sees(SUMMARY, "Compare tab")
    person.waits(lambda: str(person.width_of(GRID)), lambda n: int(n) > 600, "a large grid")
    verdict = person.text("#dreambooth_compare_verdict")
    verdicts = ("Keep demo_", "is the best of these, but hardly", "No checkpoint is better")
    assert any(words in verdict for words in verdicts)
    table = person.text(NUMBERS)
    assert "as created" in table and "Subject fidelity" in table
    assert table.count("demo_") >= 2 and "keep" in table
    person.open()  # and it is there whenever the page is opened
    person.tab("Compare")
    person.waits(lambda: str(person.width_of(GRID)), lambda n: int(n) > 600, "a large grid")
    person.waits(lambda: person.text(NUMBERS), lambda text: text == table, "the same numbers")
    assert person.repeated_ids() == []
    _keep_picture(person, "tab-compare")


def _transfer(app: App, person: Person) -> None:
    """Carry what was learned over to another checkpoint and see it said; for the picture."""
    for part in Workspace(app.root).checkpoints_dir.glob("dreambooth-built-in.*"):
        shutil.copy(part, part.with_name(f"{Path(OTHER).stem}{part.suffix}"))
    person.tab("Transfer")
    person.press("dreambooth_transfer_refresh")
    person.type("dreambooth_merge_primary", OTHER)
    person.sees("#dreambooth_transfer_meaning", f"is added to {OTHER}")
    person.press("dreambooth_merge_button")
    person.sees("#dreambooth_transfer_result", "is ready")
    _keep_picture(person, "tab-transfer")


def test_a_job_outlives_the_page_and_its_end_is_told(app: App, person: Person) -> None:
    _create_the_example(person)
    _set_up_the_example(person)
    _set_epochs(person, LONG)
    _train(person)
    before = _moves(person)

    jobs = app.kill()
    assert jobs, "the job ended with the page"
    app.start()
    person.open()
    assert _moves(person) > before

    for process in _workers(app.root):
        process.kill()
    told = person.sees(PROGRESS, "Failed")
    assert "ended" in told or "killed" in told
    person.press("dreambooth_run_train")  # a new one can be started
    person.sees(PROGRESS, "Running")


def _workers(root: Path) -> list[psutil.Process]:
    """The processes of the jobs of a folder."""
    jobs = str(Workspace(root).jobs_dir)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(jobs) for word in process.info["cmdline"] or [])
    ]
