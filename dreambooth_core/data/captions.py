"""From a picture's file to the prompts it is trained with: `prompts_for_image` is the one way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config.pictures import FolderName, read_folder_name
from dreambooth_core.config.text_files import read_templates, read_text
from dreambooth_core.data.prompts import FILEWORDS, Role, collapse, final_prompt
from dreambooth_core.errors import InputError

if TYPE_CHECKING:
    from dreambooth_core.config.concept import Concept
    from dreambooth_core.config.sections.captions import CaptionsSection

CAPTION_SUFFIXES = (".txt", ".caption")

_LEADING_NUMBER = re.compile(r"^(?:\d+(?:\s*[-_]+\s*|\.(?!\d)\s*)|0\d*\s+)+|^\d+$")
_TRAILING_NUMBER = re.compile(r"(?:[\s_-]*\(\d+\)|[_-]+\d+)+$")
_EXTENSION_NUMBER = re.compile(r"^[-\d]+\s*")


@dataclass(frozen=True)
class CaptionReading:
    """Where captions stand, and by whose rules tokens are put in.

    `source` is "auto", "file" or "name" as in the settings. `top` is the folder of a concept whose
    folder names are read as kohya's, None if they are not.
    """

    source: str = "auto"
    extension_rules: bool = False
    top: Path | None = None

    def folder_name(self, image: Path) -> FolderName | None:
        """Return what the name of a picture's folder says, if it is read."""
        return read_folder_name(image, self.top) if self.top else None


def caption_reading(concept: Concept, settings: CaptionsSection) -> CaptionReading:
    """Return how the captions of a concept's instance images are read."""
    top = Path(concept.instance_folder) if concept.folder_names else None
    return CaptionReading(settings.source, settings.extension_rules, top)


def instance_templates(concept: Concept) -> list[str]:
    """Return what a concept's instance prompts are made of: its template file's lines, or one."""
    if concept.prompt_templates.strip():
        return read_templates(Path(concept.prompt_templates.strip()).expanduser())
    return [concept.instance_prompt]


def prompts_for_image(
    image: Path,
    templates: Sequence[str],
    *,
    instance_token: str,
    class_token: str,
    role: Role,
    reading: CaptionReading | None = None,
) -> tuple[str, ...]:
    """Return the prompts a picture is trained with, one for each template, none twice.

    Its caption is read, then each becomes a `final_prompt`. The caption is read only if a template
    asks for it. Where no token is given, those of the folder's name are taken, if it is read.
    """
    reading = reading or CaptionReading()
    wanted = any(FILEWORDS in template for template in templates)
    caption = read_caption(image, reading) if wanted else ""
    folder = reading.folder_name(image)
    if folder and not (instance_token.strip() or class_token.strip()):
        instance_token, _, class_token = folder.words.partition(" ")
    prompts = (
        final_prompt(
            template,
            caption,
            instance_token=instance_token,
            class_token=class_token,
            role=role,
            extension_rules=reading.extension_rules,
        )
        for template in templates
    )
    return tuple(dict.fromkeys(prompts))


def prompt_for_image(
    image: Path,
    template: str,
    *,
    instance_token: str,
    class_token: str,
    role: Role,
    reading: CaptionReading | None = None,
) -> str:
    """Return the prompt that a picture is trained with under one template."""
    tokens = {"instance_token": instance_token, "class_token": class_token}
    return prompts_for_image(image, [template], role=role, reading=reading, **tokens)[0]


def read_caption(image: Path, reading: CaptionReading | None = None) -> str:
    """Return a picture's caption, white space collapsed to single spaces.

    It is the text of the caption file beside it, else the words of kohya's folder name, if such
    names are read, else the file name's words. Raises InputError naming the file if it is not text,
    and naming the picture if it has none but must.
    """
    reading = reading or CaptionReading()
    file = caption_file(image)
    if file and reading.source != "name":
        return collapse(read_text(file, "caption"))
    if reading.source == "file":
        raise InputError(
            f"The picture {image} has no caption file.",
            remedy=f"Write {caption_path(image).name} beside it, or set captions.source to auto.",
            field="captions.source",
        )
    folder = reading.folder_name(image)
    if folder and folder.words and reading.source == "auto":
        return folder.words
    stem = Path(image).stem
    if reading.extension_rules:
        return collapse(_EXTENSION_NUMBER.sub("", stem))
    return words_of_name(stem)


def caption_path(image: Path) -> Path:
    """Return where the caption of a picture is first looked for: its name ending in `.txt`."""
    return Path(image).with_suffix(CAPTION_SUFFIXES[0])


def caption_file(image: Path) -> Path | None:
    """Return the file with a picture's caption, `.txt` before `.caption`; None if it has none."""
    candidates = (Path(image).with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def words_of_name(stem: str) -> str:
    """Return a file name without its ending as a caption: numbering removed, `_` as space.

    Numbering is digits in front that end in `-`, `_` or `.` or start with 0 (`001-`, `12_`,
    `03 `), a name of digits only, and `(2)`, `_2`, `-2` at the end. A number that is part of the
    words (`2 dogs`, `iphone 12`) stays.
    """
    words = _TRAILING_NUMBER.sub("", _LEADING_NUMBER.sub("", stem.strip()))
    return collapse(words.replace("_", " "))
