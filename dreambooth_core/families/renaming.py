"""Tables of names: modules of a diffusers network against modules of the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import CheckpointError

Names = dict[str, str]
"""The original layout's name of each module, by its diffusers name."""


@dataclass(frozen=True)
class Place:
    """Where a file keeps a weight; `transform` and `part` are those of `KeyPair`."""

    key: str
    transform: str = ""
    part: tuple[int, int] = (0, 1)


def with_leaves(target: str, source: str, leaves: Mapping[str, str]) -> Names:
    """Return the table for the parts of one module, such as a resnet's norms and convolutions."""
    return {f"{target}.{leaf}": f"{source}.{original}" for leaf, original in leaves.items()}


def original_name(names: Names, target: str) -> str:
    """Return a weight's original name, by the longest module of the table that it belongs to.

    Raises KeyError for a weight of no module in the table.
    """
    module, rest = target, ""
    while module not in names:
        module, dot, leaf = module.rpartition(".")
        if not dot:
            raise KeyError(target)
        rest = f".{leaf}{rest}"
    return names[module] + rest


def shape_of(header: Header, key: str) -> tuple[int, ...]:
    """Return a tensor's shape; raises CheckpointError naming the weight that is missing."""
    if key not in header.tensors:
        raise CheckpointError(
            f"{header.path} lacks the weight {key}.",
            remedy="The file is incomplete: use a full checkpoint.",
        )
    return header.tensors[key].shape
