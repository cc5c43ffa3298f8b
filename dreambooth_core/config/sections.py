"""The groups of training settings. Each default, range, unit and help text is written here once."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

LR_SCHEDULE_CHOICES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
OPTIMIZER_CHOICES = ("lion", "adamw")
SAMPLERS = ("ddim", "euler", "euler_a", "dpm++_2m", "unipc")
MIXED_PRECISION_CHOICES = ("no", "bf16", "fp16")
SAVE_DTYPE_CHOICES = ("fp16", "bf16", "fp32", "source")


@dataclass(kw_only=True)
class IntervalsSection:
    """How long to train."""

    epochs: int = control(
        100,
        "Training steps per image (epochs)",
        "How many times training goes over every instance image. More makes the likeness stronger, "
        "too many makes every picture look like the instance images.",
        minimum=1,
        maximum=10000,
        step=1,
        unit="epochs",
    )
    max_steps: int = control(
        0,
        "Stop after steps",
        "Ends training after this many steps even if the epochs are not used up. "
        "0 leaves the length to the epochs.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )


@dataclass(kw_only=True)
class BatchSection:
    """How many pictures go into a step."""

    batch_size: int = control(
        1,
        "Batch size",
        "Instance images per forward pass. More is steadier and faster per image on a GPU, and "
        "needs more memory.",
        minimum=1,
        maximum=100,
        step=1,
        unit="images",
    )
    class_batch_size: int = control(
        0,
        "Class batch size",
        "Class images per forward pass, in training and when they are generated. "
        "0 uses the batch size.",
        minimum=0,
        maximum=100,
        step=1,
        unit="images",
    )
    gradient_accumulation_steps: int = control(
        1,
        "Gradient accumulation steps",
        "Adds up the gradients of this many batches before one step. It works like a batch that "
        "many times larger without needing the memory.",
        minimum=1,
        maximum=100,
        step=1,
        unit="batches",
    )
    gradient_checkpointing: bool = control(
        True,
        "Gradient checkpointing",
        "Computes parts of the network twice instead of keeping them: much less memory, "
        "about a quarter slower, the same result.",
    )
    max_grad_norm: float = control(
        1.0,
        "Gradient clipping",
        "Scales a step's gradient down when its norm is larger than this, so that one odd picture "
        "cannot throw training off. 0 switches it off.",
        minimum=0.0,
        maximum=128.0,
        step=0.1,
        advanced=True,
    )


@dataclass(kw_only=True)
class LearningRateSection:
    """How large a step is, and how that changes over the run."""

    unet: float = control(
        1e-6,
        "UNet learning rate",
        "How far one step moves the UNet. Lion works well at 5e-7 to 1e-6; AdamW needs about "
        "2e-6 to 5e-6. Too high spoils pictures, too low learns nothing.",
        minimum=0.0,
        maximum=1.0,
    )
    text_encoder: float = control(
        5e-7,
        "Text encoder learning rate",
        "How far one step moves the text encoder. Usually half the UNet's rate or less.",
        minimum=0.0,
        maximum=1.0,
    )
    schedule: str = control(
        "constant_with_warmup",
        "Learning rate schedule",
        "How the learning rate changes over the run. The constant ones hold it, the others lower "
        "it towards the end. All but constant begin with the warm-up.",
        choices=LR_SCHEDULE_CHOICES,
    )
    warmup_steps: int = control(
        0,
        "Warm-up steps",
        "Raises the learning rate in a straight line from near 0 over this many steps. "
        "The schedule constant has no warm-up.",
        minimum=0,
        maximum=1_000_000,
        step=1,
        unit="steps",
    )
    min_factor: float = control(
        0.0,
        "Lowest share of the learning rate",
        "Where linear, cosine, cosine_with_restarts and polynomial end, as a share of the "
        "learning rate: 0.1 ends at a tenth.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    cycles: int = control(
        1,
        "Restarts",
        "How many times cosine_with_restarts falls from the full rate to the lowest.",
        minimum=1,
        maximum=100,
        step=1,
        unit="cycles",
        advanced=True,
    )
    power: float = control(
        1.0,
        "Polynomial power",
        "The bend of the polynomial schedule: 1 falls in a straight line, 2 falls fast at first.",
        minimum=0.1,
        maximum=10.0,
        step=0.1,
        advanced=True,
    )


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


@dataclass(kw_only=True)
class TextEncoderSection:
    """What happens to the text encoder."""

    train_ratio: float = control(
        0.75,
        "Step ratio of text encoder training",
        "The share of the steps, from the start, in which the text encoder is trained too. "
        "0 leaves it as it is, 1 trains it to the end. It helps likeness and costs memory.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    clip_skip: int = control(
        1,
        "Clip skip",
        "Which layer of the text encoder is read, counted from the end: 1 is the last, 2 the one "
        "before it. Use what your checkpoint was made for and the WebUI will be set to. Counts for "
        "Stable Diffusion 1 alone: in the others the layer is fixed, here as in the WebUI.",
        minimum=1,
        maximum=12,
        step=1,
        unit="layers",
    )


@dataclass(kw_only=True)
class UnetSection:
    """What happens to the UNet."""

    train: bool = control(
        True,
        "Train UNet",
        "Trains the UNet, which draws the pictures. Off leaves it as it is and trains only the "
        "text encoder.",
    )


@dataclass(kw_only=True)
class LossSection:
    """What a step tries to lower."""

    prior_loss_weight: float = control(
        0.75,
        "Prior loss weight",
        "How much a class image counts beside an instance image. Higher keeps more of what the "
        "model knew of the class, lower follows the instance images more. 0 ignores class images.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    offset_noise: float = control(
        0.0,
        "Offset noise",
        "Shifts the noise of each channel by a random amount of this size, so that the model "
        "learns very dark and very bright pictures. 0 switches it off; 0.05 to 0.1 is usual.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    min_snr_gamma: float = control(
        0.0,
        "Min-SNR gamma",
        "Lets the almost clean timesteps count less, which steadies training (Min-SNR weighting). "
        "0 switches it off; 5 is usual.",
        minimum=0.0,
        maximum=20.0,
        step=0.1,
        advanced=True,
    )


@dataclass(kw_only=True)
class PrecisionSection:
    """Number formats and the device."""

    mixed_precision: str = control(
        "no",
        "Mixed precision",
        "Computes in 16 bits where that is safe while weights are kept in 32: faster and smaller "
        "on a GPU. bf16 needs a recent GPU, fp16 works on all, no computes in 32 bits.",
        choices=MIXED_PRECISION_CHOICES,
    )
    device: str = control(
        "auto",
        "Device",
        "Where to compute: auto takes the GPU if there is one, else cpu; cuda:1 is the second GPU.",
        kind="device",
    )


@dataclass(kw_only=True)
class EmaSection:
    """A running average of the weights."""

    enabled: bool = control(
        True,
        "Use EMA",
        "Keeps a running average of the trained weights beside them, which usually gives calmer "
        "and better pictures. Costs memory for one more copy.",
    )
    decay: float = control(
        0.995,
        "EMA decay",
        "How slowly the average follows: 0.995 averages about the last 200 steps. "
        "Early in the run it follows faster by itself.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
        advanced=True,
    )
    every_steps: int = control(
        1,
        "EMA update interval",
        "Updates the average every this many steps. More is faster and a little rougher.",
        minimum=1,
        maximum=1000,
        step=1,
        unit="steps",
        advanced=True,
    )


@dataclass(kw_only=True)
class ImagesSection:
    """How pictures are prepared."""

    resolution: int = control(
        512,
        "Max resolution",
        "Pictures are scaled to about this many pixels squared, each in the shape nearest to its "
        "own. Use what the model was made for: 512 for Stable Diffusion 1.",
        minimum=32,
        maximum=2048,
        step=32,
        unit="pixels",
    )
    horizontal_flip: bool = control(
        False,
        "Apply horizontal flip",
        "Shows each picture mirrored half of the time. Doubles small sets of symmetric things; "
        "leave it off for faces, text and anything with a left and a right.",
    )
    crop: str = control(
        "center",
        "Crop",
        "What is kept when a picture does not quite fit its shape: the center, or a part drawn "
        "anew each time the picture is shown.",
        choices=("center", "random"),
    )
    cache_latents: str = control(
        "memory",
        "Keep latents",
        "Pictures are encoded once. memory keeps the result for this run, disk also keeps it in "
        "the model's folder for the next run.",
        choices=("memory", "disk"),
    )


@dataclass(kw_only=True)
class CaptionsSection:
    """How captions are used."""

    dropout: float = control(
        0.0,
        "Caption dropout",
        "The share of instance examples that are shown with an empty prompt, chosen anew each "
        "time. A little (0.05 to 0.1) keeps the picture less tied to the words.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
