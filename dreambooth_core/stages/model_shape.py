"""What a created model's files tell of its networks, without building them."""

from __future__ import annotations

import json
from math import prod
from typing import Any

from dreambooth_core.checkpoint.header import (
    DTYPE_BYTES,
    Header,
    TensorInfo,
    encode_header,
    read_header,
)
from dreambooth_core.data.buckets import sides_quantum
from dreambooth_core.errors import CheckpointError
from dreambooth_core.job.workspace import ModelFolder

SAVED_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
SOURCE_DTYPE = "source"


def component_config(folder: ModelFolder, component: str) -> dict[str, Any]:
    """Return a component's config; raises CheckpointError naming a file that cannot be read."""
    path = folder.component(component) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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


def weight_count(folder: ModelFolder, component: str) -> int:
    """Return how many numbers a component's weights have."""
    headers = [read_header(path) for path in folder.component(component).glob("*.safetensors")]
    return sum(prod(info.shape) for header in headers for info in header.tensors.values())


def read_layout(folder: ModelFolder) -> Header:
    """Return the source file's keys, dtypes and shapes in their order, as a header without bytes.

    Raises CheckpointError if the record is damaged.
    """
    path = folder.layout_path
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        tensors = {str(key): TensorInfo(dtype, tuple(shape), 0, 0) for key, dtype, shape in rows}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", remedy="Create the model again."
        ) from error
    return Header(path, tensors, {}, 0)


def checkpoint_bytes(folder: ModelFolder, dtype: str) -> int:
    """Return the size of a saved checkpoint, but for a few words that it says about itself.

    `dtype` is as in the settings; what belongs to no component keeps its number format.
    """
    extras = read_header(folder.extras_path).tensors
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for key, info in read_layout(folder).tensors.items():
        kept = key in extras or dtype == SOURCE_DTYPE
        saved = info.dtype if kept else SAVED_DTYPES[dtype]
        start, end = end, end + prod(info.shape) * DTYPE_BYTES[saved]
        tensors[key] = TensorInfo(saved, info.shape, start, end)
    return len(encode_header(tensors, {})) + end
