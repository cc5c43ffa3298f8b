"""bitsandbytes is tried with a real step before a training begins, and refused in plain words."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_core.config.sections.optimizer import EIGHT_BIT_OPTIMIZERS
from dreambooth_core.errors import ConfigError, OverlayError
from dreambooth_core.optim import eight_bit

CPU = torch.device("cpu")


class Half(torch.optim.SGD):
    """Steps as far as its rate says for a gradient of 1."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)


class Wrong(Half):
    """Does nothing."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Leave the weights."""


class Broken(Half):
    """Fails as a library of another CUDA does."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Raise."""
        raise RuntimeError("named symbol not found")


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: type, file: str = "") -> None:
    """Let an optimizer stand for all of bitsandbytes, on a machine that it suits."""
    optimizers = SimpleNamespace(**dict.fromkeys(eight_bit.CLASSES.values(), kind))
    module = SimpleNamespace(optim=optimizers, __file__=file)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)  # type: ignore[arg-type]
    monkeypatch.setattr(eight_bit, "why_not", lambda device: "")


def refusal(name: str = "adamw_8bit") -> str:
    """Return how an optimizer is refused."""
    with pytest.raises(ConfigError) as caught:
        eight_bit.require_eight_bit(name, CPU)
    (problem,) = caught.value.problems
    assert problem.field == "optimizer.name"
    return f"{problem.message} {problem.remedy}"


def test_every_8_bit_choice_has_its_class_and_a_remedy() -> None:
    assert set(eight_bit.CLASSES) == set(EIGHT_BIT_OPTIMIZERS)
    for name in EIGHT_BIT_OPTIMIZERS:
        assert refusal(name).endswith(("Choose adamw.", "Choose lion."))


@pytest.mark.parametrize("name", EIGHT_BIT_OPTIMIZERS)
def test_one_that_steps_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stand_in(monkeypatch, Half)
    eight_bit.require_eight_bit(name, CPU)


def test_one_that_does_not_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Wrong)
    assert "a step from 1 led to 1 instead of 0.5" in refusal()


def test_one_that_fails_is_refused_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Broken)
    assert "does not work here: RuntimeError: named symbol not found" in refusal()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    monkeypatch.setattr(eight_bit, "why_not", lambda device: "")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type]
    said = refusal()
    assert "needs the package bitsandbytes; it is not installed" in said
    assert "requirements/eight-bit.txt" in said


def test_it_is_found_although_it_is_hidden_from_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worker says that it is not there, so that diffusers does not import it."""
    (tmp_path / "bitsandbytes.py").write_text("optim = 'here'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # type: ignore[arg-type]
    found = eight_bit.load()
    assert isinstance(found, ModuleType)
    assert found.optim == "here"


def test_the_self_test_wants_the_package_of_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, Half, str(tmp_path / "bitsandbytes" / "__init__.py"))
    eight_bit.self_test(tmp_path)
    stand_in(monkeypatch, Half, "/elsewhere/bitsandbytes/__init__.py")
    with pytest.raises(OverlayError, match="is taken from"):
        eight_bit.self_test(tmp_path)


def test_the_self_test_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, Broken, str(tmp_path / "bitsandbytes" / "__init__.py"))
    with pytest.raises(ConfigError, match="named symbol not found"):
        eight_bit.self_test(tmp_path)
