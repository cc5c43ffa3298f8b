"""The reference of all settings, as docs/settings.md shows it, made from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dreambooth_core.cli.flags import CONCEPT_PREFIX, describe
from dreambooth_core.config.control import FieldSpec, field_specs, section_specs
from dreambooth_core.config.imports.elsewhere import concept_names, training_names
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, JobConfig, TrainConfig

Elsewhere = Mapping[str, Mapping[str, Sequence[str]]]

TITLE = """\
# Settings

Every setting of every job, as the page, the command line, the REST interface and a settings file
know it: in a settings file the path is the place in the JSON, on the command line `--PATH VALUE`
(dashes for underscores) or `--set PATH=VALUE`. What is marked advanced is shown in the page's
Advanced view only. *Elsewhere* is what other trainers call a setting; the import translates it, and
says where it means something else there.

Written by `python launch.py settings > docs/settings.md`; a test compares.
"""


def reference() -> str:
    """Return the reference in Markdown; a job that repeats another's settings points there."""
    parts, seen = [TITLE], dict[type[JobConfig], str]()
    for kind, config_class in JOB_CONFIGS.items():
        parts.append(f"## {kind}\n\n{(config_class.__doc__ or '').strip()}\n")
        if config_class in seen:
            parts.append(
                f"The settings are those of [{seen[config_class]}](#{seen[config_class]}).\n"
            )
            continue
        seen[config_class] = kind
        parts += _tables(config_class)
    return "\n".join(parts)


def _tables(config_class: type[JobConfig]) -> Iterator[str]:
    specs = field_specs(config_class)
    plain = [spec for spec in specs if not spec.section and spec.type != list[Concept]]
    elsewhere = training_names() if config_class is TrainConfig else None
    yield _table(plain, elsewhere)
    if config_class is TrainConfig:
        yield f"### Concepts\n\n{(Concept.__doc__ or '').strip()}\n"
        yield _table(field_specs(Concept), concept_names(), CONCEPT_PREFIX)
    for section in section_specs(config_class):
        yield f"### {section.control.label}\n\n{section.control.help}\n"
        yield _table([spec for spec in specs if spec.section == section.name], elsewhere)


def _table(specs: Sequence[FieldSpec], elsewhere: Elsewhere | None, prefix: str = "") -> str:
    heads = ["setting", "label", "what it does", *(["elsewhere"] if elsewhere is not None else [])]
    rows = [_row(heads), _row(["---"] * len(heads))]
    for spec in specs:
        label = f"{spec.control.label} (advanced)" if spec.control.advanced else spec.control.label
        source = f" Source: {spec.control.source}." if spec.control.source else ""
        cells = [f"`{prefix}{spec.path}`", label, _cell(describe(spec) + source)]
        if elsewhere is not None:
            cells.append(_names(elsewhere.get(spec.path, {})))
        rows.append(_row(cells))
    return "\n".join(rows) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _names(by_trainer: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(
        f"{trainer}: {', '.join(f'`{name}`' for name in names)}"
        for trainer, names in by_trainer.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
