"""The model in memory, as Forge keeps it: most of A1111's calls are empty."""

from __future__ import annotations

from backend import memory_management
from modules import shared
from modules.checkpoints import (  # noqa: F401
    checkpoint_aliases,
    checkpoints_list,
    get_closet_checkpoint_match,
    list_models,
    model_path,
)
from modules.seen import note


class FakeInitialModel:
    filename = ""
    device = "none"


class Model(FakeInitialModel):
    def __init__(self, filename):
        self.filename = filename
        self.device = "cpu"


class SdModelData:
    def __init__(self):
        self.sd_model = FakeInitialModel()
        self.forge_hash = ""

    def get_sd_model(self):
        return self.sd_model


model_data = SdModelData()


def forge_model_reload():
    wanted = shared.opts.data["sd_model_checkpoint"]
    info = get_closet_checkpoint_match(wanted) if wanted else next(iter(checkpoints_list.values()))
    if model_data.forge_hash != info.name:
        model_data.sd_model = Model(info.filename)
        model_data.forge_hash = info.name
        note(f"load_model {info.name}")
    return model_data.sd_model


def send_model_to_trash(model):
    pass


def reload_model_weights():
    pass


def unload_model_weights():
    memory_management.unload_all_models()
