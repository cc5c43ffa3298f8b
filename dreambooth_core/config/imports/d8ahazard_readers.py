"""How single values of the abandoned extension are read: as labelled, and as they really acted."""

from __future__ import annotations

import re
from typing import Any

from dreambooth_core.config.imports.mapping import (
    ACTS_HERE,
    AS_THERE,
    TRAINING,
    Old,
    Skipped,
    Taken,
    as_flag,
    as_number,
    yours,
)
from dreambooth_core.config.imports.report import CHANGED, KEPT, LEFT, REVIVED, TRANSLATED
from dreambooth_core.config.imports.words_there import (
    letters,
    optimizer_here,
    sampler_here,
    schedule_here,
)

RISING = ("constant", "linear")
"""They began at a share of the rate there, and were at all of it halfway."""
ANNEALING = ("cosine_annealing", "cosine_annealing_with_restarts")
CYCLED = ("cosine", "cosine_with_restarts")
NO_WARMUP = ("constant", "linear", "rex", *ANNEALING)
CONSTANT_RATE = "constant_with_warmup"
ADAM_BETA2, LION_BETA2 = 0.999, 0.99
PEER_EMA_DECAY = 0.9999
NOT_FOR_SDXL = "For SDXL the text encoders were never trained."
FIRST_GENERATION = ("max_train_steps", "steps")
"""Settings that only files of 2022 have: then intervals were counted in steps."""


def optimizer(value: Any, old: Old) -> Any:
    """The optimizer's name here."""
    name, is_same = optimizer_here(str(value))
    if not name:
        return Skipped(f"There is no {value} here, and none is put in its place.")
    if is_same:
        return Taken(name, TRANSLATED, "The same under its name here.")
    words = f"{value} is not to be had here; this one learns the same and takes more memory."
    return Taken(name, CHANGED, words)


def eight_bit(value: Any, old: Old) -> Any:
    """The optimizer by the switch "Use 8bit Adam" of files that had no other."""
    if "optimizer" in old.values:
        return Skipped("The optimizer is named elsewhere in the file.")
    return optimizer("8bit AdamW" if as_flag(value) else "Torch AdamW", old)


def beta2(value: Any, old: Old) -> Any:
    """The second beta, which stood in no control there: each optimizer had its own."""
    name, _ = optimizer_here("8bit AdamW" if as_flag(value) is not None else str(value))
    if not name:
        return Skipped("The optimizer is not to be had here.")
    default = LION_BETA2 if "lion" in name else ADAM_BETA2
    return Taken(default, TRANSLATED, "What this optimizer always had there.")


def scaled_steps(value: Any, old: Old) -> Any:
    """Adafactor's steps in proportion to the weights, which were always so there."""
    if optimizer_here(str(value))[0] != "adafactor":
        return Skipped("Another optimizer is chosen.")
    return Taken(True, TRANSLATED, "Adafactor was always so there.")


def of_adaptation(value: Any, old: Old) -> Any:
    """What only D-Adaptation read."""
    if optimizer_here(old.text("optimizer"))[0] == "dadapt_adam":
        return value
    return Skipped("Only D-Adaptation read it, and another optimizer is chosen.")


def target_epochs(value: Any, old: Old) -> Any:
    """After how many epochs the prior loss weight is at its lowest; nothing was 150."""
    return value if as_number(value) else Taken(150, TRANSLATED, "0 meant 150.")


def schedule(value: Any, old: Old) -> Any:
    """The learning rate schedule, told where the same name does something else."""
    name = str(value).strip().lower()
    if name in RISING:
        words = f"There {name} began at a share of the rate (lr_factor) and rose to all of it."
        return Taken(CONSTANT_RATE, CHANGED, f"{words} Here warm-up steps do that.")
    here = schedule_here(name)
    if not here:
        return Skipped(f"There is no schedule {value} here.")
    if name == "cosine":
        words = "There it came back to the full rate by the end, a mistake; here it only falls."
        return Taken(here, CHANGED, words)
    if name in ANNEALING:
        return Taken(here, TRANSLATED, "It reaches the lowest rate at the end of the run.")
    return Taken(here, KEPT if here == name else TRANSLATED, "Counted in optimizer steps.")


def cycles(value: Any, old: Old) -> Any:
    """How often the rate restarts."""
    name = old.text("lr_scheduler").lower()
    if name == "cosine_annealing_with_restarts":
        return Skipped("It belonged to another schedule.")
    return value if name in CYCLED else Skipped("The schedule has no restarts.")


def cycles_of_scale(value: Any, old: Old) -> Any:
    """How often the annealing schedule restarts: its period was half of the scale position."""
    if old.text("lr_scheduler").lower() != "cosine_annealing_with_restarts":
        return Skipped("Only schedules that are not used here, or that need it no longer, read it.")
    position = as_number(value)
    if not position or position <= 0:
        return Skipped("It is 0.")
    return Taken(max(1, round(2 / position)), TRANSLATED, "A restart came after half of it.")


def min_factor(value: Any, old: Old) -> Any:
    """The lowest rate as a share of the highest."""
    if old.text("lr_scheduler").lower() not in ANNEALING:
        return Skipped("Only the annealing schedules read it.")
    rate, lowest = highest_rate(old), as_number(value)
    if not rate or lowest is None:
        return Skipped("Without the learning rate it cannot be told.")
    return Taken(min(1.0, round(lowest / rate, 6)), TRANSLATED, "As a share of the rate.")


def highest_rate(old: Old) -> float:
    """Return the learning rate that the UNet or its LoRA was trained with."""
    if old.flag("use_lora"):
        return old.number("lora_learning_rate", 1e-4)
    return old.number("learning_rate", 2e-6)


def warmup(value: Any, old: Old) -> Any:
    """Warm-up steps as they stand there."""
    name = old.text("lr_scheduler", CONSTANT_RATE).lower()
    if name in NO_WARMUP:
        return Skipped(f"The schedule {name} had no warm-up.")
    return Taken(value, KEPT, "") if images_per_step(old) == 1 else value


def warmup_in_images(value: Any, old: Old) -> Any:
    """Warm-up steps so that it ends where it ended there, where images were counted."""
    plain = warmup(value, old)
    count = as_number(value)
    if isinstance(plain, Skipped) or count is None:
        return plain
    return round(count / images_per_step(old))


def images_per_step(old: Old) -> int:
    """Return how many images one optimizer step took there, class images among them."""
    batch = old.number("train_batch_size", 1) * old.number("gradient_accumulation_steps", 1)
    return max(1, round(batch * (2 if old.facts.get("class_images") else 1)))


def max_steps(value: Any, old: Old) -> Any:
    """The number of steps, which took the place of the epochs if it was given."""
    steps = as_number(value)
    if not steps or steps < 1:
        return Skipped("0 left the length to the epochs.")
    return Taken(value, KEPT, "")


def no_epochs(value: Any, old: Old) -> Any:
    """No epochs where the number of steps alone says how long to train."""
    return Taken(0, TRANSLATED, "") if as_number(value) else Skipped("0 says nothing.")


def epochs_unless_steps(value: Any, old: Old) -> Any:
    """The epochs, unless the number of steps took their place."""
    if old.number("max_train_steps", 0) >= 1:
        return Taken(0, TRANSLATED, "The number of steps alone said how long to train.")
    return value


def text_encoder_ratio(value: Any, old: Old) -> Any:
    """The share of the run in which the text encoder is trained; once it was a number of epochs."""
    number = as_number(value)
    if number is None or number > 1:
        epochs = old.number("num_train_epochs", 0)
        if number is None or epochs <= 0:
            return yours("It counted epochs there, and the file does not say of how many.")
        words = f"There it counted epochs, of {epochs:g}."
        return Taken(min(1.0, round(number / epochs, 4)), TRANSLATED, words)
    if number < 0:
        return Taken(1.0, TRANSLATED, "-1 meant to the end.")
    if number and is_sdxl(old):
        return Taken(number, REVIVED, f"{NOT_FOR_SDXL} {ACTS_HERE}")
    return number


def text_encoder_ratio_there(value: Any, old: Old) -> Any:
    """The share of the run in which the text encoder was trained: none for SDXL."""
    if as_number(value) and is_sdxl(old):
        return Taken(0.0, REVIVED, f"{NOT_FOR_SDXL} {AS_THERE}")
    return text_encoder_ratio(value, old)


def is_sdxl(old: Old) -> bool:
    """Return whether the model was of Stable Diffusion XL."""
    return old.text("model_type") == "SDXL"


def text_encoder_switch(value: Any, old: Old) -> Any:
    """The switch that came before the share."""
    if "stop_text_encoder" in old.values:
        return Skipped("The share of the steps is told elsewhere in the file.")
    return Taken(1.0 if as_flag(value) else 0.0, TRANSLATED, "On is all steps, off is none.")


def text_encoder_steps(value: Any, old: Old) -> Any:
    """The number of steps that came before the share."""
    number, total = as_number(value), old.number("max_train_steps", 0)
    if number is None or number < 0:
        return Taken(1.0, TRANSLATED, "-1 meant to the end.")
    if total < 1:
        return yours("It counted steps there, and the file does not say of how many.")
    return Taken(min(1.0, round(number / total, 4)), TRANSLATED, f"Of {total:g} steps.")


def unet_rate(value: Any, old: Old) -> Any:
    """What the text encoder was really trained with: the rate of the UNet."""
    name = "lora_learning_rate" if old.flag("use_lora") else "learning_rate"
    return old.number(name, highest_rate(old))


def prior_weight_there(value: Any, old: Old) -> Any:
    """What class images really counted: all, or nothing where they were thrown away."""
    if is_sdxl(old):
        words = "For SDXL it was put on half of the channels of every picture, a mistake."
        return Taken(value, CHANGED, f"{words} That cannot be done here.")
    if not old.facts.get("class_images"):
        return value
    if class_images_were_lost(old):
        return Taken(value, CHANGED, "Class images were thrown away: their number is 0 below.")
    return 1.0


def class_images_were_lost(old: Old) -> bool:
    """Return whether class images were read and then thrown away: all but SDXL, batch over 1."""
    return not is_sdxl(old) and old.number("train_batch_size", 1) > 1


def uncached(value: Any, old: Old) -> Any:
    """Latents are always kept here."""
    if as_flag(value):
        return Taken("memory", TRANSLATED, "On is in memory.")
    return Skipped("Here latents are always kept: it costs little and training is faster.")


def inverted_cache(value: Any, old: Old) -> Any:
    """The switch that once said the opposite."""
    flag = as_flag(value)
    return Skipped("It is neither on nor off.") if flag is None else uncached(not flag, old)


def crop(value: Any, old: Old) -> Any:
    """Center crop on or off; off was a random one."""
    return "center" if as_flag(value) else "random"


def attention(value: Any, old: Old) -> Any:
    """What was chosen for attention; PyTorch has all of it in its own now."""
    name = letters(str(value))
    if name in ("default", "no", "none", ""):
        return Taken("default", KEPT, "")
    words = f"{value} was never switched on in training there. PyTorch's own attention is as fast"
    return Taken("default", TRANSLATED, f"{words} and needs as little memory.")


def half_weights(value: Any, old: Old) -> Any:
    """Weights in 16 bits, which they are not here unless it is asked for."""
    if not as_flag(value):
        return Taken("fp32", KEPT, "")
    words = "There the weights themselves were in 16 bits, which loses small steps."
    return Taken("fp32", CHANGED, f"{words} Here they stay in 32 bits.")


def half_weights_there(value: Any, old: Old) -> Any:
    """Weights in 16 bits, as they were, where that can be done safely."""
    if as_flag(value) and old.text("mixed_precision") == "bf16":
        return "bf16"
    return half_weights(value, old)


def saved_dtype(value: Any, old: Old) -> Any:
    """The number format of saved files."""
    return "fp16" if as_flag(value) else "fp32"


def subfolder(value: Any, old: Old) -> Any:
    """A folder named like the model."""
    if not as_flag(value):
        return Skipped("It is off: checkpoints go beside the others.")
    return plain_name(old.text("custom_model_name") or old.text("model_name")) or Skipped(
        "The file names no model."
    )


def plain_name(text: str) -> str:
    """Return a name as the abandoned extension made files of it."""
    return re.sub(r"[^\w. -]", "", text).strip(" .")


def every(value: Any, old: Old) -> Any:
    """A frequency in epochs."""
    return Skipped("There it counted steps.") if counted_in_steps(old) else value


def every_steps(value: Any, old: Old) -> Any:
    """A frequency in steps, which files of 2022 have."""
    return value if counted_in_steps(old) else Skipped("There it counted epochs.")


def counted_in_steps(old: Old) -> bool:
    """Return whether the file is of a time when frequencies were in steps."""
    of_2022 = any(name in old.values for name in FIRST_GENERATION)
    return of_2022 and not old.flag("save_use_epochs")


def save_every(value: Any, old: Old) -> Any:
    """How often checkpoints are saved, if they were written then."""
    if not old.flag("save_ckpt_during", True):
        return Taken(0, TRANSLATED, "No checkpoint was written then: save_ckpt_during is off.")
    return every(value, old)


def state_every(value: Any, old: Old) -> Any:
    """How often a state to go on from is saved."""
    if not as_flag(value):
        return Skipped("It is off. A state is always written at the end.")
    return Taken(old.values.get("save_embedding_every", 25), TRANSLATED, "As often as the model.")


def with_ema_only(value: Any, old: Old) -> Any:
    """EMA weights in saved files, where there are any."""
    if as_flag(value) and (old.flag("use_lora") or not old.flag("use_ema", True)):
        return Taken(False, TRANSLATED, "The run keeps no average that could be written.")
    return value


def sampler(value: Any, old: Old) -> Any:
    """The method that draws pictures."""
    name = sampler_here(str(value))
    return name or Skipped(f"There is no {value} here.")


def conv_rank(value: Any, old: Old) -> Any:
    """Convolutions in the LoRA, with the rank of the other layers."""
    if not as_flag(value):
        return Skipped("It is off.")
    return old.number("lora_unet_rank", 4)


def as_number_of(value: Any, old: Old) -> Any:
    """The same number in another setting."""
    return value


def first_tag(value: Any, old: Old) -> Any:
    """How many tags stay in front."""
    return 1 if as_flag(value) else Skipped("Tags are not shuffled.")


def ema_decay(value: Any, old: Old) -> Any:
    """How slowly the average follows: what suits runs of hundreds of steps."""
    return TRAINING["ema.decay"].default if as_flag(value) else Skipped("EMA is off.")


def ema_decay_there(value: Any, old: Old) -> Any:
    """How slowly the average followed there."""
    return PEER_EMA_DECAY if as_flag(value) else Skipped("EMA is off.")


def without_sign(value: Any, old: Old) -> Any:
    """Noise that is as often negative as positive knows no sign."""
    number = as_number(value)
    return value if number is None else abs(number)


def one_prompt(value: Any, old: Old) -> Any:
    """A prompt as a list of one."""
    text = str(value).strip()
    return [text] if text else Skipped("It is empty.", LEFT)


def seed(value: Any, old: Old) -> Any:
    """A seed; -1 drew one by chance."""
    number = as_number(value)
    return Skipped("-1 drew one by chance.") if number is None or number < 0 else value
