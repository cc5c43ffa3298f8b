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
