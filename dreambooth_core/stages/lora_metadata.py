"""What a LoRA file says about itself: modelspec, and the `ss_` keys that the WebUI shows."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.checkpoint.metadata import told_name
from dreambooth_core.config.control import number_text
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.run_metadata import model_metadata, run_metadata
from dreambooth_core.stages.saved_states import Progress
from dreambooth_core.stages.training_plan import TrainingPlan

NETWORK_MODULE = "networks.lora"
ARCHITECTURE = "modelspec.architecture"


def trained_lora_metadata(
    folder: ModelFolder, path: Path, config: TrainConfig, progress: Progress, averaged: bool
) -> dict[str, str]:
    """Return the metadata of a LoRA that was trained on a model so far, with these settings."""
    model, side = model_metadata(folder, path), config.images.resolution
    start = config.lora.start_from.strip()
    return {
        **model,
        **run_metadata(config, progress, averaged),
        **network_metadata(config.lora.rank, config.lora.alpha),
        ARCHITECTURE: f"{model[ARCHITECTURE]}/lora",
        "modelspec.resolution": f"{side}x{side}",
        "ss_unet_lr": number_text(config.lora.unet_learning_rate),
        "ss_text_encoder_lr": number_text(config.lora.text_encoder_learning_rate),
        "dreambooth.conv_rank": str(config.lora.conv_rank),
        "dreambooth.dora": str(config.lora.dora).lower(),
        **({"dreambooth.started_from": told_name(Path(start))} if start else {}),
    }


def pictures_metadata(plan: TrainingPlan) -> dict[str, str]:
    """Return what is known of a run's pictures and length while it goes on."""
    return {
        "ss_num_train_images": str(plan.instance_images),
        "ss_num_reg_images": str(plan.class_images),
        "ss_max_train_steps": str(plan.total_steps),
    }


def network_metadata(rank: int, alpha: float) -> dict[str, str]:
    """Return what every LoRA file says of its size."""
    return {
        "ss_network_module": NETWORK_MODULE,
        "ss_network_dim": str(rank),
        "ss_network_alpha": number_text(alpha),
    }
