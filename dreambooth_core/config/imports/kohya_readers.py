"""How kohya's settings of pictures, noise, files and previews are read."""

from __future__ import annotations

import re
from typing import Any

from dreambooth_core.config.imports.kohya_learning import is_lora
from dreambooth_core.config.imports.mapping import Old, Skipped, Taken, as_flag, as_number, yours
from dreambooth_core.config.imports.paths_there import last_part
from dreambooth_core.config.imports.report import CHANGED, KEPT, TRANSLATED
from dreambooth_core.config.imports.words_there import letters, sampler_here

SMALLEST_SIDE = 32


def resolution(value: Any, old: Old) -> Any:
    """The size of pictures; here it is one number, the side of a square of that area."""
    numbers = [as_number(part) for part in re.split(r"[,x ]+", str(value).strip("[]() "))]
    sides = [number for number in numbers if number]
    if not sides or len(sides) != len(numbers) or min(sides) < SMALLEST_SIDE:
        return value
    side = round((sides[0] * sides[-1]) ** 0.5 / SMALLEST_SIDE) * SMALLEST_SIDE
    words = "A square of about that area; pictures keep their shape."
    return Taken(
        side,
        KEPT if sides[0] == side == sides[-1] else CHANGED,
        "" if len(set(sides)) == 1 else words,
    )


def precision(value: Any, old: Old) -> Any:
    """The number format of computing."""
    name = str(value).lower()
    return "no" if name in ("no", "float", "fp32", "none") else name


def dtype(value: Any, old: Old) -> Any:
    """The number format of saved files."""
    name = str(value).lower()
    return "fp32" if name in ("float", "no", "none") else name


def cached(value: Any, old: Old) -> Any:
    """Latents are always kept here."""
    if as_flag(old.values.get("cache_latents_to_disk")):
        return Skipped("They are kept on disk.")
    return Taken("memory", TRANSLATED, "Here latents are always kept.")


def on_disk(value: Any, old: Old) -> Any:
    """Latents on disk."""
    return "disk" if as_flag(value) else Skipped("It is off.")


def crop(value: Any, old: Old) -> Any:
    """A random crop or the center."""
    return "random" if as_flag(value) else "center"


def inverted(value: Any, old: Old) -> Any:
    """The opposite."""
    flag = as_flag(value)
    return value if flag is None else not flag


def token_length(value: Any, old: Old) -> Any:
    """How many tokens of a caption are read."""
    number = as_number(value)
    if not number:
        return Taken(75, TRANSLATED, "Nothing is 75 there.")
    words = "There longer prompts were read otherwise than the WebUI reads them; here as it does."
    return Taken(value, KEPT, "") if number <= 75 else Taken(value, CHANGED, words)


def clip_skip(value: Any, old: Old) -> Any:
    """The layer of the text encoder."""
    return value if as_number(value) else Skipped("0 is the family's own.")


def loss_type(value: Any, old: Old) -> Any:
    """How an error is counted."""
    name = str(value).lower()
    ours = {"l2": "mse", "huber": "pseudo_huber", "smooth_l1": "pseudo_huber"}.get(name)
    if ours is None:
        return Skipped(f"There is no loss {value} here.")
    if name == "smooth_l1":
        words = "It is the same but for a factor, 1 / huber_c: raise the learning rate by that."
        return Taken(ours, CHANGED, words)
    return Taken(ours, TRANSLATED, "")


def of_huber(value: Any, old: Old) -> Any:
    """What only the Huber losses read."""
    if old.text("loss_type").lower() in ("huber", "smooth_l1"):
        return value
    return Skipped("Only the Huber losses read it, and another one is chosen.")


def last_timestep(value: Any, old: Old) -> Any:
    """The highest timestep, which is itself trained here."""
    number = as_number(value)
    if number is None or number < 1:
        return Skipped("0 says nothing.")
    return Taken(number - 1, TRANSLATED, "There it was itself left out.")


def masks(value: Any, old: Old) -> Any:
    """Masks of their own, which stand in another folder there."""
    if not as_flag(value):
        return Skipped("It is off.")
    if as_flag(old.values.get("alpha_mask")):
        return Taken("alpha", TRANSLATED, "The opaque part is learned.")
    return yours("Put the masks beside the pictures as NAME.mask.png and set Masks to files.")


def alpha(value: Any, old: Old) -> Any:
    """The opaque part of pictures as their mask."""
    return "alpha" if as_flag(value) else Skipped("It is off.")


def unmasked(value: Any, old: Old) -> Any:
    """What masks leave out counts nothing."""
    on = as_flag(value)
    return Taken(0.0, TRANSLATED, "What is left out counts nothing.") if on else Skipped("")


def attention(value: Any, old: Old) -> Any:
    """How attention is computed."""
    name = letters(str(value))
    if name in ("true", "xformers", "1"):
        words = "PyTorch's own is as fast and needs as little memory."
        return Taken("default", TRANSLATED, words)
    return Taken("default", TRANSLATED, "")


def bf16_weights(value: Any, old: Old) -> Any:
    """Weights in bf16."""
    return "bf16" if as_flag(value) else "fp32"


def attention_flag(value: Any, old: Old) -> Any:
    """How attention is computed, of a switch."""
    return Taken("default", TRANSLATED, "PyTorch's own, which is as fast and as sparing.")


def file_name(value: Any, old: Old) -> Any:
    """A name as a file can have it."""
    return re.sub(r"[^\w. -]", "", last_part(str(value))).strip(" .") or Skipped("It is empty.")


def sampler(value: Any, old: Old) -> Any:
    """The method that draws previews."""
    return sampler_here(str(value)) or Skipped(f"There is no {value} here.")


def prompts(value: Any, old: Old) -> Any:
    """The lines of sample prompts without their options, such as --w 512."""
    text = str(value)
    if "\n" not in text and re.search(r"\.(txt|toml|json)$", text.strip(), re.IGNORECASE):
        return yours("It names a file of prompts: copy its lines into Preview prompts.")
    lines = [re.split(r"\s--[a-z]+\b", line.strip())[0].strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    words = "Options such as --w and --s are left out; previews have theirs on the Saving tab."
    return Taken(found, CHANGED, words) if found else Skipped("There are none.")


def offset(value: Any, old: Old) -> Any:
    """The size of offset noise, unless the other kind is chosen."""
    if old.text("noise_offset_type").lower() == "multires":
        return Skipped("Multires noise is chosen in the file.")
    return value


def multires(value: Any, old: Old) -> Any:
    """How many layers of multires noise there are, unless the other kind is chosen."""
    number = as_number(value)
    if number and old.text("noise_offset_type").lower() == "original":
        return Skipped("Offset noise is chosen in the file.")
    return Taken(0, TRANSLATED, "One layer changes nothing.") if number == 1 else value


def prior_weight_there(value: Any, old: Old) -> Any:
    """The weight of class images; for whole SDXL models it was not read."""
    if as_flag(old.values.get("sdxl")) and not is_lora(old):
        return Taken(1.0, CHANGED, "For whole SDXL models it was always 1 there.")
    return value
