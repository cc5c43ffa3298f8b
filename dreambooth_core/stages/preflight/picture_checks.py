"""What is wrong with the pictures, as findings with their remedies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dreambooth_core.data.picture_files import file_hash
from dreambooth_core.job.events import ERROR, INFO, WARNING, Finding
from dreambooth_core.stages.preflight.pictures import Look, difference

MOST_NAMED = 3
MOST_UNREADABLE = 20
BLURRED_BELOW = 30.0
"""Sharp photographs of 512 pixels measure 150 and more, blurred over two pixels 3 to 40."""

SLIGHTLY, MUCH_TOO_SMALL = 1.05, 1.5
"""From which enlargement on a picture is told of, and from which it is warned of."""

FAR_FROM_MODEL = 2.0
"""How many times larger or smaller than the model's own a resolution is that is warned of."""

SAME_RISES, SAME_COLORS = 0.12, 12.0
"""Up to which difference two pictures count as the same: see `pictures.difference`. Different
photographs of one scene are above 0.3 or 40, copies in another size or quality below 0.06 and 4."""


def unreadable(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield an error for each picture that cannot be read."""
    broken = [look for look in looks if look.problem]
    for look in broken[:MOST_UNREADABLE]:
        yield Finding(ERROR, look.problem, look.remedy)
    if len(broken) > MOST_UNREADABLE:
        more = len(broken) - MOST_UNREADABLE
        yield Finding(ERROR, f"{more} more pictures cannot be read.", "Replace or remove them.")


def animated(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield what is to be said of pictures that move."""
    moving = [look.path for look in looks if look.animated]
    if moving:
        yield Finding(
            INFO,
            f"{count(len(moving), 'picture')} animated: {named(moving)}. Training shows the first"
            " frame.",
            "Save other frames as pictures of their own, if they are to be learned.",
        )


def too_small(looks: Sequence[Look], resolution: int) -> Iterator[Finding]:
    """Yield what is to be said of pictures that are smaller than they are trained at."""
    small = [look for look in looks if look.enlargement > SLIGHTLY]
    if not small:
        return
    worst = max(small, key=lambda look: look.enlargement)
    level = WARNING if worst.enlargement > MUCH_TOO_SMALL else INFO
    (width, height), (wide, high) = worst.size, worst.bucket
    yield Finding(
        level,
        f"{count(len(small), 'picture')} smaller than trained at, and so enlarged and soft:"
        f" {named([look.path for look in small])}. {worst.path.name} has {width}x{height} pixels"
        f" for {wide}x{high}.",
        f"Use larger originals, or a resolution of {round(resolution / worst.enlargement)}.",
        "images.resolution",
    )


def far_from_model(resolution: int, own: int) -> Iterator[Finding]:
    """Yield a warning if a model is trained far from the resolution that it was made for."""
    if max(resolution, own) >= FAR_FROM_MODEL * min(resolution, own):
        yield Finding(
            WARNING,
            f"The model was made for pictures of {own} pixels and is to be trained at {resolution}:"
            " what it learns there shows less in pictures of its own size.",
            f"Train at {own}, or with a model that was made for {resolution}.",
            "images.resolution",
        )


def blurry(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield a warning if there are pictures without anything sharp in them."""
    found = [look for look in looks if look.sharpness < BLURRED_BELOW]
    if found:
        yield Finding(
            WARNING,
            f"{count(len(found), 'picture')} without a sharp edge:"
            f" {named([look.path for look in found])}. Training learns the blur as well.",
            "Take sharper pictures, unless soft ones are what is to be learned.",
        )


def near_duplicates(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield a warning for each group of pictures that are the same or almost."""
    for group in groups_of_likes(looks):
        yield Finding(
            WARNING,
            f"{named([look.path for look in group], len(group))} show almost the same.",
            "Keep the best of them: what is there several times is learned by heart.",
        )


def groups_of_likes(looks: Sequence[Look]) -> list[list[Look]]:
    """Return the groups of two and more pictures that look alike; each is in one at most."""
    group_of: dict[int, int] = {}
    for number, look in enumerate(looks):
        alike = (n for n in range(number) if _is_alike(looks[n], look))
        first = next(alike, number)
        group_of[number] = group_of.get(first, first)
    groups: dict[int, list[Look]] = defaultdict(list)
    for number, look in enumerate(looks):
        groups[group_of[number]].append(look)
    return [group for group in groups.values() if len(group) > 1]


def shared_files(instances: Sequence[Path], classes: Sequence[Path]) -> Iterator[Finding]:
    """Yield a warning if a file's content is both an instance and a class image."""
    by_size = _by_size(classes)
    candidates = [path for path in instances if path.stat().st_size in by_size]
    hashes = {file_hash(path): path for path in candidates}
    likely = {path for first in candidates for path in by_size[first.stat().st_size]}
    shared = [path for path in sorted(likely) if file_hash(path) in hashes]
    if shared:
        yield Finding(
            WARNING,
            f"{count(len(shared), 'picture')} both instance and class image: {named(shared)}."
            " Learning the subject and keeping the class then pull against each other.",
            "Remove them from the class images folder.",
        )


def count(number: int, noun: str) -> str:
    """Return "1 picture is" or "3 pictures are"."""
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def named(paths: Collection[Path], most: int = MOST_NAMED) -> str:
    """Return the names of the first files, and how many more there are."""
    names = [path.name for path in list(paths)[:most]]
    more = len(paths) - len(names)
    if more:
        return f"{', '.join(names)} and {more} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _is_alike(first: Look, second: Look) -> bool:
    rises, colors = difference(first.fingerprint, second.fingerprint)
    return rises <= SAME_RISES and colors <= SAME_COLORS


def _by_size(paths: Sequence[Path]) -> dict[int, list[Path]]:
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        sizes[path.stat().st_size].append(path)
    return sizes
