"""Pictures on request, from a saved checkpoint, the newest training state or the base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core.config.schema import SampleConfig
from dreambooth_core.errors import InputError
from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseProgress, PhaseStarted, SampleSaved
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.device import place, resolve_device
from dreambooth_core.stages.png import read_png, save_png
from dreambooth_core.stages.sampling import generate, picture_info
from dreambooth_core.stages.save_lora import load_state_components
from dreambooth_core.stages.saved_states import latest_state, state_progress

PHASE = "samples"


@dataclass(frozen=True)
class Source:
    """The weights to draw with, the name they go by in pictures, and their training step."""

    components: Components
    name: str
    step: int = 0


@dataclass(frozen=True)
class Request:
    """One picture to draw, and the text that its file will carry."""

    prompt: str
    seed: int
    text: str


def choose_source(config: SampleConfig, context: RunContext) -> Source:
    """Load the named checkpoint; else the newest training state; else the model as created."""
    model = context.workspace.model(config.model)
    model.require()
    if config.checkpoint:
        path = context.workspace.find_checkpoint(config.checkpoint)
        return Source(load_checkpoint(path, model), path.stem)
    state = latest_state(model, tell=context.warn)
    if state is None:
        return Source(load_components(model), model.name)
    step = state_progress(state).step
    average = " EMA" if config.use_ema else ""
    name = f"{model.name} {state.parent.name} step {step}{average}"
    return Source(load_state_components(model, state, config.use_ema), name, step)


def requests(config: SampleConfig, size: tuple[int, int], name: str) -> list[Request]:
    """Return every picture asked for: each prompt `count` times, each with the next seed."""
    prompts = [prompt for prompt in config.prompts if prompt.strip()]
    if not prompts:
        raise InputError("There is nothing to draw.", remedy="Give a prompt.", field="prompts")
    wanted = [prompt for prompt in prompts for _ in range(config.count)]
    return [
        Request(prompt, seed, _picture_text(config, prompt, seed, size, name))
        for seed, prompt in enumerate(wanted, start=config.seed)
    ]


def _picture_text(
    config: SampleConfig, prompt: str, seed: int, size: tuple[int, int], name: str
) -> str:
    return picture_info(
        prompt,
        config.negative_prompt,
        steps=config.steps,
        sampler=config.sampler,
        cfg_scale=config.cfg_scale,
        seed=seed,
        size=size,
        model=name,
    )


def _texts_in(folder: Path) -> dict[str, Path]:
    """Return the whole pictures in a folder by the text they carry."""
    found = ((path, read_png(path)) for path in sorted(folder.glob("*.png")))
    return {picture.parameters: path for path, picture in found if picture is not None}


def _free_names(folder: Path) -> Iterator[Path]:
    for number in itertools.count():
        path = folder / f"{number:05d}.png"
        if not path.exists():
            yield path


def _output_folder(config: SampleConfig, model: ModelFolder) -> Path:
    return Path(config.output).expanduser() if config.output else model.samples_dir


def _draw(
    config: SampleConfig, source: Source, size: tuple[int, int], wanted: Sequence[Request]
) -> Iterator[tuple[Request, Image.Image]]:
    pictures = generate(
        source.components,
        [request.prompt for request in wanted],
        [config.negative_prompt] * len(wanted),
        width=size[0],
        height=size[1],
        steps=config.steps,
        cfg_scale=config.cfg_scale,
        sampler=config.sampler,
        seeds=[request.seed for request in wanted],
        batch_size=config.batch_size,
    )
    return zip(wanted, pictures, strict=True)


def _save_all(
    context: RunContext,
    drawn: Iterator[tuple[Request, Image.Image]],
    total: int,
    folder: Path,
    step: int,
) -> dict[str, Path]:
    """Save pictures as they are drawn, until all are or a command ends it; their files by text."""
    files: dict[str, Path] = {}
    names = _free_names(folder)
    context.emit(PhaseStarted(PHASE, total, "pictures"))
    for request, picture in drawn:
        files[request.text] = path = next(names)
        save_png(picture, path, request.text)
        context.emit(SampleSaved(str(path), request.prompt, request.seed, step))
        context.emit(PhaseProgress(PHASE, len(files), total))
        if any(command.name.startswith("stop") for command in context.commands.poll()):
            break
    return files


def run(config: SampleConfig, context: RunContext) -> dict[str, Any]:
    """Draw what is asked for; pictures that an earlier, interrupted job made are kept."""
    model = context.workspace.model(config.model)
    source = choose_source(config, context)
    place(source.components, resolve_device())
    resolution = model.read_info().resolution
    size = (config.width or resolution, config.height or resolution)
    folder = _output_folder(config, model)
    asked = requests(config, size, source.name)
    there = _texts_in(folder)
    files = {request.text: there[request.text] for request in asked if request.text in there}
    wanted = [request for request in asked if request.text not in files]
    if files:
        context.emit(Notice("info", f"{len(files)} of the pictures were there."))
    drawing = _draw(config, source, size, wanted)
    drawn = _save_all(context, drawing, len(wanted), folder, source.step)
    files.update(drawn)
    summary: dict[str, Any] = {
        "model": config.model,
        "weights": source.name,
        "folder": str(folder),
        "pictures": [str(files[request.text]) for request in asked if request.text in files],
        "new": len(drawn),
    }
    return summary if len(drawn) == len(wanted) else {**summary, "stopped": True}
