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
    batch, precision, lora = config.batch, config.precision, config.lora
    training = phase == "training"
    found = [
        (training and not batch.gradient_checkpointing, "Switch gradient checkpointing on."),
        (training and batch.batch_size > 1, "Lower the batch size and raise the accumulation."),
        (config.ema.enabled and on_gpu and config.ema.device != "cpu", "Keep the EMA on the cpu."),
        (config.ema.enabled and not on_gpu, "Switch EMA off."),
        (precision.weights != "bf16" and not lora.enabled, "Keep the weights in bf16."),
        (training and on_gpu and precision.mixed_precision == "no", "Use mixed precision."),
        (config.optimizer.name == "adamw", "Use lion, which remembers half as much."),
        (config.text_encoder.train_ratio > 0, "Do not train the text encoder."),
        (not lora.enabled, "Train a LoRA."),
    ]
    useful = [words for applies, words in found if applies]
    return useful or ["Lower the resolution."]


def _gb(size: float) -> str:
    return f"{size / 2**30:.1f} GB"
