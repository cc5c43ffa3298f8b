"""Requests that are huge, endless, half or nonsense: refused early, and the service goes on."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.api import bodies, fetching
from dreambooth_core.checkpoint import header, pickle_data, pickled
from dreambooth_core.config import pictures, presets, serialize, text_files
from dreambooth_core.config.imports import reading
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import side_file
from dreambooth_core.job import workspace as workspace_paths
from dreambooth_core.job.checkpoint_files import checkpoint_path
from dreambooth_core.job.plain_json import MAX_DEPTH
from dreambooth_core.job.workspace import Workspace
from tests.api_standin import Bench, bench, make_model, png

__all__ = ["bench"]

uvicorn = pytest.importorskip("uvicorn")
SECONDS = 30.0
GIGABYTE = 2**30
JSON = {"Content-Type": "application/json"}
USERS = {"ann": "sesam"}


class Server:
    """The API behind a real socket."""

    def __init__(self, bench: Bench) -> None:
        config = uvicorn.Config(bench.app, port=0, log_level="error", timeout_keep_alive=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + SECONDS
        while not self.server.started and time.monotonic() < end:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(SECONDS)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def status(self) -> int:
        """What a usual request is answered."""
        with self.connect() as line:
            line.sendall(head("GET", "/models", {"Connection": "close"}))
            return answer_of(line)[0]


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    """The beginning of a request."""
    lines = [f"{method} /dreambooth{path} HTTP/1.1", "Host: x"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer_of(line: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and JSON of an answer, read until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(65536):
            data += part
    first, _, rest = data.partition(b"\r\n")
    content = rest.partition(b"\r\n\r\n")[2]
    told = json.loads(content) if content.startswith(b"{") else {}
    return int(first.split()[1]), told


@pytest.fixture
def server(bench: Bench) -> Iterator[Server]:
    made = Server(bench)
    yield made
    made.stop()


def test_a_gigabyte_with_its_length_is_refused_before_it_is_sent(server: Server) -> None:
    with server.connect() as line:
        line.sendall(head("POST", "/jobs", {**JSON, "Content-Length": str(GIGABYTE)}) + b"{")
        status, told = answer_of(line)
    assert (status, "2 MiB" in told["message"], bool(told["remedy"])) == (413, True, True)
    assert server.status() == 200


def test_a_gigabyte_in_pieces_without_its_length_ends_at_the_limit(server: Server) -> None:
    """The memory stays bounded, too; what was sent then is of no use to anyone."""
    piece = b"x" * 65536
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    sent = 0
    tracemalloc.start()
    try:
        with server.connect() as line:
            line.sendall(head("POST", "/jobs", {**JSON, "Transfer-Encoding": "chunked"}))
            with contextlib.suppress(ConnectionError):
                while sent < GIGABYTE:
                    line.sendall(chunk)
                    sent += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sent < GIGABYTE // 8
    assert peak < 24 * bodies.JSON_LIMIT
    assert server.status() == 200


def test_half_bodies_hold_nobody_up_and_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are threads; a body of which nothing more comes is given up."""
    with contextlib.ExitStack() as open_lines:
        lines = [open_lines.enter_context(server.connect()) for _ in range(60)]
        for line in lines:
            line.sendall(head("POST", "/jobs", {**JSON, "Content-Length": "1000"}) + b'{"kind": ')
        assert server.status() == 200
        monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.2)
        with server.connect() as late:
            late.sendall(head("POST", "/jobs", {**JSON, "Content-Length": "1000"}) + b"{")
            status, told = answer_of(late)
        assert status == 408 and "0.2 seconds" in told["message"] and told["remedy"]
    assert server.status() == 200


def test_without_a_password_no_upload_is_read(tmp_path: Path) -> None:
    """Not even its beginning."""
    workspace = Workspace(tmp_path / "workspace")
    make_model(workspace)
    locked = Server(Bench(workspace, USERS))
    try:
        headers = {
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": str(GIGABYTE // 8),
            "Connection": "close",
        }
        with locked.connect() as line:
            line.sendall(head("POST", "/upload?folder=a", headers))
            status, told = answer_of(line)
    finally:
        locked.stop()
    assert status == 401 and told["remedy"]
    assert not workspace.uploads_dir.exists()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b'{"kind": "train", "kind": "create"}', 400, "'kind' is there twice"),
        (b'{"kind": "train", "config": {"model": "a", "model": "b"}}', 400, "'model' is there"),
        (b"[" * (MAX_DEPTH + 10) + b"]" * (MAX_DEPTH + 10), 400, "deeper than 50 levels"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, 400, "deeper than 50 levels"),
        (b'{"kind": ["train"], "config": {}}', 422, "kind"),
        (b'{"kind": "train", "config": {"model": {"a": 1}}}', 422, "not a text"),
        (b'{"kind": "train", "config": {"model": "a", "seed": true}}', 422, "not a whole"),
        (b'{"kind": "train", "config": {"model": "a", "concepts": [3]}}', 422, "concepts.0"),
        (b'{"kind": "train", "config": {"model": "a", "batch": []}}', 422, "batch"),
        (b'{"kind": "train", "config": []}', 422, "The settings are []"),
        (b'{"kind": "\xc3\x28"}', 400, "not JSON"),
    ],
)
def test_bodies_that_say_nothing_of_use(bench: Bench, data: bytes, status: int, words: str) -> None:
    problem = bench.refusal("POST", "/jobs", status, content=data, headers=JSON)
    assert words in json.dumps(problem)
    assert bench.get("/status")
    assert not bench.conductor.started


def test_a_message_does_not_repeat_a_megabyte(bench: Bench) -> None:
    config = {"model": ["x" * 1_000_000], "y" * 1_000_000: 1}
    answer = bench.ask("POST", "/jobs", 422, json={"kind": "train", "config": config})
    assert len(answer.content) < 10_000


def _form(parts: list[tuple[str, bytes]]) -> dict[str, Any]:
    made = b""
    for name, data in parts:
        made += b'--x\r\nContent-Disposition: form-data; name="f"; filename="' + name.encode()
        made += b'"\r\n\r\n' + data + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return {"content": made + b"--x--\r\n", "headers": headers}


@pytest.mark.parametrize(
    "parts",
    [
        [(f"{number}.png", png()) for number in range(1200)],
        [("x" * 1_000_000 + ".png", png())],
        [("../" * 1000 + "a.png", png())],
        [("a.png", png()), ("A.PNG", png())],
    ],
)
def test_uploads_of_many_parts_and_huge_names(bench: Bench, parts: list[tuple[str, bytes]]) -> None:
    answer = bench.client.post("/dreambooth/upload?folder=dogs", **_form(parts))
    assert answer.status_code in (400, 422) and answer.json()["message"]
    assert len(answer.content) < 10_000
    assert not bench.workspace.uploads_dir.exists()
    assert bench.get("/status")


def test_a_picture_that_vanishes_is_left_out_of_the_list(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the names and the look at the file; and a pipe is no picture."""
    from dreambooth_core.api import files

    folder = bench.workspace.model("ada").samples_dir
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    usual = files.pictures_in
    monkeypatch.setattr(
        files, "pictures_in", lambda folder: [*usual(folder), folder / "gone.png", folder / "sub"]
    )
    (folder / "sub").mkdir()
    assert [found["path"] for found in bench.get("/samples?model=ada")["samples"]] == ["a.png"]


ROOT = Path(bodies.__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
BUILT_IN_RUNNERS = {"eval", "exec", "compile", "__import__"}
RUNNERS = {"system", "popen", "unsafe_load", "full_load", "getoutput"}
OURS = ("world/build/",)
"""Made by us, from our own files: the program that makes the built-in model."""


def test_every_claim_names_a_test_that_is_there() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", SECURITY)
    assert len(named) > 25
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)
    modules = re.findall(r"`((?:api|checkpoint|config|data|families|job|ui)/\S+\.py)`", SECURITY)
    for path in modules:
        assert (ROOT / "dreambooth_core" / path).is_file(), path


def test_the_limits_are_those_that_are_written_down() -> None:
    """In the table of SECURITY.md."""
    mib = 2**20
    rows = {
        "header of a `.safetensors` file": f"{header.MAX_HEADER_BYTES:,} bytes",
        "pickle of a `.ckpt`": f"{pickled.MAX_PICKLE_BYTES // mib} MiB,"
        f" {pickle_data.MAX_INSTRUCTIONS:,} instructions",
        "`.yaml` beside a checkpoint": f"{side_file.MOST_BYTES // mib} MiB",
        "a picture": f"{pictures.MOST_PIXELS:,} pixels, {pictures.MOST_PICTURE_BYTES // mib} MiB",
        "a caption or file of prompts": f"{text_files.MOST_TEXT_BYTES:,} bytes",
        "a settings file, an import": f"{serialize.MOST_BYTES:,} bytes, {MAX_DEPTH} levels",
        "a preset": f"{presets.MAX_FILE_BYTES:,} bytes",
        "a name": f"{workspace_paths.MAX_NAME_LENGTH} characters,"
        f" {workspace_paths.MAX_NAME_BYTES} bytes",
        "a JSON body": f"{bodies.JSON_LIMIT // mib} MiB; with pictures"
        f" {bodies.UPLOAD_JSON_LIMIT // mib} MiB",
        "a form with pictures": f"{bodies.UPLOAD_LIMIT // mib} MiB",
        "a body of which nothing more comes": f"{bodies.IDLE_SECONDS:g} seconds",
        "a picture that is fetched": f"{fetching.MOST_BYTES // mib} MiB,"
        f" {fetching.MOST_REDIRECTS} redirections, {fetching.TOTAL_SECONDS:g} seconds",
    }
    assert reading.MAX_BYTES == serialize.MOST_BYTES
    table = SECURITY.partition("## Limits")[2].partition("\n## ")[0]
    written = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert dict(written) == rows


def _calls(path: Path) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield node.lineno, called, ast.unparse(node)


def test_nothing_that_was_read_is_run() -> None:
    """No pickle, no shell, no code from a text, in the whole of our source."""
    for path in sorted((ROOT / "dreambooth_core").rglob("*.py")):
        place = path.relative_to(ROOT / "dreambooth_core").as_posix()
        if place.startswith(OURS):
            continue
        for line, called, whole in _calls(path):
            where = f"{place}:{line}: {whole[:200]}"
            owner, _, name = called.rpartition(".")
            assert called not in BUILT_IN_RUNNERS and name not in RUNNERS, where
            assert owner not in ("pickle", "marshal", "shelve", "dill", "joblib"), where
            assert "shell=True" not in whole, where
            if called == "torch.load":
                assert "weights_only=True" in whole, where
            if called == "yaml.load":
                assert whole.endswith("_PlainLoader)"), where


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n",
        "a: &a {x: 1}\nb: {<<: *a}\n",
        "a: !!python/object/apply:os.system [echo]\n",
        "a: !!int ''\n",
        "[" * 5000,
        "x" * 2_000_000,
        "- 1\n",
    ],
)
def test_a_side_file_cannot_swell_or_run_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        side_file.read_side_file(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.yaml") in caught.value.message and caught.value.remedy


@pytest.mark.parametrize("number", ["1e999", ".inf", ".nan", "true", "[1]", "9" * 400])
def test_a_number_of_a_side_file_is_one(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.yaml").write_text(f"model: {{params: {{timesteps: {number}}}}}")
    side = side_file.read_side_file(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.params\.timesteps"):
        side_file.side_count(side, "model.params.timesteps", 1000)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    first = checkpoint_path(tmp_path, "a", 3)
    first.write_bytes(b"mine")
    second = checkpoint_path(tmp_path, "a", 3)
    assert (first.name, second.name) == ("a_3.safetensors", "a_3-2.safetensors")
