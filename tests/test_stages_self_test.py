from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.errors import OverlayError
from dreambooth_core.job.interpreter import PACKAGE_ROOT
from dreambooth_core.job.pip_install import pins
from dreambooth_core.stages import self_test


def test_packages_from_the_right_folder() -> None:
    folder = Path(json.__file__).resolve().parents[1]
    self_test.check_origins(folder, ["json", "logging"])


def test_a_package_from_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"json is taken from .* and not from"):
        self_test.check_origins(tmp_path, ["json"])
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        self_test.check_origins(tmp_path, ["no_such_package"])


def test_every_package_of_the_overlay_is_tried() -> None:
    pinned = {name.replace("-", "_") for name in pins(PACKAGE_ROOT / "requirements/overlay.txt")}
    # These four are only needed by others of them.
    by_others = {"absl_py", "importlib_metadata", "protobuf", "zipp"}
    assert set(self_test.PACKAGES) == pinned - by_others


def test_a_text_encoder_that_works() -> None:
    self_test.check_text_encoder()


def test_weights_that_are_read_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(data: bytes) -> dict[str, torch.Tensor]:
        weights = read(data)
        next(iter(weights.values())).add_(1.0)
        return weights

    read = self_test.load
    monkeypatch.setattr(self_test, "load", changed)
    with pytest.raises(OverlayError, match="read differently"):
        self_test.check_text_encoder()


def test_the_whole_test(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    self_test.run(Path(spec.origin).parents[1])
