"""AUTOMATIC1111's WebUI: its folders, its queue, its model in memory, its list of checkpoints."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from dreambooth_core.host.base import names_of_checkpoints
from dreambooth_core.host.settings import PREFIX, HostSettings
from dreambooth_core.job.interpreter import WorkerPython
from dreambooth_core.job.overlay import Overlay, host_overlay
from dreambooth_core.job.workspace import Workspace

# The WebUI's modules are imported where they are used: they bring torch, and other programs
# import this module too.

NO_GPU = "-1"
JOB_NAME = "dreambooth"
HOLD_MESSAGE = "Dreambooth is running a job; pictures wait until it ends."


class A1111Host:
    """The WebUI of the process that we are in."""

    name = "a1111"

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._holders = 0
        self._holding = threading.Lock()
        self._listing = threading.Lock()

    def workspace(self) -> Workspace:
        """Return the WebUI's folder, and what its options and settings put elsewhere."""
        from modules import paths, sd_models

        root, models = Path(paths.data_path), Path(paths.models_path)
        chosen = option("dreambooth_models_path") or setting("models_folder")
        ours = chosen or models / "dreambooth"
        checkpoints = option("ckpt_dir") or sd_models.model_path
        return Workspace(root, Path(ours).expanduser(), Path(checkpoints), self.lora_dir())

    def checkpoint_names(self) -> list[str]:
        """Return the WebUI's checkpoints and what else is in their folder by now."""
        from modules import sd_models

        listed = [Path(info.filename) for info in list(sd_models.checkpoints_list.values())]
        return names_of_checkpoints(self.workspace(), [p.absolute() for p in listed if p.is_file()])

    def lora_dir(self) -> Path:
        """Return the folder that the WebUI's Lora extension reads, unless another was asked for."""
        from modules import paths

        chosen = option("lora_models_path") or option("lora_dir")
        return Path(chosen or Path(paths.models_path) / "Lora")

    def overlay(self) -> Overlay | None:
        """Return the trainer's packages beside the WebUI's."""
        return host_overlay()

    def worker(self) -> WorkerPython:
        """Return the WebUI's Python with the trainer's packages first, on the GPU chosen for it."""
        device = option("dreambooth_device_id") or option("device_id") or ""
        chosen = NO_GPU if option("force_cpu") else str(device)
        return dataclasses.replace(host_overlay().worker(), device_id=chosen)

    def release_memory(self) -> None:
        """Unload the WebUI's checkpoint, as if it had never been loaded; wait for its turn."""
        if setting("unload_model"):
            with self._turn():
                self._unload()

    def reclaim_memory(self) -> None:
        """Let whatever needs the checkpoint next load it, as it is after the WebUI's start."""
        from modules import sd_models

        if sd_models.model_data.sd_model is None:
            sd_models.model_data.was_loaded_at_least_once = False

    def checkpoint_saved(self, path: Path, sha256: str) -> None:
        """List the file with its hash: the merger and X/Y/Z plot go by name and hash."""
        from modules import sd_models

        with self._listing:
            sd_models.list_models()
            for info in list(sd_models.checkpoints_list.values()):
                if _is_same(Path(info.filename), path):
                    _remember_hash(info, sha256)
                    info.calculate_shorthash()

    def generation_allowed(self) -> bool:
        """Whether the settings let pictures be made while a job runs."""
        return bool(setting("generation_while_training"))

    @contextmanager
    def hold_generation(self) -> Iterator[None]:
        """Take the WebUI's queue, once for all jobs that hold it."""
        from modules import shared

        self._take_queue()
        try:
            shared.state.begin(job=JOB_NAME)
            shared.state.textinfo = HOLD_MESSAGE
            yield
        finally:
            self._give_queue_back()

    def api_credentials(self) -> Mapping[str, str]:
        """Return the names and passwords of --api-auth, else those that the page asks for."""
        given = str(option("api_auth") or option("gradio_auth") or "")
        listed = option("gradio_auth_path")
        if not option("api_auth") and listed:
            given = f"{given},{Path(listed).read_text(encoding='utf-8')}"
        pairs = (pair.strip().partition(":") for pair in re.split(r"[,\n]", given) if ":" in pair)
        return {name.strip(): password.strip() for name, _, password in pairs}

    def allows_origin(self, origin: str) -> bool:
        """Whether --cors-allow-origins or its -regex names the site, as for the WebUI's own API."""
        listed = str(option("cors_allow_origins") or "").split(",")
        pattern = str(option("cors_allow_origins_regex") or "")
        matches = bool(pattern) and re.fullmatch(pattern, origin) is not None
        return bool(origin) and (matches or origin in listed or "*" in listed)

    def _unload(self) -> None:
        from modules import devices, sd_models

        data = sd_models.model_data
        # While it is being loaded, at the WebUI's start, this lock is taken.
        with lock_of(data):
            models = {id(m): m for m in (data.sd_model, *data.loaded_sd_models) if m is not None}
            # From now on a mere look at the model does not load it; a generation does.
            data.was_loaded_at_least_once = True
            data.sd_model = None
            data.loaded_sd_models.clear()
        while models:
            sd_models.send_model_to_trash(models.popitem()[1])
        gc.collect()
        devices.torch_gc()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until the WebUI does nothing with its model, unless its queue is ours already."""
        from modules import call_queue

        with nullcontext() if self._holders else call_queue.queue_lock:
            yield

    def _take_queue(self) -> None:
        from modules import call_queue

        with self._holding:
            if not self._holders:
                call_queue.queue_lock.acquire()
            self._holders += 1

    def _give_queue_back(self) -> None:
        from modules import call_queue, shared

        with self._holding:
            self._holders -= 1
            if self._holders:
                return
            try:
                shared.state.textinfo = None
                shared.state.end()
            finally:
                call_queue.queue_lock.release()


def option(name: str) -> Any:
    """Return an option of the WebUI's command line; None if it is not given or not known."""
    from modules import shared

    return getattr(shared.cmd_opts, name, None)


def setting(name: str) -> Any:
    """Return what was chosen among the WebUI's settings, or our default before that."""
    from modules import shared

    value = getattr(shared.opts, PREFIX + name, None)
    return getattr(HostSettings(), name) if value is None else value


def lock_of(model_data: Any) -> AbstractContextManager[Any]:
    """Return the lock under which the WebUI loads its model; versions differ in having one."""
    lock: AbstractContextManager[Any] | None = getattr(model_data, "lock", None)
    return lock or nullcontext()


def _remember_hash(info: Any, sha256: str) -> None:
    """Put a file's SHA-256 among those that the WebUI computed, which then need not read it all."""
    from modules import cache

    known = {"mtime": os.path.getmtime(info.filename), "sha256": sha256}
    cache.cache("hashes")[f"checkpoint/{info.name}"] = known
    cache.dump_cache()


def _is_same(one: Path, other: Path) -> bool:
    return one.name == other.name and one.resolve() == other.resolve()
