"""Which layers of a network can carry an adapter, told from the names and shapes of its weights.

Nothing here needs torch: the plan of a training asks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

LINEAR, CONVOLUTION = "linear", "convolution"
WEIGHT = ".weight"
TEXT_LAYERS = "text_model.encoder.layers."
ATTENTION = "attentions"
BETWEEN = ("resnets", "downsamplers", "upsamplers")


@dataclass(frozen=True)
class Size:
    """How large an adapter is and how strongly its weights act: alpha / rank."""

    rank: int
    alpha: float


def adaptable_layers(component: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the kind, LINEAR or CONVOLUTION, of each layer that can be adapted, by its path.

    `shapes` are those of the network's weights by their diffusers or transformers names. LINEAR are
    the layers of attention and what belongs to it, projections by a convolution of one pixel
    included; CONVOLUTION are the UNet's others. Embeddings, norms and the UNet's two ends are left
    alone.
    """
    kind_of = _unet_kind if component == "unet" else _text_kind
    kinds = {
        key.removesuffix(WEIGHT): kind_of(key, len(shape))
        for key, shape in shapes.items()
        if key.endswith(WEIGHT) and len(shape) > 1
    }
    return {path: kind for path, kind in sorted(kinds.items()) if kind}


def layer_sizes(
    component: str, shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, Size]
) -> dict[str, Size]:
    """Return the size of each layer's adapter by its path; kinds not in `sizes` get none."""
    kinds = adaptable_layers(component, shapes)
    return {path: sizes[kind] for path, kind in kinds.items() if kind in sizes}


def adapter_numbers(
    component: str,
    shapes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, Size],
    *,
    dora: bool = False,
) -> Iterator[int]:
    """Yield how many numbers each layer's adapter has."""
    for path, size in layer_sizes(component, shapes, sizes).items():
        outputs, *inputs = shapes[path + WEIGHT]
        yield size.rank * (outputs + prod(inputs)) + (inputs[0] if dora else 0)


def _unet_kind(key: str, dimensions: int) -> str:
    parts = key.split(".")
    if ATTENTION in parts:
        return LINEAR
    return CONVOLUTION if dimensions == 4 and any(part in parts for part in BETWEEN) else ""


def _text_kind(key: str, dimensions: int) -> str:
    return LINEAR if key.startswith(TEXT_LAYERS) else ""
