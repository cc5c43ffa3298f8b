"""The reference of all settings, as docs/settings.md shows it, made from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dreambooth_core.cli.flags import CONCEPT_PREFIX, describe
from dreambooth_core.config.control import FieldSpec, field_specs, section_specs
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, JobConfig, TrainConfig

TITLE = """\
# Settings

Every setting of every job, as the page, the command line, the REST interface and a settings file
know it: in a settings file the path is the place in the JSON, on the command line `--PATH VALUE`
(dashes for underscores) or `--set PATH=VALUE`. What is marked advanced is shown in the page's
Advanced view only.

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
    yield _table(plain)
    if config_class is TrainConfig:
        yield f"### Concepts\n\n{(Concept.__doc__ or '').strip()}\n"
        yield _table(field_specs(Concept), CONCEPT_PREFIX)
    for section in section_specs(config_class):
        yield f"### {section.control.label}\n\n{section.control.help}\n"
        yield _table([spec for spec in specs if spec.section == section.name])


def _table(specs: Sequence[FieldSpec], prefix: str = "") -> str:
    rows = ["| setting | label | what it does |", "|---|---|---|"]
    for spec in specs:
        label = f"{spec.control.label} (advanced)" if spec.control.advanced else spec.control.label
        rows.append(f"| `{prefix}{spec.path}` | {label} | {_cell(describe(spec))} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
