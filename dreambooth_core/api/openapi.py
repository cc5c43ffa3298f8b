"""The list of routes as an OpenAPI document, made from the routes and the settings themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.api.bodies import JSON
from dreambooth_core.api.edge import Endpoint
from dreambooth_core.api.schema import command_schema, definitions, job_schema

REFERENCE = "#/components/schemas/"
BODIES = {"/jobs": "Job", "/jobs/{run}/commands": "Command"}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(endpoints: Sequence[Endpoint], prefix: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = prefix + _PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    job = job_schema(REFERENCE)
    schemas = {
        **definitions(REFERENCE),
        "Job": {"title": job["title"], "oneOf": job["oneOf"]},
        "Command": command_schema(),
        "Error": _error_schema(),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dreambooth", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
        "security": [{"basic": []}, {}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    words = " ".join((endpoint.handler.__doc__ or "").split())
    operation: dict[str, Any] = {
        "summary": words.partition(". ")[0].rstrip("."),
        "description": words,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(endpoint.path)
        ],
        "responses": {
            "2XX": {"description": "Done."},
            "4XX": {
                "description": "The request cannot be answered.",
                "content": {JSON: {"schema": {"$ref": f"{REFERENCE}Error"}}},
            },
        },
    }
    if endpoint.body.limits:
        schema = _body_schema(endpoint)
        operation["requestBody"] = {
            "required": not endpoint.body.optional,
            "content": {name: {"schema": schema} for name in endpoint.body.limits},
        }
    return operation


def _body_schema(endpoint: Endpoint) -> dict[str, Any]:
    name = BODIES.get(endpoint.path)
    return {"$ref": REFERENCE + name} if name else {}


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    fields = {"message": text, "remedy": text, "field": text}
    problem = {"type": "object", "properties": fields}
    return {
        "type": "object",
        "properties": {**fields, "problems": {"type": "array", "items": problem}},
        "required": ["message", "remedy", "field"],
    }
