"""REST: JSON in and out, over the job API that the tabs and the command line use too.

Every route is plain Starlette, so it runs with whatever FastAPI and pydantic the host has. A source
checkpoint or a folder of instance images may be named anywhere on the server's disks, as in the
tabs; files are given out only from the workspace's own folders, and written only into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route

from dreambooth_core.api import (
    files,
    imports,
    jobs,
    legacy,
    legacy_jobs,
    models,
    openapi,
    schema,
    status,
    uploads,
)
from dreambooth_core.api.access import access_for
from dreambooth_core.api.answers import Answer, Refused, error_response, not_found, ok
from dreambooth_core.api.edge import Call, Endpoint, Handler, serve
from dreambooth_core.api.services import ApiConductor, ApiHost, Services

__all__ = ["PREFIX", "mount", "routes"]

PREFIX = "/dreambooth"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

OLDER: dict[tuple[str, str], Handler] = {
    ("GET", "/concepts"): legacy.get_concepts,
    ("GET", "/samples"): legacy_jobs.make_samples,
    ("POST", "/upload"): legacy.upload,
}
"""The older routes that share a path with a newer one: `model_name` in the address means them."""


def mount(app: Any, host: ApiHost, conductor: ApiConductor | None = None) -> None:
    """Add the routes to the host's app, before all others; a second call replaces them."""
    if conductor is None:
        from dreambooth_core.host.conductor import conductor as of_this_process

        conductor = of_this_process()
    ours = Mount(PREFIX, routes=routes(Services(host, conductor)), name="dreambooth_api")
    others = [r for r in app.router.routes if getattr(r, "name", "") != ours.name]
    app.router.routes[:] = [ours, *others]


def routes(services: Services) -> list[Route]:
    """Return the routes below `/dreambooth`, and one for all that is not there."""
    access = access_for(services.host.api_credentials(), services.workspace)
    made = []
    for endpoint in endpoints():
        route = Route(endpoint.path, serve(endpoint, services, access), methods=[endpoint.method])
        if endpoint.changes and route.methods:
            route.methods.discard("HEAD")
        made.append(route)
    return [*made, Route("/{path:path}", _nothing_there(made), methods=list(METHODS))]


def endpoints() -> list[Endpoint]:
    """Return every route's description, in the order in which they are tried."""
    modules = (jobs, models, imports, files, uploads, status, schema, legacy, legacy_jobs)
    plain: list[Endpoint] = [endpoint for module in modules for endpoint in module.ENDPOINTS]
    listed = [_with_older(endpoint) for endpoint in plain]
    return [*listed, Endpoint("GET", "/openapi.json", _show_document)]


def _show_document(call: Call) -> Response:
    """Show this list of routes as an OpenAPI document."""
    return ok(openapi.document(endpoints(), call.prefix))


def _with_older(endpoint: Endpoint) -> Endpoint:
    older = OLDER.get((endpoint.method, endpoint.path))
    if older is None:
        return endpoint
    return replace(endpoint, handler=_either(endpoint.handler, older), changes=True)


def _either(newer: Handler, older: Handler) -> Handler:
    def handle(call: Call) -> Answer:
        return older(call) if "model_name" in call.query else newer(call)

    handle.__doc__ = f"{newer.__doc__} With `model_name`: {older.__doc__}"
    return handle


def _nothing_there(known: Sequence[Route]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        allowed: set[str] = set()
        for route in known:
            if route.matches(request.scope)[0] is not Match.NONE:
                allowed |= route.methods or set()
        if not allowed:
            words = f"There is nothing at {request.url.path}."
            return error_response(not_found(words, f"See {PREFIX}/openapi.json."))
        methods = ", ".join(sorted(allowed))
        words = f"{request.url.path} does not know {request.method}."
        headers = {"Allow": methods}
        return error_response(Refused(405, words, remedy=f"Use {methods}.", headers=headers))

    return answer
