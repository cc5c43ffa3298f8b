"""`python -m tests.crash --kills 100 --seed 1 --json FILE`: the crash test at any length."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.crash.chain import Tally, run, supported


def figures(tally: Tally, seed: int, seconds: float) -> dict[str, object]:
    """Return what happened as JSON values."""
    return {
        "kills": tally.killed,
        "by_kind": dict(sorted(tally.kills.items())),
        "inside_saves": tally.inside_saves,
        "before_the_first_state": tally.before_first_state,
        "unsynced_changes_taken_away_by_power_loss": tally.taken_by_power,
        "chains": tally.chains,
        "workers": tally.runs,
        "files_read": tally.files_read,
        "losses": tally.losses,
        "bit_identical": not tally.differences,
        "differences": tally.differences,
        "seed": seed,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to work; kept afterwards")
    options = parser.parse_args()
    if not supported():
        print("The crash test forks workers, which only Linux can.")  # noqa: T201
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        tally, seconds = run(folder, options.kills, options.seed)
    told = figures(tally, options.seed, seconds)
    command = f"python -m tests.crash --kills {options.kills} --seed {options.seed}"
    text = json.dumps({"command": command, **told}, indent=2)
    print(text)  # noqa: T201
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(bool(tally.losses or tally.differences))


if __name__ == "__main__":
    sys.exit(main())
