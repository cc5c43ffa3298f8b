"""Making pictures."""

from __future__ import annotations

from backend import memory_management
from modules import call_queue, sd_models, shared
from modules.seen import note


def txt2img(during=None):
    """Make a picture when it is its turn, and return the model that made it."""
    with call_queue.queue_lock:
        shared.state.begin(job="task(txt2img)")
        model = sd_models.forge_model_reload()
        memory_management.load_models_gpu([model])
        if during is not None:
            during()
        assert model.device == "cuda"
        note("txt2img")
        shared.state.end()
    return model
