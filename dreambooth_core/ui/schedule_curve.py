"""The learning rate over the steps of the training that the settings on the page describe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.config.concept import Concept
from dreambooth_core.config.pictures import picture_files, read_folder_name
from dreambooth_core.config.rules.optimizer import learning_rate_fields
from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.config.sections.optimizer import SELF_TUNING_OPTIMIZERS
from dreambooth_core.errors import DreamboothError, InputError
from dreambooth_core.optim.lr import lr_factor
from dreambooth_core.ui.gradio_compat import listen
from dreambooth_core.ui.messages import hint
from dreambooth_core.ui.run_html import RATE_COLORS, STYLE
from dreambooth_core.ui.run_plot import Line, Point, plot
from dreambooth_core.ui.training_form import TrainingForm, Values

POINTS = 300
SHAPING = ("learning_rate", "intervals.epochs", "intervals.max_steps")
"""What draws the curve again when it changes; the rest does when one of these does."""

SHAPING_TOO = ("optimizer.name", "lora.enabled", "text_encoder.train_ratio", "unet.train")
UNKNOWN_LENGTH = "The curve is drawn here as soon as there are pictures or Max training steps."


class ScheduleCurve:
    """The place on the page where the curve is."""

    def __init__(self) -> None:
        """Make it inside the current container."""
        self.display = gr.HTML(hint(UNKNOWN_LENGTH), elem_id="dreambooth_schedule_curve")

    def wire(self, form: TrainingForm, opened: Any) -> None:
        """Draw it again when a setting that it shows changes, as it does with another model.

        `opened` is the event of coming to its tab: newer Gradio tells of no change before that.
        """

        def draw(values: Values) -> Any:
            try:
                return schedule_html(form.read(values))
            except DreamboothError:  # a number is being typed
                return gr.update()

        components = form.train.components()
        paths = [path for name in (*SHAPING, *SHAPING_TOO) for path in form.train.paths(name)]
        changes = [components[path].change for path in paths if path in components]
        for event in (opened, *changes):
            listen(event, draw, form.inputs(), self.display, newest=True)


def schedule_html(config: TrainConfig) -> str:
    """Return the learning rates of a training as a plot; a hint where its length is not known."""
    total_steps = expected_steps(config)
    if not total_steps:
        return hint(UNKNOWN_LENGTH)
    drawn = plot(f"Learning rate over {total_steps} steps", rate_lines(config, total_steps))
    said = ""
    if config.optimizer.name in SELF_TUNING_OPTIMIZERS:
        said = hint(f"{config.optimizer.name} multiplies this by the rate that it finds.")
    return f'{STYLE}<div class="dreambooth-plots">{drawn}</div>{said}'


def rate_lines(config: TrainConfig, total_steps: int) -> list[Line]:
    """Return a line for each part that is trained, from its first step to its last."""
    ratio = config.text_encoder.train_ratio
    shares = {
        "unet": float(config.unet.train),
        "text encoder": ratio if config.unet.train else math.ceil(ratio),  # alone, to the end
    }
    trained = {name: share for name, share in shares.items() if share > 0}
    rates = learning_rate_fields(config).values()
    return [
        Line(name, _points(config, rate, total_steps, share), RATE_COLORS[number], 2.0)
        for number, ((name, share), rate) in enumerate(zip(trained.items(), rates, strict=True))
    ]


def expected_steps(config: TrainConfig) -> int:
    """Return how many steps a training takes, as far as the files' names tell; 0 if they do not.

    The plan, which looks into the pictures, may find a few more, where buckets are not full.
    """
    intervals, batch = config.intervals, config.batch
    shown = sum(_shown_images(concept) for concept in config.concepts)
    per_step = batch.batch_size * batch.gradient_accumulation_steps
    by_epochs = math.ceil(shown / per_step) * intervals.epochs
    ends = [steps for steps in (by_epochs, intervals.max_steps) if steps]
    return min(ends, default=0)


def _shown_images(concept: Concept) -> int:
    folder = Path(concept.instance_folder).expanduser()
    if not concept.instance_folder or not folder.is_dir():
        return 0
    try:
        return sum(_repeats(concept, path, folder) for path in picture_files(folder))
    except InputError:  # said when the training is started
        return 0


def _repeats(concept: Concept, picture: Path, folder: Path) -> int:
    said = read_folder_name(picture, folder) if concept.folder_names else None
    return said.repeats if said else concept.repeats


def _points(config: TrainConfig, rate: float, total_steps: int, share: float) -> list[Point]:
    settings = config.learning_rate
    last = min(total_steps, math.ceil(share * total_steps)) - 1
    return [
        (
            step + 1,
            rate
            * lr_factor(
                settings.schedule,
                step,
                total_steps,
                warmup_steps=settings.warmup_steps,
                min_factor=settings.min_factor,
                cycles=settings.cycles,
                power=settings.power,
                decay_share=settings.decay_share,
            ),
        )
        for step in _steps(last, settings.warmup_steps)
    ]


def _steps(last: int, warmup_steps: int) -> Iterable[int]:
    """Return evenly chosen steps from 0 to the last, and those where the warm-up ends."""
    even = {round(number * last / (POINTS - 1)) for number in range(POINTS)}
    corners = {step for step in (warmup_steps - 1, warmup_steps) if 0 <= step <= last}
    return sorted(even | corners)
