"""Whether the memory suffices, as findings with their remedies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job.events import INFO, WARNING, Finding, PhaseMemory
from dreambooth_core.stages.preflight.machine import Machine

USABLE_SHARE = 0.95
"""How much of a GPU's memory a process gets at most; the screen takes some."""


def scarce_memory(
    config: TrainConfig, memory: Sequence[PhaseMemory], machine: Machine
) -> Iterator[Finding]:
    """Yield a warning for each part of a training that takes more than there is."""
    if machine.is_gpu and not machine.vram_bytes:
        yield Finding(INFO, f"How much memory {machine.device} has is not known.")
    for phase in memory:
        remedy = " ".join(remedies(config, phase.phase, on_gpu=machine.is_gpu))
        for needed, there, place in (
            (phase.gpu_bytes, USABLE_SHARE * machine.vram_bytes, f"of {machine.device}'s memory"),
            (phase.ram_bytes, machine.ram_bytes, "of main memory"),
        ):
            if there and needed > there:
                words = f"takes about {_gb(needed)} {place}, and there are {_gb(there)}."
                yield Finding(WARNING, f"{phase.phase.capitalize()} {words}", remedy)


def remedies(config: TrainConfig, phase: str, *, on_gpu: bool) -> list[str]:
    """Return what would make a part of a training smaller and is not done yet."""
    if phase == "class images":
        return ["Lower the class batch size."]
    if phase == "caching latents":
        return ["Lower the batch size or the resolution."]
    training = phase == "training"
    found = [
        *(_of_the_batch(config) if training else ()),
        *_of_copies(config, on_gpu=on_gpu),
        (training and on_gpu and config.precision.mixed_precision == "no", "Use mixed precision."),
        *_of_what_learns(config),
    ]
    useful = [words for applies, words in found if applies]
    return useful or ["Lower the resolution."]


def _of_the_batch(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    """Yield whether something is not done yet, and what it is."""
    yield not config.batch.gradient_checkpointing, "Switch gradient checkpointing on."
    yield config.batch.batch_size > 1, "Lower the batch size and raise the accumulation."


def _of_copies(config: TrainConfig, *, on_gpu: bool) -> Iterator[tuple[bool, str]]:
    """Yield the same for the weights and their average."""
    ema = config.ema
    yield ema.enabled and on_gpu and ema.device != "cpu", "Keep the EMA on the cpu."
    yield ema.enabled and not on_gpu, "Switch EMA off."
    in_bf16 = config.precision.weights == "bf16" or config.lora.enabled
    yield not in_bf16, "Keep the weights in bf16."


def _of_what_learns(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    """Yield the same for what is trained, and by which optimizer."""
    yield config.optimizer.name == "adamw", "Use lion, which remembers half as much."
    yield config.text_encoder.train_ratio > 0, "Do not train the text encoder."
    yield not config.lora.enabled, "Train a LoRA."


def _gb(size: float) -> str:
    return f"{size / 2**30:.1f} GB"
