"""Every field of the schema has a test that turns it, marked `@pytest.mark.turns("job.path")`.

Such a test shows that turning the field changes the weights, the loss, the batch, a file or the
plan in the direction that its label says.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from dreambooth_core.config.control import field_specs
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, JobConfig

TESTS = Path(__file__).parent
MARK = "turns"


def all_fields() -> list[str]:
    """Return the name of every field: the job it is of, and its path."""
    jobs: dict[type[JobConfig], str] = {}
    for name, config in JOB_CONFIGS.items():
        jobs.setdefault(config, name)
    names = [f"{job}.{spec.path}" for config, job in jobs.items() for spec in field_specs(config)]
    return names + [f"train.concepts.{spec.path}" for spec in field_specs(Concept)]


def turned_fields() -> Iterator[tuple[str, str]]:
    """Yield what the marks in the tests name, and the file it stands in."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if _is_mark(node):
                yield from ((str(ast.literal_eval(word)), file.name) for word in node.args)


def _is_mark(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == MARK
    )


TURNED = dict(turned_fields())


@pytest.mark.parametrize("name", all_fields())
def test_the_field_has_a_test_that_turns_it(name: str) -> None:
    assert name in TURNED, f"no test is marked pytest.mark.turns({name!r})"


@pytest.mark.parametrize("name", sorted(TURNED))
def test_what_is_turned_is_a_field(name: str) -> None:
    assert name in all_fields(), f"{TURNED[name]} turns {name}, which is no field"
