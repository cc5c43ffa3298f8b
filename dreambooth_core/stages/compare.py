"""Several checkpoints side by side: the same prompts and seeds, one sheet, numbers, one to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.rules.transfer import is_lora
from dreambooth_core.config.schema import CompareConfig
from dreambooth_core.config.serialize import to_kept
from dreambooth_core.errors import InputError
from dreambooth_core.families import load_checkpoint, load_components
from dreambooth_core.families.base import Components
from dreambooth_core.job.comparison import measure_text
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import Notice, PhaseProgress, PhaseStarted, SampleSaved
from dreambooth_core.job.formats import COMPARISON
from dreambooth_core.job.history import saved_loras
from dreambooth_core.job.storage import atomic_write_bytes, atomic_write_json
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.columns import Column, comparison_columns, last_concepts
from dreambooth_core.stages.device import place, resolve_device
from dreambooth_core.stages.grid import GridRow, labelled_grid
from dreambooth_core.stages.lora_start import put_in
from dreambooth_core.stages.measure import Drawn, Measures, best, measure, verdict
from dreambooth_core.stages.png import save_png
from dreambooth_core.stages.sampling import generate
from dreambooth_core.stages.table import NO_MEASURES, markdown, table_rows, terminal_lines
from dreambooth_core.world.captions import parse_prompt
from dreambooth_core.world.judge import Judge
from dreambooth_core.world.subjects import SUBJECTS

PHASE = "comparison"
BATCH_SIZE = 8
SHOWN_PER_CELL = 3
BASE_LABEL = "as created"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint or LoRA file to compare; the model as created has none."""

    label: str
    path: Path | None = None


@dataclass(frozen=True)
class Result:
    """One candidate's pictures per column, and its measures where there is a judge."""

    candidate: Candidate
    cells: list[list[Image.Image]]
    measures: Measures | None = None


def check_subject(subject: str) -> None:
    """Raise InputError unless the subject to measure is one of the world, or none."""
    if subject and subject not in SUBJECTS:
        raise InputError(
            f"There is no subject {subject!r} in the built-in small world.",
            remedy=f"Its subjects are: {', '.join(SUBJECTS)}.",
            field="subject",
        )


def candidates(config: CompareConfig, context: RunContext) -> list[Candidate]:
    """Return the model as created, then the named files, else all that were saved of the model."""
    workspace = context.workspace
    named = [workspace.find_saved(text) for text in config.checkpoints]
    if not named:
        checkpoints = workspace.model(config.model).read_info().checkpoints
        saved = [*map(Path, checkpoints), *saved_loras(workspace, config.model)]
        gone = [path for path in saved if not path.is_file()]
        for path in gone:
            context.emit(Notice("warning", f"{path} is no longer there and is left out."))
        named = [path for path in saved if path.is_file()]
    if not named:
        raise InputError(
            f"The model {config.model!r} has no saved checkpoints to compare.",
            remedy="Train it first, or name checkpoints.",
            field="checkpoints",
        )
    return [Candidate(BASE_LABEL), *(Candidate(path.stem, path) for path in named)]


def _load(candidate: Candidate, model: ModelFolder) -> Components:
    """Load a checkpoint, or the model as created, with a LoRA put into it at strength 1."""
    if candidate.path is None:
        return load_components(model)
    if not is_lora(read_header(candidate.path)):
        return load_checkpoint(candidate.path, model)
    components = load_components(model)
    put_in(components, candidate.path)
    return components


def _draw(
    config: CompareConfig, components: Components, columns: Sequence[Column], resolution: int
) -> list[list[Image.Image]]:
    count = config.seeds_per_prompt
    prompts = [column.prompt for column in columns for _ in range(count)]
    pictures = generate(
        components,
        prompts,
        [config.negative_prompt] * len(prompts),
        width=resolution,
        height=resolution,
        steps=config.steps,
        cfg_scale=config.cfg_scale,
        sampler=config.sampler,
        seeds=[config.seed + number for _ in columns for number in range(count)],
        batch_size=BATCH_SIZE,
    )
    drawn = list(pictures)
    return [drawn[start : start + count] for start in range(0, len(drawn), count)]


def _draw_all(
    config: CompareConfig,
    context: RunContext,
    chosen: Sequence[Candidate],
    columns: Sequence[Column],
) -> tuple[list[Result], bool]:
    """Return every candidate's pictures, and whether a command ended the work early."""
    model = context.workspace.model(config.model)
    resolution = model.read_info().resolution
    results = []
    context.emit(PhaseStarted(PHASE, len(chosen), "checkpoints"))
    for done, candidate in enumerate(chosen, start=1):
        components = _load(candidate, model)
        place(components, resolve_device())
        results.append(Result(candidate, _draw(config, components, columns, resolution)))
        context.emit(PhaseProgress(PHASE, done, len(chosen)))
        if any(command.name.startswith("stop") for command in context.commands.poll()):
            return results, done < len(chosen)
    return results, False


def _drawn(columns: Sequence[Column], result: Result) -> list[Drawn]:
    return [
        Drawn(column.has_token, parse_prompt(column.prompt), cell)
        for column, cell in zip(columns, result.cells, strict=True)
    ]


def _measure_all(
    subject: str, columns: Sequence[Column], results: Sequence[Result]
) -> list[Measures]:
    judge = Judge.load()
    base = _drawn(columns, results[0])
    return [measure(judge, _drawn(columns, result), base, subject) for result in results]


def _score_lines(measures: Measures, base: Measures) -> list[str]:
    return [
        f"likeness {measures.subject_fidelity:.2f}, leak {measures.class_leak:.2f}",
        f"prompt {measures.prompt_fidelity:.2f}, drift {measures.drift:.2f}",
        f"score {measure_text(verdict(measures, base))}",
    ]


def _sheet(
    config: CompareConfig,
    columns: Sequence[Column],
    results: Sequence[Result],
    measured: Sequence[Measures],
) -> Image.Image:
    keep = best(measured) if measured else -1
    rows = []
    for number, result in enumerate(results):
        lines = _score_lines(measured[number], measured[0]) if measured else []
        if number == keep:
            lines.append("best: keep this one")
        cells = [cell[:SHOWN_PER_CELL] for cell in result.cells]
        rows.append(GridRow(result.candidate.label, cells, lines, marked=number == keep))
    headings = [column.heading for column in columns]
    return labelled_grid(f"{config.model}: checkpoints compared", headings, rows)


def _remarks(config: CompareConfig, columns: Sequence[Column]) -> list[str]:
    pictures = f"{config.seeds_per_prompt} pictures of each prompt from seed {config.seed}"
    if config.seeds_per_prompt > SHOWN_PER_CELL:
        pictures += f" (the first {SHOWN_PER_CELL} are shown)"
    settings = f"{config.sampler}, {config.steps} steps, CFG scale {config.cfg_scale:g}"
    prompts = "; ".join(column.heading for column in columns)
    measures = f"Measured for the subject {config.subject}." if config.subject else NO_MEASURES
    return [f"{pictures}, {settings}.", f"Prompts: {prompts}.", measures]


def _write(
    config: CompareConfig,
    context: RunContext,
    columns: Sequence[Column],
    results: Sequence[Result],
) -> dict[str, Any]:
    """Write the sheet and the numbers and return the summary."""
    measured = _measure_all(config.subject, columns, results) if config.subject else []
    rows = table_rows([result.candidate.label for result in results], measured)
    remarks = _remarks(config, columns)
    folder = _output_folder(config, context)
    title = f"{config.model}: checkpoints compared"
    grid, numbers = folder / "compare.png", folder / "compare.json"
    save_png(_sheet(config, columns, results, measured), grid)
    context.emit(SampleSaved(str(grid), title, config.seed))
    atomic_write_bytes(folder / "compare.md", markdown(title, rows, remarks).encode("utf-8"))
    values = {"rows": rows, "remarks": remarks, "settings": to_kept(config)}
    atomic_write_json(numbers, COMPARISON.stamped(values))
    keep = best(measured) if measured else 0
    return {
        "model": config.model,
        "grid": str(grid),
        "table": str(folder / "compare.md"),
        "numbers": str(numbers),
        "keep": str(results[keep].candidate.path or "") if measured else "",
        "comparison": [*terminal_lines(rows), remarks[-1]],
    }


def _output_folder(config: CompareConfig, context: RunContext) -> Path:
    if config.output:
        return Path(config.output).expanduser()
    return context.workspace.model(config.model).samples_dir / f"compare-{context.run_id}"


def run(config: CompareConfig, context: RunContext) -> dict[str, Any]:
    """Draw the same pictures with every checkpoint and write the sheet and the table."""
    context.workspace.model(config.model).require()
    check_subject(config.subject)
    concepts = last_concepts(context.workspace, config.model)
    tokens = [SUBJECTS[config.subject].token] if config.subject else []
    columns = comparison_columns(config, concepts, tokens)
    chosen = candidates(config, context)
    results, stopped = _draw_all(config, context, chosen, columns)
    summary = _write(config, context, columns, results)
    return {**summary, "stopped": True} if stopped else summary
