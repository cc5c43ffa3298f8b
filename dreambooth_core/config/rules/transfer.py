"""What stands in the way of a LoRA to extract or bake, and of a merge: files, families, choices."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.checkpoint.header import Header, read_header
from dreambooth_core.checkpoint.recognise import LORA_PARTS, trainable_family
from dreambooth_core.config.lora import BakeLoraConfig, ExtractLoraConfig
from dreambooth_core.config.merge import OF_A_DIFFERENCE, MergeConfig
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.workspace import Workspace


def check_extract_lora(config: ExtractLoraConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of extracting a LoRA from two checkpoints."""
    return _check_families({"base": config.base, "trained": config.trained}, workspace)


def check_bake_lora(config: BakeLoraConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of putting a LoRA into a checkpoint."""
    problems = []
    if config.strength == 0 and config.text_encoder_strength == 0:
        problems.append(
            Problem(
                "strength",
                "is 0, and text_encoder_strength too, so the LoRA would do nothing.",
                "Set one of them to something else.",
            )
        )
    if workspace is None:
        return problems
    problems += _check_families({"checkpoint": config.checkpoint}, workspace)
    return problems + _check_lora_file("lora", config.lora, workspace)


def check_start_from(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of a training that begins with a LoRA file."""
    name, field = config.lora.start_from, "lora.start_from"
    if not name.strip():
        return []
    if not config.lora.enabled:
        words = "is set, but a whole model is trained, which does not begin with a LoRA."
        return [Problem(field, words, "Switch on lora.enabled, or leave it empty.")]
    return [] if workspace is None else _check_lora_file(field, name, workspace)


def _check_lora_file(field: str, name: str, workspace: Workspace) -> list[Problem]:
    try:
        path = workspace.find_lora(name)
        if is_lora(read_header(path)):
            return []
        return [Problem(field, f"{path} is no LoRA.", "Give a LoRA file.")]
    except InputError as error:
        return [Problem(field, error.message, error.remedy)]


def check_merge(config: MergeConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of a merge: models that are missing or of another family."""
    needs_third = config.method in OF_A_DIFFERENCE
    if needs_third and not config.tertiary.strip():
        words = f"is empty, but {config.method} needs the checkpoint that B was trained from."
        return [Problem("tertiary", words, "Name it, or choose weighted_sum.")]
    if not needs_third and config.tertiary.strip():
        words = "is given, but weighted_sum mixes only A and B."
        return [Problem("tertiary", words, "Leave it empty, or choose add_difference.")]
    names = {"primary": config.primary, "secondary": config.secondary}
    if needs_third:
        names["tertiary"] = config.tertiary
    return _check_families(names, workspace)


def _check_families(names: Mapping[str, str], workspace: Workspace | None) -> list[Problem]:
    """Return the files that cannot be read, and those whose family is not the first one's."""
    if workspace is None:
        return []
    problems, families = [], {}
    for field, name in names.items():
        try:
            families[field] = trainable_family(_header(name, workspace))
        except InputError as error:
            problems.append(Problem(field, error.message, error.remedy))
    if problems:
        return problems
    first = next(iter(families))
    return [
        Problem(
            field,
            f"is of the family {family}, and {first} of {families[first]}.",
            "Checkpoints of different families cannot be put together.",
        )
        for field, family in families.items()
        if family != families[first]
    ]


def _header(name: str, workspace: Workspace) -> Header:
    return read_header(workspace.find_checkpoint(name))


def is_lora(header: Header) -> bool:
    """Return whether a file is a LoRA, told from the names of its tensors."""
    return any(part in key for key in header.tensors for part in LORA_PARTS)
