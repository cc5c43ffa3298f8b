"""The reference of all settings, and that the document is the schema's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.cli import main
from dreambooth_core.cli.reference import reference
from dreambooth_core.config.control import field_specs
from dreambooth_core.config.schema import JOB_CONFIGS, Concept

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def test_the_document_is_what_the_schema_says() -> None:
    """Write it anew with `python launch.py settings > docs/settings.md`."""
    assert DOCUMENT.read_text(encoding="utf-8") == reference() + "\n"


@pytest.mark.parametrize("kind", JOB_CONFIGS)
def test_each_job_has_its_settings_exactly_once(kind: str) -> None:
    part = reference().split(f"\n## {kind}\n")[1].split("\n## ")[0]
    paths = [spec.path for spec in field_specs(JOB_CONFIGS[kind]) if spec.type != list[Concept]]
    paths += [f"concept.{spec.path}" for spec in field_specs(Concept)] if "concept." in part else []
    if "The settings are those of [train](#train)." in part:
        paths = []
    assert part.count("\n| `") == len(paths)
    for path in paths:
        assert part.count(f"\n| `{path}` |") == 1


def test_a_row_tells_range_default_and_whether_it_is_advanced() -> None:
    row = next(line for line in reference().splitlines() if line.startswith("| `seed` | Seed |"))
    assert "[0 to 4294967295; default 420420] |" in row
    decay = next(line for line in reference().splitlines() if "`ema.decay`" in line)
    assert "(advanced) | " in decay


def test_a_row_names_the_paper_and_what_others_call_it() -> None:
    row = next(line for line in reference().splitlines() if "`loss.min_snr_gamma`" in line)
    assert "Source: Hang et al. 2023 (arXiv 2303.09556). | " in row
    assert "sd_dreambooth_extension: `min_snr_gamma`" in row and "kohya: `min_snr_gamma`" in row
    concept = next(line for line in reference().splitlines() if "`concept.class_folder`" in line)
    assert concept.endswith("| sd_dreambooth_extension: `class_data_dir` |")


def test_the_verb_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == reference() + "\n"
