"""The edge: a request becomes a call, and what its handler returns or raises a response.

Handlers are plain functions that run in a thread, so that no request holds up the server's loop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dreambooth_core.api.access import KEY_NAME, Access, refuse_other_sites
from dreambooth_core.api.answers import (
    Answer,
    Refused,
    Waiting,
    error_response,
    os_error,
    unprocessable,
)
from dreambooth_core.api.bodies import FORM_BODY, NO_BODY, Body, BodyKind, read_body
from dreambooth_core.api.progress import final_event
from dreambooth_core.api.services import Services
from dreambooth_core.errors import DreamboothError
from dreambooth_core.job.workspace import Workspace

WAITING_SECONDS = 0.2
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f]")

logger = logging.getLogger("dreambooth_core.api")


@dataclass(frozen=True)
class Call:
    """One request: what was asked, and the services to answer with."""

    services: Services
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Body
    prefix: str = ""
    """What comes before the API's own paths in an address, such as "/dreambooth"."""

    @property
    def workspace(self) -> Workspace:
        """Where models, checkpoints and runs lie."""
        return self.services.workspace

    def text(self, name: str, default: str | None = None) -> str:
        """Return a query parameter or form field; raises Refused if it must be given and is not."""
        value = self.query.get(name, self.body.fields.get(name))
        if value is None and isinstance(self.body.json, dict):
            inside = self.body.json.get(name)
            value = inside if isinstance(inside, str) else None
        if value is not None and (value or default is not None):
            return value
        if default is None:
            raise unprocessable(f"{name} is missing.", f"Add {name}=... to the address.", name)
        return default

    def number(self, name: str, default: float) -> float:
        """Return a parameter that is a finite number; raises Refused if it is none."""
        text = self.text(name, "").strip()
        try:
            value = float(text) if text else default
        except ValueError:
            value = float("nan")
        if value - value == 0:
            return value
        raise unprocessable(f"{name} is {text!r}, which is no number.", field=name)

    def whole(self, name: str, default: int) -> int:
        """Return a parameter that is a whole number; raises Refused if it is none."""
        value = self.number(name, default)
        if value == int(value):
            return int(value)
        raise unprocessable(f"{name} is {value}, which is no whole number.", field=name)

    def flag(self, name: str, default: bool) -> bool:
        """Return a parameter that is true or false; raises Refused if it is neither."""
        word = self.text(name, "").strip().lower() or str(default).lower()
        if word not in TRUE_WORDS + FALSE_WORDS:
            raise unprocessable(f"{name} is {word!r}.", "Use true or false.", name)
        return word in TRUE_WORDS


Handler = Callable[[Call], Answer]


@dataclass(frozen=True)
class Endpoint:
    """One route: its method and path below the API's, what answers it, and what it may be sent."""

    method: str
    path: str
    handler: Handler
    body: BodyKind = NO_BODY
    changes: bool = False
    """Whether it does something, so that no other site's page may call it."""


def serve(
    endpoint: Endpoint, services: Services, access: Access
) -> Callable[[Request], Awaitable[Response]]:
    """Return the function that a route calls. The one place where any error is caught."""

    async def answer(request: Request) -> Response:
        try:
            return await _answer(endpoint, services, access, request)
        except DreamboothError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=400)
        except OSError as error:
            logger.exception("%s %s", endpoint.method, endpoint.path)
            return error_response(os_error(error))
        except Exception as error:
            logger.exception("%s %s", endpoint.method, endpoint.path)
            words = f"Something that should not happen did: {type(error).__name__}: {error}"
            return error_response(Refused(500, words, remedy="The log of the server says more."))

    return answer


async def _answer(
    endpoint: Endpoint, services: Services, access: Access, request: Request
) -> Response:
    if endpoint.changes:
        refuse_other_sites(request.headers, services.host.allows_origin)
    query = dict(request.query_params)
    body = await _admitted_body(endpoint, access, request, query)
    path = {name: str(value) for name, value in request.path_params.items()}
    _refuse_control_characters({**path, **query, **body.fields})
    prefix = str(request.scope.get("root_path", ""))
    try:
        call = Call(services, path, query, body, prefix)
        answer = await run_in_threadpool(endpoint.handler, call)
    finally:
        for file in body.files:
            file.file.close()
    return await _wait(answer) if isinstance(answer, Waiting) else answer


async def _admitted_body(
    endpoint: Endpoint, access: Access, request: Request, query: Mapping[str, str]
) -> Body:
    """Read the body of an admitted request; the key may be a field of a form, which are small."""
    key = query.get(KEY_NAME, "")
    if access.admits(request.headers, [key]):
        return await read_body(request, endpoint.body)
    body = Body()
    if endpoint.body == FORM_BODY:
        body = await read_body(request, endpoint.body)
        key = key or body.fields.get(KEY_NAME, "")
    if access.admits({}, [key]):
        return body
    raise access.refusal(bool(key))


async def _wait(waiting: Waiting) -> Response:
    """Wait for a job without holding a thread, then make the response."""
    while True:
        final = await run_in_threadpool(final_event, waiting.job)
        if final is not None:
            return await run_in_threadpool(waiting.then, final)
        await anyio.sleep(WAITING_SECONDS)


def _refuse_control_characters(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if _NO_TEXT.search(name + value):
            raise Refused(400, f"{name!r} holds a control character.", remedy="Take it out.")
