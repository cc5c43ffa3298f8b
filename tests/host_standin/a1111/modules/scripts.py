"""Loading an extension's scripts, with the extension's folder on the path only meanwhile."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback

from modules import paths, script_callbacks
from modules.seen import note

LEAVES_FOLDERS_ON_PATH = False
current_basedir = paths.script_path


def basedir():
    return current_basedir


def load_scripts(extension, clear=True):
    global current_basedir
    if clear:
        script_callbacks.clear_callbacks()
    before = sys.path
    if LEAVES_FOLDERS_ON_PATH:
        before = [extension, *(path for path in before if path != extension)]
    folder = os.path.join(extension, "scripts")
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".py"):
            continue
        try:
            sys.path = [extension, *sys.path]
            current_basedir = extension
            # The module's name is the file's, and it is not put into sys.modules.
            spec = importlib.util.spec_from_file_location(name, os.path.join(folder, name))
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except Exception:
            note(f"error in {name}: {traceback.format_exc()}")
        finally:
            sys.path = before
            current_basedir = paths.script_path
