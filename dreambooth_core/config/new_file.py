"""Settings of new files that several jobs share."""

from __future__ import annotations

from typing import Any

from dreambooth_core.config.choices import SAVE_DTYPE_CHOICES
from dreambooth_core.config.control import REQUIRED, control


def file_called(what: str) -> Any:
    """Return the setting of what the file is called."""
    return control(REQUIRED, "File name", f"What the {what} is called.", kind="file_name")


def folder_below(folder: str) -> Any:
    """Return the setting of where the file goes below one of the WebUI's folders."""
    words = f"A folder below the WebUI's {folder} folder to write into."
    return control("", "Subfolder", words, kind="file_name")


def checkpoint_format(original: str) -> Any:
    """Return the setting of a checkpoint's number format, or those of the original's tensors."""
    return control(
        "fp16",
        "Saved number format",
        "fp16 is half the size of fp32 and what most checkpoints use; source keeps each tensor "
        f"as it is in {original}.",
        choices=SAVE_DTYPE_CHOICES,
    )


def averages_beside() -> Any:
    """Return the setting of whether a checkpoint holds the running average as well."""
    return control(
        False,
        "Write EMA weights beside the others",
        "Adds the running average under the names that the original training code gives it. The "
        "file grows by the UNet's size; the WebUI does not read them.",
        advanced=True,
    )
