"""How gradients become steps."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

OPTIMIZER_CHOICES = ("lion", "adamw")


@dataclass(kw_only=True)
class OptimizerSection:
    """How gradients become steps."""

    name: str = control(
        "lion",
        "Optimizer",
        "lion moves every weight by the same small amount and needs half the memory for its state; "
        "adamw is the classic. Lion wants learning rates 3 to 10 times smaller.",
        choices=OPTIMIZER_CHOICES,
    )
    beta1: float = control(
        0.9,
        "Beta 1",
        "How much of the past gradients' direction a step keeps. 0.9 for lion and for adamw.",
        minimum=0.0,
        maximum=0.9999,
        step=0.001,
        advanced=True,
    )
    beta2: float = control(
        0.99,
        "Beta 2",
        "How slowly the optimizer's memory of gradients fades. 0.99 for lion, 0.999 is usual for "
        "adamw.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
        advanced=True,
    )
    epsilon: float = control(
        1e-8,
        "Epsilon",
        "A small number that keeps adamw from dividing by zero. Lion has none.",
        minimum=1e-20,
        maximum=1.0,
        advanced=True,
    )
    weight_decay: float = control(
        0.01,
        "UNet weight decay",
        "Pulls the UNet's weights towards 0 a little with every step, in proportion to its "
        "learning rate. Lion likes 0.01 to 0.1.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
    )
    text_encoder_weight_decay: float = control(
        0.01,
        "Text encoder weight decay",
        "Pulls the text encoder's weights towards 0 a little with every step, in proportion to "
        "its learning rate.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
    )
