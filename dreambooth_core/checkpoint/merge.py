"""Merging checkpoints, in small pieces: A (1 - M) + B M, or A + (B - C) M, or a part of that.

What is merged are the floating-point weights that A and the others have, told as the WebUI's merger
tells them: by "model" in the name. From A as they are come the noise schedule, position ids, keys
that tell hosts something, and weights that B or C lack. Moving averages (`model_ema.`) are left
out, since they would be those of other weights; so are weights that A lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_core.checkpoint.carried import as_it_is, cast_to
from dreambooth_core.checkpoint.file import FLOATING, TORCH_DTYPES, CheckpointReader, Entry
from dreambooth_core.checkpoint.header import DTYPE_BYTES, Header, TensorInfo
from dreambooth_core.checkpoint.recognise import CONV_IN, EMA_PREFIX, VAE
from dreambooth_core.checkpoint.stream import Buffer, Buffers, bytes_of
from dreambooth_core.errors import CheckpointError

PIECE_NUMBERS = 2**20
WEIGHT_WORD = "model"
POSITION_IDS = "position_ids"
OLD_TEXT, NEW_TEXT = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."


@dataclass(frozen=True)
class Recipe:
    """How weights are merged: with two models a weighted sum, with a third the added difference.

    `exact` computes in fp32; otherwise in the files' own number formats, as the WebUI does.
    Below a `density` of 1 the difference is thinned out, at random by `seed`.
    """

    multiplier: float
    exact: bool = False
    keeps_vae: bool = False
    density: float = 1.0
    seed: int = 0


def weighted_sum(a: Tensor, b: Tensor, multiplier: float) -> Tensor:
    """Return A (1 - M) + B M, in the WebUI's order of operations."""
    return ((1 - multiplier) * a) + (multiplier * b)


def add_difference(a: Tensor, b: Tensor, c: Tensor, multiplier: float) -> Tensor:
    """Return A + (B - C) M, in the WebUI's order of operations."""
    return a + (multiplier * (b - c))


def thinned(difference: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return a difference of which a random share is left, divided by that share; shape as it is.

    DARE, drop and rescale: Yu et al. 2023 (arXiv 2311.03099), equation 1 with p = 1 - density.
    """
    kept = torch.rand(difference.shape, generator=generator) < density
    return torch.where(kept, difference / density, torch.zeros_like(difference))


def merge_entries(
    readers: Sequence[CheckpointReader], recipe: Recipe, dtype_of: Callable[[TensorInfo], str]
) -> list[Entry]:
    """Return the merged checkpoint's entries, in A's order; `readers` are A and B, or A, B and C.

    `dtype_of` returns the number format of a weight, merged or not, from what it is in A. Raises
    CheckpointError naming a weight whose shapes do not fit each other.
    """
    first, *others = readers
    names = [_names(reader.header) for reader in others]
    buffers = Buffers()
    entries = []
    for key, info in first.header.tensors.items():
        if key.startswith(EMA_PREFIX):
            continue
        keys = [found.get(_name(key), "") for found in names]
        if not is_weight(key, info):
            entries.append(as_it_is(first, key))
        elif all(keys) and not (recipe.keeps_vae and key.startswith(VAE)):
            sources = list(zip(readers, (key, *keys), strict=True))
            _check_shapes(sources)
            entries.append(_merged(sources, recipe, dtype_of(info)))
        else:
            entries.append(cast_to(first, key, dtype_of(info), buffers))
    return entries


def left_out(headers: Sequence[Header]) -> list[str]:
    """Return the weights of B that A lacks; moving averages are not counted."""
    first, second = headers[0], headers[1]
    known = _names(first)
    return [
        key
        for key, info in second.tensors.items()
        if is_weight(key, info) and not key.startswith(EMA_PREFIX) and _name(key) not in known
    ]


def is_weight(key: str, info: TensorInfo) -> bool:
    """Return whether a tensor is one that merging changes."""
    return WEIGHT_WORD in key and info.dtype in FLOATING and not key.endswith(POSITION_IDS)


Source = tuple[CheckpointReader, str]


def _merged(sources: Sequence[Source], recipe: Recipe, dtype: str) -> Entry:
    first, key = sources[0]
    shape = first.header.tensors[key].shape

    def load() -> Iterator[Buffer]:
        for numbers in _numbers(sources, recipe):
            yield bytes_of(numbers.to(TORCH_DTYPES[dtype]).contiguous())

    return Entry(key, dtype, shape, load)


def _numbers(sources: Sequence[Source], recipe: Recipe) -> Iterator[Tensor]:
    """Yield the merged numbers of a weight in order, a piece at a time."""
    shapes = {reader.header.tensors[key].shape for reader, key in sources}
    chance = _chance(recipe.seed, _name(sources[0][1]))
    if len(shapes) > 1:
        yield _merged_inputs([reader.read(key) for reader, key in sources], recipe, chance)
        return
    for piece in zip(*(_pieces(reader, key) for reader, key in sources), strict=True):
        yield _compute(piece, recipe, chance)


def _chance(seed: int, name: str) -> torch.Generator:
    """Return the random numbers of one weight, whatever the others are."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _merged_inputs(tensors: Sequence[Tensor], recipe: Recipe, chance: torch.Generator) -> Tensor:
    """Return an inpainting UNet's first layer (O, 9, 3, 3), merged with plain ones' (O, 4, 3, 3).

    Only the inputs that all of them have are merged. The WebUI puts them into A's own tensor, so
    that they are rounded to its format.
    """
    whole, *others = tensors
    shared = others[0].shape[1]
    part = _compute((whole[:, :shared], *others), recipe, chance)
    dtype = part.dtype if recipe.exact else whole.dtype
    return torch.cat([part.to(dtype), whole[:, shared:].to(dtype)], dim=1)


def _compute(tensors: Sequence[Tensor], recipe: Recipe, chance: torch.Generator) -> Tensor:
    a, b, *c = [tensor.float() for tensor in tensors] if recipe.exact else tensors
    if not c:
        return weighted_sum(a, b, recipe.multiplier)
    if recipe.density == 1:
        return add_difference(a, b, c[0], recipe.multiplier)
    return a + recipe.multiplier * thinned(b - c[0], recipe.density, chance)


def _pieces(reader: CheckpointReader, key: str) -> Iterator[Tensor]:
    """Yield a tensor's numbers, PIECE_NUMBERS at a time whatever their format."""
    info = reader.header.tensors[key]
    if info.strides:
        yield from reader.read(key).reshape(-1).split(PIECE_NUMBERS)
        return
    size = PIECE_NUMBERS * DTYPE_BYTES[info.dtype]
    for start in range(info.start, info.end, size):
        for piece in reader.pieces(start, min(start + size, info.end), key):
            yield torch.frombuffer(piece, dtype=TORCH_DTYPES[info.dtype])


def _name(key: str) -> str:
    """Return the name that a weight is known by; some old files leave out `text_model.`."""
    if key.startswith(OLD_TEXT) and not key.startswith(NEW_TEXT):
        return NEW_TEXT + key.removeprefix(OLD_TEXT)
    return key


def _names(header: Header) -> Mapping[str, str]:
    return {_name(key): key for key, info in header.tensors.items() if is_weight(key, info)}


def _check_shapes(sources: Sequence[Source]) -> None:
    shapes = [reader.header.tensors[key].shape for reader, key in sources]
    key, (first, *others) = sources[0][1], shapes
    alike = all(shape == others[0] for shape in others)
    if alike and (first == others[0] or _inpaints(key, first, others[0])):
        return
    listed = " and ".join(str(list(shape)) for shape in shapes)
    raise CheckpointError(
        f"The weight {key} has the shapes {listed}, which cannot be merged.",
        remedy="Merge checkpoints of the same form. An inpainting one can only be A.",
    )


def _inpaints(key: str, shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether a weight is an inpainting UNet's first where the other is a plain one's."""
    more = shape[1:2] > other[1:2]
    return key == CONV_IN and more and (shape[0], *shape[2:]) == (other[0], *other[2:])
