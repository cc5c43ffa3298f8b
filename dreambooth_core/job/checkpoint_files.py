"""What checkpoint files are called, and the files beside them."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.job.workspace import Workspace, check_name

PIPELINE_FILE = "model_index.json"
PEER_SETTINGS, PEER_WEIGHTS, PEER_SNAPSHOTS = "db_config.json", "working", "checkpoints"
"""In the abandoned extension's folder of a model: its settings, its model, its snapshots."""
EMA_FOLDER = "ema_unet"
SNAPSHOT_WEIGHTS = {
    "unet": ("model.safetensors", "pytorch_model.bin"),
    "text_encoder": ("model_1.safetensors", "pytorch_model_1.bin"),
}
"""What the weights of a component are called in such a snapshot, the better first."""
CARD_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""The kinds of pictures that the WebUI looks for beside a checkpoint."""


def is_pipeline_folder(path: Path) -> bool:
    """Return whether a folder holds a model in the diffusers layout."""
    return (path / PIPELINE_FILE).is_file()


def is_diffusers_model(path: Path) -> bool:
    """Return whether a model can be made from a folder: of diffusers, or a snapshot of weights."""
    return is_pipeline_folder(path) or is_weights_snapshot(path)


def find_vae(text: str, workspace: Workspace) -> Path:
    """Return the VAE file meant by a path, or by a name in the WebUI's folders.

    Raises InputError if no file or more than one is meant.
    """
    candidates = (Path(text).expanduser(), workspace.root / "models" / "VAE" / text)
    found = next((path for path in candidates if path.is_file()), None)
    return (found or workspace.find_checkpoint(text)).absolute()


def side_path(checkpoint: Path) -> Path:
    """Return where a checkpoint's side file would be, which is where the WebUI looks too."""
    return checkpoint.with_suffix(".yaml")


def checkpoint_path(checkpoints_dir: Path, name: str, step: int, subfolder: str = "") -> Path:
    """Return `<subfolder>/<name>[_<step>].safetensors`, numbered on if the file exists.

    A file that exists is never written over: the WebUI would not notice the change.
    """
    check_name(name, what="checkpoint")
    folder = checkpoints_dir
    for part in Path(subfolder).parts:
        check_name(part, what="subfolder")
        folder = folder / part
    stem = f"{name}_{step}" if step else name
    path, number = folder / f"{stem}.safetensors", 1
    while path.exists() or side_path(path).exists():
        number += 1
        path = folder / f"{stem}-{number}.safetensors"
    return path


def card_path(checkpoint: Path) -> Path:
    """Return where the WebUI keeps what it shows on a checkpoint's card."""
    return checkpoint.with_suffix(".json")


def card_picture_path(checkpoint: Path) -> Path:
    """Return where the picture of a checkpoint's card goes.

    A picture that the person chooses in the WebUI is `<stem>.png`, which is looked for first.
    """
    return checkpoint.with_suffix(".preview.png")


def has_card_words(checkpoint: Path) -> bool:
    """Return whether a checkpoint's card has words already."""
    names = (card_path(checkpoint), *map(checkpoint.with_suffix, (".txt", ".description.txt")))
    return any(path.exists() for path in names)


def has_card_picture(checkpoint: Path) -> bool:
    """Return whether a checkpoint's card has a picture already."""
    suffixes = [f"{kind}{suffix}" for kind in ("", ".preview") for suffix in CARD_PICTURES]
    return any(checkpoint.with_suffix(suffix).exists() for suffix in suffixes)


def is_weights_snapshot(path: Path) -> bool:
    """Return whether a folder is a snapshot of the abandoned extension, beside its model."""
    inside = path.parent.name == PEER_SNAPSHOTS
    beside = path.parent.parent / PEER_WEIGHTS
    has_weights = any((path / name).is_file() for name in SNAPSHOT_WEIGHTS["unet"])
    return inside and has_weights and is_pipeline_folder(beside)
