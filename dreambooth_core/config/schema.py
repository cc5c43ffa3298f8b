"""The settings of every kind of job. A setting is written once: here or in a section's module."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import MAX_SEED, SAMPLERS, SAVE_DTYPE_CHOICES
from dreambooth_core.config.concept import Concept
from dreambooth_core.config.control import REQUIRED, control, section
from dreambooth_core.config.drawing import CompareConfig, SampleConfig
from dreambooth_core.config.lora import BakeLoraConfig, ExtractLoraConfig, LoraSection
from dreambooth_core.config.merge import MergeConfig
from dreambooth_core.config.new_file import averages_beside
from dreambooth_core.config.outputs import PreviewsSection, SavingSection
from dreambooth_core.config.sections.batch import BatchSection
from dreambooth_core.config.sections.captions import CaptionsSection
from dreambooth_core.config.sections.ema import EmaSection
from dreambooth_core.config.sections.images import ImagesSection
from dreambooth_core.config.sections.intervals import IntervalsSection
from dreambooth_core.config.sections.learning_rate import LR_SCHEDULE_CHOICES, LearningRateSection
from dreambooth_core.config.sections.loss import LossSection
from dreambooth_core.config.sections.networks import TextEncoderSection, UnetSection
from dreambooth_core.config.sections.optimizer import OPTIMIZER_CHOICES, OptimizerSection
from dreambooth_core.config.sections.precision import MIXED_PRECISION_CHOICES, PrecisionSection

__all__ = [
    "JOB_CONFIGS",
    "LR_SCHEDULE_CHOICES",
    "MAX_SEED",
    "MIXED_PRECISION_CHOICES",
    "OPTIMIZER_CHOICES",
    "SAMPLERS",
    "SAVE_DTYPE_CHOICES",
    "BakeLoraConfig",
    "BatchSection",
    "CaptionsSection",
    "CompareConfig",
    "Concept",
    "CreateConfig",
    "EmaSection",
    "ExtractLoraConfig",
    "ImagesSection",
    "IntervalsSection",
    "JobConfig",
    "LearningRateSection",
    "LoraSection",
    "LossSection",
    "MergeConfig",
    "OptimizerSection",
    "PrecisionSection",
    "PreviewsSection",
    "SampleConfig",
    "SaveConfig",
    "SavingSection",
    "TextEncoderSection",
    "TrainConfig",
    "UnetSection",
]

PREDICTION_TYPE_CHOICES = ("auto", "epsilon", "v_prediction")


@dataclass(kw_only=True)
class CreateConfig:
    """Make a model to train from a checkpoint file."""

    name: str = control(
        REQUIRED, "Name", "What the new model is called; its folder's name.", kind="new_model"
    )
    source: str = control(
        REQUIRED,
        "Source checkpoint",
        "The checkpoint to start from: a file, or the name of one in the WebUI's checkpoints "
        "folder.",
        kind="checkpoint",
    )
    extract_ema: bool = control(
        False,
        "Extract EMA weights",
        "Takes the averaged weights, if the checkpoint holds them beside the plain ones.",
    )
    vae: str = control(
        "",
        "VAE",
        "A VAE file that takes the place of the checkpoint's own, or is its missing one. Empty "
        "takes what the checkpoint holds.",
        kind="checkpoint",
    )
    prediction_type: str = control(
        "auto",
        "Prediction type",
        "What the UNet predicts. auto takes what the checkpoint or the .yaml beside it tells; "
        "Stable Diffusion 2 without a .yaml tells nothing: choose v_prediction for models of 768 "
        "pixels, epsilon for those of 512.",
        choices=PREDICTION_TYPE_CHOICES,
    )


@dataclass(kw_only=True)
class TrainConfig:
    """Train a model on pictures of one or more concepts."""

    model: str = control(REQUIRED, "Model", "The name of the model to train.", kind="model")
    seed: int = control(
        420420,
        "Seed",
        "Decides the order of pictures and all noise: the same seed and settings give the same "
        "model on the same machine.",
        minimum=0,
        maximum=MAX_SEED,
        step=1,
    )
    resume: bool = control(
        False,
        "Resume",
        "Goes on from the model's newest training state instead of beginning anew.",
    )
    concepts: list[Concept] = control([], "Concepts", "The subjects or styles to learn.")
    intervals: IntervalsSection = section(IntervalsSection, "Intervals", "How long to train.")
    batch: BatchSection = section(BatchSection, "Batch sizes", "What goes into a step.")
    learning_rate: LearningRateSection = section(
        LearningRateSection, "Learning rate", "How large a step is."
    )
    optimizer: OptimizerSection = section(
        OptimizerSection, "Optimizer", "How gradients become steps."
    )
    text_encoder: TextEncoderSection = section(
        TextEncoderSection, "Text encoder", "The part that reads prompts."
    )
    unet: UnetSection = section(UnetSection, "UNet", "The part that draws pictures.")
    lora: LoraSection = section(LoraSection, "LoRA", "A small addition instead of a whole model.")
    loss: LossSection = section(LossSection, "Loss", "What a step tries to lower.")
    precision: PrecisionSection = section(
        PrecisionSection, "Precision and device", "Number formats and where to compute."
    )
    ema: EmaSection = section(EmaSection, "EMA", "A running average of the weights.")
    images: ImagesSection = section(ImagesSection, "Image processing", "How pictures are prepared.")
    captions: CaptionsSection = section(CaptionsSection, "Captions", "How captions are used.")
    saving: SavingSection = section(
        SavingSection, "Saving", "Checkpoints for the WebUI and states to resume from."
    )
    previews: PreviewsSection = section(
        PreviewsSection, "Previews", "Pictures made during training."
    )


@dataclass(kw_only=True)
class SaveConfig:
    """Write a checkpoint file from a training state."""

    model: str = control(REQUIRED, "Model", "The name of the model to save.", kind="model")
    run: str = control(
        "", "Run", "The training run whose state to save. Empty takes the newest.", kind="run"
    )
    step: int = control(
        0,
        "Step",
        "The step of the state to save. 0 takes the newest.",
        minimum=0,
        maximum=10_000_000,
        step=1,
        unit="steps",
    )
    name: str = control(
        "",
        "File name",
        "What the checkpoint file is called, before the step number. Empty uses the model's name.",
        kind="file_name",
    )
    subfolder: str = control(
        "",
        "Subfolder",
        "A folder below the WebUI's checkpoints folder to write into.",
        kind="file_name",
    )
    dtype: str = control(
        "fp16",
        "Saved number format",
        "fp16 is half the size of fp32 and what most checkpoints use; source keeps each "
        "tensor as it was in the checkpoint that the model came from.",
        choices=SAVE_DTYPE_CHOICES,
    )
    use_ema: bool = control(
        True,
        "Save EMA weights",
        "Writes the running average instead of the weights of the last step, if there is one.",
    )
    ema_keys: bool = averages_beside()


JobConfig = (
    CreateConfig
    | TrainConfig
    | SampleConfig
    | SaveConfig
    | CompareConfig
    | ExtractLoraConfig
    | BakeLoraConfig
    | MergeConfig
)

JOB_CONFIGS: dict[str, type[JobConfig]] = {
    "create": CreateConfig,
    "train": TrainConfig,
    "dry-run": TrainConfig,
    "plan": TrainConfig,
    "class-images": TrainConfig,
    "sample": SampleConfig,
    "save": SaveConfig,
    "compare": CompareConfig,
    "extract-lora": ExtractLoraConfig,
    "bake-lora": BakeLoraConfig,
    "merge": MergeConfig,
}
