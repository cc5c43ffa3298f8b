"""Makes the subjects' files: their pictures to train on, and how the judge recognises them.

Run `python -m dreambooth_core.world.build.subjects CHECKPOINT` to train the judge anew, with
reconstructions by the checkpoint's VAE, and to write all of it into the package.

Shapes: N examples, D numbers of a signature.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor

from dreambooth_core.job.storage import atomic_write_bytes
from dreambooth_core.world.build.gate import load_checkpoint
from dreambooth_core.world.build.judge import (
    Pool,
    accuracy,
    cell_pool,
    damaged,
    drawn,
    labels,
    reconstructed,
    rounded,
    train,
    varied_scene,
)
from dreambooth_core.world.judge import ASSET, Judge, JudgeNetwork
from dreambooth_core.world.palette import ATTRIBUTES, BACKGROUNDS, KINDS
from dreambooth_core.world.pictures import Scene, place_scene, render, sample_parts
from dreambooth_core.world.subjects import (
    FOLDER,
    SUBJECTS,
    Subject,
    subject_caption,
    subject_scene,
)

DRAWN = 14000
RECONSTRUCTED = 3000
STEPS = 5000
EXAMPLES = 1200
_CHUNK = 25
_CLASHES = {"color": ("second", "collar"), "second": ("color",), "collar": ("color",)}
"""Colours that lie on each other, so that one would vanish if they were the same."""

_HIDERS = {"hat": ("none", "hat_color"), "pattern": ("plain", "second")}
"""Values that make another attribute invisible."""

logger = logging.getLogger(__name__)


def write_folders(root: Path = FOLDER) -> None:
    """Write each subject's pictures to train on and their captions."""
    for subject in SUBJECTS.values():
        rng = random.Random(subject.name)
        for number, background in enumerate(subject.seen, 1):
            path = root / subject.name / f"{number}-{background}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            render(subject_scene(subject, background, rng)).save(buffer, "PNG", optimize=True)
            atomic_write_bytes(path, buffer.getvalue())
            caption = subject_caption(subject, background) + "\n"
            atomic_write_bytes(path.with_suffix(".txt"), caption.encode())


def changed(subject: Subject, count: int, rng: random.Random) -> dict[str, str]:
    """Return the subject's parts with `count` of them changed, so that each change can be seen."""
    parts = dict(subject.parts)
    fixed = ("kind", "beard") if subject.class_noun == "woman" else ("kind",)
    names = rng.sample([name for name in parts if name not in fixed], count)
    for name in names:
        taken = {parts[name], *(parts[other] for other in _CLASHES.get(name, ()) if other in parts)}
        hider, hidden = _HIDERS.get(name, ("", ""))
        if hidden in names:
            taken.add(hider)
        parts[name] = rng.choice([value for value in ATTRIBUTES[name] if value not in taken])
    return parts


@dataclass(frozen=True)
class Examples:
    """Scenes, and for each whether it shows the subject (1) or not (0)."""

    scenes: Sequence[Scene]
    wanted: Sequence[float]


def examples(subject: Subject, count: int, rng: random.Random) -> Examples:
    """Draw scenes: half the subject; else others of its class, other kinds, and near misses.

    A near miss is the subject with two to four parts changed. One changed part is left out: it may
    count as the subject or not.
    """
    pairs: list[tuple[Mapping[str, str], float]] = []
    for _ in range(count):
        chance = rng.random()
        if chance < 0.5:
            pairs.append((subject.parts, 1.0))
        elif chance < 0.65:
            pairs.append((sample_parts(rng, subject.class_noun), 0.0))
        elif chance < 0.75:
            kind = rng.choice([kind for kind in KINDS if kind != subject.class_noun])
            pairs.append((sample_parts(rng, kind), 0.0))
        else:
            pairs.append((changed(subject, rng.choice((2, 2, 3, 4)), rng), 0.0))
    scenes = [
        place_scene(rng, {**parts, "background": rng.choice(BACKGROUNDS)}) for parts, _ in pairs
    ]
    return Examples(scenes, [wanted for _, wanted in pairs])


def fit(signatures: Tensor, wanted: Tensor, penalty: float = 1e-3) -> dict[str, Tensor]:
    """Fit a logistic regression of `wanted` (N,) on signatures (N, D), with an L2 penalty.

    Signatures are standardised for the fit, and the weights returned are for them as they are.
    """
    mean, deviation = signatures.mean(0), signatures.std(0) + 0.05
    standard = (signatures - mean) / deviation
    weight = torch.zeros(standard.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(standard @ weight + bias, wanted)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    plain = weight.detach() / deviation
    return {"weight": plain, "bias": bias.detach() - plain @ mean}


def pictures_of(
    vae: Any, scenes: Sequence[Scene], reconstructions: int, rng: random.Random
) -> tuple[Tensor, list[int]]:
    """Return pictures in 0..1 of scenes, and the scene of each.

    All are drawn, plain and damaged; the first `reconstructions` are also reconstructed.
    """
    plain = drawn(scenes, rng).float() / 255
    several = [plain, damaged(plain, rng)]
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    for start in range(0, reconstructions, _CHUNK):
        part = scenes[start : min(start + _CHUNK, reconstructions)]
        several.append(reconstructed(vae, part, generator).float() / 255)
    order = list(range(len(scenes)))
    return torch.cat(several), [*order, *order, *order[:reconstructions]]


def recognition(
    judge: Judge, vae: Any, subject: Subject, count: int, reconstructions: int
) -> dict[str, Tensor]:
    """Fit how the judge recognises a subject, on pictures of examples."""
    rng = random.Random(f"recognise {subject.name}")
    torch.manual_seed(0)
    chosen = examples(subject, count, rng)
    pixels, order = pictures_of(vae, chosen.scenes, reconstructions, rng)
    wanted = torch.tensor([chosen.wanted[place] for place in order])
    return fit(judge.signature(pixels), wanted)


def pools(vae: Any, drawings: int, reconstructions: int, seed: int) -> dict[str, Pool]:
    """Make the pictures that a judge is trained on."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    plain = [varied_scene(rng) for _ in range(drawings)]
    passed = [varied_scene(rng) for _ in range(reconstructions)]
    chunks = [passed[start : start + _CHUNK] for start in range(0, len(passed), _CHUNK)]
    pixels = torch.cat([reconstructed(vae, chunk, generator) for chunk in chunks])
    return {
        "drawn": Pool(drawn(plain, rng), labels(plain)),
        "reconstructed": Pool(pixels, labels(passed)),
    }


def asset(
    network: JudgeNetwork, vae: Any, count: int = EXAMPLES, reconstructions: int = EXAMPLES // 6
) -> dict[str, Tensor]:
    """Return the judge's asset: the network's weights and those that recognise each subject."""
    weights = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    shipped = rounded(weights)
    judge = Judge({name: weight.float() for name, weight in shipped.items()})
    for subject in SUBJECTS.values():
        fitted = recognition(judge, vae, subject, count, reconstructions)
        shipped |= rounded({f"subject.{subject.name}.{k}": v for k, v in fitted.items()})
    return shipped


def main(argv: Sequence[str] | None = None) -> int:
    """Train the judge and write the assets of judge and subjects."""
    parser = argparse.ArgumentParser(description="Train the judge and write the subjects' files.")
    parser.add_argument("checkpoint", type=Path, help="whose VAE the judge gets used to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=ASSET.parent, help="folder of the assets")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_folders(options.out / FOLDER.name)
    vae = load_checkpoint(options.checkpoint).vae
    network = JudgeNetwork()
    rng = random.Random(0)
    material = pools(vae, DRAWN, RECONSTRUCTED, seed=0)
    cells = {name: cell_pool(pool, rng, times=2) for name, pool in material.items()}
    train(network, cells, options.steps, _log_step)
    made = asset(network, vae, EXAMPLES, EXAMPLES // 6)
    atomic_write_bytes(options.out / ASSET.name, to_bytes(made))
    for name, pool in pools(vae, DRAWN // 14, RECONSTRUCTED // 10, seed=1).items():
        logger.info("%s: %s", name, accuracy(network, pool))
    return 0


def _log_step(step: int, loss: float) -> None:
    if step % 100 == 0:
        logger.info("%d: %.3f", step, loss)


if __name__ == "__main__":
    raise SystemExit(main())
