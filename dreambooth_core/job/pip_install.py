"""Installing pinned packages with pip into a folder of their own, and why that failed in words."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dreambooth_core.errors import OverlayError
from dreambooth_core.job.interpreter import without_python_paths

Report = Callable[[str, int, int], None]

NETWORK_SETTINGS = (
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host"),
    *("proxy", "cert", "client-cert", "timeout", "default-timeout", "retries"),
    *("cache-dir", "no-cache-dir", "keyring-provider"),
)
"""What is kept of a person's pip settings: how packages are reached, not where they are put."""

EVERY_FILE = {"PIP_USER": "0", "PIP_GLOBAL": "0", "PIP_SITE": "0"}
"""A person's `user = true`, meant for installing, would make `pip config` read one file only."""

HOST_INDEX_VARIABLE = "INDEX_URL"
"""The variable that the WebUIs read for the same purpose."""

INSTALL_OPTIONS = (
    *("--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile", "--no-input"),
    *("--disable-pip-version-check", "--no-warn-script-location", "--progress-bar", "off"),
)
STARTED = re.compile(r"^(?:Collecting|Processing) (\S+)")
UNPACKING = "Installing collected packages"
LAST_LINES = 15


@dataclass(frozen=True)
class Cause:
    """A known reason why pip fails: what its output says then, and what that means."""

    pattern: str
    message: str
    remedy: str


CAUSES = (
    Cause(
        r"No module named '?pip\b",
        "The Python of the WebUI has no pip, which installs the packages.",
        "Add it with: {python} -m ensurepip",
    ),
    Cause(
        r"No space left on device|Errno 28|WinError 112|Disk quota exceeded|Errno 122",
        "The disk is full.",
        "Free some space and try again.",
    ),
    Cause(
        r"DO NOT MATCH THE HASHES|Hashes are required",
        "A downloaded package is not the one that was expected, and was refused.",
        "Try again. If it stays so, a proxy or a mirror changes what is downloaded.",
    ),
    Cause(
        r"[Ll]ong [Pp]ath",
        "A path became too long for Windows.",
        "Allow long paths in Windows, or move the WebUI to a shorter folder.",
    ),
    Cause(
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "The secure connection to the package index could not be made.",
        "Check the clock, the proxy and the certificates (PIP_CERT).",
    ),
    Cause(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError"
        r"|Connection (?:refused|reset|aborted)|Network is unreachable|Max retries exceeded",
        "The package index could not be reached: there is no network, or something blocks it.",
        "Connect and try again. PIP_INDEX_URL names another index, PIP_PROXY a proxy.",
    ),
    Cause(
        r"No matching distribution found|is not a supported wheel",
        "The package index has no build of a package for this system and Python.",
        "Check PIP_INDEX_URL if it is set; else use Python 3.10 to 3.13 on a 64-bit system.",
    ),
    Cause(
        r"Permission denied|Errno 13|WinError 5|WinError 32|Read-only file system|Errno 30",
        "A file could not be written.",
        "See that the extension's folder may be written and that no job is running.",
    ),
)


def install(
    python: str, requirements: Path, target: Path, temporary: Path, log: Path, report: Report
) -> None:
    """Install a file of pins with hashes into the new folder `target`, telling each package.

    The output of pip goes to `log`. Raises OverlayError in the user's words. If `report` raises,
    pip is ended.
    """
    total = len(pins(requirements))
    command = [python, "-m", "pip", "install", "--target", str(target), *INSTALL_OPTIONS]
    environment = pip_environment(os.environ, pip_settings(python), temporary)
    with _running([*command, "-r", str(requirements)], environment) as process:
        lines = _follow(process, log, total, report)
    if process.returncode:
        raise failure(lines, python, log)


def pins(requirements: Path) -> dict[str, str]:
    """Return the version of each package in a requirements file."""
    text = requirements.read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, flags=re.MULTILINE))


def pip_settings(python: str) -> dict[str, str]:
    """Return the network settings in pip's configuration files; raises OverlayError without pip."""
    command = [python, "-m", "pip", "config", "list"]
    environment = without_python_paths(os.environ)
    try:
        done = subprocess.run(
            command,
            env={**environment, **EVERY_FILE, "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **no_window(),
        )
    except OSError as error:
        raise OverlayError(
            f"The Python {python} could not be started: {error.strerror or error}.",
            remedy="Start the WebUI again with a Python that works.",
        ) from error
    if done.returncode:
        raise failure((done.stdout + done.stderr).splitlines(), python)
    return _network_settings(done.stdout)


def _network_settings(listed: str) -> dict[str, str]:
    """Read what `pip config list` printed; settings of "install" go before "global" ones."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for section, name, value in re.findall(r"^(global|install)\.([a-z-]+)=(.*)$", listed, re.M):
        if name in NETWORK_SETTINGS:
            try:
                found[section][name] = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue
    return {**found["global"], **found["install"]}


def pip_environment(
    inherited: Mapping[str, str], settings: Mapping[str, str], temporary: Path
) -> dict[str, str]:
    """Return pip's environment: of the person's pip settings, only how packages are reached.

    A variable such as PIP_INDEX_URL wins over the host's INDEX_URL, that over the settings. What
    pip writes on the way goes to the folder `temporary`.
    """
    environment = {
        name: value
        for name, value in without_python_paths(inherited).items()
        if not name.upper().startswith("PIP_")
    }
    given = {_variable(name): value for name, value in settings.items()}
    if inherited.get(HOST_INDEX_VARIABLE):
        given[_variable("index-url")] = inherited[HOST_INDEX_VARIABLE]
    kept = {_variable(name) for name in NETWORK_SETTINGS}
    given.update({name: value for name, value in inherited.items() if name.upper() in kept})
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    return {
        **environment,
        **given,
        **places,
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def _variable(setting: str) -> str:
    return "PIP_" + setting.upper().replace("-", "_")


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Any]:
    """Run a command whose output is read; it is ended if reading stops early."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        **no_window(),
    )
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
        _output(process).close()


def _follow(process: subprocess.Popen[str], log: Path, total: int, report: Report) -> list[str]:
    """Keep what pip says and report each package that it begins; return all lines."""
    lines: list[str] = []
    begun = 0
    with log.open("w", encoding="utf-8") as file:
        for line in _output(process):
            file.write(line)
            lines.append(line.rstrip())
            match = STARTED.match(line)
            if match:
                begun += 1
                name = Path(match[1]).name.removesuffix(".whl").split("==")[0].split("-")[0]
                report(f"Getting {name}", min(begun, total), total)
            elif line.startswith(UNPACKING):
                report("Unpacking", total, total)
    return lines


def _output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def failure(lines: Sequence[str], python: str, log: Path | None = None) -> OverlayError:
    """Return the error that says in the user's words what pip said."""
    text = "\n".join(lines)
    where = f" The log is {log}." if log else ""
    for cause in CAUSES:
        if re.search(cause.pattern, text):
            message = f"The trainer's packages could not be installed. {cause.message}"
            return OverlayError(message, remedy=cause.remedy.format(python=python) + where)
    said = "\n".join(line for line in lines[-LAST_LINES:] if line)
    return OverlayError(
        f"The trainer's packages could not be installed. pip says:\n{said}",
        remedy=f"Put that right and try again.{where}",
    )


def no_window() -> dict[str, Any]:
    """Return the options that keep Windows from opening a console for a child."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {}
