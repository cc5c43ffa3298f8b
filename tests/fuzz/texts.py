"""Targets: captions and what else a person writes beside pictures, and names."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from dreambooth_core.config.text_files import read_templates
from dreambooth_core.data.captions import CaptionReading, prompts_for_image, read_caption
from dreambooth_core.data.prompts import Role
from dreambooth_core.data.weights import SUFFIX, image_weight
from dreambooth_core.errors import InputError
from dreambooth_core.job.workspace import Workspace, check_name
from tests.fuzz import mutate

WORDS = (
    "[filewords]",
    "[name]",
    "a photo of",
    "dog",
    "1girl, solo",
    "(a:1.2)",
    "\\(x\\)",
    "#",
    "\n",
)
NAMES = ("a", "001-dog", "9_w0ut3r man", "12", "(2)", "a_2", "x.y", "[filewords]", "日本 (3)", "-1")


def captions(chance: Random, folder: Path) -> None:
    """Caption, template and weight files in any encoding, under odd names."""
    inner = folder / chance.choice(NAMES)
    inner.mkdir()
    picture = inner / f"{chance.choice(NAMES)}.png"
    picture.touch()
    for suffix in (".txt", ".caption", SUFFIX):
        if chance.random() < 0.6:
            data = mutate.encoded(chance, _words(chance))
            (inner / f"{picture.stem}{suffix}").write_bytes(data)
    templates = folder / "templates.txt"
    templates.write_bytes(mutate.encoded(chance, _words(chance) + "\n" + _words(chance)))
    source = chance.choice(("auto", "file", "name"))
    reading = CaptionReading(source, chance.random() < 0.5, chance.choice((None, folder)))
    for step in (
        lambda: read_caption(picture, reading),
        lambda: image_weight(picture),
        lambda: prompts_for_image(
            picture,
            read_templates(templates),
            instance_token=chance.choice(mutate.WORDS).replace("\0", ""),
            class_token=chance.choice(mutate.WORDS).replace("\0", ""),
            role=chance.choice(list(Role)),
            reading=reading,
        ),
    ):
        try:
            result = step()
        except InputError as error:
            if str(folder) not in str(error):
                raise AssertionError(f"no file is named: {error}") from error
            continue
        for prompt in result if isinstance(result, tuple) else (result,):
            _check_prompt(prompt)


def names(chance: Random, folder: Path) -> None:
    """Names of models, runs and files: what is accepted is one folder's, which can be made."""
    name = chance.choice(mutate.WORDS) if chance.random() < 0.3 else mutate.text(chance, 120)
    if chance.random() < 0.3:
        name = chance.choice(("a", "ada.x", "é")) + name
    workspace = Workspace(folder)
    check_name(name)
    path = workspace.model(name).path
    if path.parent != workspace.models_dir or os.path.basename(path) != name:
        raise AssertionError(f"{name!r} is not the name of one folder")
    path.mkdir(parents=True)
    (path / f"{name}_00012000_lora.safetensors.tmp").touch()
    (workspace.models_dir / f".file {name}.lock.guard").touch()
    if workspace.run_folder(name).parent != workspace.jobs_dir:
        raise AssertionError(f"the run {name!r} lies elsewhere")


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str | float):
        raise AssertionError(f"a prompt is {prompt!r}")
    if isinstance(prompt, str):
        prompt.encode("utf-8", "surrogatepass")
        if "\0" in prompt:
            raise AssertionError("a prompt holds a NUL")


def _words(chance: Random) -> str:
    if chance.random() < 0.1:
        return chance.choice(("1.5", "0", "-1", "nan", "1e9", "inf", "0.5", "٣"))
    if chance.random() < 0.02:
        return "word " * 300_000
    pieces = [mutate.pick(chance, WORDS, 0.7) for _ in range(chance.randrange(8))]
    return " ".join(pieces) + mutate.text(chance)
