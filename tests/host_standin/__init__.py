"""A stand-in of a WebUI: the part of its `modules` that we use, as it was seen to behave.

`Webui` starts one in this process: kind "a1111" (v1.10.1), "forge" or "reforge". Facts that tests
rely on: while scripts load, and in A1111 only then, the extension's folder is on the path; packages
outlive "Reload UI"; an unloaded model comes back with the next picture; an unknown checkpoint's
hash is not computed by listing.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXTENSION = HERE.parents[1]
FOLDERS = {
    "a1111": [HERE / "a1111"],
    "forge": [HERE / "forge", HERE / "a1111"],
    "reforge": [HERE / "reforge", HERE / "a1111"],
}
PACKAGES = ("modules", "modules_forge", "backend", "ldm_patched")


class App:
    """A server's app that remembers what was mounted; enough where no route is called."""

    def __init__(self) -> None:
        self.mounted: list[str] = []


class Webui:
    """A WebUI with its extension, from its start over any number of "Reload UI"."""

    def __init__(self, kind: str, environment: dict[str, str], extension: Path = EXTENSION) -> None:
        """Put the stand-in on the path; `environment` is os.environ or a dictionary like it."""
        self.kind = kind
        self.extension = extension
        self.tabs: list[tuple[Any, str, str]] = []
        self.app: Any = None
        assert environment.get("STANDIN_DATA_DIR"), "names the WebUI's folder"
        self._path = list(sys.path)
        sys.path[:0] = [str(folder) for folder in FOLDERS[kind]]

    def module(self, name: str) -> Any:
        """Return one of the host's modules."""
        return importlib.import_module(f"modules.{name}")

    @property
    def calls(self) -> list[str]:
        """What was done to the host so far."""
        return self.module("seen").CALLS

    def errors(self) -> list[str]:
        """What scripts and callbacks raised; a host only prints that."""
        return [call for call in self.calls if call.startswith("error")]

    def start(self, app: Any = None, with_ui: bool = True) -> None:
        """Load the scripts and call what a start calls, in the host's order."""
        callbacks = self.module("script_callbacks")
        self.module("sd_models").list_models()
        self.module("scripts").load_scripts(str(self.extension))
        callbacks.before_ui_callback()
        callbacks.ui_settings_callback()
        self.tabs = callbacks.ui_tabs_callback() if with_ui else []
        self.app = App() if app is None else app
        callbacks.app_started_callback(object() if with_ui else None, self.app)

    def reload_ui(self, app: Any = None) -> None:
        """Press "Reload UI": scripts anew, packages as they are, and a new app."""
        self.module("script_callbacks").script_unloaded_callback()
        self.start(app)

    def close(self) -> None:
        """Take the stand-in out of this process."""
        for name in list(sys.modules):
            if name.partition(".")[0] in PACKAGES:
                del sys.modules[name]
        sys.path[:] = self._path


@contextlib.contextmanager
def webui(kind: str, environment: dict[str, str], extension: Path = EXTENSION) -> Any:
    """Give a stand-in and take it out of the process in the end."""
    standin = Webui(kind, environment, extension)
    try:
        yield standin
    finally:
        standin.close()
