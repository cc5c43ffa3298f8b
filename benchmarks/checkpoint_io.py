"""Time and memory of creating a model from a large checkpoint and of saving it again.

The checkpoint has random weights: 4.3 GB under the keys and shapes of Stable Diffusion 1.5, or with
`--model sdxl` 6.9 GB in fp16 of Stable Diffusion XL, which takes four times that on the disk.

The yardstick is copying the same file with fsync, measured in the same rounds: copy, proven,
create, save, copy, ... The second one, "proven", reads that copy again from the disk, as creating
and saving do with every byte before a file gets its name: where the disk is the limit, less time is
not to be had. Each is a process of its own, so that its peak memory is its own; the memory shown is
what it used above the interpreter with torch loaded. Before each, a helper process uses as much
free memory as the files will take: the host of a virtual machine takes back what is free, and its
first use then costs more than the copy. What an action reads is in the system's memory at its
start, as after a download or a training; with `--cold` it is not.

    python -m benchmarks.checkpoint_io [--model sdxl] [--rounds 3] [--cold] [--folder DIR]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from dreambooth_core.checkpoint.file import Entry

KINDS = ("copy", "proven", "create", "save")
MEMORY_BUDGET_MB = 600
TIME_BUDGET = 1.5
MODEL = "measured"
MODELS = ("sd15", "sdxl")
FILES_AT_ONCE = 4
"""The source, its copy, the model and the saved checkpoint."""


def entries_of(model: str) -> list[Entry]:
    """Return random weights under a model's keys and shapes: SD 1.5 in fp32, SDXL in fp16."""
    import torch

    from dreambooth_core.checkpoint.file import Entry
    from tests.original_layout import SD15, SDXL, checkpoint_shapes

    generator = torch.Generator().manual_seed(0)
    layout, name, dtype = (
        (SDXL, "F16", torch.float16) if model == "sdxl" else (SD15, "F32", torch.float32)
    )

    def entry(key: str, shape: tuple[int, ...]) -> Entry:
        return Entry(key, name, shape, lambda: torch.randn(shape, generator=generator).to(dtype))

    return [entry(key, shape) for key, shape in checkpoint_shapes(layout).items()]


def write_source(path: Path, model: str) -> None:
    """Write the checkpoint to measure with; ends the program if the disk has no room for it all."""
    from dreambooth_core.checkpoint.file import write_checkpoint

    entries = entries_of(model)
    needed = FILES_AT_ONCE * sum(entry.size for entry in entries)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        sys.exit(f"{path.parent} has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} are needed.")
    write_checkpoint(path, entries)


def copy(root: Path) -> None:
    """Copy the checkpoint and wait until it is on the disk."""
    target = root / "copy.safetensors"
    shutil.copyfile(source_of(root), target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def copy_and_read_again(root: Path) -> None:
    """Copy the checkpoint, wait until it is on the disk, and read it again from there."""
    from dreambooth_core.checkpoint.proof import READ_BYTES, Crc32
    from dreambooth_core.job import disk

    copy(root)
    path, checksum, buffer = root / "copy.safetensors", Crc32(), mmap.mmap(-1, READ_BYTES)
    make_cold([path])
    with disk.open_read(path) as file:
        disk.set_direct(file.fileno(), True)
        while count := file.readinto(buffer):
            checksum.update(memoryview(buffer)[:count])


def create(root: Path) -> None:
    """Create a model from the checkpoint."""
    from dreambooth_core.config.schema import CreateConfig
    from dreambooth_core.job.workspace import Workspace
    from dreambooth_core.stages import create as stage
    from tests.tiny import stage_context

    config = CreateConfig(name=MODEL, source=str(source_of(root)))
    stage.run(config, stage_context(Workspace(root)))


def save(root: Path) -> None:
    """Save the created model in the dtype that it came in."""
    from dreambooth_core.config.schema import SaveConfig
    from dreambooth_core.job.workspace import Workspace
    from dreambooth_core.stages import save as stage
    from tests.tiny import stage_context

    stage.run(SaveConfig(model=MODEL, dtype="source"), stage_context(Workspace(root)))


ACTIONS: dict[str, Callable[[Path], None]] = {
    "copy": copy,
    "proven": copy_and_read_again,
    "create": create,
    "save": save,
}


def inputs_of(kind: str, root: Path) -> list[Path]:
    """Return the large files that an action reads."""
    from dreambooth_core.job.workspace import Workspace

    if kind != "save":
        return [source_of(root)]
    return sorted(Workspace(root).model(MODEL).path.rglob("*.safetensors"))


def make_cold(paths: list[Path]) -> None:
    """Let the system's memory forget files."""
    from dreambooth_core.job import disk

    for path in paths:
        with disk.open_read(path) as file:
            disk.drop_cache(file.fileno(), 0, path.stat().st_size)


def make_warm(paths: list[Path]) -> None:
    """Let the system's memory hold files."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def source_of(root: Path) -> Path:
    """Return where the checkpoint to be measured with lies."""
    return root / "source.safetensors"


def peak_memory() -> int:
    """Return the most memory this process ever had, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory at the fork as ours
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def touch_free_memory(size: int) -> None:
    """Use `size` bytes for a moment, in a process of its own, and give them back."""
    code = "import mmap, sys; size = int(sys.argv[1]); memory = mmap.mmap(-1, size)\n"
    code += "for i in range(0, size, 4096): memory[i] = 1"
    subprocess.run([sys.executable, "-c", code, str(size)], check=True)


def measure_here(kind: str, root: Path, cold: bool) -> dict[str, float]:
    """Run one action in this process and return its seconds and memory above torch's."""
    import torch  # noqa: F401  (its memory is the base line)

    base = psutil.Process().memory_info().rss
    if kind != "copy":
        from dreambooth_core.stages import create as _create  # noqa: F401  (imports are no part)
        from dreambooth_core.stages import save as _save  # noqa: F401
    touch_free_memory(source_of(root).stat().st_size)
    (make_cold if cold else make_warm)(inputs_of(kind, root))
    start, cpu_start = time.perf_counter(), time.process_time()
    ACTIONS[kind](root)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "memory_mb": (peak_memory() - base) / 2**20,
    }


def measure(kind: str, root: Path, cold: bool) -> dict[str, float]:
    """Run one action in a process of its own, with the disk idle at its start."""
    if hasattr(os, "sync"):
        os.sync()
    command = [sys.executable, "-m", "benchmarks.checkpoint_io", "--child", kind]
    command += ["--folder", str(root), *(["--cold"] if cold else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def run_rounds(root: Path, rounds: int, cold: bool) -> dict[str, list[dict[str, float]]]:
    """Return the measurements of every action, taken in turn, leaving no files but the source."""
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            results[kind].append(measure(kind, root, cold))
            (root / "copy.safetensors").unlink(missing_ok=True)
        shutil.rmtree(root / "models")
    return results


def times(results: list[dict[str, float]], yardstick: list[dict[str, float]]) -> float:
    """Return how many times as long an action took as the yardstick in the same round, median."""
    pairs = zip(results, yardstick, strict=True)
    return statistics.median(each["seconds"] / copied["seconds"] for each, copied in pairs)


def summarise(results: dict[str, list[dict[str, float]]], size: int) -> dict[str, Any]:
    """Return the figures to report: medians of time, of the ratio to copies, and peak memory."""
    figures: dict[str, Any] = {"bytes": size, "rounds": len(results["copy"]), "measured": results}
    for kind in KINDS:
        figures[kind] = {
            "seconds": statistics.median(each["seconds"] for each in results[kind]),
            "cpu_seconds": statistics.median(each["cpu_seconds"] for each in results[kind]),
            "times_copy": times(results[kind], results["copy"]),
            "times_proven": times(results[kind], results["proven"]),
            "memory_mb": max(each["memory_mb"] for each in results[kind]),
        }
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """Print the figures beside their budgets."""
    print(f"{figures['bytes'] / 1e9:.2f} GB, {figures['rounds']} rounds, medians")
    heads = f"{'seconds':>8} {'x copy':>8} {'x proven':>8} {'CPU s':>8} {'MB above torch':>15}"
    print(f"{'':8} {heads}")
    for kind in KINDS:
        row = figures[kind]
        ratios = f"{row['times_copy']:8.2f} {row['times_proven']:8.2f}"
        print(
            f"{kind:8} {row['seconds']:8.2f} {ratios} {row['cpu_seconds']:8.2f}"
            f" {row['memory_mb']:15.0f}"
        )
    print(f"budget   {'':8} {TIME_BUDGET:8.2f} {'':17} {MEMORY_BUDGET_MB:15}")


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="read from the disk (not on Windows)")
    parser.add_argument("--folder", type=Path, help="where to work (17 or 28 GB)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_here(options.child, options.folder, options.cold)))
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint_io-", dir=options.folder) as folder:
        root = Path(folder)
        write_source(source_of(root), options.model)
        results = run_rounds(root, options.rounds, options.cold)
        figures = {"model": options.model, "cold": options.cold}
        figures |= summarise(results, source_of(root).stat().st_size)
    figures["machine"] = {"system": platform.platform(), "cores": os.cpu_count()}
    print_table(figures)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
