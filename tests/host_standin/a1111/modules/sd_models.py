"""The model in memory, as v1.10.1 keeps it."""

from __future__ import annotations

import threading

from modules import shared
from modules.checkpoints import (  # noqa: F401
    checkpoint_aliases,
    checkpoints_list,
    get_closet_checkpoint_match,
    list_models,
    model_path,
)
from modules.seen import note

LOAD_GATE = threading.Event()
LOAD_GATE.set()


class Model:
    def __init__(self, filename):
        self.filename = filename
        self.device = "cuda"


class SdModelData:
    def __init__(self):
        self.sd_model = None
        self.loaded_sd_models = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()

    def get_sd_model(self):
        if self.was_loaded_at_least_once:
            return self.sd_model
        if self.sd_model is None:
            with self.lock:
                if self.sd_model is None and not self.was_loaded_at_least_once:
                    load_model()
        return self.sd_model


model_data = SdModelData()


def load_model():
    LOAD_GATE.wait(20)
    wanted = shared.opts.data["sd_model_checkpoint"]
    info = get_closet_checkpoint_match(wanted) if wanted else next(iter(checkpoints_list.values()))
    model_data.sd_model = Model(info.filename)
    model_data.loaded_sd_models.insert(0, model_data.sd_model)
    model_data.was_loaded_at_least_once = True
    note(f"load_model {info.name}")


def reload_model_weights():
    if model_data.sd_model is None:
        load_model()
    return model_data.sd_model


def unload_model_weights():
    model_data.sd_model.device = "cpu"


def send_model_to_trash(model):
    note("send_model_to_trash")
    model.device = "meta"
