"""The Transfer tab: what a training taught goes into another checkpoint, or becomes a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import gradio as gr

from dreambooth_core.config.control import number_text
from dreambooth_core.config.merge import WEIGHTED_SUM, MergeConfig
from dreambooth_core.config.schema import BakeLoraConfig, ExtractLoraConfig
from dreambooth_core.config.validate import check
from dreambooth_core.errors import DreamboothError
from dreambooth_core.host.base import Host
from dreambooth_core.job.history import saved_loras
from dreambooth_core.job.transfer import TransferEnd, last_transfer
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.controls import Fields, side_button
from dreambooth_core.ui.gradio_compat import listen, make, on_load, settled_events
from dreambooth_core.ui.messages import explain, facts, heading, note, size_text
from dreambooth_core.ui.tabs.select import readable_info
from dreambooth_core.ui.training_form import Updates, Values

HINT = "A subject that one model has learned, drawn by another one: without training again."
CHOOSE = "Choose the model that is to learn it, A. What happens then is said here."
CHOOSE_TWO = "A weighted sum mixes two models: choose A and B."
LORA_HINT = "What sets B apart from its source as a small file, for any model of the family."
BAKE_HINT = "A LoRA made part of a checkpoint, so that prompts need not name it."
NO_MODEL = "Choose a model on the Select tab first."
NOT_TRAINED = "No checkpoint of it was saved yet: train it, or choose the trained one as B."
ONLY_LORA = (
    "It was trained as a LoRA, which any model of its family takes: name it in a prompt, or put it "
    "into a checkpoint below."
)
NO_SOURCE = "The checkpoint that it was made from is not there any more: choose C."
MODELS = ("primary", "secondary", "tertiary")
SETTINGS = ("name", "multiplier")
DETAILS = ("method", "density", "seed", "vae", "arithmetic", "dtype", "subfolder")
LORA_CHECKPOINTS = ("base", "trained")

Start = Callable[[str, Any], Any]
C = TypeVar("C", MergeConfig, ExtractLoraConfig, BakeLoraConfig)


class JobForm(Generic[C]):
    """The settings of one kind of job, the button that starts it and what is said about that."""

    def __init__(self, kind: str, config_class: type[C]) -> None:
        """Place nothing yet."""
        self.kind = kind
        self.id = kind.replace("-", "_")
        self.fields: Fields[C] = Fields(config_class, self.id)

    def place_button(self, label: str, variant: str = "secondary") -> None:
        """Place the button, and the words below it."""
        name = f"dreambooth_{self.id}_button"
        self.button = make(gr.Button, value=label, variant=variant, elem_id=name)
        self.message = gr.HTML("", elem_id=f"dreambooth_{self.id}_message")

    def part(self, name: str) -> Any:
        """Return the component of a setting."""
        return self.fields.components()[name]

    def wire(self, start: Start, workspace: Callable[[], Workspace]) -> None:
        """Let the button start the job."""

        def press(values: Values) -> str:
            try:
                config = self.fields.read(values)
                check(config, workspace())
                start(self.kind, config)
            except DreamboothError as error:
                return explain(error, self.fields.config_class)
            return note(f"Making {config.name}. The run panel shows how it goes on.")

        inputs = set(self.fields.components().values())
        listen(self.button.click, press, inputs, self.message, waiting=True)


class TransferTab:
    """The three models of a transfer and what it does; LoRA from and into checkpoints."""

    def __init__(self, host: Host) -> None:
        """Place everything inside the current tab."""
        self.host = host
        self.merge = JobForm("merge", MergeConfig)
        self.extract = JobForm("extract-lora", ExtractLoraConfig)
        self.bake = JobForm("bake-lora", BakeLoraConfig)
        self.forms = (self.merge, self.extract, self.bake)
        self._place_merge()
        self.result = gr.HTML("", elem_id="dreambooth_transfer_result")
        with make(gr.Accordion, label="Make a LoRA of it instead", open=False):
            gr.HTML(heading("Extract LoRA", LORA_HINT))
            with make(gr.Row, elem_classes=["dreambooth-fields"]):
                self.extract.fields.place(*LORA_CHECKPOINTS, choices=host.checkpoint_names())
            self._place_rest(self.extract)
            self.extract.place_button("Extract LoRA")
        with make(gr.Accordion, label="Put a LoRA into a checkpoint", open=False):
            gr.HTML(heading("Bake LoRA", BAKE_HINT))
            with make(gr.Row, elem_classes=["dreambooth-fields"]):
                self.bake.fields.place("checkpoint", choices=host.checkpoint_names())
                self.bake.fields.place("lora", choices=lora_names(self.workspace))
            self._place_rest(self.bake)
            self.bake.place_button("Bake LoRA")

    @property
    def workspace(self) -> Workspace:
        """Where checkpoints and LoRA files lie."""
        return self.host.workspace()

    def wire(self, start: Start, model: Any, opened: Any, ended: Any) -> None:
        """Let the controls act.

        `model` is the component that chooses the model, `opened` the event of coming to this tab,
        and `ended` one that happens when a job has ended.
        """
        for form in self.forms:
            form.wire(start, self.host.workspace)
        everything = [*self._choosers(), self.result]
        listen(self.fill_button.click, self.fill, model, self._filled())
        listen(self.refresh_button.click, self.look, None, everything)
        messages = [form.message for form in self.forms]
        listen(ended, self.look_after_job, None, [*everything, *messages])
        on_load(self.look, None, everything)
        first = [model, self.merge.part("secondary")]
        listen(opened, self.fill_if_empty, first, self._filled())
        deciding = [self.merge.part(name) for name in ("method", "multiplier", *MODELS)]
        inputs = {*deciding, self.merge.part("name")}
        for part in deciding:
            for event in settled_events(part, typed=True):
                outputs = [self.meaning, self.merge.part("name")]
                listen(event, self.describe, inputs, outputs, newest=True)

    def look(self) -> Updates:
        """Return the files that there are now, and what the last of these jobs came to."""
        checkpoints, loras = self.host.checkpoint_names(), lora_names(self.workspace)
        updates: Updates = {part: gr.update(choices=checkpoints) for part in self._choosers()}
        updates[self.bake.part("lora")] = gr.update(choices=loras)
        return {**updates, self.result: show_result(last_transfer(self.workspace))}

    def look_after_job(self) -> Updates:
        """Return the same, without what was said when the job began."""
        return {**self.look(), **{form.message: "" for form in self.forms}}

    def fill_if_empty(self, model: str | None, trained: str | None) -> Updates:
        """Fill in the chosen model's checkpoints where nothing is chosen yet."""
        if trained or not model:
            return {self.merge.message: gr.update()}
        return {**self.fill(model), self.merge.message: ""}

    def fill(self, model: str | None) -> Updates:
        """Fill in the checkpoints of the chosen model: what it learned, and what it began with."""
        try:
            info = readable_info(self.workspace, model or "")
        except DreamboothError as error:
            return {self.merge.message: explain(error)}
        if info is None:
            return {self.merge.message: note(NO_MODEL, "warning")}
        return self._show_found(info, self._source(info), self._trained(info), self._lora(info))

    def _show_found(self, info: ModelInfo, source: str, trained: str, lora: str) -> Updates:
        """Put the paths that were found into the three forms; "" stands for what is missing."""
        needed = ((trained, ONLY_LORA if lora else NOT_TRAINED), (source, NO_SOURCE))
        missing = [words for path, words in needed if not path]
        values = {
            self.merge.part("method"): "add_difference",
            self.merge.part("secondary"): trained,
            self.merge.part("tertiary"): source,
            self.extract.part("name"): info.name,
            self.extract.part("trained"): trained,
            self.extract.part("base"): source,
            self.bake.part("checkpoint"): source,
            self.bake.part("lora"): lora,
        }
        return {
            **{part: gr.update(value=value or None) for part, value in values.items()},
            self.merge.message: note(" ".join(missing), "warning") if missing else "",
        }

    def describe(self, values: Values) -> Updates:
        """Say what the merge would do, and call its file by what goes into it."""
        told = {name: values[self.merge.part(name)] for name in ("method", "multiplier", *MODELS)}
        name = self.merge.part("name")
        stems = [Path(told[model] or "").stem for model in ("secondary", "primary")]
        proposed = gr.update()
        if all(stems) and not (values[name] or "").strip():
            proposed = gr.update(value="_in_".join(stems))
        return {self.meaning: meaning(told), name: proposed}

    def _place_merge(self) -> None:
        fields = self.merge.fields
        with make(gr.Row, elem_classes=["dreambooth-title"]):
            gr.HTML(heading("To another model", HINT))
            self.fill_button = side_button("Fill in for this model", "transfer_fill", min_width=200)
            self.refresh_button = side_button("Refresh", "transfer_refresh")
        with make(gr.Row, elem_classes=["dreambooth-fields"]):
            fields.place(*MODELS, choices=self.host.checkpoint_names())
        self.meaning = gr.HTML(note(CHOOSE), elem_id="dreambooth_transfer_meaning")
        with make(gr.Row, elem_classes=["dreambooth-fields"]):
            fields.place(*SETTINGS)
        details = make(gr.Accordion, label="Details", open=False)
        with details, make(gr.Row, elem_classes=["dreambooth-fields"]):
            fields.place(*DETAILS)
        self.merge.place_button("Transfer", "primary")

    def _place_rest(self, form: JobForm[Any]) -> None:
        placed = form.fields.components()
        with make(gr.Row, elem_classes=["dreambooth-fields"]):
            form.fields.place(*(path for path in form.fields.specs if path not in placed))

    def _choosers(self) -> list[Any]:
        """Return the components that choose a file; the last chooses a LoRA."""
        merge = [self.merge.part(name) for name in MODELS]
        extract = [self.extract.part(name) for name in LORA_CHECKPOINTS]
        return [*merge, *extract, self.bake.part("checkpoint"), self.bake.part("lora")]

    def _filled(self) -> list[Any]:
        """Return every component that filling in changes."""
        merge = [self.merge.part(name) for name in ("method", "secondary", "tertiary")]
        extract = [self.extract.part(name) for name in ("name", *LORA_CHECKPOINTS)]
        bake = [self.bake.part(name) for name in ("checkpoint", "lora")]
        return [*merge, *extract, *bake, self.merge.message]

    def _trained(self, info: ModelInfo) -> str:
        there = [path for path in map(Path, info.checkpoints) if path.is_file()]
        return shown_name(there[-1], self.workspace.checkpoints_dir) if there else ""

    def _lora(self, info: ModelInfo) -> str:
        there = [path for path in saved_loras(self.workspace, info.name) if path.is_file()]
        return shown_name(there[-1], self.workspace.lora_dir) if there else ""

    def _source(self, info: ModelInfo) -> str:
        path = Path(info.source)
        return shown_name(path, self.workspace.checkpoints_dir) if path.is_file() else ""


def meaning(told: Mapping[str, Any]) -> str:
    """Return what a merge with these settings does, in plain words, as HTML."""
    a, b, c = names = [Path(told[name] or "").name for name in MODELS]
    amount, is_sum = told["multiplier"], told["method"] == WEIGHTED_SUM
    if amount is None or not all(names[:2] if is_sum else names):
        return note(CHOOSE_TWO if is_sum else CHOOSE)
    if is_sum:
        return note(f"Each weight becomes {1 - amount:.0%} of {a}'s and {amount:.0%} of {b}'s.")
    much = "All of it" if amount == 1 else f"{number_text(float(amount))} times it"
    return note(
        f"What {b} learned is what sets it apart from {c}. {much} is added to {a}: the new"
        f" checkpoint draws as {a} does, and knows the subject of {b} by the same words."
    )


def show_result(end: TransferEnd | None) -> str:
    """Return what the last of these jobs made, or why it made nothing, as HTML; "" for none."""
    if end is None:
        return ""
    if end.failure is not None:
        words = f"{end.name} was not made: {end.failure.message} {end.failure.remedy}"
        return note(words.strip(), "error")
    path = Path(str(end.summary.get("path", "")))
    if not end.summary.get("path"):
        return note(f"{end.name} was not made: the job was stopped.", "warning")
    ready = note(f"{path.name} is ready. {_use(end.kind, path)}", "good")
    size = size_text(float(end.summary.get("size", 0)))
    lines = [("File", path), ("Made of", end.made_of), ("Size", size)]
    return ready + facts([*lines, ("Hash", str(end.summary.get("sha256", ""))[:10])])


def lora_names(workspace: Workspace) -> list[str]:
    """Return the LoRA files to choose from."""
    folder = workspace.lora_dir
    found = (shown_name(path, folder) for path in folder.rglob("*.safetensors"))
    return sorted(found, key=str.lower)


def shown_name(path: Path, folder: Path) -> str:
    """Return a file's name as lists of files show it: short where it lies in their folder."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _use(kind: str, path: Path) -> str:
    if kind == "extract-lora":
        return f"Use it in a prompt as <lora:{path.stem}:1>."
    return "It is in the WebUI's list of checkpoints."
