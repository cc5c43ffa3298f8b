from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from starlette.requests import Request

from dreambooth_core.api import bodies
from dreambooth_core.api.answers import Refused
from dreambooth_core.api.bodies import FORM_BODY, JSON_BODY, Body, limited, parse_json, read_body
from tests.api_standin import Bench, bench

__all__ = ["bench"]

JSON = {"Content-Type": "application/json"}


class Sender:
    """A request whose body arrives piece by piece; it counts the bytes that were taken."""

    def __init__(self, pieces: Iterator[bytes], headers: dict[str, str]) -> None:
        self.pieces = pieces
        self.taken = 0
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""}
        self.request = Request(scope, self.receive)

    async def receive(self) -> dict[str, object]:
        piece = next(self.pieces, None)
        self.taken += len(piece or b"")
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}


def _gigabyte() -> Iterator[bytes]:
    return (b"x" * 65536 for _ in range(16384))


@pytest.mark.parametrize("announced", [True, False])
def test_a_gigabyte_is_not_read(announced: bool) -> None:
    headers = {**JSON, "Content-Length": str(2**30)} if announced else JSON
    sender = Sender(_gigabyte(), headers)
    with pytest.raises(Refused) as error:
        anyio.run(read_body, sender.request, JSON_BODY)
    assert error.value.status == 413
    assert error.value.headers["Connection"] == "close"
    assert sender.taken <= (0 if announced else bodies.JSON_LIMIT + 65536)


def test_a_body_of_exactly_the_limit_is_read() -> None:
    async def collect(sender: Sender, limit: int) -> bytes:
        chunks: AsyncIterator[bytes] = limited(sender.request, limit)
        return b"".join([chunk async for chunk in chunks])

    assert anyio.run(collect, Sender(iter([b"ab", b"c"]), {}), 3) == b"abc"
    with pytest.raises(Refused):
        anyio.run(collect, Sender(iter([b"ab", b"cd"]), {}), 3)


def test_a_large_body_is_refused_over_http(bench: Bench) -> None:
    data = b'{"kind": "' + b"x" * bodies.JSON_LIMIT + b'"}'
    assert "2 MiB" in bench.refusal("POST", "/jobs", 413, content=data, headers=JSON)["message"]
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    bench.refusal("POST", "/jobs", 413, content=pieces, headers=JSON)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data", "x"]
)
def test_other_types_than_json_are_refused(bench: Bench, kind: str) -> None:
    problem = bench.refusal("POST", "/jobs", 415, content=b"{}", headers={"Content-Type": kind})
    assert "application/json" in problem["remedy"]


def test_the_types_parameters_do_not_matter(bench: Bench) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    problem = bench.refusal("POST", "/jobs", 422, content=b"{}", headers=headers)
    assert problem["field"] == "kind"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": "x\\u0000"}',
        b'{"\\u0000": 1}',
        b'[["\\u0000"]]',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_no_json_is_refused(bench: Bench, data: bytes) -> None:
    bench.refusal("POST", "/jobs", 400, content=data, headers=JSON)


@pytest.mark.parametrize("data", [b"[]", b"null", b"7", b'"x"', b"true"])
def test_a_job_is_an_object(bench: Bench, data: bytes) -> None:
    problem = bench.refusal("POST", "/jobs", 422, content=data, headers=JSON)
    assert "not an object" in problem["message"]


def test_json_with_a_byte_order_mark_and_pairs_of_surrogates() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_an_optional_body_may_be_left_out() -> None:
    for headers in ({}, JSON, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert anyio.run(read_body, Sender(iter([]), headers).request, FORM_BODY) == Body()


def test_a_form_is_read() -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    sender = Sender(iter([b"a=1&b=%C3%BC", b"+x&c="]), headers)
    assert anyio.run(read_body, sender.request, FORM_BODY).fields == {"a": "1", "b": "ü x", "c": ""}


@pytest.mark.parametrize("data", [b"a=\xff", b"&".join(b"a=1" for _ in range(2000))])
def test_a_form_that_is_none(data: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    with pytest.raises(Refused) as error:
        anyio.run(read_body, Sender(iter([data]), headers).request, FORM_BODY)
    assert error.value.status == 400


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_multipart_form_that_is_none(bench: Bench, kind: str) -> None:
    headers = {"Content-Type": kind}
    bench.refusal("POST", "/upload?folder=a", 400, content=b"--y\r\nnonsense", headers=headers)


@pytest.mark.parametrize("query", ["folder=a%00b", "folder=a%01", "x%00=1", "details=true%1f"])
def test_control_characters_are_refused(bench: Bench, query: str) -> None:
    bench.refusal("GET", f"/upload?{query}", 400)


@pytest.mark.parametrize("text", ["maybe", "2", "yess"])
def test_a_flag_is_true_or_false(bench: Bench, text: str) -> None:
    assert bench.refusal("GET", f"/models?details={text}", 422)["field"] == "details"
    for word in ("TRUE", "1", "on", "yes"):
        assert "models" in bench.get(f"/models?details={word}")
