"""Our merge against the arithmetic that a real WebUI's own merger does, read from its source."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth_core.checkpoint.merge import add_difference, weighted_sum

NAMES = ("weighted_sum", "get_difference", "add_difference")
MERGER = "run_modelmerger"
FORMATS = (torch.float16, torch.bfloat16, torch.float32)

WEBUI = os.environ.get("WEBUI_DIR", "")
pytestmark = pytest.mark.skipif(not WEBUI, reason="WEBUI_DIR names no WebUI")


@pytest.fixture(scope="module")
def theirs() -> dict[str, Callable[..., Tensor]]:
    """The three formulas inside the WebUI's merger."""
    source = (Path(WEBUI) / "modules" / "extras.py").read_text(encoding="utf-8")
    [merger] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == MERGER
    ]
    found = [n for n in merger.body if isinstance(n, ast.FunctionDef) and n.name in NAMES]
    scope: dict[str, Callable[..., Tensor]] = {}
    exec(compile(ast.Module(found, []), MERGER, "exec"), scope)
    return scope


def numbers(dtype: torch.dtype, seed: int) -> Tensor:
    """Random weights of a format."""
    return torch.randn(257, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("multiplier", [0.0, 0.3, 0.35, 1.0, 1.7])
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_the_formulas_are_the_webuis_bit_for_bit(
    theirs: dict[str, Callable[..., Tensor]],
    first: torch.dtype,
    other: torch.dtype,
    multiplier: float,
) -> None:
    a, b, c = numbers(first, 1), numbers(other, 2), numbers(other, 3)
    pairs = [
        (weighted_sum(a, b, multiplier), theirs["weighted_sum"](a, b, multiplier)),
        (
            add_difference(a, b, c, multiplier),
            theirs["add_difference"](a, theirs["get_difference"](b, c), multiplier),
        ),
    ]
    for ours, expected in pairs:
        assert ours.dtype == expected.dtype
        assert torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))
