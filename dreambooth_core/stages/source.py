"""Finding what a model is made from: a checkpoint file, with the VAE that was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.checkpoint.assembled import Assembly, Piece, with_tensors
from dreambooth_core.checkpoint.header import Header, TensorInfo, read_header
from dreambooth_core.checkpoint.recognise import CONV_IN, VAE
from dreambooth_core.config.schema import CreateConfig
from dreambooth_core.errors import InputError
from dreambooth_core.families import detect
from dreambooth_core.families.base import AUTO, Config, Family, KeyPair
from dreambooth_core.families.side_file import Side, read_side_file
from dreambooth_core.job.checkpoint_files import PIPELINE_FILE, find_vae, is_diffusers_model
from dreambooth_core.job.workspace import Workspace
from dreambooth_core.stages.folder_source import read_folder

VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
ORIGINAL_VAE_KEY = "decoder.mid.block_1.conv1.weight"


@dataclass(frozen=True)
class Source:
    """A checkpoint that can become a model, and all that its header and side file tell."""

    assembly: Assembly
    side: Side
    family: Family
    configs: dict[str, Config]
    pairs: list[KeyPair]

    @property
    def header(self) -> Header:
        """What the checkpoint holds."""
        return self.assembly.header


def find_source(config: CreateConfig, workspace: Workspace) -> Source:
    """Return what the settings name; raises InputError or CheckpointError if it is no model."""
    path = _source_path(config, workspace)
    vae = _vae_path(config, workspace)
    return read_source(path, vae, config.prediction_type)


def read_source(path: Path, vae: Path | None = None, prediction_type: str = AUTO) -> Source:
    """Read a checkpoint's header and side file; raises CheckpointError if it cannot be a model.

    `vae` is a file whose VAE takes the place of the checkpoint's own.
    """
    if is_diffusers_model(path):
        return _folder_source(path, vae, prediction_type)
    header = read_header(path)
    assembly = Assembly(header)
    if vae is not None:
        assembly = with_tensors(header, vae_tensors(vae))
    elif CONV_IN in header.tensors and not _has_vae(header):
        raise InputError(
            f"{path} holds no VAE, the part that turns latents into pictures.",
            remedy="Choose a VAE file for it, in the field vae.",
            field="vae",
        )
    family, side = detect(assembly.header), read_side_file(path)
    configs = family.configs(assembly.header, side, prediction_type)
    return Source(assembly, side, family, configs, family.key_map(assembly.header, configs))


def _folder_source(path: Path, vae: Path | None, prediction_type: str) -> Source:
    if vae is not None:
        raise InputError(
            f"{path} is a folder, whose VAE is one of its components.",
            remedy="Leave the field vae empty, or give a checkpoint file as the source.",
            field="vae",
        )
    found = read_folder(path, prediction_type)
    pairs = found.family.key_map(found.assembly.header, found.configs)
    return Source(found.assembly, None, found.family, found.configs, pairs)


def vae_tensors(path: Path) -> dict[str, tuple[TensorInfo, tuple[Piece, ...]]]:
    """Return the tensors of a file's VAE under a checkpoint's names; raises InputError if none."""
    header = read_header(path)
    if _has_vae(header):
        names = {key: key for key in header.tensors if key.startswith(VAE)}
    elif ORIGINAL_VAE_KEY in header.tensors:
        names = {VAE + key: key for key in header.tensors if key.startswith(VAE_PARTS)}
    else:
        raise InputError(
            f"{path} holds no VAE in the layout that the WebUI loads.",
            remedy="Give a .vae.safetensors or .vae.pt file, or a checkpoint that has one.",
            field="vae",
        )
    return {key: (header.tensors[name], (Piece(header.path, name),)) for key, name in names.items()}


def _has_vae(header: Header) -> bool:
    return any(key.startswith(VAE) for key in header.tensors)


def _source_path(config: CreateConfig, workspace: Workspace) -> Path:
    path = Path(config.source).expanduser()
    if config.source.strip() and path.is_dir():
        if is_diffusers_model(path):
            return path.absolute()
        raise InputError(
            f"{config.source} is a folder without a {PIPELINE_FILE}.",
            remedy="Give a checkpoint file, or the folder of a model in the diffusers layout.",
            field="source",
        )
    return workspace.find_checkpoint(config.source)


def _vae_path(config: CreateConfig, workspace: Workspace) -> Path | None:
    if not config.vae.strip():
        return None
    try:
        return find_vae(config.vae, workspace)
    except InputError as error:
        raise InputError(error.message, remedy=error.remedy, field="vae") from error
