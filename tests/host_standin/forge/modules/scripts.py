"""Forge loads scripts as A1111 does, but leaves every extension's folder on the path."""

from __future__ import annotations

from pathlib import Path

_A1111 = Path(__file__).parents[2] / "a1111" / "modules" / "scripts.py"
exec(compile(_A1111.read_text(encoding="utf-8"), str(_A1111), "exec"))
LEAVES_FOLDERS_ON_PATH = True
