"""Choices that cannot be used on this machine, said beside the choice with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from dreambooth_core.job.machine import Unavailable
from dreambooth_core.ui.controls import Fields


def show_unavailable(fields: Fields[Any], found: Unavailable, updates: dict[Any, Any]) -> None:
    """Add to the updates of a page what cannot be chosen here, to the help of its setting.

    All versions of Gradio can change a help text; not all can mark a choice. It can still be
    chosen, as settings may be made for another machine; a job then refuses it with this reason.
    """
    components = fields.components()
    for path in found.keys() & components.keys():
        component = components[path]
        info = fields.described(path)["info"] + unavailable_text(found[path])
        updates[component] = gr.update(**{**updates.get(component, {}), "info": info})


def unavailable_text(reasons: Mapping[str, str]) -> str:
    """Return the choices that cannot be used and why, those of one reason together; or ""."""
    choices: dict[str, list[str]] = {}
    for choice, reason in reasons.items():
        choices.setdefault(reason, []).append(choice)
    return "".join(f" Not on this machine: {', '.join(c)} ({why})." for why, c in choices.items())
