"""What an overlay must fit to, read without importing torch, and whether it can be used."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dreambooth_core.errors import OverlayError
from dreambooth_core.job.pip_install import no_window

OLDEST_TORCH, NEWEST_TORCH = (2, 1), (2, 13)
ANY_TORCH_VARIABLE = "DREAMBOOTH_ANY_TORCH"
FACTS_CODE = (
    "import importlib.metadata as m, json, platform, sys\n"
    "try: torch = m.version('torch')\n"
    "except m.PackageNotFoundError: torch = ''\n"
    "print(json.dumps([torch, list(sys.version_info[:2]), sys.platform, platform.machine()]))"
)


StateKind = Literal["ready", "missing", "stale", "broken", "unsupported_torch"]


@dataclass(frozen=True)
class OverlayState:
    """Whether the trainer can be used; if not, why and what to do."""

    kind: StateKind
    message: str = ""
    remedy: str = ""

    @property
    def ready(self) -> bool:
        """Whether jobs can start at once."""
        return self.kind == "ready"


@dataclass(frozen=True)
class Facts:
    """What the packages must fit to: torch ("" if there is none), Python and system."""

    torch: str
    python: tuple[int, int]
    system: str
    machine: str


def read_facts(python: str) -> Facts:
    """Return what packages for an interpreter must fit to; at once for the one that runs this."""
    if python != sys.executable:
        return _ask_facts(python)
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return Facts(torch, sys.version_info[:2], sys.platform, platform.machine())


@lru_cache(maxsize=8)
def _ask_facts(python: str) -> Facts:
    try:
        said = subprocess.check_output(
            [python, "-I", "-c", FACTS_CODE], encoding="utf-8", **no_window()
        )
        torch, version, system, machine = json.loads(said)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise OverlayError(f"The Python {python} could not be asked for its torch.") from error
    return Facts(torch, (version[0], version[1]), system, machine)


def torch_problem(version: str) -> OverlayState | None:
    """Return why a version of torch ("" for none) cannot be used; None if it can."""
    oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST_TORCH, NEWEST_TORCH))
    remedy = f"Use torch {oldest} to {newest}, with which the trainer was tried."
    if not version:
        message = "There is no torch in the WebUI's Python."
        return OverlayState("unsupported_torch", message, remedy)
    match = re.match(r"(\d+)\.(\d+)", version)
    numbers = (int(match[1]), int(match[2])) if match else (0, 0)
    if OLDEST_TORCH <= numbers <= NEWEST_TORCH:
        return None
    if numbers > NEWEST_TORCH:
        if os.environ.get(ANY_TORCH_VARIABLE):
            return None
        remedy += f" To try this one all the same, set {ANY_TORCH_VARIABLE}=1 and start again."
    message = f"The WebUI's torch {version} is not one that the trainer can use."
    return OverlayState("unsupported_torch", message, remedy)
