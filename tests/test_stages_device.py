"""Devices and precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_core.errors import InputError
from dreambooth_core.stages.device import autocast, place, resolve_device


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device() == torch.device("cuda")


def test_a_named_device_must_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"cuda:2.*sees 2 CUDA devices"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees 0 CUDA devices"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="no device called 'gpu'"):
        resolve_device("gpu")


def fake_components() -> Any:
    modules = {"unet": torch.nn.Linear(2, 2), "vae": torch.nn.Linear(2, 2)}
    return SimpleNamespace(unet=modules["unet"], modules=lambda: modules)


def test_place_moves_every_module() -> None:
    components = fake_components()
    place(components, torch.device("meta"))
    assert all(m.weight.device.type == "meta" for m in components.modules().values())


def test_autocast_computes_in_the_asked_precision() -> None:
    components, x = fake_components(), torch.ones(1, 2)
    with autocast(components, "bf16"):
        assert components.unet(x).dtype == torch.bfloat16
    with autocast(components, "no"):
        assert components.unet(x).dtype == torch.float32
