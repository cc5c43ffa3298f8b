"""The run panel as HTML: pure functions from a view of a run; every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.events import Notice
from dreambooth_core.job.kept import TRAINING
from dreambooth_core.job.run_view import RATE_PREFIX, RunView, duration
from dreambooth_core.ui.messages import note, size_text
from dreambooth_core.ui.run_plot import Line, plot

TITLES = {
    "create": "Creating",
    "train": "Training",
    "dry-run": "One step of",
    "class-images": "Class images for",
    "sample": "Sampling",
    "save": "Checkpoint of",
    "compare": "Comparing",
    "plan": "Planning",
    "merge": "Merging",
    "extract-lora": "Extracting",
    "bake-lora": "Baking",
}
STATES = {
    "starting": "Starting",
    "running": "Running",
    "stopping": "Stopping",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}
RATE_COLORS = ("#6366f1", "#14b8a6", "#f59e0b", "#ec4899")
SHOWN_NOTICES = 3
IDLE = "No job has run yet. Choose or create a model, add a concept, then press Train."

STYLE = """<style>
.dreambooth-run{display:flex;flex-direction:column;gap:.5rem}
.dreambooth-run p{margin:0}
.dreambooth-run-head{display:flex;justify-content:space-between;gap:1rem;flex-wrap:wrap}
.dreambooth-run-state{padding:0 .6rem;border-radius:1rem;border:1px solid currentColor;
font-size:.85em}
.dreambooth-run-bar{height:.6rem;border-radius:.3rem;overflow:hidden;
background:rgba(128,128,128,.25)}
.dreambooth-run-bar i{display:block;height:100%;border-radius:.3rem;background:#6366f1}
.dreambooth-run-bar i.failed{background:#dc2626}
.dreambooth-run-bar i.finished{background:#16a34a}
.dreambooth-run-bar i.unknown{width:30%;animation:dreambooth-run-slide 1.6s infinite linear}
@keyframes dreambooth-run-slide{from{margin-left:-30%}to{margin-left:100%}}
.dreambooth-run-facts{display:flex;gap:.2rem 1.4rem;flex-wrap:wrap;
font-variant-numeric:tabular-nums}
.dreambooth-run-facts span{opacity:.7}
.dreambooth-run-cause{border-left:4px solid #dc2626;padding:.4rem .8rem;
background:rgba(220,38,38,.08);white-space:pre-wrap;overflow-wrap:anywhere}
.dreambooth-run-notice{border-left:4px solid #8888;padding:.1rem .8rem;overflow-wrap:anywhere}
.dreambooth-run-notice.warning{border-color:#f59e0b}
.dreambooth-run-notice.error{border-color:#dc2626}
.dreambooth-run-log{margin:0;max-height:24rem;overflow:auto;font-size:.8em;
white-space:pre-wrap;overflow-wrap:anywhere}
.dreambooth-plots{display:flex;flex-wrap:wrap;gap:1rem}
.dreambooth-plot{flex:1 1 20rem;min-width:0;max-width:44rem;margin:0}
.dreambooth-plot figcaption{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85em}
.dreambooth-plot .key{font-variant-numeric:tabular-nums}
.dreambooth-plot .key i{display:inline-block;width:.9em;height:.25em;margin-right:.35em;
vertical-align:middle;border-radius:.2em}
.dreambooth-plot svg{width:100%;height:auto;display:block}
.dreambooth-plot text{fill:currentColor;font-size:11px;opacity:.75}
.dreambooth-plot .grid{stroke:currentColor;stroke-opacity:.13}
.dreambooth-plot .axis{stroke:currentColor;stroke-opacity:.45}
</style>"""


def progress_html(
    view: RunView | None,
    *,
    preparing: str = "",
    problem: DreamboothError | None = None,
    log: Sequence[str] = (),
) -> str:
    """Return how the run stands: title, bar, numbers, notices, and the cause if it failed."""
    if view is None:
        cause = _cause(problem.message, problem.remedy) if problem else f"<p>{escape(IDLE)}</p>"
        return f'{STYLE}<div class="dreambooth-run">{cause}</div>'
    parts = [_head(view), _bar(view), _numbers(view, preparing)]
    if view.state == "failed":
        parts.append(_cause(view.message, view.remedy, view.kept))
    parts += [_notice(notice) for notice in view.notices[-SHOWN_NOTICES:]]
    if log and not view.ended:
        parts.append(log_html(log))
    return f'{STYLE}<div class="dreambooth-run">{"".join(parts)}</div>'


def curves_html(view: RunView | None) -> str:
    """Return the losses and the learning rates as two plots; "" before the first step."""
    curves = view.curves if view else {}
    losses = [
        Line("instance", curves.get("loss_instance", ()), "#6366f1", 1.0, 0.45),
        Line("class", curves.get("loss_class", ()), "#f59e0b", 1.0, 0.45),
        Line("smoothed", curves.get("loss_smoothed", ()), "#dc2626", 2.2),
    ]
    names = [name for name in curves if name.startswith(RATE_PREFIX)]
    rates = [
        Line(_part(name), curves[name], RATE_COLORS[number % len(RATE_COLORS)], 2.0)
        for number, name in enumerate(names)
    ]
    plots = plot("Loss", losses) + plot("Learning rate", rates)
    return f'<div class="dreambooth-plots">{plots}</div>' if plots else ""


def summary_html(view: RunView | None) -> str:
    """Return what a run that ended has written: checkpoints, state, pictures; "" before that."""
    if view is None or not view.ended:
        return ""
    written = "".join(f"<li>{escape(line)}</li>" for line in _written(view))
    said = f'<ul class="dreambooth-run-files">{written}</ul>' if written else "<p>Nothing.</p>"
    took = f" in {duration(view.seconds)}" if view.seconds else ""
    title = f"{STATES[view.state]}{took}. Written:"
    kept = _to_keep(view)
    return f'<div class="dreambooth-run">{kept}<p><strong>{title}</strong></p>{said}</div>'


def _written(view: RunView) -> list[str]:
    lines = []
    for file in view.files:
        made = f", step {file.step}, epoch {file.epoch}" if file.step else ""
        lines.append(f"{file.path} ({size_text(file.size)}{made})")
    if view.training_state:
        lines.append(f"{view.training_state} (training state to go on from)")
    if view.samples and not _is_comparison(view):
        lines.append(_pictures(view))
    return lines + [path for path in _other_files(view) if not any(path in line for line in lines)]


def _pictures(view: RunView) -> str:
    folders = dict.fromkeys(str(Path(sample.path).parent) for sample in view.samples)
    count = "1 picture" if len(view.samples) == 1 else f"{len(view.samples)} pictures"
    return f"{count} in {', '.join(folders)}"


def log_html(lines: Iterable[str], path: str = "") -> str:
    """Return lines of the log, and where the whole of it is."""
    where = f"<p>{escape(path)}</p>" if path else ""
    text = escape("\n".join(lines))
    return f'{where}<pre class="dreambooth-run-log">{text}</pre>' if text else where


def caption(prompt: str, step: int, seed: int) -> str:
    """Return the words below a picture; Gradio shows them as plain text."""
    made = f"step {step}, seed {seed}" if step else f"seed {seed}"
    return f"{made}: {prompt}" if prompt else made


def _head(view: RunView) -> str:
    title = f"{TITLES.get(view.kind, view.kind)} {view.model}".strip()
    return (
        '<div class="dreambooth-run-head">'
        f'<strong>{escape(title)}</strong><span class="dreambooth-run-state">'
        f"{STATES[view.state]}</span></div>"
    )


def _bar(view: RunView) -> str:
    fraction = view.fraction
    look = view.state if view.state in ("failed", "finished") else ""
    if fraction is None and not view.ended:
        return '<div class="dreambooth-run-bar" role="progressbar"><i class="unknown"></i></div>'
    percent = 100 * (fraction or 0.0)
    return (
        f'<div class="dreambooth-run-bar" role="progressbar" aria-valuenow="{percent:.0f}">'
        f'<i class="{look}" style="width:{percent:.1f}%"></i></div>'
    )


def _numbers(view: RunView, preparing: str) -> str:
    facts: list[tuple[str, str]] = []
    if not view.ended:
        finishing = "finishing " if view.is_phase_over else ""
        facts.append(("", preparing or f"{finishing}{view.phase}" or "starting"))
        facts += _count(view)
    if view.total_steps:
        facts.append(("step", f"{view.step} / {view.total_steps}"))
        facts.append(("epoch", str(view.epoch + 1)))
    facts += _pace(view)
    if view.loss is not None:
        facts.append(("loss", f"{view.loss:.4f}"))
    if view.memory_mb:
        facts.append(("memory", f"{view.memory_mb / 1024:.1f} GB"))
    words = (f"<div><span>{name}</span> {escape(value)}</div>" for name, value in facts)
    return f'<div class="dreambooth-run-facts">{"".join(words)}</div>'


def _count(view: RunView) -> list[tuple[str, str]]:
    if view.unit == "bytes":
        return [("", f"{size_text(view.done)} of {size_text(view.total)}")]
    if view.phase == TRAINING or not view.total:
        return []
    return [("", f"{view.done} of {view.total} {view.unit}".rstrip())]


def _pace(view: RunView) -> list[tuple[str, str]]:
    if view.ended or view.is_phase_over:
        return []
    facts = []
    if view.steps_per_second and view.unit != "bytes":
        facts.append(("it/s", f"{view.steps_per_second:.2f}"))
    if view.eta_seconds is not None:
        facts.append(("left", duration(view.eta_seconds)))
    return facts


def _to_keep(view: RunView) -> str:
    """Return which checkpoint a comparison found best and where it is shown; "" for others."""
    if not _is_comparison(view):
        return ""
    best = Path(str(view.summary.get("keep") or "")).stem
    words = f"{best} scored best. " if best else ""
    return note(f"{words}The pictures and numbers are on the Compare tab.", "good")


def _is_comparison(view: RunView) -> bool:
    return "grid" in view.summary


def _cause(message: str, remedy: str, kept: Sequence[str] = ()) -> str:
    said = f"<strong>{escape(message)}</strong>"
    helped = "".join(f"\n{escape(line)}" for line in (remedy, *kept) if line)
    hint = "\nThe last lines of the log are below, under Log."
    return f'<div class="dreambooth-run-cause" role="alert">{said}{helped}{hint}</div>'


def _notice(notice: Notice) -> str:
    look = f"dreambooth-run-notice {escape(notice.level)}"
    return f'<p class="{look}">{escape(notice.message)}</p>'


def _part(name: str) -> str:
    return name.removeprefix(RATE_PREFIX).replace("_", " ")


def _other_files(view: RunView) -> list[str]:
    """Return the paths that a job of another kind names in its summary."""
    keys = ("path", "paths", "grid", "folders", "checkpoints")
    values = (view.summary.get(key) for key in keys)
    return [
        str(item)
        for value in values
        if value
        for item in (value if isinstance(value, list) else [value])
    ]
