"""How many numbers a network keeps for its backward pass, from the shapes of its weights alone.

Counted is what PyTorch saves: the input of each layer, norm and nonlinearity, and what attention
keeps (q, k, v and its result; no attention matrix, as with SDPA's memory-saving kernels).

Shapes: C channels, S positions (pixels of the latents at a level, or tokens), T tokens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dreambooth_core.adapters.targets import WEIGHT

Shapes = Mapping[str, Sequence[int]]

KEPT: tuple[tuple[str, float, float], ...] = (
    # A layer by the end of its path, then how often its inputs and its outputs are kept.
    (r"resnets\.\d+\.norm[12]", 2, 0),  # its own input, and that of the SiLU behind it
    (r"conv_norm_out", 2, 0),
    (r"conv_shortcut", 0, 0),  # the input is that of the first norm
    (r"attn[12]\.to_q|q_proj", 1, 1),  # k and v have the same input
    (r"attn1\.to_[kv]|[kv]_proj", 0, 1),
    (r"attn2\.to_[kv]", 0, 1),
    (r"to_out\.0|out_proj", 2, 0),  # attention's result, and its copy with the heads joined
    (r"ff\.net\.0\.proj", 1, 1.5),  # GEGLU keeps both halves, and the gelu of one
    (r"mlp\.fc1", 1, 3),  # quick_gelu keeps x, its sigmoid and their product
)
"""All others keep their input once."""

PER_POSITION_ONCE = ("time_emb", "time_embedding", "add_embedding", "class_embedding")
OF_THE_PROMPT = re.compile(r"attn2\.to_[kv]")
BLOCK = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions)\.\d+")
TRANSFORMER_BLOCK = re.compile(r".*transformer_blocks\.\d+")
TEXT_LAYER = re.compile(r".*encoder\.layers\.\d+")
UP = re.compile(r"up_blocks\.(\d+)\.")
DOWN = re.compile(r"down_blocks\.(\d+)\.")
INPUTS = (r"resnets\.\d+\.norm1", r"transformer_blocks\.\d+\.norm1", r"layers\.\d+\.layer_norm1")
"""Where the blocks begin that gradient checkpointing computes twice: their input is kept."""


@dataclass(frozen=True)
class Kept:
    """Numbers that one example keeps: in all; with gradient checkpointing; in the largest block."""

    everything: int
    with_checkpointing: int
    largest_block: int


def kept_of_unet(shapes: Shapes, latent_numbers: int, tokens: int) -> Kept:
    """Return what a UNet keeps of one example; `latent_numbers` is the latents' height x width."""
    levels = 1 + max(int(match[1]) for key in shapes if (match := DOWN.match(key)))
    return _kept(
        (path, count * _positions(path, latent_numbers, levels, tokens))
        for path, count in _numbers(shapes)
    )


def kept_of_text_encoder(shapes: Shapes, tokens: int) -> Kept:
    """Return what a text encoder keeps of one prompt."""
    return _kept((path, count * tokens) for path, count in _numbers(shapes))


def largest_map(shapes: Shapes, prefix: str, pixels: int, levels: int) -> int:
    """Return the numbers of the largest feature map of a VAE's `prefix` half, for one picture.

    `pixels` is height x width; the encoder's first level and the decoder's last have them all.
    """
    sizes = [0]
    for key, shape in shapes.items():
        if key.startswith(prefix) and len(shape) == 4 and key.endswith(WEIGHT):
            scale = 4 ** _level_of_vae(key, levels)
            sizes.append(max(shape[0], shape[1]) * pixels // scale)
    return max(sizes)


def _numbers(shapes: Shapes) -> Iterator[tuple[str, float]]:
    """Yield the path of each layer and how many numbers it keeps for each position."""
    for key, shape in shapes.items():
        if not key.endswith(WEIGHT) or "embeddings." in key:
            continue
        path = key.removesuffix(WEIGHT)
        outputs, inputs = shape[0], shape[1] if len(shape) > 1 else shape[0]
        rules = (rule for rule in KEPT if re.search(rf"(?:{rule[0]})$", path))
        _, of_input, of_output = next(rules, ("", 1.0, 0.0))
        yield path, of_input * inputs + of_output * outputs


def _positions(path: str, latent_numbers: int, levels: int, tokens: int) -> float:
    if any(name in path for name in PER_POSITION_ONCE):
        return 1
    if OF_THE_PROMPT.search(path):
        return tokens
    down, up = DOWN.match(path), UP.match(path)
    level = levels - 1 if "mid_block" in path else int(down[1]) if down else 0
    if up:
        level = levels - 1 - int(up[1]) - ("upsamplers" in path)
    return float(latent_numbers / 4**level)


def _kept(layers: Iterator[tuple[str, float]]) -> Kept:
    everything = checkpointed = 0.0
    blocks: dict[str, float] = defaultdict(float)
    for path, numbers in layers:
        everything += numbers
        block = _block_of(path)
        if block:
            blocks[block] += numbers
        if not block:
            checkpointed += numbers
        elif any(re.search(rf"{name}$", path) for name in INPUTS):
            checkpointed += numbers / (2 if "resnets" in block else 1)  # without the SiLU's
    return Kept(round(everything), round(checkpointed), round(max(blocks.values(), default=0)))


def _block_of(path: str) -> str:
    """Return the block that is computed twice as a whole, "" for what lies between them."""
    match = TRANSFORMER_BLOCK.match(path) or TEXT_LAYER.match(path)
    if match:
        return match[0]
    block = BLOCK.match(path)
    return block[0] if block and block[2] == "resnets" else ""


def _level_of_vae(key: str, levels: int) -> int:
    down, up = DOWN.search(key), UP.search(key)
    if down:
        return int(down[1])
    if up:
        return max(0, levels - 1 - int(up[1]) - ("upsamplers" in key))
    deep = "mid_block" in key or ".conv_norm_out" in key or ".conv_out" in key
    at_bottom = deep if key.startswith("encoder") else "conv_in" in key or "mid_block" in key
    return levels - 1 if at_bottom else 0
