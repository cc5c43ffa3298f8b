from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.api import bodies
from dreambooth_core.job import disk
from tests.api_standin import Bench, bench, png, put

__all__ = ["bench"]

JPEG = b"\xff\xd8\xff\xe0" + b"j" * 40
WEBP = b"RIFF\x10\0\0\0WEBPVP8 " + b"w" * 20


def _form(*files: tuple[str, bytes]) -> dict[str, Any]:
    return {"files": [("files", (name, data)) for name, data in files]}


def _json(name: Any = "a.png", data: Any = None, **more: Any) -> dict[str, Any]:
    encoded = base64.b64encode(png()).decode() if data is None else data
    return {"json": {"images": [{"name": name, "data": encoded, **more}]}}


def test_a_form_with_pictures_and_captions(bench: Bench) -> None:
    files = [("dog 1.png", png()), ("größe.JPG", JPEG), ("c.webp", WEBP)]
    texts = [("dog 1.txt", b"\xef\xbb\xbfa dog"), ("größe.txt", "schön".encode())]
    answer = bench.ask("POST", "/upload?folder=ada/dogs", 201, **_form(*files, *texts)).json()
    folder = Path(answer["folder"])
    assert folder == bench.workspace.uploads_dir / "ada" / "dogs"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        **dict(files),
        "dog 1.txt": b"a dog",
        "größe.txt": "schön".encode(),
    }
    assert sorted(answer["files"]) == sorted(p.name for p in folder.iterdir())
    listed = bench.get("/upload?folder=ada/dogs")
    assert listed["folder"] == str(folder)
    captions = {file["name"]: file["caption"] for file in listed["files"]}
    assert captions == {"dog 1.png": "a dog", "größe.JPG": "schön", "c.webp": ""}
    assert bench.get("/upload") == {"folders": ["ada/dogs"]}


def test_the_folder_can_be_trained_on(bench: Bench) -> None:
    folder = bench.ask("POST", "/upload?folder=dogs", 201, **_json(caption="a zwx dog")).json()
    config = {"model": "ada", "concepts": [{"instance_folder": folder["folder"]}]}
    bench.post("/jobs", {"kind": "train", "config": config}, 201)


def test_pictures_as_json(bench: Bench) -> None:
    address = "data:image/png;base64," + base64.b64encode(png(shade=7)).decode()
    answer = bench.ask("POST", "/upload?folder=dogs", 201, **_json(data=address, caption="a"))
    assert answer.json()["files"] == ["a.png", "a.txt"]
    folder = bench.workspace.uploads_dir / "dogs"
    assert (folder / "a.png").read_bytes() == png(shade=7)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "a"


NAMES = [
    "../a.png",
    "..\\a.png",
    "/a.png",
    "C:\\a.png",
    "a/b.png",
    ".png",
    ".a.png",
    "con.png",
    "LPT1.jpg",
    "a.png:b.png",
    "a.png ",
    "a?.png",
    "x" * 120 + ".png",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_leave_the_folder(bench: Bench, name: str) -> None:
    problem = bench.refusal("POST", "/upload?folder=dogs", 422, **_json(name))
    assert problem["field"] == "name"
    assert not list(bench.workspace.root.rglob("*.png"))


@pytest.mark.parametrize(
    "folder", ["..", "../x", "a/../b", "/a", "a//b", "a/", "C:", "a\\b", "nul", ".jobs", "a/b/c/d"]
)
def test_a_folder_cannot_leave_the_uploads(bench: Bench, folder: str) -> None:
    problem = bench.refusal("POST", "/upload", 422, params={"folder": folder}, **_json())
    assert problem["field"] in ("name", "folder")
    assert not list(bench.workspace.root.rglob("*.png"))


def test_a_folder_must_be_named(bench: Bench) -> None:
    assert bench.refusal("POST", "/upload", 422, **_json())["field"] == "folder"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b"<svg onload=alert(1)>"),
        ("a.png", b""),
        ("a.png", b"RIFF\0\0\0\0WAVEfmt "),
        ("a.svg", png()),
        ("a.py", png()),
        ("a", png()),
        ("a.png.html", png()),
    ],
)
def test_only_pictures_are_kept(bench: Bench, name: str, data: bytes) -> None:
    bench.refusal("POST", "/upload?folder=dogs", 415, **_form(("good.png", png()), (name, data)))
    assert not bench.workspace.uploads_dir.exists()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"images": []},
        {"images": "x"},
        {"images": ["x"]},
        {"images": [{"name": 1, "data": ""}]},
        {"images": [{"name": "a.png"}]},
        {"images": [{"name": "a.png", "data": 7}]},
        {"images": [{"name": "a.png", "data": "ab*"}]},
        {"images": [{"name": "a.png", "data": "", "caption": 7}]},
        {"images": [{"name": "a.png", "data": "", "size": 7}]},
    ],
)
def test_json_that_holds_no_pictures(bench: Bench, body: object) -> None:
    bench.refusal("POST", "/upload?folder=dogs", 422, json=body)


def test_what_is_there_is_kept(bench: Bench) -> None:
    folder = put(bench.workspace.uploads_dir / "dogs" / "a.png", png(shade=1)).parent
    bench.ask("POST", "/upload?folder=dogs", 201, **_form(("a.png", png(shade=1))))
    new = _form(("b.png", png()), ("a.png", png(shade=2)))
    problem = bench.refusal("POST", "/upload?folder=dogs", 409, **new)
    assert "overwrite" in problem["remedy"]
    assert [p.name for p in folder.iterdir()] == ["a.png"]
    bench.ask("POST", "/upload?folder=dogs&overwrite=true", 201, **new)
    assert (folder / "a.png").read_bytes() == png(shade=2)


def test_captions_that_come_later(bench: Bench) -> None:
    folder = put(bench.workspace.uploads_dir / "dogs" / "a.png").parent
    bench.ask("POST", "/upload?folder=dogs", 201, **_form(("a.txt", b"a dog")))
    assert (folder / "a.txt").read_bytes() == b"a dog"
    bench.refusal("POST", "/upload?folder=dogs", 409, **_form(("a.txt", b"a cat")))
    for name, data in (("b.txt", b"x"), ("a.txt", b"\xff"), ("a.txt", b"x" * 70_000)):
        bench.refusal("POST", "/upload?folder=dogs&overwrite=1", 422, **_form((name, data)))
    bench.refusal("POST", "/upload?folder=dogs", 422, **_form(("../a.txt", b"x")))
    assert (folder / "a.txt").read_bytes() == b"a dog"


def test_pictures_that_would_share_a_caption(bench: Bench) -> None:
    files = _form(("a.png", png()), ("A.jpg", JPEG))
    assert "share" in bench.refusal("POST", "/upload?folder=dogs", 422, **files)["message"]


def test_too_much_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bodies.UPLOAD_BODY.limits, bodies.MULTIPART, 5000)
    monkeypatch.setitem(bodies.UPLOAD_BODY.limits, bodies.JSON, 1000)
    bench.refusal("POST", "/upload?folder=dogs", 413, **_form(("a.png", png() + b"x" * 6000)))
    bench.refusal("POST", "/upload?folder=dogs", 413, **_json(data="A" * 2000))
    assert not bench.workspace.uploads_dir.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_are_not_written_through(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = bench.workspace.uploads_dir
    root.mkdir(parents=True)
    (root / "away").symlink_to(outside)
    bench.refusal("POST", "/upload?folder=away", 422, **_json())
    (root / "dogs").mkdir()
    (root / "dogs" / "a.png").symlink_to(outside / "a.png")
    bench.refusal("POST", "/upload?folder=dogs&overwrite=true", 422, **_json())
    assert not list(outside.iterdir())


def test_a_full_disk_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    problem = bench.refusal("POST", "/upload?folder=dogs", 507, **_json())
    assert "a.png" in problem["message"] and "space" in problem["remedy"]
    assert not list(bench.workspace.uploads_dir.rglob("*.*"))


def test_an_upload_folder_that_is_not_there(bench: Bench) -> None:
    assert bench.get("/upload") == {"folders": []}
    bench.refusal("GET", "/upload?folder=none", 404)
    bench.refusal("GET", "/upload?folder=../x", 422)
