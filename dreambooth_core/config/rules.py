"""What settings mean together: conflicts, and models, states and checkpoints that must exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dreambooth_core.checkpoint.header import read_header
from dreambooth_core.config.schema import (
    CompareConfig,
    Concept,
    CreateConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
)
from dreambooth_core.errors import InputError, Problem
from dreambooth_core.job.checkpoint_files import find_vae, is_pipeline_folder
from dreambooth_core.job.workspace import Workspace

SMALLEST_PICTURE = 32


def check_create(config: CreateConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of making a model: its name is taken, its source unusable."""
    if workspace is None:
        return []
    problems = []
    if workspace.model(config.name).exists():
        problems.append(
            Problem(
                "name",
                f"there is a model {config.name!r} already.",
                f"Choose another name, or delete {workspace.model(config.name).path}.",
            )
        )
    problems += _check_vae(config.vae, workspace)
    if is_pipeline_folder(Path(config.source).expanduser()):
        return problems
    return problems + _check_checkpoints("source", [config.source], workspace)


def _check_vae(name: str, workspace: Workspace) -> list[Problem]:
    try:
        if name.strip():
            read_header(find_vae(name, workspace))
    except InputError as error:
        return [Problem("vae", error.message, error.remedy)]
    return []


def check_training(config: TrainConfig, workspace: Workspace | None) -> list[Problem]:
    """Return the conflicts between training settings."""
    problems = _check_model(config.model, workspace)
    if not config.concepts:
        problems.append(
            Problem("concepts", "there is nothing to learn.", "Give an instance images folder.")
        )
    for index, concept in enumerate(config.concepts):
        problems += _check_concept(concept, f"concepts.{index}", config.loss.prior_loss_weight)
    if config.resume and workspace and not problems and not _states(workspace, config.model):
        problems.append(
            Problem(
                "resume",
                f"the model {config.model!r} has no training state to go on from.",
                "Train it without resume.",
            )
        )
    problems += _check_learning(config) + _check_lora(config)
    return problems + _check_ema_keys(config) + _check_preview_prompts(config)


def check_sample(config: SampleConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of making pictures."""
    problems = _check_model(config.model, workspace)
    if not any(prompt.strip() for prompt in config.prompts):
        problems.append(Problem("prompts", "are empty.", "Say what to draw."))
    for name, size in (("width", config.width), ("height", config.height)):
        if 0 < size < SMALLEST_PICTURE:
            problems.append(
                Problem(name, f"is {size} pixels.", f"Use 0 or at least {SMALLEST_PICTURE}.")
            )
    if workspace and config.checkpoint:
        problems += _check_checkpoints("checkpoint", [config.checkpoint], workspace)
    return problems


def check_save(config: SaveConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of writing a checkpoint: there must be a state to write."""
    problems = _check_model(config.model, workspace)
    if problems or workspace is None:
        return problems
    states = _states(workspace, config.model)
    if not states:
        return [Problem("model", f"{config.model!r} has no training state yet.", "Train it first.")]
    return _check_state(config, states)


def check_compare(config: CompareConfig, workspace: Workspace | None) -> list[Problem]:
    """Return what stands in the way of a comparison."""
    problems = _check_model(config.model, workspace)
    if workspace:
        problems += _check_checkpoints("checkpoints", config.checkpoints, workspace)
    return problems


def _check_model(name: str, workspace: Workspace | None) -> list[Problem]:
    if workspace is None:
        return []
    try:
        workspace.model(name).require()
    except InputError as error:
        return [Problem("model", error.message, error.remedy)]
    return []


def _check_checkpoints(field: str, names: Iterable[str], workspace: Workspace) -> list[Problem]:
    problems = []
    for name in names:
        try:
            read_header(workspace.find_checkpoint(name))
        except InputError as error:
            problems.append(Problem(field, error.message, error.remedy))
    return problems


def _check_state(config: SaveConfig, states: Sequence[Path]) -> list[Problem]:
    """Return whether the run and step that were named are among the states, newest run last."""
    runs = sorted({state.parent.name for state in states})
    if config.run and config.run not in runs:
        return [
            Problem("run", f"there is no run {config.run!r}.", f"There are: {', '.join(runs)}.")
        ]
    run = config.run or runs[-1]
    steps = sorted(_step_of(state) for state in states if state.parent.name == run)
    if config.step and config.step not in steps:
        kept = ", ".join(map(str, steps))
        return [Problem("step", f"{run} has no state of step {config.step}.", f"Kept: {kept}.")]
    return []


def _check_concept(concept: Concept, path: str, prior_loss_weight: float) -> list[Problem]:
    problems = []
    if not concept.instance_prompt.strip():
        problems.append(
            Problem(
                f"{path}.instance_prompt",
                "is empty.",
                "Use [filewords] for the pictures' captions, or say what they show.",
            )
        )
    if concept.class_folder and not concept.class_images_per_instance_image:
        problems.append(
            Problem(
                f"{path}.class_images_per_instance_image",
                "is 0, so the pictures of class_folder would not be used.",
                "Raise it, or leave class_folder empty.",
            )
        )
    if concept.class_images_per_instance_image:
        field = f"{path}.class_images_per_instance_image"
        if not (concept.class_prompt.strip() or concept.class_token.strip()):
            problems.append(
                Problem(
                    f"{path}.class_prompt",
                    "is empty, but class images are asked for.",
                    "Say what they show, such as: a photo of a dog.",
                )
            )
        if prior_loss_weight == 0:
            problems.append(
                Problem(
                    field,
                    "asks for class images, but loss.prior_loss_weight is 0, which ignores them.",
                    "Set either to something else.",
                )
            )
    return problems


def _check_learning(config: TrainConfig) -> list[Problem]:
    problems = []
    ratio = config.text_encoder.train_ratio
    if not config.unet.train and ratio == 0:
        problems.append(
            Problem(
                "unet.train",
                "is off and text_encoder.train_ratio is 0, so nothing is trained.",
                "Switch one of them on.",
            )
        )
    rates = config.learning_rate
    problems += _check_rates(config)
    if rates.schedule == "constant" and rates.warmup_steps:
        problems.append(
            Problem(
                "learning_rate.warmup_steps",
                "is set, but the schedule constant has no warm-up.",
                "Choose constant_with_warmup, or set it to 0.",
            )
        )
    if config.precision.mixed_precision == "fp16" and config.precision.device == "cpu":
        problems.append(
            Problem("precision.mixed_precision", "is fp16 on the cpu.", "Choose no or bf16.")
        )
    return problems


def _check_rates(config: TrainConfig) -> list[Problem]:
    unet, text_encoder = "learning_rate.unet", "learning_rate.text_encoder"
    rates = (config.learning_rate.unet, config.learning_rate.text_encoder)
    if config.lora.enabled:
        unet, text_encoder = "lora.unet_learning_rate", "lora.text_encoder_learning_rate"
        rates = (config.lora.unet_learning_rate, config.lora.text_encoder_learning_rate)
    checks = (
        (unet, config.unet.train, rates[0], "switch off unet.train"),
        (text_encoder, config.text_encoder.train_ratio > 0, rates[1], "set train_ratio to 0"),
    )
    return [
        Problem(path, "is 0, so that part would not learn.", f"Raise it, or {otherwise}.")
        for path, trained, rate, otherwise in checks
        if trained and rate == 0
    ]


def _check_lora(config: TrainConfig) -> list[Problem]:
    lora, problems = config.lora, []
    if not lora.enabled:
        return []
    if config.saving.dtype == "source":
        problems.append(
            Problem(
                "saving.dtype",
                "is source, but a LoRA has no source whose number format it could keep.",
                "Choose fp16, bf16 or fp32.",
            )
        )
    if lora.conv_rank and not config.unet.train:
        problems.append(
            Problem(
                "lora.conv_rank",
                "is set, but only the UNet has convolutions and unet.train is off.",
                "Set it to 0, or switch on unet.train.",
            )
        )
    return problems


def _check_ema_keys(config: TrainConfig) -> list[Problem]:
    if not config.saving.ema_keys or (config.ema.enabled and not config.lora.enabled):
        return []
    why = "a LoRA has no place for it" if config.lora.enabled else "EMA is switched off"
    remedy = "Switch off ema_keys, or train a whole model with EMA switched on."
    return [Problem("saving.ema_keys", f"asks for the running average, but {why}.", remedy)]


def _check_preview_prompts(config: TrainConfig) -> list[Problem]:
    previews = config.previews
    prompts = previews.prompts + [p for c in config.concepts for p in c.sample_prompts]
    if any(p.strip() for p in prompts) or not (previews.every_epochs or previews.every_steps):
        return []
    return [
        Problem(
            "previews.prompts",
            "are empty, but previews are asked for.",
            "Say what to draw, or give a concept sample prompts.",
        )
    ]


def _states(workspace: Workspace, model: str) -> list[Path]:
    found = workspace.model(model).states_dir.glob("*/step_*/progress.json")
    return sorted(path.parent for path in found if path.parent.suffix != ".tmp")


def _step_of(state: Path) -> int:
    return int(state.name.rpartition("_")[2])
