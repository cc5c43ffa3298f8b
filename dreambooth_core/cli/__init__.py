"""The command line: verbs and flags are made from the schema, work is done by worker processes.

Exit codes: 0 done, 1 failed, 2 bad input found before work started, 130 stopped before the end
after saving.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dreambooth_core.cli.follow import STOPPED
from dreambooth_core.cli.parser import build_parser, normalise
from dreambooth_core.cli.verbs import VERBS
from dreambooth_core.cli.views import show_error
from dreambooth_core.errors import DreamboothError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb (the process's own arguments, if none are given) and return the exit code."""
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_args(normalise(arguments))
    try:
        return VERBS[options.verb](options)
    except DreamboothError as error:
        show_error(error, as_json=options.json)
        return error.exit_code
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; Python would complain once more.
        sys.stderr.close()
        return 1
