"""Stands in for the worker's self-test: imports "alpha" of the packages it is given."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    word, folder = sys.argv[1:]
    assert word == "--self-test"
    alpha = importlib.import_module("alpha")
    assert Path(alpha.__file__).parents[1] == Path(folder)
