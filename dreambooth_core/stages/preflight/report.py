"""Everything that is looked at before a training, in one report: each line with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.buckets import Size, make_buckets
from dreambooth_core.data.captions import caption_reading, instance_templates, read_caption
from dreambooth_core.data.examples import Example
from dreambooth_core.data.picture_files import list_images
from dreambooth_core.data.prompts import FILEWORDS
from dreambooth_core.errors import InputError
from dreambooth_core.job.context import RunContext
from dreambooth_core.job.events import (
    ERROR,
    INFO,
    WARNING,
    FilesPlanned,
    Finding,
    PhaseProgress,
    PhaseStarted,
    Preflight,
)
from dreambooth_core.stages.class_image_plan import own_class_files
from dreambooth_core.stages.model_shape import model_quantum
from dreambooth_core.stages.planned_files import Foreseen
from dreambooth_core.stages.preflight.caption_checks import (
    known_token,
    long_captions,
    token_in_class_prompt,
)
from dreambooth_core.stages.preflight.clip_words import ClipWords
from dreambooth_core.stages.preflight.machine import Machine
from dreambooth_core.stages.preflight.memory import Estimate
from dreambooth_core.stages.preflight.memory_checks import scarce_memory
from dreambooth_core.stages.preflight.picture_checks import (
    animated,
    blurry,
    far_from_model,
    near_duplicates,
    shared_files,
    too_small,
    unreadable,
)
from dreambooth_core.stages.preflight.pictures import Look, look_at_all
from dreambooth_core.stages.requests import Requests

PHASE = "looking at pictures"
PICTURES_PER_EVENT = 25
ORDER = (ERROR, WARNING, INFO)


@dataclass(frozen=True)
class Words:
    """The final prompts of one concept: of its instance images and of its class images."""

    instances: Sequence[Example]
    classes: Sequence[Example]


def check_files(config: TrainConfig, context: RunContext, requests: Requests) -> list[Finding]:
    """Return what is wrong with the pictures and caption files; raises StopRequested.

    Every instance image and every class image of the person's own is opened once.
    """
    model, resolution = context.workspace.model(config.model), config.images.resolution
    buckets = make_buckets(resolution, model_quantum(model))
    instances = [list_images(Path(concept.instance_folder)) for concept in config.concepts]
    own = [own_class_files(concept) for concept in config.concepts]
    looks = {look.path: look for look in _looks(instances, own, buckets, context, requests)}
    findings = list(unreadable(list(looks.values())))
    findings += far_from_model(resolution, model.read_info().resolution)
    for concept, pictures, classes in zip(config.concepts, instances, own, strict=True):
        found = [looks[path] for path in pictures if not looks[path].problem]
        findings += _unreadable_captions(config, concept, pictures)
        findings += animated(found)
        findings += too_small(found, resolution)
        findings += blurry(found)
        findings += near_duplicates(found)
        findings += shared_files(pictures, classes)
    return in_order(findings)


def report(
    files_checked: Sequence[Finding],
    foreseen: Foreseen,
    words: Sequence[Words],
    files: FilesPlanned,
    machine: Machine,
) -> Preflight:
    """Return everything that was found: in the files, in the words, and about disk and memory."""
    memory = Estimate(foreseen, machine).phases()
    findings = [
        *files_checked,
        *check_words(foreseen, words),
        *scarce_memory(foreseen.config, memory, machine),
        *_scarce_disk(files),
    ]
    return Preflight(
        in_order(findings), memory, machine.device, machine.vram_bytes, machine.ram_bytes
    )


def check_words(foreseen: Foreseen, words: Sequence[Words]) -> Iterator[Finding]:
    """Yield what is wrong with the prompts and tokens."""
    tokenizer = ClipWords.of_model(foreseen.model)
    longest = foreseen.config.captions.max_token_length
    everything = [example for each in words for example in (*each.instances, *each.classes)]
    yield from long_captions(everything, tokenizer, longest)
    for index, (concept, each) in enumerate(zip(foreseen.config.concepts, words, strict=True)):
        yield from token_in_class_prompt(concept, f"concepts.{index}", each.classes)
        yield from known_token(concept, f"concepts.{index}", tokenizer)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, the gravest first; one that is there twice once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: ORDER.index(finding.level))


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return what training would fail at."""
    return [finding for finding in findings if finding.level == ERROR]


def _looks(
    instances: Sequence[Sequence[Path]],
    own: Sequence[Sequence[Path]],
    buckets: Sequence[Size],
    context: RunContext,
    requests: Requests,
) -> Iterator[Look]:
    shown = dict.fromkeys(chain.from_iterable(instances))
    classes = dict.fromkeys(path for path in chain.from_iterable(own) if path not in shown)
    paths = [*shown, *classes]
    context.emit(PhaseStarted(PHASE, len(paths), "pictures"))
    for done, look in enumerate(look_at_all(paths, buckets, classes), start=1):
        yield look
        if done % PICTURES_PER_EVENT == 0 or done == len(paths):
            context.emit(PhaseProgress(PHASE, done, len(paths)))
            requests.stop_if_asked()


def _unreadable_captions(
    config: TrainConfig, concept: Concept, pictures: Sequence[Path]
) -> Iterator[Finding]:
    try:
        if not any(FILEWORDS in template for template in instance_templates(concept)):
            return
    except InputError as error:
        yield Finding(ERROR, error.message, error.remedy)
        return
    reading = caption_reading(concept, config.captions)
    for path in pictures:
        try:
            read_caption(path, reading)
        except InputError as error:
            yield Finding(ERROR, error.message, error.remedy)


def _scarce_disk(files: FilesPlanned) -> Iterator[Finding]:
    if files.needed_bytes > files.free_bytes:
        needed, free = files.needed_bytes / 2**30, files.free_bytes / 2**30
        yield Finding(
            WARNING,
            f"The files of this run need about {needed:.1f} GB, and {free:.1f} GB are free.",
            "Free some space, or save less often.",
        )
