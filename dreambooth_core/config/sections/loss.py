"""What a step tries to lower."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

LOSS_TYPE_CHOICES = ("mse", "huber", "pseudo_huber")
HUBER_SCHEDULE_CHOICES = ("constant", "exponential", "snr")


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
        source="Ruiz et al. 2022 (arXiv 2208.12242)",
    )
    prior_loss_scale: bool = control(
        False,
        "Scale prior loss",
        "Lowers the prior loss weight a little with every epoch, down to its minimum.",
        advanced=True,
    )
    prior_loss_target: int = control(
        100,
        "Prior loss target",
        "After how many epochs a scaled prior loss weight has come down to its minimum.",
        minimum=1,
        maximum=10000,
        step=1,
        unit="epochs",
        advanced=True,
    )
    prior_loss_weight_min: float = control(
        0.1,
        "Minimum prior loss weight",
        "Where a scaled prior loss weight ends.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
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
        source="Guttenberg 2023, Diffusion with offset noise",
    )
    multires_noise_iterations: int = control(
        0,
        "Multires noise iterations",
        "Lays this many layers of coarser and coarser noise over the noise (pyramid noise), which "
        "also teaches dark, bright and evenly coloured pictures. The first layer is as fine as the "
        "noise itself, so 2 is the least; 6 to 10 is usual. 0 switches it off. Each picture's "
        "noise is scaled back by itself, where other trainers scale the batch as a whole.",
        minimum=0,
        maximum=20,
        step=1,
        unit="layers",
        advanced=True,
        source="Whitaker 2023, Multi-resolution noise",
    )
    multires_noise_discount: float = control(
        0.3,
        "Multires noise discount",
        "How strong each layer of multires noise is beside the layer before. 0.1 to 0.3 is usual "
        "for a LoRA and few pictures, up to 0.8 for many.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    input_perturbation: float = control(
        0.0,
        "Input perturbation",
        "Puts additional noise of this size into what the UNet sees, but not into what it is to "
        "find, so that it learns to bear its own small errors (IP noise gamma). 0 switches it off; "
        "0.1 is usual.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
        source="Ning et al. 2023 (arXiv 2301.11706)",
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
        source="Hang et al. 2023 (arXiv 2303.09556)",
    )
    debiased_estimation: bool = control(
        False,
        "Debiased estimation",
        "Weighs every timestep by 1 / sqrt(SNR): noisy ones count more and almost clean ones less, "
        "which helps with the large shapes of a picture. Stands in the place of Min-SNR. With "
        "v-prediction the weight is converted, so that it means the same; other trainers differ.",
        advanced=True,
        source="Yu et al. 2023 (arXiv 2310.08442)",
    )
    loss_type: str = control(
        "mse",
        "Loss type",
        "How an error is counted. mse: by its square. huber and pseudo_huber: small errors by "
        "their square, those above the Huber delta only by their size, so that a few bad pictures "
        "spoil less; pseudo_huber goes smoothly from the one to the other and is what other "
        "trainers call huber.",
        choices=LOSS_TYPE_CHOICES,
        advanced=True,
        source="Khrapov et al. 2024 (arXiv 2403.16728)",
    )
    huber_delta: float = control(
        0.1,
        "Huber delta",
        "Above which size the Huber losses count an error by its size alone (also: huber_c). Lower "
        "bears more bad pictures and learns slower.",
        minimum=0.001,
        maximum=10.0,
        step=0.001,
        advanced=True,
    )
    huber_schedule: str = control(
        "snr",
        "Huber schedule",
        "How the Huber delta depends on the timestep. constant: not at all; exponential and snr: "
        "it goes from 1 at the clean end down to Huber delta at the noisy end, where what bad "
        "pictures have in common is learned; snr follows the share of noise.",
        choices=HUBER_SCHEDULE_CHOICES,
        advanced=True,
    )
    min_timestep: int = control(
        0,
        "Minimum timestep",
        "The lowest timestep that is trained; 0 is the almost clean picture. Higher leaves fine "
        "detail as the model knows it.",
        minimum=0,
        maximum=999,
        step=1,
        advanced=True,
    )
    max_timestep: int = control(
        999,
        "Maximum timestep",
        "The highest timestep that is trained, itself included (other trainers: excluded); 999 is "
        "nearly pure noise. Lower leaves composition as the model knows it.",
        minimum=0,
        maximum=999,
        step=1,
        advanced=True,
    )
    zero_terminal_snr: bool = control(
        False,
        "Zero terminal SNR",
        "Changes the noise schedule so that the last timestep is pure noise, which lets the model "
        "draw really dark and really bright pictures. Only for models of v-prediction. A model "
        "that was not made so gets used to the new schedule in training, which takes some hundred "
        "steps; its checkpoints are marked (ztsnr), previews are drawn accordingly, and where a "
        "WebUI does not read the mark, set its noise schedule for sampling to Zero Terminal SNR. "
        "A model that was made so is trained so in any case.",
        advanced=True,
        source="Lin et al. 2023 (arXiv 2305.08891)",
    )
    unmasked_weight: float = control(
        0.1,
        "Weight of the unmasked area",
        "How much the part of a picture counts that its mask leaves out, beside the part that it "
        "shows. 0 ignores it, 1 is as if there were no masks. Without masks it does nothing.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    dream: bool = control(
        False,
        "Use DREAM",
        "Lets the UNet guess first and trains it from where its own mistake would lead, as it "
        "happens when a picture is drawn. Meant for more detail in fewer steps; a step takes about "
        "a third longer.",
        advanced=True,
        source="Zhou et al. 2023 (arXiv 2312.00210)",
    )
    dream_detail_preservation: float = control(
        1.0,
        "DREAM detail preservation",
        "How fast DREAM grows weaker towards the clean timesteps. 0 uses it fully everywhere, "
        "which blurs; higher keeps more detail and comes closer to training without it. "
        "1 is usual.",
        minimum=0.0,
        maximum=100.0,
        step=0.1,
        advanced=True,
    )
