"""The examples of a run: each picture with its prompts, bucket and weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config.sections.captions import CaptionsSection
from dreambooth_core.config.sections.images import ImagesSection
from dreambooth_core.data.buckets import Size, assign
from dreambooth_core.data.captions import caption_reading, instance_templates, prompts_for_image
from dreambooth_core.data.picture_files import file_hash, has_mask, image_size, list_images
from dreambooth_core.data.weights import image_weight

if TYPE_CHECKING:
    from dreambooth_core.config.concept import Concept


@dataclass(frozen=True)
class Example:
    """One picture of a run; `bucket` and `source_size` are (width, height).

    An epoch shows it `repeats` times, each time with `prompt` or one of `other_prompts`. `focus` is
    where its crop lies unless that is drawn (0.5 is the center), and `masked` whether it has a mask
    that the loss looks through.
    """

    path: Path
    prompt: str
    bucket: Size
    weight: float = 1.0
    is_class: bool = False
    file_hash: str = ""
    source_size: Size = (0, 0)
    repeats: int = 1
    other_prompts: tuple[str, ...] = ()
    focus: float = 0.5
    masked: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return all prompts, one of which is drawn each time."""
        return (self.prompt, *self.other_prompts)


def instance_examples(
    concept: Concept,
    buckets: Sequence[Size],
    captions: CaptionsSection | None = None,
    images: ImagesSection | None = None,
    *,
    hashed: bool = True,
) -> list[Example]:
    """Return the instance images of a concept with its loss weight, sorted by path."""
    captions, images = captions or CaptionsSection(), images or ImagesSection()
    reading, templates = caption_reading(concept, captions), instance_templates(concept)
    tokens = {"instance_token": concept.instance_token, "class_token": concept.class_token}
    examples = []
    for path in list_images(Path(concept.instance_folder)):
        prompt, *others = prompts_for_image(
            path, templates, role="instance", reading=reading, **tokens
        )
        folder = reading.folder_name(path)
        example = make_example(
            path, prompt, buckets, weight=concept.loss_weight, crop=images.crop, hashed=hashed
        )
        examples.append(
            replace(
                example,
                repeats=folder.repeats if folder else concept.repeats,
                other_prompts=tuple(others),
                masked=has_mask(path, images.masks),
            )
        )
    return examples


def make_example(
    path: Path,
    prompt: str,
    buckets: Sequence[Size],
    *,
    weight: float = 1.0,
    is_class: bool = False,
    crop: str = "center",
    hashed: bool = True,
) -> Example:
    """Return a picture as an example, in the bucket nearest to its shape.

    Its weight is `weight` times what a file beside the picture says. Without `hashed` only the
    picture's header is read; such an example cannot be cached, and its focus is not looked for.
    """
    size = image_size(path)
    bucket = assign(size, buckets)
    return Example(
        path=path,
        prompt=prompt,
        bucket=bucket,
        weight=weight * image_weight(path),
        is_class=is_class,
        file_hash=file_hash(path) if hashed else "",
        source_size=size,
        focus=_focus(path, bucket) if hashed and crop == "focal" else 0.5,
    )


def _focus(path: Path, bucket: Size) -> float:
    # Loads numpy, which a plan does without: it reads no picture whole.
    from dreambooth_core.data.focus import focus_of

    return focus_of(path, bucket)
