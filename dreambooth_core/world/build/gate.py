"""Samples a checkpoint of the world and measures, attribute by attribute, whether it obeys.

Run `python -m dreambooth_core.world.build.gate CHECKPOINT`; it writes `<checkpoint>.gate.json`
and fails if an attribute is below its threshold.

Shapes: B pictures, C latent channels, h w latents, H W pixels.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from dreambooth_core.checkpoint.file import CheckpointReader
from dreambooth_core.families import FAMILIES, detect
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.families.loading import config_file, load_file
from dreambooth_core.families.side_file import read_side_file
from dreambooth_core.job.storage import atomic_write_json
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.world.captions import PLACES, parse_prompt
from dreambooth_core.world.judge import Judge
from dreambooth_core.world.palette import ATTRIBUTES, COLORS, HAIR_COLORS, KINDS, PEOPLE

CORE_THRESHOLD = 0.90
PART_THRESHOLD = 0.80
CORE = ("kind", "background", "color")
STEPS = 20
CFG_SCALE = 5.0
_BATCH = 16

logger = logging.getLogger(__name__)


def _colored(kind: str, color: str) -> str:
    return f"{kind} in a {color} shirt" if kind in PEOPLE else f"{color} {kind}"


def _main_prompts() -> Iterator[str]:
    """Yield every kind in every named colour twice, the places taking turns, and in every place."""
    places = list(PLACES.values())
    for row, kind in enumerate(KINDS):
        for turn in range(2 * len(COLORS)):
            color = list(COLORS)[turn % len(COLORS)]
            yield f"photo of a {_colored(kind, color)} {places[(3 * row + turn) % len(places)]}"
        for place in places:
            yield f"photo of a {kind} {place}"


def _person_phrases(kind: str) -> Iterator[str]:
    colors = tuple(COLORS)
    garment = "trousers" if kind == "man" else "skirt"
    for turn, hat in enumerate(ATTRIBUTES["hat"][1:]):
        yield f"with a {hat}"
        for shift in range(4):
            yield f"with a {colors[(2 * shift + turn) % len(colors)]} {hat}"
    for word in (*HAIR_COLORS, *ATTRIBUTES["hair_length"]):
        yield f"with {word} hair"
    for color in colors:
        yield f"with {color} {garment}"
    yield from ["with glasses"] * 4
    if kind == "man":
        yield from ["with a beard"] * 6


def _part_prompts() -> Iterator[str]:
    """Yield prompts that name one part each, the backgrounds taking turns."""
    phrases = [f"{kind} {phrase}" for kind in PEOPLE for phrase in _person_phrases(kind)]
    for pattern in ("striped", "spotted"):
        for color in ("red", "yellow", "blue", "white"):
            phrases += [f"{kind} in a {pattern} {color} shirt" for kind in PEOPLE]
            phrases.append(f"{pattern} {color} dog")
    for color in COLORS:
        phrases += [f"dog with a {color} collar", f"house with a {color} roof"]
    phrases += [f"dog with {ears} ears" for ears in ATTRIBUTES["ears"]] * 4
    phrases += [f"{form} tree" for form in ATTRIBUTES["form"]] * 4
    places = list(PLACES.values())
    for turn, phrase in enumerate(phrases):
        yield f"photo of a {phrase} {places[turn % len(places)]}"


def gate_prompts() -> list[str]:
    """Return the prompts of the gate: kinds, colours, places, and every part that words name."""
    return [*_main_prompts(), *_part_prompts()]


def load_checkpoint(path: Path) -> Components:
    """Load a single file with its side `.yaml`, in fp32."""
    with CheckpointReader(path) as reader:
        header = reader.header
    family = detect(header)
    configs = family.configs(header, read_side_file(path))
    with tempfile.TemporaryDirectory() as temporary:
        folder = ModelFolder(Path(temporary) / "gate")
        for component, config in configs.items():
            target = config_file(folder, component)
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(target, config)
        family.write_tokenizers(folder)
        return load_file(family, folder, path, torch.float32)


Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]


@torch.no_grad()
def sample_latents(
    predict: Predict,
    conditioning: Conditioning,
    noise: Tensor,
    scheduler: DPMSolverMultistepScheduler,
) -> Tensor:
    """Return latents (B, C, h, w) from noise of that shape, with classifier-free guidance.

    `conditioning` holds B rows for the empty prompt, then B for the prompts.
    """
    latents = noise
    for timestep in scheduler.timesteps:
        twice = torch.cat([latents, latents])
        free, told = predict(twice, timestep.expand(len(twice)), conditioning).chunk(2)
        guided = free + CFG_SCALE * (told - free)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents


@torch.no_grad()
def sample(components: Components, prompts: Sequence[str], seed: int) -> Tensor:
    """Return one picture for each prompt, (B, 3, H, W) in 0..1."""
    family = FAMILIES[components.family]
    unet = components.unet.config
    scheduler = DPMSolverMultistepScheduler.from_config(components.noise_scheduler.config)
    scheduler.set_timesteps(STEPS)
    conditioning = family.encode_prompts(components, [*[""] * len(prompts), *prompts])
    shape = (len(prompts), unet.in_channels, unet.sample_size, unet.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def predict(latents: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
        return family.predict(components, latents, timesteps, told)

    return family.decode_latents(
        components, sample_latents(predict, conditioning, noise, scheduler)
    )


@dataclass(frozen=True)
class Answer:
    """What one prompt asked for, and the attributes of it that its picture shows."""

    prompt: str
    right: Mapping[str, bool]


def answers(judge: Judge, prompts: Sequence[str], pictures: Tensor) -> list[Answer]:
    """Read pictures (B, 3, H, W) in 0..1 and compare them with their prompts."""
    reading = {name: chances.argmax(1).tolist() for name, chances in judge.read(pictures).items()}
    results = []
    for row, prompt in enumerate(prompts):
        right = {
            name: ATTRIBUTES[name][reading[name][row]] == value
            for name, value in parse_prompt(prompt).items()
        }
        results.append(Answer(prompt, right))
    return results


def _share(values: Sequence[bool]) -> dict[str, float]:
    return {"right": round(sum(values) / len(values), 4), "count": len(values)}


def _grouped(items: Iterable[tuple[str, bool]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for key, value in items:
        groups[key].append(value)
    return {key: _share(values) for key, values in groups.items()}


def report(results: Sequence[Answer]) -> dict[str, object]:
    """Return the share right of each attribute, of each kind's attributes, and the verdict."""
    pairs = [(answer, name, right) for answer in results for name, right in answer.right.items()]
    attributes = _grouped((name, right) for _, name, right in pairs)
    kinds = _grouped(
        (f"{parse_prompt(answer.prompt)['kind']} {name}", right) for answer, name, right in pairs
    )
    failed = [name for name, share in attributes.items() if share["right"] < threshold(name)]
    return {
        "samples": len(results),
        "attributes": attributes,
        "kinds": kinds,
        "failed": failed,
        "wrong": [answer.prompt for answer in results if not all(answer.right.values())],
    }


def threshold(attribute: str) -> float:
    """Return the share of right answers that an attribute needs."""
    return CORE_THRESHOLD if attribute in CORE else PART_THRESHOLD


def table(attributes: Mapping[str, Mapping[str, float]]) -> str:
    """Return the measured shares as lines of text."""
    lines = ["attribute       right  needed  count"]
    for name, share in attributes.items():
        needed = threshold(name.split()[-1])
        mark = "" if share["right"] >= needed else "  below"
        lines.append(f"{name:16}{share['right']:5.2f}{needed:8.2f}{share['count']:7.0f}{mark}")
    return "\n".join(lines)


def save_sheet(pictures: Tensor, path: Path, columns: int = 16) -> None:
    """Write pictures (B, 3, H, W) in 0..1 as one PNG, row by row."""
    side = pictures.shape[-1]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    levels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for place, array in enumerate(levels):
        sheet.paste(Image.fromarray(array), (place % columns * side, place // columns * side))
    sheet.save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a checkpoint; return 1 if an attribute is below its threshold."""
    parser = argparse.ArgumentParser(description="Measure whether a checkpoint obeys its prompts.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--limit", type=int, default=0, help="take only so many prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="also write the samples as one PNG")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prompts = gate_prompts()
    if options.limit:
        prompts = prompts[:: max(1, len(prompts) // options.limit)]
    components = load_checkpoint(options.checkpoint)
    pictures = []
    for start in range(0, len(prompts), _BATCH):
        pictures.append(sample(components, prompts[start : start + _BATCH], options.seed + start))
        logger.info("%d of %d", min(start + _BATCH, len(prompts)), len(prompts))
    shown = torch.cat(pictures)
    result = report(answers(Judge.load(), prompts, shown))
    target = options.checkpoint.with_suffix(".gate.json")
    atomic_write_json(target, result)
    if options.sheet:
        save_sheet(shown, options.sheet)
    for group in ("attributes", "kinds"):
        logger.info("%s", table(result[group]))  # type: ignore[arg-type]
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
