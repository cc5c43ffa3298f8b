"""The model in memory, as reForge keeps it: A1111's lock, Forge's memory manager."""

from __future__ import annotations

import threading

from ldm_patched.modules import model_management
from modules import shared
from modules.checkpoints import (  # noqa: F401
    checkpoint_aliases,
    checkpoints_list,
    get_closet_checkpoint_match,
    list_models,
    model_path,
)
from modules.seen import note


class Model:
    def __init__(self, filename):
        self.filename = filename
        self.device = "cpu"


class SdModelData:
    def __init__(self):
        self.sd_model = None
        self.loaded_sd_models = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()


model_data = SdModelData()


def reload_model_weights():
    if model_data.sd_model is None:
        wanted = shared.opts.data["sd_model_checkpoint"]
        infos = checkpoints_list.values()
        info = get_closet_checkpoint_match(wanted) if wanted else next(iter(infos))
        model_data.sd_model = Model(info.filename)
        note(f"load_model {info.name}")
    model_management.load_models_gpu([model_data.sd_model])
    return model_data.sd_model


def send_model_to_trash(model):
    pass
