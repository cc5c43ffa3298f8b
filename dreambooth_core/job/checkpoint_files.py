"""What checkpoint files are called, and the files beside them."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.job.workspace import check_name


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
