"""How gradients become steps."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

EIGHT_BIT_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")
"""Their memory takes a quarter of the space; they need bitsandbytes and an NVIDIA GPU."""

SELF_TUNING_OPTIMIZERS = ("prodigy", "dadapt_adam")
"""They estimate the rate themselves and take the learning rate as a factor of it, about 1."""

SCHEDULE_FREE_OPTIMIZERS = ("adamw_schedule_free",)
"""They average the weights in place of a rate that falls."""

OPTIMIZER_CHOICES = (
    *("lion", "adamw"),
    *EIGHT_BIT_OPTIMIZERS,
    "adafactor",
    *SELF_TUNING_OPTIMIZERS,
    "came",
    *SCHEDULE_FREE_OPTIMIZERS,
    "sgd",
)


@dataclass(kw_only=True)
class OptimizerSection:
    """How gradients become steps."""

    name: str = control(
        "lion",
        "Optimizer",
        "lion moves every weight by the same small amount and needs half the memory for its state; "
        "adamw is the classic. Lion wants learning rates 3 to 10 times smaller. The 8bit ones keep "
        "that state in 8 bits, the paged ones also move it out of a full GPU; they need an NVIDIA "
        "GPU. adafactor and came keep far less state. prodigy and dadapt_adam find the rate "
        "themselves: give them a learning rate of 1. adamw_schedule_free averages the weights "
        "instead of lowering the rate; the average is what is saved and drawn.",
        choices=OPTIMIZER_CHOICES,
        source="lion: Chen et al. 2023 (arXiv 2302.06675); adamw: Loshchilov & Hutter "
        "2019 (arXiv 1711.05101); 8 bit: Dettmers et al. 2021 (arXiv "
        "2110.02861); adafactor: Shazeer & Stern 2018 (arXiv 1804.04235); "
        "prodigy: Mishchenko & Defazio 2023 (arXiv 2306.06101); dadapt_adam: "
        "Defazio & Mishchenko 2023 (arXiv 2301.07733); came: Luo et al. 2023 "
        "(arXiv 2307.02047); adamw_schedule_free: Defazio et al. 2024 (arXiv "
        "2405.15682)",
    )
    beta1: float = control(
        0.9,
        "Beta 1",
        "How much of the past gradients' direction a step keeps. 0.9 is usual everywhere. "
        "adafactor keeps none, sgd has its momentum instead.",
        minimum=0.0,
        maximum=0.9999,
        step=0.001,
        advanced=True,
    )
    beta2: float = control(
        0.99,
        "Beta 2",
        "How slowly the optimizer's memory of gradients fades. 0.99 for lion and prodigy, 0.999 is "
        "usual for the others. adafactor has a rule of its own for it, sgd has none.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
        advanced=True,
    )
    beta3: float = control(
        0.9999,
        "Beta 3",
        "How slowly came forgets how far its steps can be trusted. The others have none.",
        minimum=0.0,
        maximum=0.99999,
        step=0.0001,
        advanced=True,
    )
    epsilon: float = control(
        1e-8,
        "Epsilon",
        "A small number that keeps adamw, prodigy, dadapt_adam and adamw_schedule_free from "
        "dividing by zero. lion and sgd have none, adafactor and came those of their papers.",
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
    text_encoder_max_grad_norm: float = control(
        0.0,
        "Text encoder gradient clipping",
        "Scales the text encoder's gradient down when its own norm is larger than this; the UNet's "
        "is then clipped by itself too. 0 clips both together by the gradient clipping of the "
        "batch.",
        minimum=0.0,
        maximum=128.0,
        step=0.1,
        advanced=True,
    )
    momentum: float = control(
        0.9,
        "Momentum",
        "How much of the steps before sgd adds to each. The others have beta 1.",
        minimum=0.0,
        maximum=0.9999,
        step=0.01,
        advanced=True,
    )
    scale_parameter: bool = control(
        False,
        "Scale steps by the weights",
        "Multiplies adafactor's learning rate by how large a layer's weights are (their root mean "
        "square), as its paper does. Off, the learning rate is what a step moves at most, on "
        "average.",
        advanced=True,
    )
    d0: float = control(
        1e-6,
        "First guess of the rate",
        "What prodigy and dadapt_adam begin with (d0). They only ever raise it: too high cannot be "
        "taken back, too low takes a few more steps.",
        minimum=1e-12,
        maximum=1.0,
        advanced=True,
    )
    d_coef: float = control(
        1.0,
        "Rate coefficient",
        "Multiplies the rate that prodigy estimates (d_coef): 2 learns faster, 0.5 more carefully.",
        minimum=0.01,
        maximum=100.0,
        advanced=True,
    )
    bias_correction: bool = control(
        True,
        "Bias correction",
        "Corrects the first steps of prodigy and dadapt_adam for their memory being empty, as "
        "adamw always does.",
        advanced=True,
    )
    safeguard_warmup: bool = control(
        True,
        "Safeguard warm-up",
        "Keeps prodigy from overestimating the rate while the learning rate is warmed up.",
        advanced=True,
    )
