"""Options of the command line, settings, state, and the model, which a look at it loads."""

from __future__ import annotations

import argparse
import sys
import types

cmd_opts = argparse.Namespace(
    api_auth=None, ckpt_dir=None, lora_dir=None, data_dir=None, device_id=None
)


class OptionInfo:
    def __init__(self, default=None, label="", component=None, section=None, category_id=None):
        self.default = default
        self.label = label
        self.component = component
        self.section = section
        self.category_id = category_id
        self.comment_after = ""

    def info(self, text):
        self.comment_after += f"<span class='info'>({text})</span>"
        return self


class Options:
    """Settings: a value that was saved, else the default; AttributeError for an unknown one."""

    def __init__(self):
        self.data_labels = {}
        self.data = {"sd_model_checkpoint": None}

    def add_option(self, key, info):
        self.data_labels[key] = info
        if key not in self.data:
            self.data[key] = info.default

    def __getattr__(self, name):
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)


class State:
    def __init__(self):
        self.job = ""
        self.textinfo = None
        self.interrupted = False

    def begin(self, job="(unknown)"):
        self.job = job
        self.textinfo = None
        self.interrupted = False

    def end(self):
        self.job = ""


opts = Options()
state = State()


class _Shared(types.ModuleType):
    @property
    def sd_model(self):
        from modules import sd_models

        return sd_models.model_data.get_sd_model()


sys.modules[__name__].__class__ = _Shared
