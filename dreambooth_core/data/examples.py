"""The examples of a run: each picture with its prompt, bucket and weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.data.buckets import Size, assign
from dreambooth_core.data.captions import prompt_for_image
from dreambooth_core.data.picture_files import file_hash, image_size, list_images

if TYPE_CHECKING:
    from dreambooth_core.config.concept import Concept


@dataclass(frozen=True)
class Example:
    """One picture of a run; `bucket` and `source_size` are (width, height)."""

    path: Path
    prompt: str
    bucket: Size
    weight: float = 1.0
    is_class: bool = False
    file_hash: str = ""
    source_size: Size = (0, 0)


def instance_examples(
    concept: Concept, buckets: Sequence[Size], *, hashed: bool = True
) -> list[Example]:
    """Return the instance images of a concept, weight 1, sorted by path."""
    tokens = {"instance_token": concept.instance_token, "class_token": concept.class_token}
    template = concept.instance_prompt
    prompts = {
        path: prompt_for_image(path, template, role="instance", **tokens)
        for path in list_images(Path(concept.instance_folder))
    }
    return [make_example(path, text, buckets, hashed=hashed) for path, text in prompts.items()]


def make_example(
    path: Path,
    prompt: str,
    buckets: Sequence[Size],
    *,
    weight: float = 1.0,
    is_class: bool = False,
    hashed: bool = True,
) -> Example:
    """Return a picture as an example, in the bucket nearest to its shape.

    Without `hashed` only the picture's header is read; such an example cannot be cached.
    """
    size = image_size(path)
    return Example(
        path=path,
        prompt=prompt,
        bucket=assign(size, buckets),
        weight=weight,
        is_class=is_class,
        file_hash=file_hash(path) if hashed else "",
        source_size=size,
    )
