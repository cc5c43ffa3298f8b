"""Imports: another trainer's settings, concepts and models, with a report of every line."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.responses import Response

from dreambooth_core.api.answers import ok, unprocessable
from dreambooth_core.api.bodies import JSON_BODY
from dreambooth_core.api.edge import Call, Endpoint
from dreambooth_core.api.files import existing_model
from dreambooth_core.api.settings import read_settings
from dreambooth_core.config.imports import apply_import, read_import, read_settings_text
from dreambooth_core.config.imports.creating import creation
from dreambooth_core.config.imports.report import AS_LABELLED, Import, in_order, summary
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.config.settings_store import keep_settings

FIELDS = ("path", "text", "behaviour", "model")


def import_settings(call: Call) -> Response:
    """Read another trainer's file, folder or text; with `model` its settings are kept for that.

    The body is {"path" or "text", "behaviour", "model"}; `behaviour` is "labels" or "as it was".
    `create` in the answer is what to start a create job with.
    """
    body = call.body.object()
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise unprocessable(
            f"{unknown[0]} is not known here.", f"Known: {', '.join(FIELDS)}.", unknown[0]
        )
    given = {name: _text(body, name) for name in FIELDS}
    if bool(given["path"]) == bool(given["text"]):
        raise unprocessable(
            "path and text are both given." if given["path"] else "path is missing.",
            "Send the path of a file or folder on this server, or the text of a file.",
            "path",
        )
    behaviour = given["behaviour"] or AS_LABELLED
    if given["path"]:
        found = read_import(given["path"], behaviour)
    else:
        found = read_settings_text(given["text"], "text", behaviour)
    kept = _keep(call, found, given["model"]) if given["model"] else None
    return ok({**_shown(found), "create": _creation(call, found), "settings_now": kept})


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if isinstance(value, str):
        return value
    raise unprocessable(f"{name} is no text.", "Send it in quotes.", name)


def _keep(call: Call, found: Import, name: str) -> dict[str, Any]:
    model = existing_model(call, name)
    config = apply_import(found, read_settings(call.workspace, model.name))
    keep_settings(model, config)
    return to_dict(config)


def _creation(call: Call, found: Import) -> dict[str, Any] | None:
    return to_dict(creation(found, call.workspace)) if found.model else None


def _shown(found: Import) -> dict[str, Any]:
    lines = [dataclasses.asdict(line) for line in in_order(found.lines)]
    model = dataclasses.asdict(found.model) if found.model else None
    return {
        "name": found.name,
        "origin": found.origin,
        "summary": summary(found),
        "lines": lines,
        "settings": found.settings,
        "concepts": found.concepts,
        "found_model": model,
    }


ENDPOINTS = (Endpoint("POST", "/imports", import_settings, JSON_BODY, changes=True),)
