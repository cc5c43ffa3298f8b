"""A checkpoint of Stable Diffusion 1.5's full size: created, trained for two steps, saved in bf16.

The weights are random, so that none need be had; keys, shapes and sizes are the real ones. Create,
train (two steps at 256 pixels, UNet and text encoder, in bf16) and save are a process each, as in
the product, so that each one's peak memory is its own. What was saved is read back: it must hold
the source's tensors by name and shape, in bf16, all finite, and not with the source's values.

    python -m benchmarks.full_size [--size tiny] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.checkpoint_io import peak_memory, source_of

if TYPE_CHECKING:
    from dreambooth_core.checkpoint.file import Entry

MODEL = "measured"
SIZES = ("sd15", "tiny")
STEPS, RESOLUTION, PICTURES = 2, 256, 4


def entries_of(size: str) -> list[Entry]:
    """Return random weights under a checkpoint's keys and shapes, in fp16, made when written."""
    import torch

    from dreambooth_core.checkpoint.file import Entry
    from tests.original_layout import SD15, TINY, checkpoint_shapes
    from tests.tiny import random_weight

    generator = torch.Generator().manual_seed(0)

    def entry(key: str, shape: tuple[int, ...]) -> Entry:
        return Entry(key, "F16", shape, lambda: random_weight(key, shape, generator).half())

    shapes = checkpoint_shapes(SD15 if size == "sd15" else TINY)
    return [entry(key, shape) for key, shape in shapes.items()]


def prepare(root: Path, size: str) -> None:
    """Write the checkpoint and a few pictures."""
    import numpy
    from PIL import Image

    from dreambooth_core.checkpoint.file import write_checkpoint
    from tests.original_layout import TINY, side_yaml

    write_checkpoint(source_of(root), entries_of(size))
    if size == "tiny":
        source_of(root).with_suffix(".yaml").write_text(side_yaml(TINY), encoding="utf-8")
    pictures = root / "pictures"
    pictures.mkdir()
    shape = (PICTURES, RESOLUTION, RESOLUTION, 3)
    pixels = numpy.random.default_rng(0).integers(0, 256, shape, dtype=numpy.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(pictures / f"{number}.png")


def create(root: Path) -> None:
    """Create a model from the checkpoint."""
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.job.workspace import Workspace
    from dreambooth_core.stages import create as stage
    from tests.tiny import stage_context

    config = CreateConfig(name=MODEL, source=str(source_of(root)))
    stage.run(config, stage_context(Workspace(root)))


def train(root: Path) -> None:
    """Train the model for two steps."""
    from dreambooth_core.config.schema import TrainConfig
    from dreambooth_core.config.serialize import from_dict
    from dreambooth_core.job.workspace import Workspace
    from dreambooth_core.stages import train as stage
    from tests.tiny import stage_context

    settings = {
        "model": MODEL,
        "concepts": [{"instance_folder": str(root / "pictures"), "instance_prompt": "a zwx dog"}],
        "intervals": {"max_steps": STEPS},
        "learning_rate": {"unet": 1e-4, "text_encoder": 1e-4},
        "images": {"resolution": RESOLUTION},
        "precision": {"mixed_precision": "bf16"},
        "text_encoder": {"train_ratio": 1.0},
        "ema": {"enabled": False},
        "saving": {"save_at_end": False},
    }
    stage.run(from_dict(TrainConfig, settings), stage_context(Workspace(root)))


def save(root: Path) -> None:
    """Save what was trained in bf16."""
    from dreambooth_core.config.schema import SaveConfig
    from dreambooth_core.job.workspace import Workspace
    from dreambooth_core.stages import save as stage
    from tests.tiny import stage_context

    workspace = Workspace(root)
    stage.run(SaveConfig(model=MODEL, dtype="bf16"), stage_context(workspace))


def check(root: Path) -> None:
    """Raise ValueError unless the file holds the source's tensors, in bf16, finite and moved."""
    import torch

    from dreambooth_core.checkpoint.file import CheckpointReader
    from dreambooth_core.job.workspace import Workspace

    source = source_of(root)
    [saved] = Workspace(root).checkpoints_dir.glob("*.safetensors")
    with CheckpointReader(source) as before, CheckpointReader(saved) as after:
        moved = 0
        for key in before.header.tensors:
            old, new = before.read(key), after.read(key)
            good = new.dtype == torch.bfloat16 and new.shape == old.shape
            if not good or not torch.isfinite(new).all():
                raise ValueError(f"{key} of {saved} is {new.dtype}, {tuple(new.shape)} or NaN.")
            moved += not torch.equal(old.to(torch.bfloat16), new)
        if not moved:
            raise ValueError(f"No tensor of {saved} was trained.")


ACTIONS: dict[str, Callable[[Path], None]] = {
    "create": create,
    "train": train,
    "save": save,
    "check": check,
}


def measure_here(kind: str, root: Path) -> dict[str, float]:
    """Run one action in this process; return its seconds, imports left out, and peak memory."""
    import torch  # noqa: F401  (imports are no part)

    start = time.perf_counter()
    ACTIONS[kind](root)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_memory() / 2**20}


def measure(kind: str, root: Path) -> dict[str, float]:
    """Run one action in a process of its own; its errors are shown."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--child", kind]
    done = subprocess.run([*command, "--folder", str(root)], check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run all three, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default=SIZES[0])
    parser.add_argument("--folder", type=Path, help="where to work (20 GB); default: temporary")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", choices=sorted(ACTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_here(options.child, options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="full_size-", dir=options.folder) as folder:
        root = Path(folder)
        prepare(root, options.size)
        figures: dict[str, Any] = {"size": options.size, "bytes": source_of(root).stat().st_size}
        for kind in ACTIONS:
            figures[kind] = measure(kind, root)
            row = figures[kind]
            print(f"{kind:7} {row['seconds']:7.1f} s {row['peak_mb']:8.0f} MB at most", flush=True)
    figures["machine"] = {"system": platform.platform(), "cores": os.cpu_count()}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
