"""The command line: cases of one target or of all, from a seed on, and one case again."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz import TARGETS
from tests.fuzz.harness import fuzz

IN_A_ROW = 50
"""Cases of one target before the one that had least time has its turn."""


def main() -> int:
    """Fuzz, tell what was found and return 1 if that is anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--cases", type=int, default=10_000, help="of each target")
    parser.add_argument("--case", type=int, help="only this one, again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so long, if not 0")
    options = parser.parse_args()
    names = options.target or sorted(TARGETS)
    first = options.case if options.case is not None else 0
    end = first + 1 if options.case is not None else options.cases
    found, began = [], time.monotonic()
    done, used = dict.fromkeys(names, first), dict.fromkeys(names, 0.0)
    while waiting := [name for name in names if done[name] < end]:
        if options.seconds and time.monotonic() - began > options.seconds:
            break
        name = min(waiting, key=lambda name: used[name])
        turn = range(done[name], min(done[name] + IN_A_ROW, end))
        started = time.monotonic()
        for finding in fuzz(name, TARGETS[name], turn, options.seed):
            _say(f"{finding.target}: {finding}")
            found.append(finding)
        used[name] += time.monotonic() - started
        done[name] = turn.stop
    cases = ", ".join(f"{name} {count - first}" for name, count in done.items())
    _say(f"{len(found)} findings in {time.monotonic() - began:.0f} s: {cases}")
    return 1 if found else 0


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
