"""Our training step against the bare forward, backward and update of the same model and batch.

Both share one model, its weights, its optimizer and a batch of the same shape, and take turns step
by step (ours, bare, bare, ours, ...), so that noise hits both. "ours" is the whole of the train
stage's loop body: batch from the latent cache, tokenizing, noise, loss, backward, clipping, finite
checks, update, learning rate, event written. "bare" is text encoder, UNet, mean squared error,
backward, optimizer step, zero_grad on tensors prepared beforehand. "clipped" is bare with the
gradient clipping that our step has by default. The EMA is extra work that the bare step has no
part in: it is measured in the same run and shown apart.

    python -m benchmarks.step [--only tiny|sd15] [--steps N] [--no-ema] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image

from dreambooth_core.config.schema import CreateConfig, TrainConfig
from dreambooth_core.config.serialize import from_dict
from dreambooth_core.families.clip_text import chunked_token_ids
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import EventWriter
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.optim.build import set_learning_rates
from dreambooth_core.stages import create, train
from dreambooth_core.stages.requests import Requests
from dreambooth_core.stages.training_output import report_step
from dreambooth_core.stages.training_setup import Trainer
from tests.original_layout import SD15, Layout
from tests.tiny import stage_context, write_tiny_checkpoint

GOAL = 1.03


class Times(NamedTuple):
    """What an action took, in seconds; CPU time is that of all threads of this process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """A model size with the pictures and the number of pairs of steps it is measured with."""

    layout: Layout
    resolution: int
    batch_size: int
    steps: int


CASES = {
    "tiny": Case(
        # The size of the embedded demo model: 16x16 latents, three levels of 64 channels.
        Layout(
            model_channels=64,
            channel_mult=(1, 1, 1),
            num_res_blocks=1,
            attention_levels=(1, 2),
            num_heads=4,
            context_dim=64,
            vae_channels=64,
            vae_channel_mult=(1, 1, 1),
            vae_num_res_blocks=1,
            text_layers=4,
            text_heads=4,
            image_size=16,
        ),
        resolution=64,
        batch_size=4,
        steps=60,
    ),
    "sd15": Case(SD15, resolution=256, batch_size=1, steps=3),
}


def prepare(root: Path, case: Case, ema: bool) -> Trainer:
    """Create a model of random weights and prepare its training as the train stage does."""
    workspace = Workspace(root)
    source = write_tiny_checkpoint(root / "source.safetensors", layout=case.layout, extras=False)
    create.run(CreateConfig(name="measured", source=str(source)), stage_context(workspace))
    source.unlink()
    pictures = root / "pictures"
    pictures.mkdir()
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(pictures / f"a photo of a zwx dog ({number}).png")
    settings = {
        "model": "measured",
        "concepts": [{"instance_folder": str(pictures)}],
        "intervals": {"epochs": 10_000},
        "batch": {"batch_size": case.batch_size},
        "images": {"resolution": case.resolution},
        "text_encoder": {"train_ratio": 1.0},
        "ema": {"enabled": ema},
    }
    context = stage_context(workspace)
    writer = EventWriter(root / "events.jsonl")
    context = replace(context, emit=writer.emit)
    return prepare_run(from_dict(TrainConfig, settings), context)


def prepare_run(config: TrainConfig, context: RunContext) -> Trainer:
    """Return the run before its first step."""
    return train.prepare(config, context, Requests(context.commands))


def our_step(trainer: Trainer) -> None:
    """Do what the train stage's loop does in a step, the EMA and answering commands left out."""
    began, epoch = time.monotonic(), trainer.progress.epoch
    batches = train.next_batches(trainer)
    rates = set_learning_rates(trainer.optimizer, train.learning_rate_factor(trainer))
    result = train.make_step(trainer, batches)
    trainer.progress = trainer.plan.after(trainer.progress)
    report_step(trainer, epoch, result, rates, time.monotonic() - began)


def bare_step_of(trainer: Trainer, case: Case, *, clip: bool) -> Callable[[], None]:
    """Return the bare step on tensors that are ready on the device, gradients clipped if asked."""
    components, device = trainer.components, trainer.objective.device
    batch = train.next_batches(trainer)[0]
    generator = torch.Generator().manual_seed(0)
    noisy, noise = torch.randn(2, *batch.latents_mean.shape, generator=generator).to(device)
    timesteps = torch.randint(0, 1000, (case.batch_size,), generator=generator).to(device)
    ids = torch.as_tensor(chunked_token_ids(components.tokenizer, batch.prompts)).to(device)
    ids = ids.reshape(case.batch_size, -1)
    optimizer = trainer.optimizer.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        with trainer.accelerator.autocast():
            states = components.text_encoder(ids)[0]
            pred = components.unet(noisy, timesteps, states, return_dict=False)[0]
        torch.autograd.backward(torch.nn.functional.mse_loss(pred.float(), noise))
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, trainer.config.batch.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def times_of(action: Callable[[], None], device: torch.device) -> Times:
    """Return how long an action takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def measure(trainer: Trainer, case: Case, steps: int) -> dict[str, list[Times]]:
    """Return the times of `steps` turns of ours, bare and EMA, after one turn to warm up."""
    actions: dict[str, Callable[[], None]] = {
        "ours": lambda: our_step(trainer),
        "bare": bare_step_of(trainer, case, clip=False),
        "clipped": bare_step_of(trainer, case, clip=True),
    }
    ema = trainer.ema
    if ema is not None:
        actions["ema"] = lambda: ema.update(trainer.progress.step)
    times: dict[str, list[Times]] = {name: [] for name in actions}
    for turn in range(steps + 1):
        for name in actions if turn % 2 else reversed(actions):
            took = times_of(actions[name], trainer.objective.device)
            if turn > 0:
                times[name].append(took)
    return times


def summarise(times: dict[str, list[Times]], case: Case) -> dict[str, Any]:
    """Return medians and the ratio of ours to bare, by wall clock and by CPU time.

    On a machine that others use too, the ratio of CPU times is the one that tells.
    """
    figures: dict[str, Any] = {
        "resolution": case.resolution,
        "batch_size": case.batch_size,
        "turns": len(times["ours"]),
    }
    for index, clock in enumerate(Times._fields):
        seconds = {name: [each[index] for each in values] for name, values in times.items()}
        figures[clock] = {
            "ratio": median_ratio(seconds["ours"], seconds["bare"]),
            "ratio_to_clipped": median_ratio(seconds["ours"], seconds["clipped"]),
            "median_seconds": {name: statistics.median(each) for name, each in seconds.items()},
            "seconds": seconds,
        }
    return figures


def median_ratio(ours: list[float], bare: list[float]) -> float:
    """Return the median of the turns' ratios."""
    return statistics.median(a / b for a, b in zip(ours, bare, strict=True))


def print_row(name: str, figures: dict[str, Any]) -> None:
    """Print a case's figures beside the goal."""
    turns = f"{figures['turns']} turns at {figures['resolution']} px"
    print(f"{name}: {turns}, batch {figures['batch_size']}, goal for the ratio {GOAL}")
    for clock in Times._fields:
        medians = figures[clock]["median_seconds"]
        each = ", ".join(f"{part} {1000 * value:.1f} ms" for part, value in medians.items())
        bare, clipped = figures[clock]["ratio"], figures[clock]["ratio_to_clipped"]
        print(f"  {clock:4} {each}; ratio to bare {bare:.3f}, to clipped {clipped:.3f}")


def run_case(case: Case, steps: int, ema: bool, folder: Path | None) -> dict[str, Any]:
    """Measure a case in a workspace that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="step-", dir=folder) as root:
        trainer = prepare(Path(root), case, ema)
        return summarise(measure(trainer, case, steps), case)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(CASES), help="one case; default: all")
    parser.add_argument("--steps", type=int, help="turns to measure; default: by case")
    parser.add_argument("--no-ema", action="store_true", help="leave the EMA out (less memory)")
    parser.add_argument("--folder", type=Path, help="where to work (5 GB); default: temporary")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    machine = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }
    figures: dict[str, Any] = {"machine": machine}
    for name in [options.only] if options.only else CASES:
        case = CASES[name]
        steps = options.steps or case.steps
        figures[name] = run_case(case, steps, not options.no_ema, options.folder)
        print_row(name, figures[name])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
