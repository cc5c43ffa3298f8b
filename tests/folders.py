"""Folders of tests, without torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all tests of a module, removed after the last: they write gigabytes together."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def states_of_a_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """The training states that a test made go with it; those of its module's fixtures stay.

    They are most of what trainings write, and fixtures of a module are made before this one.
    """
    if "trainings" not in request.fixturenames:
        yield
        return
    models = request.getfixturevalue("trainings").workspace.models_dir
    before = {*models.glob("*/state/*")}
    yield
    for states in {*models.glob("*/state/*")} - before:
        shutil.rmtree(states)
