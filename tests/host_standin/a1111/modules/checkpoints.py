"""The part of `sd_models` that both hosts share: files, titles and hashes."""

from __future__ import annotations

import hashlib
import os

from modules import paths, shared
from modules.cache import cache
from modules.seen import note

model_path = os.path.abspath(os.path.join(paths.models_path, "Stable-diffusion"))
checkpoints_list = {}
checkpoint_aliases = {}
known_hashes = {}


class CheckpointInfo:
    def __init__(self, filename):
        self.filename = filename
        folder = shared.cmd_opts.ckpt_dir or ""
        folder = folder if folder and filename.startswith(folder) else model_path
        self.name = filename.replace(folder, "").lstrip("/\\")
        self.name_for_extra = os.path.splitext(os.path.basename(filename))[0]
        self.sha256 = known_hashes.get(filename)
        self.shorthash = self.sha256[:10] if self.sha256 else None
        self.title = f"{self.name} [{self.shorthash}]" if self.shorthash else self.name

    def register(self):
        checkpoints_list[self.title] = self
        for alias in (self.title, self.name, self.name_for_extra, self.shorthash):
            if alias:
                checkpoint_aliases[alias] = self

    def calculate_shorthash(self):
        note(f"calculate_shorthash {self.name}")
        self.sha256 = sha256_from_cache(self.filename, f"checkpoint/{self.name}")
        if self.sha256 is None:
            with open(self.filename, "rb") as file:
                self.sha256 = hashlib.sha256(file.read()).hexdigest()
        known_hashes[self.filename] = self.sha256
        self.shorthash = self.sha256[:10]
        checkpoints_list.pop(self.title, None)
        self.title = f"{self.name} [{self.shorthash}]"
        self.register()
        return self.shorthash


def sha256_from_cache(filename, title):
    known = cache("hashes").get(title, {})
    fresh = os.path.getmtime(filename) <= known.get("mtime", 0)
    return known.get("sha256") if fresh else None


def list_models():
    note("list_models")
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for folder in filter(None, (shared.cmd_opts.ckpt_dir, model_path)):
        for place, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                if name.endswith((".safetensors", ".ckpt")):
                    CheckpointInfo(os.path.join(place, name)).register()


def get_closet_checkpoint_match(text):
    if text in checkpoint_aliases:
        return checkpoint_aliases[text]
    found = [info for info in checkpoints_list.values() if text in info.title]
    return min(found, key=lambda info: len(info.title), default=None)
