"""The WebUI's way in: what it shall call; everything else is in dreambooth_core."""

from __future__ import annotations

import html
import traceback
from typing import Any

from modules import script_callbacks

PROBLEM = ""
callbacks: Any = None
try:
    # Only now is our folder on the path; what is imported later is found through this package.
    from dreambooth_core.host import callbacks
except Exception:
    PROBLEM = traceback.format_exc()


def tab() -> list[tuple[Any, str, str]]:
    """Return our tab; if it cannot be built, one that says why."""
    problem = PROBLEM
    try:
        if callbacks:
            return list(callbacks.tab())
    except Exception:
        problem = traceback.format_exc()
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(f"<p>Dreambooth cannot be shown:</p><pre>{html.escape(problem)}</pre>")
    return [(blocks, "Dreambooth", "dreambooth")]


script_callbacks.remove_current_script_callbacks()
script_callbacks.on_ui_tabs(tab)
if callbacks:
    script_callbacks.on_ui_settings(callbacks.add_settings)
    script_callbacks.on_app_started(callbacks.started)
