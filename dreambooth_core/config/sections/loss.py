"""What a step tries to lower."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control


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
