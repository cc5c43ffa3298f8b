"""The WebUI's hook at its start: says whether the trainer is installed, offline and at once.

    python install.py          only looks; never ends with an error, so that the WebUI starts
    python install.py --now    installs the trainer's packages into .trainer-packages
    python install.py --again  installs them anew, whatever is there

Run it with the WebUI's own Python. Without it, the tab or the first job installs the packages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A portable Python does not put a script's folder on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent))

WORDS = ((), ("--now",), ("--again",))


def say(text: str) -> None:
    """Print a line at once; the WebUI shows it when this has ended."""
    sys.stdout.write(f"Dreambooth: {text}\n")
    sys.stdout.flush()


def look() -> None:
    """Say what is to be done before the first job, if anything is."""
    try:
        from dreambooth_core.job.overlay import host_overlay

        state = host_overlay().state()
    except (ImportError, OSError, SyntaxError) as error:
        say(f"the extension is damaged or incomplete ({error}). Install it again.")
        return
    if not state.ready:
        say(f"{state.message} {state.remedy}")


def make(again: bool) -> int:
    """Install the packages and tell of each; return the exit code."""
    from dreambooth_core.errors import OverlayError
    from dreambooth_core.job.overlay import host_overlay

    def report(text: str, done: int, total: int) -> None:
        say(f"[{done}/{total}] {text}")

    try:
        folder = host_overlay().make(report, again=again)
    except OverlayError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; nothing was changed. Start again to go on.")
        return 130
    say(f"the trainer is ready: {folder}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Do what the one argument says."""
    if tuple(arguments) not in WORDS:
        sys.stdout.write(__doc__ or "")
        return 2
    if not arguments:
        look()
        return 0
    return make(again="--again" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
