"""`python -m dreambooth_core.ui`: the page in the browser, without a WebUI."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dreambooth_core.errors import DreamboothError, InputError, UsageError

PASSWORD_VARIABLE = "DREAMBOOTH_PASSWORD"
SHORTEST_PASSWORD = 8


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the page's flags."""
    parser = argparse.ArgumentParser(
        prog="python launch.py ui", description="Open the page in the browser."
    )
    parser.add_argument("--root", default="", help="the folder to work in; this one if not given")
    parser.add_argument(
        "--listen",
        action="store_true",
        help="let other computers use the page too; needs a password",
    )
    parser.add_argument("--port", type=int, default=None, help="the port; a free one from 7860 on")
    parser.add_argument(
        "--password",
        default="",
        help=f"what the page asks for; {PASSWORD_VARIABLE} in the environment hides it from lists"
        " of processes",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def password_for(options: argparse.Namespace, ask: Callable[[str], str] | None) -> str:
    """Return the password, asked for if other computers may come in; "" for none.

    Raises UsageError if one is needed and there is nobody to ask, or it is too short.
    """
    password: str = options.password or os.environ.get(PASSWORD_VARIABLE, "")
    if options.listen and not password and ask is not None:
        password = ask("Password for the page: ")
    if options.listen and not password:
        raise UsageError(
            "--listen opens the page to other computers and needs a password.",
            remedy=f"Give --password, or set {PASSWORD_VARIABLE}.",
        )
    if password and len(password) < SHORTEST_PASSWORD:
        raise UsageError(
            f"The password has fewer than {SHORTEST_PASSWORD} characters.", remedy="Use a longer."
        )
    return password


def root_of(options: argparse.Namespace) -> Path:
    """Return the folder to work in; raises InputError if it does not exist."""
    root = Path(options.root).expanduser() if options.root else Path.cwd()
    if not root.is_dir():
        raise InputError(f"The folder {root} does not exist.", remedy="Check --root.")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        password = password_for(options, getpass.getpass if sys.stdin.isatty() else None)
        root = root_of(options)
    except DreamboothError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio asks its makers for news at import
    from dreambooth_core.ui.app import launch_alone

    try:
        blocks = launch_alone(
            root,
            listen_to_all=options.listen,
            port=options.port,
            password=password,
            open_browser=not (options.no_browser or options.listen),
        )
    except OSError as error:
        sys.stderr.write(f"error: The page cannot be served: {error} Choose another --port.\n")
        return 1
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
