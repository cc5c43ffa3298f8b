"""What a run notices of itself: weights that do not move or grow too large, a loss that rises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from dreambooth_core.stages.divergence import LossWatch
from dreambooth_core.stages.movement import WeightSample

PATIENCE_STEPS = 10
COARSE_PATIENCE_STEPS = 100
"""How many steps with a rate above 0 may change nothing; in 16 bits a step moves few numbers."""

GROWTH_EVERY_STEPS = 50
MOST_GROWTH = 10.0
"""How many times the norm that they began with weights may have before it is told."""

NAMES = {
    "unet": "the UNet",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
}

LOWER_RATE = "Stop, lower the learning rate, and begin anew or resume from a state before it."


@dataclass
class PartWatch:
    """What is known of one network: some of its numbers, and the steps that it took part in."""

    name: str
    sample: WeightSample
    steps: int = 0
    moving_steps: int = 0
    has_moved: bool = False

    @property
    def can_tell(self) -> bool:
        """Whether numbers that have not moved mean anything: in 16 bits few do in a few steps."""
        return not 0 < self.moving_steps < self._patience or not self.sample.is_coarse

    @property
    def _patience(self) -> int:
        return COARSE_PATIENCE_STEPS if self.sample.is_coarse else PATIENCE_STEPS

    def look(self) -> bool:
        """Return whether any of its weights has moved since the first step."""
        self.has_moved = self.has_moved or self.sample.moved()
        return self.has_moved

    def take_part(self, rate: float) -> bool:
        """Count a step with this learning rate; return whether it must have moved by now."""
        self.steps += 1
        self.moving_steps += rate > 0
        return rate > 0 and self.moving_steps == self._patience

    def stillness(self, largest_gradient: float) -> str:
        """Return that nothing has moved, why, and what to do."""
        looked_at, steps = f"{len(self.sample)} weights of {self.name}", _steps(self.steps)
        said = f"None of the {looked_at} that are looked at has changed in {steps}"
        if not self.moving_steps:
            return f"{said}: its learning rate was 0 throughout. Shorten the warm-up or raise it."
        if not largest_gradient:
            return (
                f"{said}: every gradient was 0. Look whether masks, loss.unmasked_weight or the"
                " pictures' weights leave anything to learn from."
            )
        finer = ", or keep the weights in fp32 (precision)" if self.sample.is_coarse else ""
        return (
            f"{said}: what its learning rate makes of a step is too small for the number format"
            f" of the weights. Raise it{finer}."
        )


@dataclass
class Health:
    """Watches a run from its first step on; its methods return what there is to tell, in words."""

    parts: dict[str, PartWatch] = field(default_factory=dict)
    loss: LossWatch = field(default_factory=LossWatch)
    largest_gradient: float = 0.0
    _told_growth: bool = False

    @classmethod
    def of(cls, parts: Mapping[str, nn.Module]) -> Health:
        """Begin with the networks' learning weights as they are before the first step."""
        watches = {}
        for name, part in parts.items():
            tensors = [p for _, p in part.named_parameters() if p.requires_grad]
            if tensors:
                watches[name] = PartWatch(NAMES[name], WeightSample(tensors))
        return cls(watches)

    def after_step(
        self, step: int, loss: float, rates: Mapping[str, float], gradient: float
    ) -> list[str]:
        """Take in the step just made; `rates` are those of the networks that took part in it."""
        self.largest_gradient = max(self.largest_gradient, gradient)
        due = [p for name, p in self.parts.items() if name in rates and p.take_part(rates[name])]
        told = [part.stillness(self.largest_gradient) for part in due if not part.look()]
        if self.loss.add(loss):
            told.append(
                f"The loss has left its course: over the last steps it is {self.loss.risen:.1f}"
                f" times what it was at its lowest. {LOWER_RATE}"
            )
        if step % GROWTH_EVERY_STEPS == 0:
            told += self._grown()
        return [f"Step {step}: {words}" for words in told]

    def stillness(self) -> list[str]:
        """Return a sentence for each network that took part in steps and has not changed at all."""
        return [
            part.stillness(self.largest_gradient)
            for part in self.parts.values()
            if part.steps and part.can_tell and not part.look()
        ]

    def growth(self) -> dict[str, float]:
        """Return how many times their norm at first the weights' norm is, by network."""
        return {part.name: part.sample.growth() for part in self.parts.values()}

    def _grown(self) -> list[str]:
        grown = {name: times for name, times in self.growth().items() if times > MOST_GROWTH}
        if self._told_growth or not grown:
            return []
        self._told_growth = True
        return [
            f"The weights of {name} have grown to {times:.0f} times what they were. {LOWER_RATE}"
            for name, times in grown.items()
        ]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
