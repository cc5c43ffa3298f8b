"""Concepts of the abandoned extension: the list of 2023 to 2025, and the single one of 2022."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.imports.d8ahazard_readers import class_images_were_lost
from dreambooth_core.config.imports.mapping import (
    AS_THERE,
    CONCEPT,
    Old,
    Row,
    Skipped,
    Taken,
    as_number,
    dropped,
    go_through,
    same,
    told,
    turned,
    yours,
)
from dreambooth_core.config.imports.paths_there import found_folder
from dreambooth_core.config.imports.report import (
    AS_IT_WAS,
    CHANGED,
    KEPT,
    TRANSLATED,
    UNUSABLE,
    Import,
)
from dreambooth_core.config.imports.words_there import sampler_here
from dreambooth_core.errors import InputError

FILEWORDS = "[filewords]"
MOST_CONCEPTS = 200
OF_THE_RUN = "Here previews share it: it stands on the Saving tab."
PLAIN_DESCRIPTION = "Description"


def _folder(value: Any, old: Old) -> Any:
    text, words = found_folder(str(value), old.facts.get("base"))
    return Taken(text, CHANGED if words else TRANSLATED, words) if words else text


def _class_folder(value: Any, old: Old) -> Any:
    if not _class_images(old) and not old.facts.get("own_class_images"):
        return Skipped("No class images are asked for, so it was not used there either.")
    return _folder(value, old)


def _class_images(old: Old) -> float:
    names = ("num_class_images_per", "num_class_images")
    return max(old.number(name, 0) for name in names)


def _per_image(value: Any, old: Old) -> Any:
    if not as_number(value) and old.facts.get("own_class_images") and old.text("class_data_dir"):
        return Taken(1, TRANSLATED, "The pictures of the class images folder are used.")
    return value


def _per_image_there(value: Any, old: Old) -> Any:
    if old.facts["class_images_lost"] and as_number(value):
        words = "They were read there and not used, as the batch was larger than 1."
        return Taken(0, CHANGED, f"{words} {AS_THERE}")
    return _per_image(value, old)


def _total(value: Any, old: Old) -> Any:
    count = as_number(value)
    if old.number("num_class_images_per", 0) > 0 or not count or count < 1:
        return Skipped("The number for each instance image is told elsewhere, or there are none.")
    words = f"{count:g} class images in all there; here the number is for each instance image."
    return yours(f"{words} Divide it by the number of pictures, on the Concepts tab.")


def _samples(value: Any, old: Old) -> Any:
    """The sample prompt, as often as samples were wanted; captions cannot be drawn at random."""
    prompt = str(value).strip()
    if FILEWORDS in prompt:
        words = " ".join(old.text(f"{kind}_token").strip() for kind in ("instance", "class"))
        if not words.strip():
            return yours("There it took captions of the pictures. Say what previews should show.")
        prompt = prompt.replace(FILEWORDS, words.strip())
    count = old.number("n_save_sample", 1)
    if not prompt or count < 1:
        return Skipped("No samples are asked for.")
    prompts = [prompt] * min(int(count), 100)
    words = "Captions of the pictures are not drawn; the tokens stand for them."
    return Taken(prompts, CHANGED, words) if FILEWORDS in str(value) else prompts


def _file_contents(value: Any, old: Old) -> Any:
    if str(value) == PLAIN_DESCRIPTION:
        return Skipped("Captions describe the picture; tokens are put in where they are missing.")
    return yours("Here tokens are put in only where a caption lacks them. See Show plan.")


ROWS: tuple[Row, ...] = (
    turned("instance_data_dir", "instance_folder", _folder),
    turned("class_data_dir", "class_folder", _class_folder),
    same("instance_prompt", "instance_prompt"),
    same("class_prompt", "class_prompt"),
    same("instance_token", "instance_token"),
    same("class_token", "class_token"),
    turned("num_class_images", "class_images_per_instance_image", _total),
    Row(
        "num_class_images_per",
        "class_images_per_instance_image",
        KEPT,
        "",
        _per_image,
        _per_image_there,
    ),
    same("class_negative_prompt", "class_negative_prompt"),
    same("class_guidance_scale", "class_cfg_scale"),
    same("class_infer_steps", "class_steps"),
    turned("save_sample_prompt", "sample_prompts", _samples),
    told("n_save_sample", "It is seen to with the sample prompt."),
    dropped("save_sample_template", "Give its lines as sample prompts."),
    turned("file_prompt_contents", "instance_prompt", _file_contents),
    dropped("max_steps", "The length is that of the run; repeats weigh concepts here."),
    told("is_valid", "Whether the folder was there."),
)
RUN_ROWS: tuple[Row, ...] = (
    same("save_sample_negative_prompt", "previews.negative_prompt", OF_THE_RUN),
    same("save_guidance_scale", "previews.cfg_scale", OF_THE_RUN),
    same("save_infer_steps", "previews.steps", OF_THE_RUN),
    turned(
        "sample_seed",
        "previews.seed",
        lambda value, old: (
            Skipped("-1 drew one by chance; here previews keep theirs, to be compared.")
            if as_number(value) in (-1, None)
            else value
        ),
        OF_THE_RUN,
    ),
)
NAMES = frozenset(row.old for row in (*ROWS, *RUN_ROWS))
FLAT = NAMES - {"is_valid", "max_steps"}
"""What stood at the top of files of November 2022, which had a single concept."""
_NUMBERED = re.compile(r"c([1-3])_(\w+)")


def split_off(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings without those of a concept, and the concepts that stood among them."""
    rest: dict[str, Any] = {}
    single: dict[str, Any] = {}
    numbered: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        match = _NUMBERED.fullmatch(name)
        if match and match[2] in NAMES:
            numbered.setdefault(match[1], {})[match[2]] = value
        elif name in FLAT:
            single[name] = value
        else:
            rest[name] = value
    found = [single, *(numbered[number] for number in sorted(numbered))]
    return rest, [concept for concept in found if concept.get("instance_data_dir")]


def concept_items(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the entries of a list of concepts; raises InputError if it is none."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(
            f"{name} holds no list of concepts.",
            remedy='It should look like [{"instance_data_dir": "pictures", ...}, ...].',
        )
    if len(value) > MOST_CONCEPTS:
        raise InputError(
            f"{name} holds {len(value)} concepts.", remedy=f"At most {MOST_CONCEPTS} are taken."
        )
    return value


def read_concepts(
    items: list[dict[str, Any]], found: Import, behaviour: str, run: Old, base: Path | None
) -> None:
    """Put concepts into what was found, and what they say of the run into its settings."""
    facts = {
        "base": base,
        "own_class_images": run.flag("disable_class_matching"),
        "class_images_lost": class_images_were_lost(run),
    }
    for item in items:
        prefix = f"concepts[{len(found.concepts)}]."
        old = Old(item, behaviour, facts)
        if not old.text("instance_data_dir").strip():
            words = "It names no folder of instance images. There the rest of the list was lost."
            found.add(prefix.rstrip("."), "", UNUSABLE, words)
            continue
        _read_one(old, found, prefix, run)


def _read_one(old: Old, found: Import, prefix: str, run: Old) -> None:
    of_run = {name: value for name, value in old.values.items() if name in _RUN_NAMES}
    of_concept = {name: value for name, value in old.values.items() if name not in _RUN_NAMES}
    concept = go_through(
        ROWS, Old(of_concept | _count(old), old.behaviour, old.facts), found, CONCEPT, prefix
    )
    if old.facts["own_class_images"] and concept.get("class_folder"):
        concept["class_images_source"] = "own"
        words = "With disable_class_matching all pictures of the folder counted and none was made."
        found.add("disable_class_matching", True, TRANSLATED, words, "class_images_source", "own")
    sampler = sampler_here(run.text("scheduler"))
    if sampler:
        concept["class_sampler"] = sampler
    lost = old.facts["class_images_lost"] and old.behaviour == AS_IT_WAS
    if lost or not concept.get("class_images_per_instance_image"):
        concept.pop("class_folder", None)
    found.concepts.append(concept)
    for path, value in go_through(
        RUN_ROWS, Old(of_run, old.behaviour), found, prefix=prefix
    ).items():
        _put_once(found, prefix, path, value)


_RUN_NAMES = frozenset(row.old for row in RUN_ROWS)


def _count(old: Old) -> dict[str, Any]:
    """Return the number of class images where only the switch for own ones asks for them."""
    wanted = old.facts["own_class_images"] and "num_class_images_per" not in old.values
    return {"num_class_images_per": 0} if wanted and old.text("class_data_dir") else {}


def _put_once(found: Import, prefix: str, path: str, value: Any) -> None:
    """Take a setting of all previews from the first concept that has it; tell if others differ."""
    if path in found.settings and found.settings[path] != value:
        words = f"Previews have one for all here, and an earlier concept's is taken. {OF_THE_RUN}"
        found.add(prefix + path.rpartition(".")[2], value, UNUSABLE, words, path)
        return
    found.settings[path] = value
