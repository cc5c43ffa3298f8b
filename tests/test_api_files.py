from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from dreambooth_core.api.answers import Refused
from dreambooth_core.api.files import path_inside
from tests.api_standin import Bench, bench, png, put

__all__ = ["bench"]

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


def test_samples_are_listed_and_given_out(bench: Bench) -> None:
    folder = bench.workspace.model("ada").samples_dir
    old = put(folder / "run 1" / "step_00010.png", png(shade=1))
    new = put(folder / "run 2" / "größe.png", png(shade=2))
    put(folder / "run 2" / "grid.json", b"{}")
    os.utime(old, (1, 1))
    listed = bench.get("/samples?model=ada")["samples"]
    assert [picture["path"] for picture in listed] == ["run 2/größe.png", "run 1/step_00010.png"]
    assert listed[1]["modified"] == 1 and listed[1]["size"] == len(png(shade=1))
    answer = bench.client.get(listed[0]["url"])
    assert answer.content == new.read_bytes() == png(shade=2)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert bench.client.get(listed[1]["url"]).content == png(shade=1)


def test_class_images_have_their_prompt(bench: Bench) -> None:
    folder = bench.workspace.model("ada").class_images_dir
    put(folder / "0a1b" / "00001.png")
    put(folder / "0a1b" / "00000.png")
    put(folder / "0a1b" / "00000.txt", b" photo of a dog\n")
    listed = bench.get("/classes?model=ada")["classes"]
    assert [(p["path"], p["prompt"]) for p in listed] == [
        ("0a1b/00000.png", "photo of a dog"),
        ("0a1b/00001.png", ""),
    ]
    assert bench.client.get(listed[0]["url"]).content == png()


@pytest.mark.parametrize("kind", ["samples", "classes"])
def test_a_model_without_pictures(bench: Bench, kind: str) -> None:
    assert bench.get(f"/{kind}?model=ada") == {kind: []}
    assert bench.refusal("GET", f"/{kind}", 422)["field"] == "model"
    assert bench.refusal("GET", f"/{kind}?model=eve", 404)["field"] == "model"
    bench.refusal("GET", f"/{kind}?model=../ada", 404)


ESCAPES = [
    "../model.json",
    "..%2fmodel.json",
    "%2e%2e/model.json",
    "a/../../model.json",
    "a%2f..%2f..%2fmodel.json",
    "..%5cmodel.json",
    "a%5c..%5c..%5cmodel.json",
    "%2fetc/passwd",
    "C:%5cWindows%5cwin.ini",
    "C:/x.png",
    "a/.hidden.png",
    ".jobs/x.png",
    "a/one.png:stream",
    "a/one.png.",
    "a/one.png%20",
    "con.png",
    "a//one.png",
    "a/nul",
    "a",
    "a/",
    "a/notes.txt",
    "a/none.png",
    "%7e/x.png",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_nothing_else_is_given_out(bench: Bench, path: str) -> None:
    folder = bench.workspace.model("ada").samples_dir
    for name in ("a/one.png", "a/.hidden.png", "x.png"):
        put(folder / name)
    put(folder / "a" / "notes.txt", b"private")
    put(bench.workspace.root / "x.png")
    bench.refusal("GET", f"/samples/ada/{path}", 404)
    assert bench.ask("GET", "/samples/ada/a/one.png").content == png()


@pytest.mark.parametrize("model", ["..", "%2e%2e", ".jobs", "ada%2f..", "eve", "nul"])
def test_no_other_folder_is_a_model(bench: Bench, model: str) -> None:
    put(bench.workspace.models_dir / "samples" / "x.png")
    bench.refusal("GET", f"/samples/{model}/x.png", 404)


@LINKS
def test_links_that_lead_out_are_not_followed(bench: Bench, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "secret.png")
    folder = bench.workspace.model("ada").samples_dir
    put(folder / "real.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "inner.png").symlink_to(folder / "real.png")
    (folder / "away").symlink_to(outside.parent)
    bench.refusal("GET", "/samples/ada/link.png", 404)
    bench.refusal("GET", "/samples/ada/away/secret.png", 404)
    assert bench.ask("GET", "/samples/ada/inner.png").content == png()
    listed = {picture["path"] for picture in bench.get("/samples?model=ada")["samples"]}
    assert listed == {"real.png", "inner.png"}


@LINKS
def test_the_folder_itself_may_be_a_link(bench: Bench, tmp_path: Path) -> None:
    put(tmp_path / "large disk" / "a.png")
    bench.workspace.model("ada").samples_dir.symlink_to(tmp_path / "large disk")
    (listed,) = bench.get("/samples?model=ada")["samples"]
    assert bench.client.get(listed["url"]).content == png()


def test_the_path_of_a_file_is_below_its_folder(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "a/b c.png") == tmp_path.resolve() / "a" / "b c.png"
    for wrong in ("", "/", "a/", "./a", "a\\b", "x" * 200):
        with pytest.raises(Refused) as error:
            path_inside(tmp_path, wrong)
        assert error.value.status == 404


def test_several_pictures_are_one_archive(bench: Bench) -> None:
    folder = bench.workspace.model("ada").class_images_dir
    put(folder / "0a" / "00000.png", png(shade=9))
    put(folder / "0a" / "00000.txt", b"a dog")
    put(folder / "0b" / "00000.png")
    answer = bench.ask("GET", "/classifiers?model_name=ada")
    assert answer.headers["content-type"] == "application/x-zip-compressed"
    assert "ada_class_images.zip" in answer.headers["content-disposition"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == ["0a/00000.png", "0a/00000.txt", "0b/00000.png"]
        assert archive.read("0a/00000.png") == png(shade=9)
        assert archive.testzip() is None
