"""reForge moves all models between memories here."""

from __future__ import annotations

from modules.seen import note

current_loaded_models = []


def load_models_gpu(models):
    for model in models:
        model.device = "cuda"
        if model not in current_loaded_models:
            current_loaded_models.append(model)


def unload_all_models():
    note("unload_all_models")
    while current_loaded_models:
        current_loaded_models.pop().device = "cpu"


def soft_empty_cache(force=False):
    note("soft_empty_cache")
