"""The files beside a checkpoint that the WebUI shows as its card: words, and a picture.

A card that is there already is the person's own and stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.job import disk
from dreambooth_core.job.checkpoint_files import (
    card_path,
    card_picture_path,
    has_card_picture,
    has_card_words,
)
from dreambooth_core.job.storage import atomic_write_bytes, atomic_write_json
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.png import read_png
from dreambooth_core.stages.run_metadata import trigger_words
from dreambooth_core.stages.saved_states import Progress


def write_card(folder: ModelFolder, path: Path, config: TrainConfig, progress: Progress) -> None:
    """Write the card of a checkpoint that a training of the model made."""
    words = trigger_words(config)
    if not has_card_words(path):
        atomic_write_json(card_path(path), _words(folder, words, progress))
    picture = newest_picture(folder, words, progress.step)
    if picture is not None and not has_card_picture(path):
        atomic_write_bytes(card_picture_path(path), disk.read(picture))


def newest_picture(folder: ModelFolder, words: list[str], step: int) -> Path | None:
    """Return the model's newest preview up to a step, of the subject if there is one of it.

    Previews are `samples/<run>/step_<number>_<number>.png`, and tell their prompt.
    """
    found = [path for path in folder.samples_dir.glob("*/step_*_*.png") if _step(path) <= step]
    if not found:
        return None
    newest = max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
    beside = sorted(newest.parent.glob(f"{newest.stem.rpartition('_')[0]}_*.png"))
    prompts = {path: _prompt(path) for path in beside}
    whole = {path: prompt for path, prompt in prompts.items() if prompt is not None}
    shown = (path for path, prompt in whole.items() if any(word in prompt for word in words))
    return next(shown, next(iter(whole), None))


def _words(folder: ModelFolder, words: list[str], progress: Progress) -> dict[str, Any]:
    """Return the WebUI's user metadata: `description` is what the card shows."""
    source = Path(folder.read_info().source).name
    trained = f"{progress.step} steps of Dreambooth on {source}"
    triggers = ", ".join(words)
    return {
        "description": f"{triggers} ({trained})" if triggers else trained,
        "notes": f"Trigger words: {triggers}\nModel: {folder.name}" if triggers else "",
        "activation text": triggers,
    }


def _step(path: Path) -> int:
    number = path.stem.split("_")[1]
    return int(number) if number.isdigit() else 0


def _prompt(path: Path) -> str | None:
    """Return the prompt of a preview; None for a file that is torn or damaged."""
    picture = read_png(path)
    return None if picture is None else picture.parameters.partition("\n")[0]
