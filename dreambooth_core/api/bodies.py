"""Reading a request's body: never more than its limit, and only what it should be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dreambooth_core.api.answers import Refused, unprocessable
from dreambooth_core.config.control import number_text
from dreambooth_core.job import plain_json

MIB = 1024 * 1024
JSON_LIMIT = 2 * MIB
FORM_LIMIT = 2 * MIB
UPLOAD_LIMIT = 256 * MIB
UPLOAD_JSON_LIMIT = 64 * MIB
MOST_DIGITS = 30
IDLE_SECONDS = 60.0

JSON, FORM, MULTIPART = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
)


@dataclass(frozen=True)
class Body:
    """What came with a request: a JSON value, or a form's fields and files."""

    json: Any = None
    fields: Mapping[str, str] = field(default_factory=dict)
    files: list[UploadFile] = field(default_factory=list)

    def object(self) -> dict[str, Any]:
        """Return the JSON object; raises Refused if the body is none."""
        if isinstance(self.json, dict):
            return self.json
        raise unprocessable(
            f"The body is {_word(self.json)}, not an object.",
            "Send a JSON object such as {...}, see /dreambooth/schema.",
        )


@dataclass(frozen=True)
class BodyKind:
    """Which types a body may have with the most bytes of each, and whether it may be left out."""

    limits: Mapping[str, int] = field(default_factory=dict)
    optional: bool = True


NO_BODY = BodyKind()
JSON_BODY = BodyKind({JSON: JSON_LIMIT}, optional=False)
FORM_BODY = BodyKind({FORM: FORM_LIMIT, MULTIPART: FORM_LIMIT, JSON: JSON_LIMIT})
UPLOAD_BODY = BodyKind({MULTIPART: UPLOAD_LIMIT, JSON: UPLOAD_JSON_LIMIT}, optional=False)


async def read_body(request: Request, kind: BodyKind) -> Body:
    """Return a request's body; raises Refused with 413, 415 or 400."""
    content_type = request.headers.get("content-type", "")
    name = content_type.partition(";")[0].strip().lower()
    if not kind.limits or (kind.optional and not name):
        return Body()
    if name not in kind.limits:
        raise _wrong_type(name, kind)
    chunks = limited(request, kind.limits[name])
    if name == MULTIPART:
        return await _read_multipart(request, chunks)
    data = b"".join([chunk async for chunk in chunks])
    if kind.optional and not data:
        return Body()
    if name == FORM:
        return Body(fields=parse_form(data))
    return Body(json=await run_in_threadpool(parse_json, data))


async def limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises Refused with 413 as soon as it is known to be larger.

    And with 408 when nothing more of it comes: whoever waits holds no thread, but some memory.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    total, stream = 0, request.stream()
    while True:
        try:
            with anyio.fail_after(IDLE_SECONDS):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise _stalled() from error
        total += len(chunk)
        if total > limit:
            raise _too_large(limit)
        yield chunk


def parse_json(data: bytes) -> Any:
    """Return the JSON value; raises Refused with 400 if it is none, or no text could hold it."""
    try:
        value = plain_json.parse(data, most_digits=MOST_DIGITS)
    except ValueError as error:
        raise Refused(400, f"The body is not JSON: {error}.", remedy="Correct it there.") from error
    if b"\\u0000" in data and _holds_nul(value):
        raise Refused(400, "The body holds a text with a NUL character.", remedy="Take it out.")
    return value


def parse_form(data: bytes) -> dict[str, str]:
    """Return the fields of a URL-encoded form."""
    try:
        pairs = parse_qsl(data.decode("utf-8"), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise Refused(400, f"The body is no form: {error}.") from error
    return dict(pairs)


async def _read_multipart(request: Request, chunks: AsyncIterator[bytes]) -> Body:
    try:
        parser = MultiPartParser(request.headers, _as_generator(chunks))
    except AssertionError as error:
        raise Refused(
            501, "This server cannot read multipart forms.", remedy="Send JSON instead."
        ) from error
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, f"The body is no multipart form: {error}.") from error
    items = form.multi_items()
    return Body(
        fields={name: value for name, value in items if isinstance(value, str)},
        files=[value for _, value in items if isinstance(value, UploadFile)],
    )


async def _as_generator(chunks: AsyncIterator[bytes]) -> Any:
    async for chunk in chunks:
        yield chunk


def _wrong_type(name: str, kind: BodyKind) -> Refused:
    return Refused(
        415,
        f"The body's type is {name or 'not given'}.",
        remedy=f"Send {' or '.join(kind.limits)} and say so in Content-Type.",
    )


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"The body is larger than {number_text(limit // MIB)} MiB.",
        remedy="Send it in parts." if limit > JSON_LIMIT else "Send only settings.",
        # The rest of the body is still on its way: there is no next request on this connection.
        headers={"Connection": "close"},
    )


def _stalled() -> Refused:
    return Refused(
        408,
        f"Nothing of the body has come for {IDLE_SECONDS:g} seconds.",
        remedy="Send it again.",
        headers={"Connection": "close"},
    )


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return any(_holds_nul(item) for item in value)
    return isinstance(value, str) and "\0" in value


def _word(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "empty" if value is None else words.get(type(value), "a number")
