"""reForge moves all models between memories here, and as Forge does."""

from __future__ import annotations

from pathlib import Path

_FORGE = Path(__file__).parents[3] / "forge" / "backend" / "memory_management.py"
exec(compile(_FORGE.read_text(encoding="utf-8"), str(_FORGE), "exec"))
