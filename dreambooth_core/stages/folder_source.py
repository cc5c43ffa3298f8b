"""A model in the diffusers layout, a folder for each component, as a checkpoint to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.checkpoint.assembled import Assembly, Piece
from dreambooth_core.checkpoint.header import Header, TensorInfo, read_header
from dreambooth_core.errors import CheckpointError, InputError, UnsupportedFamilyError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import AUTO, Config, Family, KeyPair, pairs_by_source
from dreambooth_core.families.clip_text import END, START
from dreambooth_core.families.open_clip_text import PAD
from dreambooth_core.job import disk, plain_json
from dreambooth_core.job.checkpoint_files import (
    EMA_FOLDER,
    PEER_SETTINGS,
    PEER_WEIGHTS,
    PIPELINE_FILE,
    SNAPSHOT_WEIGHTS,
    is_weights_snapshot,
)

Found = dict[str, tuple[TensorInfo, Path]]
"""Where each weight of a component lies, by its name there."""

Shapes = dict[KeyPair, tuple[int, ...]]

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
"""What a component's weights can be called, the best first; `<name>.index.json` tells of parts."""

SAME_TIME_SECONDS = 2
"""File systems that keep times in steps of this length cannot tell which file is newer."""

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of weights."""

ENCODER_FAMILIES = {"quick_gelu": "sd1", "gelu": "sd2"}
"""CLIP-L and OpenCLIP's ViT-H are told apart by their activation."""

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What older versions called the parts of the VAE's attention."""


@dataclass(frozen=True)
class FolderSource:
    """A folder read as a checkpoint: where its tensors lie, its family and its configs."""

    assembly: Assembly
    family: Family
    configs: dict[str, Config]


def read_folder(folder: Path, prediction_type: str = AUTO) -> FolderSource:
    """Read a folder's configs and headers; raises CheckpointError for what cannot be used.

    Of a snapshot of the abandoned extension, what it lacks is taken from the model beside it.
    """
    snapshot = folder if is_weights_snapshot(folder) else None
    folder = folder.parents[1] / PEER_WEIGHTS if snapshot else folder
    index = _read_json(folder / PIPELINE_FILE)
    family = _family(folder, index)
    configs = {name: _read_json(folder / name / "config.json") for name in family.networks}
    configs = {name: _full_config(family, name, config) for name, config in configs.items()}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    configs["scheduler"] = _scheduler(folder, scheduler, prediction_type)
    levels = len(configs["vae"]["block_out_channels"])
    configs["vae"]["sample_size"] = configs["unet"]["sample_size"] * 2 ** (levels - 1)
    weights = {
        name: _weights(folder / name, _names_by_age(folder / name)) for name in family.networks
    }
    if snapshot:
        weights |= _snapshot_weights(snapshot)
    elif (folder / EMA_FOLDER).is_dir():
        weights[EMA_FOLDER] = _weights(folder / EMA_FOLDER, _names_by_age(folder / EMA_FOLDER))
    return FolderSource(_assemble(folder, family, configs, weights), family, configs)


def _family(folder: Path, index: Mapping[str, Any]) -> Family:
    kind = str(index.get("_class_name", ""))
    if not kind.startswith("StableDiffusion") or "unet" not in index or kind.endswith("3Pipeline"):
        raise UnsupportedFamilyError(
            f"{folder} is a {kind or 'model of an unknown kind'}.",
            remedy="Only Stable Diffusion 1, 2 and XL can be trained.",
        )
    missing = [name for name in ("vae", "text_encoder") if not (index.get(name) or [None])[0]]
    if missing:
        raise UnsupportedFamilyError(
            f"{folder} has no {' and no '.join(missing)}.",
            remedy="Give a complete model; a refiner cannot be trained.",
        )
    if index.get("text_encoder_2"):
        return FAMILIES["sdxl"]
    path = folder / "text_encoder" / "config.json"
    activation = _read_json(path).get("hidden_act", "quick_gelu")
    if activation not in ENCODER_FAMILIES:
        raise UnsupportedFamilyError(
            f"{path} asks for the activation {activation!r}, which no Stable Diffusion has.",
            remedy="Give a model of Stable Diffusion 1, 2 or XL.",
        )
    return FAMILIES[ENCODER_FAMILIES[activation]]


def _full_config(family: Family, component: str, config: Config) -> Config:
    """Return a config with what older versions left to the library's defaults."""
    if component in family.text_encoders:
        kind = "CLIPTextModelWithProjection" if component == "text_encoder_2" else "CLIPTextModel"
        activation = config.get("hidden_act", "quick_gelu")
        # The library once wrote other numbers here, and looks the end of a prompt up differently
        # for them.
        tokens = {"bos_token_id": START, "eos_token_id": END}
        tokens["pad_token_id"] = PAD if ENCODER_FAMILIES.get(activation) == "sd2" else END
        return {**config, "hidden_act": activation, "architectures": [kind], **tokens}
    network: Any = family.build(component, config)
    told = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return {**told, "_class_name": type(network).__name__}


def _scheduler(folder: Path, config: Config, told: str) -> Config:
    """Return the noise schedule; what a single file could not tell again is refused."""
    schedule = config.get("beta_schedule", "scaled_linear")
    if schedule != "scaled_linear" or config.get("trained_betas"):
        raise CheckpointError(
            f"{folder} has the unusual noise schedule {schedule!r}.",
            remedy="Only the schedule of Stable Diffusion itself, scaled_linear, can be saved.",
        )
    kind = config.get("prediction_type", "epsilon")
    if told not in (AUTO, kind):
        raise InputError(
            f"{folder} says that its UNet predicts {kind}, and the settings say {told}.",
            remedy="Set prediction_type to auto.",
            field="prediction_type",
        )
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_start": config.get("beta_start", 0.00085),
        "beta_end": config.get("beta_end", 0.012),
        "beta_schedule": "scaled_linear",
        "prediction_type": kind,
        "clip_sample": False,
        "steps_offset": 1,
        **(trailing if zero_snr else {}),
    }


def _names_by_age(folder: Path) -> Sequence[str]:
    """Return what a component's weights can be called, the best first.

    The abandoned extension's training wrote its files beside those that the model was made with,
    under other names: there the newest counts.
    """
    if folder.parent.name != PEER_WEIGHTS or not (folder.parents[1] / PEER_SETTINGS).is_file():
        return WEIGHTS

    def age(name: str) -> float:
        times = [path.stat().st_mtime for path in folder.glob(f"{name}*") if path.is_file()]
        return -(max(times, default=0.0) // SAME_TIME_SECONDS)

    return sorted(WEIGHTS, key=age)


def _snapshot_weights(snapshot: Path) -> dict[str, Found]:
    """Return where the weights in a snapshot lie, by component."""
    found = {}
    for component, names in SNAPSHOT_WEIGHTS.items():
        if any((snapshot / name).is_file() for name in names):
            found[component] = _weights(snapshot, names)
    return found


def _weights(folder: Path, names: Sequence[str]) -> Found:
    """Return where a component's weights lie; raises CheckpointError if there are none."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            paths = [folder / name]
        elif index.is_file():
            paths = _parts(index)
        else:
            continue
        headers = [read_header(path) for path in paths]
        return {
            key: (info, header.path) for header in headers for key, info in header.tensors.items()
        }
    raise CheckpointError(
        f"{folder} holds no weights that can be read.",
        remedy=f"It needs one of: {', '.join(names)}.",
    )


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names; a name that leads elsewhere is refused."""
    names = _read_json(index).get("weight_map", {}).values()
    paths = [index.parent / str(name) for name in dict.fromkeys(names)]
    if any(path.parent.resolve() != index.parent.resolve() for path in paths):
        raise CheckpointError(
            f"{index} names files outside of its folder.", remedy="Download the model again."
        )
    return paths


def _assemble(
    folder: Path, family: Family, configs: Mapping[str, Config], weights: Mapping[str, Found]
) -> Assembly:
    """Return the checkpoint in the layout of the family's published ones."""
    shapes = _published(folder, family, configs)
    tensors: dict[str, TensorInfo] = {}
    averages: dict[str, TensorInfo] = {}
    elsewhere: dict[str, tuple[Piece, ...]] = {}
    for key, pairs in pairs_by_source(shapes).items():
        component = pairs[0].component
        tensors[key], elsewhere[key] = _join(folder, key, pairs, shapes, weights[component])
        if component == "unet" and EMA_FOLDER in weights:
            name = family.ema_key(key)
            joined = _join(folder, name, pairs, shapes, weights[EMA_FOLDER])
            averages[name], elsewhere[name] = joined
    dtype = next(iter(tensors.values())).dtype
    for key, shape in family.unused_weights(configs).items():
        tensors[key], elsewhere[key] = _info(folder, key, shape, [dtype]), ()
    files = dict.fromkeys(path for found in weights.values() for _, path in found.values())
    return Assembly(Header(folder, tensors | averages, {}, 0), elsewhere, tuple(files))


def _join(
    folder: Path, key: str, pairs: Sequence[KeyPair], shapes: Shapes, weights: Found
) -> tuple[TensorInfo, tuple[Piece, ...]]:
    """Return a tensor of the checkpoint and the weights that it is made of."""
    found = [_find(folder, pair, shapes, weights) for pair in pairs]
    shape = pairs[0].source_shape(shapes[pairs[0]])
    return _info(folder, key, shape, [each for _, each in found]), tuple(p for p, _ in found)


def _published(folder: Path, family: Family, configs: Mapping[str, Config]) -> Shapes:
    """Return the shape of every weight in its component."""
    try:
        return dict(family.published_map(configs))
    except KeyError as error:
        raise CheckpointError(
            f"{folder} is built in an unusual way: no checkpoint has a place for {error}.",
            remedy="Give a model of the usual Stable Diffusion form.",
        ) from error


def _find(folder: Path, pair: KeyPair, shapes: Shapes, found: Found) -> tuple[Piece, str]:
    """Return where a weight lies, and its dtype."""
    name = next((name for name in _names(pair) if name in found), None)
    where = folder / pair.component
    if name is None:
        raise CheckpointError(
            f"{where} lacks the weight {pair.target}.", remedy="Download the model again."
        )
    info, path = found[name]
    expected = shapes[pair]
    if info.shape not in (expected, (*expected, 1, 1)):
        raise CheckpointError(
            f"The weight {name} of {where} has the shape {list(info.shape)}, where"
            f" {list(expected)} fits its config.json.",
            remedy="Download the model again.",
        )
    return Piece(path, name, pair.transform == "transposed"), info.dtype


def _names(pair: KeyPair) -> list[str]:
    names = [pair.target]
    for new, old in OLD_NAMES.items():
        if pair.component == "vae" and f".{new}." in pair.target:
            names.append(pair.target.replace(f".{new}.", f".{old}."))
    return names + [COMPILED + name for name in names]


def _info(folder: Path, key: str, shape: tuple[int, ...], dtypes: Sequence[str]) -> TensorInfo:
    if len(set(dtypes)) != 1:
        raise CheckpointError(
            f"The parts of {key} are stored in different number formats in {folder}.",
            remedy="Save the model again in one number format.",
        )
    return TensorInfo.of_size(dtypes[0], shape)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = plain_json.parse(disk.read(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", remedy="Download the model again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no settings.", remedy="Download the model again.")
    return value
