"""Target: requests to the REST API, in the process, with a conductor that starts no worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from dreambooth_core.api import PREFIX, endpoints
from dreambooth_core.api.edge import Endpoint
from dreambooth_core.config.schema import JOB_CONFIGS, Concept, TrainConfig
from dreambooth_core.config.serialize import to_dict
from dreambooth_core.job.workspace import Workspace
from tests.api_standin import Bench, make_model, png, put
from tests.fuzz import mutate

NAMES = ("ada", "bob", "run", "base.safetensors", "a.png", "sub/other")
PARAMETERS = (
    *("model", "model_name", "folder", "overwrite", "offset", "lines", "api_key", "name", "file"),
    *("concept_idx", "instance_dir", "model_path", "negative_prompt", "num_images", "img_type"),
    *("prompt", "seed", "steps", "width", "height", "save_path", "params", "source", "behaviour"),
)
TYPES = (
    *("application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"),
    *("text/plain", "", "multipart/form-data", "application/json; charset=utf-16", "\u00e9"),
)
DOCUMENTED = {501, 502, 503, 507}
"""Answers that say why something cannot be done here and now."""


def rest(chance: Random, folder: Path) -> None:
    """A few requests to any of the routes; no answer may be a 500 or lack its parts."""
    with _served(folder) as bench:
        for _ in range(4):
            _ask(chance, bench)
        bench.get("/status")


def _ask(chance: Random, bench: Bench) -> None:
    endpoint: Endpoint = chance.choice(_endpoints())
    path = _path(chance, endpoint.path)
    method = endpoint.method if chance.random() < 0.95 else chance.choice(("PUT", "HEAD", "PATCH"))
    query = {chance.choice(PARAMETERS): _value(chance) for _ in range(chance.randrange(5))}
    headers, body = _body(chance)
    if chance.random() < 0.2:
        name = chance.choice(("origin", "sec-fetch-site", "authorization", "x-api-key", "host"))
        headers[name] = _header(chance)
    if path.endswith("/openapi.json"):
        return
    answer = bench.client.request(
        method,
        PREFIX + path,
        params={name: quote(value, safe="", errors="replace") for name, value in query.items()}
        if chance.random() < 0.2
        else query,
        headers=headers,
        content=body,
    )
    _check(answer, f"{method} {path}")


def _check(answer: Any, asked: str) -> None:
    status = answer.status_code
    if status >= 500 and status not in DOCUMENTED:
        raise AssertionError(f"{asked} is answered {status}: {answer.text[:500]}")
    if status >= 400 and answer.request.method != "HEAD":
        told = answer.json()
        of_the_host = status == 404 and "detail" in told  # a path with line breaks is no route's
        if not told.get("message") and not of_the_host:
            raise AssertionError(f"{asked} is answered {status} without a message: {told}")


@contextmanager
def _served(folder: Path) -> Iterator[Bench]:
    """Serve the API of a workspace of its own, and close it at the end."""
    workspace = Workspace(folder)
    workspace.checkpoints_dir.mkdir(parents=True)
    make_model(workspace)
    put(workspace.model("ada").samples_dir / "run" / "a.png")
    put(workspace.uploads_dir / "dog" / "a.png")
    put(workspace.uploads_dir / "dog" / "a.txt", b"words")
    bench = Bench(workspace)
    with closing(TestClient(bench.app, raise_server_exceptions=False)) as bench.client:
        yield bench


@cache
def _endpoints() -> tuple[Endpoint, ...]:
    return tuple(endpoints())


def _path(chance: Random, path: str) -> str:
    """Return the path with its parts filled in, now and then with something that is no name."""
    made = []
    for part in path.split("/"):
        if part.startswith("{"):
            part = quote(_word(chance), safe="", errors="replace")
        made.append(part)
    return "/".join(made)


def _word(chance: Random) -> str:
    usual = mutate.pick(chance, NAMES, 0.6)
    return usual if chance.random() < 0.8 else mutate.text(chance)


def _value(chance: Random) -> str:
    usual = ("ada", "dog", "1", "0", "true", "a dog", "/nowhere", "{}", "[]", "0.5", "labels")
    text = mutate.pick(chance, usual, 0.6) if chance.random() < 0.8 else mutate.text(chance)
    return text.encode("utf-8", "replace").decode()


def _header(chance: Random) -> str:
    usual = ("Basic YTpi", "Basic ?", "Bearer x", "cross-site", "http://evil", "null", "a" * 5000)
    return chance.choice(usual)


def _body(chance: Random) -> tuple[dict[str, str], Any]:
    kind = chance.choice(TYPES) if chance.random() < 0.2 else chance.choice(TYPES[:3])
    headers = {"content-type": kind.encode("latin-1", "replace").decode("latin-1")}
    if not kind.isascii() or chance.random() < 0.05:
        headers = {}
    if kind.startswith("multipart"):
        data = _multipart(chance)
    elif "urlencoded" in kind:
        words = "&".join(f"{chance.choice(PARAMETERS)}={quote(_value(chance))}" for _ in range(3))
        data = words.encode()
    else:
        data = _json(chance)
    if chance.random() < 0.15:
        data = mutate.raw(chance, data)
    if chance.random() < 0.1:
        return headers, _in_pieces(chance, data)
    return headers, data


def _in_pieces(chance: Random, data: bytes) -> Iterator[bytes]:
    while data:
        size = chance.randrange(1, 1 + len(data))
        yield data[:size]
        data = data[size:]


def _json(chance: Random) -> bytes:
    if chance.random() < 0.03:
        return mutate.deep(chance).encode()
    kind = chance.choice(sorted(JOB_CONFIGS))
    concept = Concept(instance_folder=chance.choice(("/nowhere", "dog", "")))
    train = to_dict(TrainConfig(model="ada", concepts=[concept]))
    pictures = [{"name": "b.png", "data": base64.b64encode(png()).decode(), "caption": "c"}]
    whole = chance.choice(
        (
            {"kind": kind, "config": {"model": "ada", "name": "new", "source": "base.safetensors"}},
            {"kind": "train", "config": train},
            {"kind": "sample", "config": {"model": "ada", "prompts": ["a"], "steps": 3}},
            train,
            {"command": "stop", "name": "stop"},
            {"images": pictures, "folder": "dog"},
            {"source": json.dumps({"learning_rate": 1e-6, "epoch": 3, "model_name": "x"})},
            {"model": "ada", "optimizer.name": "lion", "intervals": {"epochs": 3}},
            [concept.__dict__],
        )
    )
    if chance.random() < 0.8:
        whole = mutate.tree(chance, whole)
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def _multipart(chance: Random) -> bytes:
    made = b""
    for _ in range(chance.choice((0, 1, 1, 2, 3, 30))):
        name, file = chance.choice(PARAMETERS), mutate.pick(chance, ("a.png", "b.jpg", "a.txt"))
        clean = file.encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b"")
        made += b'--x\r\nContent-Disposition: form-data; name="' + name.encode() + b'"'
        if chance.random() < 0.7:
            made += b'; filename="' + clean + b'"'
        made += b"\r\n\r\n" + chance.choice((png(), b"words", b"", b"\xff\xfe")) + b"\r\n"
    return made + (b"--x--\r\n" if chance.random() < 0.9 else b"")
