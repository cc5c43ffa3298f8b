"""The callbacks that scripts register; an error in one is reported and does not stop others."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable

from modules.seen import note


@dataclasses.dataclass
class ScriptCallback:
    script: str
    callback: Callable


callback_map: dict[str, list[ScriptCallback]] = {
    name: [] for name in ("before_ui", "ui_settings", "ui_tabs", "app_started", "script_unloaded")
}


def _calling_script():
    return next(frame.filename for frame in inspect.stack() if frame.filename != __file__)


def _add(name, callback):
    callback_map[name].append(ScriptCallback(_calling_script(), callback))


def _call(name, *arguments):
    results = []
    for entry in list(callback_map[name]):
        try:
            results.append(entry.callback(*arguments))
        except Exception:
            note(f"error in {name}: {traceback.format_exc()}")
    return results


def clear_callbacks():
    for entries in callback_map.values():
        entries.clear()


def remove_current_script_callbacks():
    script = _calling_script()
    for entries in callback_map.values():
        entries[:] = [entry for entry in entries if entry.script != script]


def on_before_ui(callback, *, name=None):
    _add("before_ui", callback)


def on_ui_settings(callback, *, name=None):
    _add("ui_settings", callback)


def on_ui_tabs(callback, *, name=None):
    _add("ui_tabs", callback)


def on_app_started(callback, *, name=None):
    _add("app_started", callback)


def on_script_unloaded(callback, *, name=None):
    _add("script_unloaded", callback)


def before_ui_callback():
    _call("before_ui")


def ui_settings_callback():
    _call("ui_settings")


def ui_tabs_callback():
    return [tab for tabs in _call("ui_tabs") for tab in tabs or []]


def app_started_callback(demo, app):
    _call("app_started", demo, app)


def script_unloaded_callback():
    _call("script_unloaded")
