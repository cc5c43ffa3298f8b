"""How kohya's settings of the length, the rates, the optimizer and the networks are read."""

from __future__ import annotations

import re
from typing import Any

from dreambooth_core.config.imports.mapping import Old, Skipped, Taken, as_flag, as_number, yours
from dreambooth_core.config.imports.report import CHANGED, KEPT, TRANSLATED
from dreambooth_core.config.imports.words_there import letters, optimizer_here, schedule_here

LORA_SIGNS = ("network_dim", "network_module", "network_alpha", "LoRA_type", "unet_lr")
TEXT_ENCODER_RATES = ("text_encoder_lr", "learning_rate_te", "learning_rate_te1")
LYCORIS = ("loha", "lokr", "ia3", "glora", "boft", "diagoft")
ADAM_BETA2, LION_BETA2 = 0.999, 0.99
WHOLE = 100.0


def is_lora(old: Old) -> bool:
    """Return whether the settings are those of a LoRA."""
    return any(name in old.values for name in LORA_SIGNS)


def lora(value: Any, old: Old) -> Any:
    """Whether a LoRA is trained."""
    kind = letters(str(value))
    if any(name in kind for name in LYCORIS):
        return yours(f"{value} is not to be had here: a plain LoRA, LoCon or DoRA is.")
    return Taken(True, TRANSLATED, "A LoRA is trained.")


def is_true(value: Any, old: Old) -> Any:
    """What being there at all says."""
    return True


def unet_rate(value: Any, old: Old) -> Any:
    """The learning rate of the UNet."""
    if as_number(value) == 0:
        return yours("0 left the UNet as it was: switch off Train UNet.")
    return value


def shared_rate(*others: str, of_lora: bool) -> Any:
    """Return a reader of the rate that counts for a part that has none of its own."""

    def read(value: Any, old: Old) -> Any:
        if is_lora(old) != of_lora:
            return Skipped("It is the rate of a LoRA." if of_lora else "A LoRA is trained.")
        if any(first_number(old.values.get(name)) is not None for name in others):
            return Skipped("This part has a rate of its own in the file.")
        return value

    return read


def te_rate(value: Any, old: Old) -> Any:
    """The learning rate of the text encoder; 0 left it as it was."""
    number = first_number(value)
    if number == 0:
        return Skipped("0 left the text encoder as it was, which the step ratio says here.")
    return value if number is None else number


def first_number(value: Any) -> float | None:
    """Return a number, or the first one of a list: a rate for each text encoder."""
    return as_number(value[0] if isinstance(value, list) and value else value)


def te_ratio_of_rate(value: Any, old: Old) -> Any:
    """The share of the steps in which the text encoder is trained, by its rate."""
    if first_number(value) == 0:
        return Taken(0.0, TRANSLATED, "A rate of 0 left the text encoder as it was.")
    return Skipped("The text encoder is trained.")


def te_stop(value: Any, old: Old) -> Any:
    """When training the text encoder stops: percent in the program's page, steps elsewhere."""
    number, total = as_number(value), old.number("max_train_steps", 0)
    if any(first_number(old.values.get(name)) == 0 for name in TEXT_ENCODER_RATES):
        return Skipped("The text encoder's learning rate is 0.")
    if not number:
        return Taken(1.0, TRANSLATED, "0 trained it to the end.")
    if number < 0:
        return Taken(0.0, TRANSLATED, "-1 left it as it was.")
    if old.facts["page"]:
        return Taken(min(1.0, number / WHOLE), TRANSLATED, "There it was in percent of the steps.")
    if total < 1:
        return yours("It counts steps, and the file does not say of how many.")
    return Taken(min(1.0, round(number / total, 4)), TRANSLATED, f"Of {total:g} steps.")


def off_leaves_it(value: Any, old: Old) -> Any:
    """The text encoder is left alone if only the UNet's LoRA is trained."""
    return 0.0 if as_flag(value) else Skipped("It is off: both are trained.")


def train_te(value: Any, old: Old) -> Any:
    """Whether the text encoder is trained."""
    return 1.0 if as_flag(value) else 0.0


def without_unet(value: Any, old: Old) -> Any:
    """The UNet is left alone if only the text encoder's LoRA is trained."""
    return not as_flag(value)


def optimizer(value: Any, old: Old) -> Any:
    """The optimizer's name here."""
    name, is_same = optimizer_here(str(value))
    if not name:
        return Skipped(f"There is no {value} here, and none is put in its place.")
    if name == "adafactor" and not chosen_rate(old):
        words = "There it chose its rate itself (relative_step); here the learning rate counts."
        return Taken(name, CHANGED, words)
    words = f"{value} is not to be had here; this one learns the same and takes more memory."
    return Taken(name, TRANSLATED, "") if is_same else Taken(name, CHANGED, words)


def chosen_rate(old: Old) -> bool:
    """Return whether Adafactor was told to keep to the learning rate."""
    return argument_in(old.values.get("optimizer_args"), "relative_step") == ["False"]


def beta2(value: Any, old: Old) -> Any:
    """The second beta, which is the optimizer's own unless it is among its arguments."""
    name, _ = optimizer_here(str(value))
    if not name:
        return Skipped("The optimizer is not to be had here.")
    return Taken(LION_BETA2 if "lion" in name else ADAM_BETA2, TRANSLATED, "What it has by itself.")


def scaled_steps(value: Any, old: Old) -> Any:
    """Adafactor's steps in proportion to the weights, unless it is told otherwise."""
    if optimizer_here(str(value))[0] != "adafactor":
        return Skipped("Another optimizer is chosen.")
    return Taken(True, TRANSLATED, "What Adafactor does by itself there.")


def argument(name: str, place: int = 0) -> Any:
    """Return a reader of one of the optimizer's arguments, such as "weight_decay=0.01"."""

    def read(value: Any, old: Old) -> Any:
        parts = argument_in(value, name)
        if place >= len(parts):
            return Skipped("What it says is not known here.")
        return Taken(parts[place], TRANSLATED, f"{name} of its arguments.")

    return read


def argument_in(value: Any, name: str) -> list[str]:
    """Return the values of one of several arguments: those of betas=(0.9, 0.99) are two."""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    match = re.search(rf"\b{name}\s*=\s*[\"'(]*([\w.+-]+(?:\s*,\s*[\d.][\w.+-]*)*)", text)
    return re.split(r"\s*,\s*", match[1]) if match else []


def schedule(value: Any, old: Old) -> Any:
    """The learning rate schedule."""
    name = str(value).strip().lower()
    here = schedule_here(name)
    if not here:
        return Skipped(f"There is no schedule {value} here.")
    warm = old.number("lr_warmup", 0) or old.number("lr_warmup_steps", 0)
    if name == "constant" and warm:
        return Taken("constant", KEPT, "It has no warm-up, here as there.")
    return Taken(here, KEPT if here == name else TRANSLATED, "")


def warmup(value: Any, old: Old) -> Any:
    """The number of warm-up steps; below 1 it is a share of the steps."""
    number, total = as_number(value), old.number("max_train_steps", 0)
    if old.text("lr_scheduler").lower() == "constant" or not number:
        return Skipped("There is no warm-up.")
    if number >= 1:
        return value
    if total < 1:
        return yours("It is a share of the steps, and the file does not say of how many.")
    return Taken(round(number * total), TRANSLATED, f"Of {total:g} steps.")


def warmup_percent(value: Any, old: Old) -> Any:
    """The warm-up in percent of the steps, as the program's page has it."""
    if as_number(old.values.get("lr_warmup_steps")):
        return Skipped("The number of steps is told elsewhere in the file.")
    number = as_number(value)
    if old.text("lr_scheduler").lower() == "constant" or not number:
        return Skipped("There is no warm-up.")
    total = old.number("max_train_steps", 0)
    if total < 1:
        return yours(f"{number:g} percent of the steps, and the file does not say of how many.")
    return Taken(
        round(number / WHOLE * total), TRANSLATED, f"{number:g} percent of {total:g} steps."
    )


def decay_share(value: Any, old: Old) -> Any:
    """Over which part of the steps the rate falls at last; 1 and above are steps."""
    number, total = as_number(value), old.number("max_train_steps", 0)
    if not number or number < 1:
        return value if number else Skipped("0 says nothing.")
    if total < 1:
        return yours("It counts steps, and the file does not say of how many.")
    return Taken(min(1.0, round(number / total, 4)), TRANSLATED, f"Of {total:g} steps.")


def epochs(value: Any, old: Old) -> Any:
    """The number of epochs, unless the number of steps alone counts."""
    number = as_number(value)
    return value if number else Skipped("0 says nothing.")


def plain_epochs(value: Any, old: Old) -> Any:
    """The number of epochs of the program's page, which the maxima take the place of."""
    if as_number(old.values.get("max_train_epochs")):
        return Skipped("Max train epochs takes its place.")
    if as_number(old.values.get("max_train_steps")):
        return Skipped("Max train steps takes its place.")
    return epochs(value, old)


def no_epochs(value: Any, old: Old) -> Any:
    """No epochs where the number of steps alone says how long to train."""
    if not as_number(value) or as_number(old.values.get("max_train_epochs")):
        return Skipped("The epochs say how long to train.")
    return Taken(0, TRANSLATED, "The number of steps alone said how long to train.")


def steps(value: Any, old: Old) -> Any:
    """The greatest number of steps; epochs win where both are given."""
    number = as_number(value)
    if not number:
        return Skipped("0 says nothing.")
    if as_number(old.values.get("max_train_epochs")):
        return Skipped("The epochs took its place.")
    words = "There class images took steps of their own; here they come with the instance images."
    return Taken(value, CHANGED, words)


def seed(value: Any, old: Old) -> Any:
    """A seed; 0 or none drew one by chance in the page."""
    number = as_number(value)
    if number is None or number < 0 or (number == 0 and old.facts["page"]):
        return Skipped("It drew one by chance.")
    return value
