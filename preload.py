"""The WebUI's hook for command-line flags; the names that the earlier extension used are kept.

The GPU is chosen by the WebUI's own `--device-id`. Every flag of the earlier extension is still
understood, since the WebUI does not start with one that it does not know.
"""

from __future__ import annotations

import argparse
from typing import Any

FLAGS: dict[str, dict[str, Any]] = {
    "--dreambooth-models-path": {
        "type": str,
        "default": None,
        "metavar": "FOLDER",
        "help": "(Dreambooth) folder of the models in training, instead of models/dreambooth",
    },
    "--lora-models-path": {
        "type": str,
        "default": None,
        "metavar": "FOLDER",
        "help": "(Dreambooth) folder that trained LoRA files are put into, instead of models/Lora",
    },
    "--dreambooth-device-id": {
        "type": str,
        "default": None,
        "metavar": "ID",
        "help": "(Dreambooth) GPU to train on, if it is another than that of --device-id",
    },
    "--force-cpu": {
        "action": "store_true",
        "help": "(Dreambooth) train on the CPU unless the settings name a device",
    },
    "--ckptfix": {"action": "store_true", "help": "(Dreambooth) no longer needed; has no effect"},
    "--profile-db": {
        "action": "store_true",
        "help": "(Dreambooth) no longer needed; has no effect",
    },
    "--debug-db": {"action": "store_true", "help": "(Dreambooth) no longer needed; has no effect"},
}


def preload(parser: argparse.ArgumentParser) -> None:
    """Add our flags to the WebUI's; one that is there already, by whomever, is left as it is."""
    for name, settings in FLAGS.items():
        try:
            parser.add_argument(name, **settings)
        except argparse.ArgumentError:
            continue
