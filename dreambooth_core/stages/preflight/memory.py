"""How much memory each part of a training takes at its peak, from the sizes of the model's layers.

What each part holds is added up from what the code keeps: weights, gradients, the optimizer's
memory, the average, what the backward pass needs, and the largest pictures in between.
`tests/test_preflight_memory.py` measures how well this fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.data.dataset import TrainingSet
from dreambooth_core.job.events import PhaseMemory
from dreambooth_core.stages.model_shape import (
    component_config,
    latent_numbers,
    text_encoders,
    weight_shapes,
)
from dreambooth_core.stages.optimizer_sizes import OPTIMIZER_SIZES, OptimizerSize
from dreambooth_core.stages.planned_files import Foreseen, learning_numbers
from dreambooth_core.stages.preflight.layers import (
    Kept,
    kept_of_text_encoder,
    kept_of_unet,
    largest_map,
)
from dreambooth_core.stages.preflight.machine import Machine
from dreambooth_core.stages.training_plan import preview_prompts, progress_at, what_is_due

FP32, BF16 = 4, 2
TOKENS = 77
MIXED_BYTES = 3
"""A number kept for the backward pass under autocast: 2 for layers, 4 for norms."""

PROCESS_RAM = 400 * 2**20
GPU_PROCESS_RAM = 2500 * 2**20
"""What a process takes with its packages loaded before it has a model; CUDA's are large."""

GPU_CONTEXT = 800 * 2**20
"""CUDA's context, workspaces and gaps between allocations."""

CPU_GAPS = 1.1
"""By how much what a process has of the system exceeds what it uses, between allocations."""

VAE_MAPS = 5.5
"""Feature maps of the largest size that are there at the same time, without gradients."""


@dataclass(frozen=True)
class Bytes:
    """Memory of the device, and of the machine beside it."""

    device: float
    ram: float = 0.0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.device + other.device, self.ram + other.ram)


@dataclass(frozen=True)
class Estimate:
    """The memory of one training on one machine."""

    foreseen: Foreseen
    machine: Machine

    def phases(self) -> list[PhaseMemory]:
        """Return what each part of the training takes at its peak, in the order in which it runs.

        Where training computes on the CPU, all of it is the machine's own memory. What a process
        took once it hardly gives back, so that no part takes less than the one before it.
        """
        phases = (
            ("class images", self.class_images()),
            ("caching latents", self.caching()),
            ("training", self.training()),
            ("previews", self.previews()),
            ("saving", self.saving()),
        )
        most, found = Bytes(0), []
        for name, taken in phases:
            if taken is not None:
                most = Bytes(max(most.device, taken.device), max(most.ram, taken.ram))
                found.append(PhaseMemory(name, *self._placed(most)))
        return found

    def class_images(self) -> Bytes | None:
        """Return what painting the missing class images takes; None if there are none."""
        concepts = zip(self.config.concepts, self.foreseen.class_plans, strict=True)
        scales = [concept.class_cfg_scale for concept, plan in concepts if plan.missing]
        if not scales:
            return None
        rows = self.config.batch.class_batch_size or self.config.batch.batch_size
        guided = max(scales) != 1.0
        return self._loaded() + Bytes(self._drawing(rows, guided=guided))

    def caching(self) -> Bytes:
        """Return what encoding the pictures takes."""
        rows = min(self.config.batch.batch_size, len(self.training_set.variants()))
        pixels = rows * self._largest_bucket
        numbers = largest_map(self._shapes["vae"], "encoder.", pixels, self._vae_levels)
        return self._loaded() + Bytes(FP32 * VAE_MAPS * numbers) + self._latents()

    def training(self) -> Bytes:
        """Return what a step takes: its backward pass, or the update behind it."""
        config, batch = self.config, self.config.batch
        learning = self._learning
        gradients = self._weight_bytes * learning
        if config.lora.enabled:
            gradients = FP32 * learning
        update = gradients + self._size_of_optimizer.passing * learning
        backward = self._kept_bytes() + self._autocast_copies()
        together = batch.gradient_accumulation_steps > 1 or not batch.set_to_none
        step = backward + gradients if together else max(backward, update)
        return self._at_rest() + Bytes(max(step, update))

    def previews(self) -> Bytes | None:
        """Return what drawing previews takes beside what training holds; None if there are none."""
        plan, config = self.foreseen.plan, self.config
        due = (what_is_due(config, progress_at(plan, s)).preview for s in self.foreseen.steps)
        if not preview_prompts(config) or not any(due):
            return None
        swapped = FP32 * self._learning if config.ema.enabled and config.previews.use_ema else 0
        drawing = self._drawing(1, guided=config.previews.cfg_scale != 1.0)
        resting = self._weight_bytes * self._resting_numbers if self.machine.is_gpu else 0
        return self._at_rest() + Bytes(drawing + swapped + resting)

    def saving(self) -> Bytes:
        """Return what writing takes: tensor by tensor, so hardly more than what training holds."""
        largest = max(map(prod, self._shapes["unet"].values()))
        return self._at_rest() + Bytes(0, 2 * FP32 * largest)

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.foreseen.config

    @property
    def training_set(self) -> TrainingSet:
        """The pictures."""
        return self.foreseen.training_set

    @cached_property
    def _shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        names = ("unet", "vae", *text_encoders(self.foreseen.model))
        return {name: weight_shapes(self.foreseen.model, name) for name in names}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: sum(map(prod, shapes.values())) for name, shapes in self._shapes.items()}

    @cached_property
    def _learning(self) -> int:
        """How many numbers learn."""
        return learning_numbers(self.foreseen)

    @property
    def _encoders_learn(self) -> bool:
        return self.foreseen.plan.text_encoder_steps > 0

    @property
    def _weight_bytes(self) -> int:
        return BF16 if self.config.precision.weights == "bf16" else FP32

    @property
    def _size_of_optimizer(self) -> OptimizerSize:
        size = OPTIMIZER_SIZES[self.config.optimizer.name]
        fused = self.machine.is_gpu or self.config.precision.weights == "bf16"
        return OptimizerSize(size.state) if fused else size

    @cached_property
    def _vae_levels(self) -> int:
        channels: list[int] = component_config(self.foreseen.model, "vae")["block_out_channels"]
        return len(channels)

    @cached_property
    def _largest_bucket(self) -> int:
        """The pixels of the largest bucket."""
        examples = (*self.training_set.instances, *self.training_set.classes)
        return max(prod(example.bucket) for example in examples)

    @property
    def _latent_positions(self) -> int:
        return self._largest_bucket // int(4 ** (self._vae_levels - 1))

    @cached_property
    def _resting_numbers(self) -> int:
        """The weights that lie in the main memory while a GPU trains."""
        resting = self._numbers["vae"]
        if not self._encoders_learn and not self.config.captions.read_anew:
            resting += sum(self._numbers[name] for name in text_encoders(self.foreseen.model))
        return resting

    def _loaded(self) -> Bytes:
        """Return what the whole model takes on the device; loading passes through main memory."""
        total = sum(self._numbers.values())
        return Bytes(self._weight_bytes * total, FP32 * total if self.machine.is_gpu else 0)

    def _at_rest(self) -> Bytes:
        """Return what a training holds between two steps."""
        learning, numbers = self._learning, sum(self._numbers.values())
        resting = self._resting_numbers if self.machine.is_gpu else 0
        extra = FP32 * learning if self.config.lora.enabled else 0
        ema = FP32 * learning if self.config.ema.enabled else 0
        in_ram = self.config.ema.device == "cpu"
        device: float = self._weight_bytes * (numbers - resting) + extra
        device += self._size_of_optimizer.state * learning + (0 if in_ram else ema)
        held = Bytes(device, self._weight_bytes * resting + (ema if in_ram else 0))
        return held + self._latents()

    def _latents(self) -> Bytes:
        if self.config.images.cache_latents == "disk":
            return Bytes(0)
        samples = self.training_set.variants()
        numbers = sum(latent_numbers(self.foreseen.model, *s.example.bucket) for s in samples)
        return Bytes(0, 2 * FP32 * numbers)

    def _kept_bytes(self) -> float:
        """Return what the backward pass of the largest micro-batch needs."""
        batch = self.config.batch
        rows = batch.batch_size + (self.training_set.class_batch_size)
        shown = sum(e.repeats for e in self.training_set.instances) + len(self.training_set.classes)
        unet = kept_of_unet(self._shapes["unet"], self._latent_positions, TOKENS)
        nets = [unet]
        if self._encoders_learn:
            names = text_encoders(self.foreseen.model)
            nets += [kept_of_text_encoder(self._shapes[name], TOKENS) for name in names]
        number = FP32 if self.config.precision.mixed_precision == "no" else MIXED_BYTES
        return number * min(rows, shown) * sum(self._kept(net) for net in nets)

    def _kept(self, kept: Kept) -> int:
        if self.config.batch.gradient_checkpointing:
            return kept.with_checkpointing + kept.largest_block
        return kept.everything

    def _autocast_copies(self) -> float:
        """Return what the 16-bit copies of weights take that autocast keeps until the update."""
        if self.config.precision.mixed_precision == "no" or self._weight_bytes == BF16:
            return 0.0
        return float(BF16 * self._learning)

    def _drawing(self, rows: int, *, guided: bool) -> float:
        """Return what painting `rows` pictures at a time takes beside the weights."""
        kept = kept_of_unet(self._shapes["unet"], self._latent_positions, TOKENS)
        unet = FP32 * rows * (1 + guided) * (kept.with_checkpointing // 2 + kept.largest_block)
        pixels = rows * self._largest_bucket
        numbers = largest_map(self._shapes["vae"], "decoder.", pixels, self._vae_levels)
        return max(float(unet), FP32 * VAE_MAPS * numbers)

    def _placed(self, taken: Bytes) -> tuple[int, int]:
        """Return the bytes of the device and of the main memory, the process itself included."""
        if self.machine.is_gpu:
            return round(taken.device + GPU_CONTEXT), round(taken.ram + GPU_PROCESS_RAM)
        return 0, round(CPU_GAPS * (taken.device + taken.ram + PROCESS_RAM))
