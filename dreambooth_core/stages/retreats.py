"""How often a training had to go back, which its states remember; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.serialize import to_dict

RATES = (
    ("learning_rate", "unet"),
    ("learning_rate", "text_encoder"),
    ("lora", "unet_learning_rate"),
    ("lora", "text_encoder_learning_rate"),
)
"""The settings that say the learning rates, by section."""


@dataclass(frozen=True)
class Retreats:
    """The steps that could not be made, counted from 1, and what the rates are multiplied by."""

    steps: tuple[int, ...] = ()
    factor: float = 1.0

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> Retreats:
        """Return what `as_dict` was made of; states of older versions have nothing of it."""
        return cls(tuple(values.get("steps", ())), values.get("factor", 1.0))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"steps": list(self.steps), "factor": self.factor}

    def after(self, step: int, factor: float) -> Retreats:
        """Return what holds once the run has gone back from a step."""
        return Retreats((*self.steps, step), self.factor * factor)

    def under(self, config: TrainConfig, before: Mapping[str, Any]) -> Retreats:
        """Return what holds when a run goes on with other settings than `before`.

        Learning rates that a person has set anew are taken as they are set.
        """
        now = to_dict(config)
        same = all(before.get(part, {}).get(name) == now[part][name] for part, name in RATES)
        return self if same else Retreats()

    def in_words(self) -> str:
        """Return which steps they were and what it means, or ""."""
        if not self.steps:
            return ""
        steps = " and ".join(map(str, self.steps))
        return (
            f"The run went back at step {steps}, where numbers were not finite; since then its"
            f" learning rates are multiplied by {self.factor:g}."
        )
