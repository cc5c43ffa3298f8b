"""What a created model's files tell of its networks, without building them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.header import (
    DTYPE_BYTES,
    Header,
    TensorInfo,
    encode_header,
    read_header,
)
from dreambooth_core.checkpoint.recognise import UNET, ema_name
from dreambooth_core.data.buckets import sides_quantum
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.formats import LAYOUT
from dreambooth_core.job.workspace import ModelFolder

SAVED_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
SOURCE_DTYPE = "source"
V_PREDICTION_KEY = "v_pred"
ZERO_SNR_KEY = "ztsnr"
"""Empty tensors by which newer hosts tell what a UNet predicts."""
EMA_COUNTERS = {"model_ema.decay": "F32", "model_ema.num_updates": "I32"}
"""What the original training code keeps beside a running average, and the dtypes."""


def component_config(folder: ModelFolder, component: str) -> dict[str, Any]:
    """Return a component's config; raises CheckpointError naming a file that cannot be read."""
    return _read_config(folder.component(component) / "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = plain_json.parse(disk.read(path))
        return config
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", remedy="Create the model again."
        ) from error


def model_quantum(folder: ModelFolder) -> int:
    """Return what picture sides must be multiples of, as the model's family says once loaded."""
    vae, unet = component_config(folder, "vae"), component_config(folder, "unet")
    return sides_quantum(len(vae["block_out_channels"]), len(unet["block_out_channels"]))


def latent_numbers(folder: ModelFolder, width: int, height: int) -> int:
    """Return how many numbers the latents of a picture have."""
    config = component_config(folder, "vae")
    factor: int = 2 ** (len(config["block_out_channels"]) - 1)
    return int(config["latent_channels"]) * (width // factor) * (height // factor)


def text_encoders(folder: ModelFolder) -> list[str]:
    """Return the names of a model's text encoders."""
    return sorted(path.name for path in folder.path.glob("text_encoder*"))


def weight_shapes(folder: ModelFolder, component: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a component's weights by name."""
    headers = [read_header(path) for path in folder.component(component).glob("*.safetensors")]
    return {key: info.shape for header in headers for key, info in header.tensors.items()}


def read_layout(folder: ModelFolder) -> Header:
    """Return the source file's keys, dtypes and shapes in their order, as a header without bytes.

    Raises CheckpointError if the record is damaged.
    """
    path = folder.layout_path
    try:
        rows = LAYOUT.read(plain_json.parse(disk.read(path)), path)["tensors"]
        tensors = {str(key): TensorInfo(dtype, tuple(shape), 0, 0) for key, dtype, shape in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", remedy="Create the model again."
        ) from error
    return Header(path, tensors, {}, 0)


def host_keys(folder: ModelFolder, zero_snr: bool = False) -> list[str]:
    """Return the empty keys that hosts look for in the model's checkpoints and its source lacks.

    `zero_snr` is whether training made the noise schedule end in pure noise.
    """
    path = folder.component("scheduler") / "scheduler_config.json"
    scheduler = _read_config(path)
    wanted = [V_PREDICTION_KEY] if scheduler["prediction_type"] == "v_prediction" else []
    wanted += [ZERO_SNR_KEY] if zero_snr or scheduler.get("rescale_betas_zero_snr") else []
    there = read_layout(folder).tensors
    return [key for key in wanted if key not in there]


def checkpoint_bytes(folder: ModelFolder, dtype: str, ema_keys: bool = False) -> int:
    """Return the size of a saved checkpoint, but for a few words that it says about itself.

    `dtype` is as in the settings; what belongs to no component keeps its number format. `ema_keys`
    is whether the UNet's running average is written beside it.
    """
    extras = read_header(folder.extras_path).tensors
    rows: list[tuple[str, str, tuple[int, ...]]] = [(key, "F32", (0,)) for key in host_keys(folder)]
    rows += [(key, name, ()) for key, name in EMA_COUNTERS.items() if ema_keys]
    for key, info in read_layout(folder).tensors.items():
        kept = key in extras or dtype == SOURCE_DTYPE
        rows.append((key, info.dtype if kept else SAVED_DTYPES[dtype], info.shape))
        if ema_keys and key.startswith(UNET) and key not in extras:
            rows.append((ema_name(key), *rows[-1][1:]))
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for key, saved, shape in rows:
        start, end = end, end + prod(shape) * DTYPE_BYTES[saved]
        tensors[key] = TensorInfo(saved, shape, start, end)
    return len(encode_header(tensors, {})) + end
