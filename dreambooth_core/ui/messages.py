"""Words for the page as HTML; every text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.control import field_specs, section_specs
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import ConfigError, DreamboothError, Problem
from dreambooth_core.job.events import INFO, Finding


def note(text: str, kind: str = "note") -> str:
    """Return a text in a box; `kind` is note, good, warning or error."""
    return f'<div class="dreambooth-box dreambooth-{kind}">{escape(text)}</div>'


def remark(finding: Finding) -> str:
    """Return a box with what was found before a training and what to do, by its level."""
    label = f"{label_of(finding.field)}:" if finding.field else ""
    kind = "note" if finding.level == INFO else finding.level
    line = _line(label, finding.message, finding.remedy)
    return f'<div class="dreambooth-box dreambooth-{kind}">{line}</div>'


def explain(error: DreamboothError, config_class: type = TrainConfig) -> str:
    """Return a box that says what is wrong and what to do, with the labels of the settings."""
    if isinstance(error, ConfigError):
        lines = [_problem(problem, config_class) for problem in error.problems]
    else:
        lines = [_line("", error.message, error.remedy)]
    return f'<div class="dreambooth-box dreambooth-error">{"".join(lines)}</div>'


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str = "",
    *,
    marked: int = -1,
) -> str:
    """Return a table of texts, one row of it marked; `empty` is said if it has no rows."""
    body = "".join(_row(row, "td", place == marked) for place, row in enumerate(rows))
    if not body:
        return hint(empty)
    head = _row(headings, "th")
    return (
        '<div class="dreambooth-scroll"><table class="dreambooth-table">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return names and values, one pair per line."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(v))}</dd>" for name, v in pairs)
    return f'<dl class="dreambooth-facts">{lines}</dl>'


def heading(text: str, below: str = "") -> str:
    """Return a heading with a line of explanation below."""
    return f'<h3 class="dreambooth-heading">{escape(text)}</h3>{hint(below)}'


def hint(text: str) -> str:
    """Return a line of explanation; "" for none."""
    return f'<p class="dreambooth-hint">{escape(text)}</p>' if text else ""


def size_text(size: float) -> str:
    """Return a number of bytes as a person writes it."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit != "MB" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def label_of(path: str, config_class: type = TrainConfig) -> str:
    """Return the words on the page for a setting's path, such as "Concept 2: Class prompt"."""
    if path.startswith("concepts."):
        _, number, rest = (*path.split(".", 2), "")[:3]
        label = label_of(rest, Concept) if rest else ""
        title = f"Concept {int(number) + 1}" if number.isdigit() else "Concepts"
        return f"{title}: {label}" if label else title
    groups = {group.name: group.control.label for group in section_specs(config_class)}
    for spec in field_specs(config_class):
        if spec.path == path:
            group = groups.get(spec.section)
            return f"{group}: {spec.control.label}" if group else spec.control.label
    return groups.get(path, path)


def _problem(problem: Problem, config_class: type) -> str:
    label = label_of(problem.field, config_class) if problem.field else ""
    return _line(label, problem.message, problem.remedy)


def _line(label: str, message: str, remedy: str) -> str:
    start = f"<strong>{escape(label)}</strong> " if label else ""
    end = f' <span class="dreambooth-remedy">{escape(remedy)}</span>' if remedy else ""
    return f"<p>{start}{escape(message)}{end}</p>"


def _row(cells: Sequence[object], tag: str, marked: bool = False) -> str:
    look = ' class="dreambooth-marked"' if marked else ""
    inside = "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr{look}>{inside}</tr>"
