"""The whole page: the run panel beside the tabs, in a WebUI's tab or alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core import api
from dreambooth_core.config.schema import CompareConfig, SaveConfig, TrainConfig
from dreambooth_core.errors import ConfigError, DreamboothError
from dreambooth_core.host.base import Host, set_host
from dreambooth_core.host.conductor import conductor
from dreambooth_core.host.standalone import StandaloneHost
from dreambooth_core.job.launcher import Job
from dreambooth_core.job.machine import unavailable
from dreambooth_core.job.workspace import ModelInfo, Workspace
from dreambooth_core.ui.gradio_compat import (
    listen,
    make,
    on_load,
    open_tab,
    page_options,
    poll,
    start_page,
)
from dreambooth_core.ui.messages import explain, note
from dreambooth_core.ui.plan import PlanView
from dreambooth_core.ui.run import build_run_panel
from dreambooth_core.ui.tabs.compare import CompareTab
from dreambooth_core.ui.tabs.concepts import ConceptsTab, example_settings
from dreambooth_core.ui.tabs.create import CreateTab
from dreambooth_core.ui.tabs.importing import ImportSection
from dreambooth_core.ui.tabs.presets import PresetRow
from dreambooth_core.ui.tabs.saving import SavingTab
from dreambooth_core.ui.tabs.select import (
    SelectTab,
    newest_model,
    readable_info,
    show_history,
    show_status,
)
from dreambooth_core.ui.tabs.transfer import TransferTab
from dreambooth_core.ui.training_form import (
    TrainingForm,
    Updates,
    Values,
    first_settings,
    keep,
    require_model,
    settings_of,
)
from dreambooth_core.ui.unavailable import show_unavailable

TITLE = "Dreambooth"
USER = "dreambooth"
TABS = "dreambooth_tabs"
FRESH_SECONDS = 2.0
PROJECT = Path(__file__).resolve().parents[2]


class Page:
    """The components of the page and what happens between them."""

    def __init__(self, host: Host) -> None:
        """Place everything inside the current Blocks, and let it act."""
        self.host = host
        self.form = TrainingForm()
        self.known = gr.State(None)
        with make(gr.Column, elem_id="dreambooth"):
            self.status = gr.HTML(show_status(None), elem_id="dreambooth_status")
            with make(gr.Row, elem_classes=["dreambooth-page"]):
                with make(gr.Column, scale=5, min_width=420, elem_classes=["dreambooth-main"]):
                    self._place_tabs()
                with make(gr.Column, scale=3, min_width=360, elem_classes=["dreambooth-side"]):
                    self.panel = build_run_panel(host)
            with make(gr.Row, elem_classes=["dreambooth-hidden"]):
                self.seen = make(gr.Textbox, label="State of the folder", show_label=False)
                self.filled = make(gr.Textbox, label="Model of the settings", show_label=False)
                self.refresh_button = make(gr.Button, value="", elem_id="dreambooth_refresh")
        self._wire()

    @property
    def workspace(self) -> Workspace:
        """Where models, checkpoints and runs lie."""
        return self.host.workspace()

    def _place_tabs(self) -> None:
        with make(gr.Tabs, elem_id=TABS):
            self.tab_items: dict[str, Any] = {}
            with self._tab("create", "Create"):
                self.create = CreateTab(self.host)
            with self._tab("select", "Select"):
                self.select = SelectTab(self.form, self.workspace)
                with self.select.presets_column:
                    self.presets = PresetRow(self.form, self.host.workspace)
                self.importing = ImportSection(self.form, self.host.workspace)
                self.select.place_settings()
            with self._tab("concepts", "Concepts"):
                self.concepts = ConceptsTab(self.form)
            with self._tab("saving", "Saving"):
                self.saving = SavingTab(self.form)
            with self._tab("compare", "Compare"):
                self.compare = CompareTab()
            with self._tab("transfer", "Transfer"):
                self.transfer = TransferTab(self.host)

    def _tab(self, name: str, label: str) -> Any:
        self.tab_items[name] = make(gr.Tab, label=label, id=name, elem_id=f"dreambooth_tab_{name}")
        return self.tab_items[name]

    def _wire(self) -> None:
        self.create.wire(start)
        self.transfer.wire(
            start,
            self.form.model,
            opened=self.tab_items["transfer"].select,
            ended=self.panel.summary.change,
        )
        self.select.wire(opened=self.tab_items["select"].select)
        self.presets.wire()
        self.importing.wire(start)
        self.concepts.wire()
        inputs = self.form.inputs()
        PlanView(self.concepts, self.saving).wire(inputs, self.training)
        self.panel.follow(self.show_comparison, self.compare.displays)
        self.panel.bind_train(inputs, self.training)
        self.panel.bind_dry_run(inputs, self.training)
        self.panel.bind_class_images(inputs, self.training)
        self.panel.bind_save(inputs, self.checkpoint)
        self.panel.bind_compare({*inputs, *self.compare.inputs()}, self.comparison)
        listen(self.panel.buttons["compare"].click, None, js=open_tab(TABS, "Compare"))
        for item in self.tab_items.values():
            listen(item.select, self.keep, {*inputs, self.filled}, None)
        about = [self.select.history, self.status, *self.compare.displays]
        shown = [*self.form.outputs(), *about]
        self._fills(listen(self.form.model.input, self.choose, {*inputs, self.filled}, shown))
        example_places = [*self.form.outputs(), self.concepts.message]
        listen(self.concepts.example.click, self.load_example, inputs, example_places)
        refreshed = [*shown, self.known]
        asking = {*inputs, self.known, self.filled}
        for event in (self.refresh_button.click, self.select.refresh.click, self.seen.change):
            self._fills(listen(event, self.refresh, asking, refreshed))
        opened = self._fills(on_load(self.open, asking, refreshed))
        listen(opened.then, None, self.filled, js=open_tab(TABS, "Select", or_last=True))
        poll(self.fingerprint, FRESH_SECONDS, None, self.seen)

    def _fills(self, event: Any) -> Any:
        """Note on the page whose settings it shows, after it got them: until then none are kept."""
        return listen(event.then, lambda state: state["model"], self.form.state, self.filled)

    def show_comparison(self, model: str | None) -> Updates:
        """Show the newest comparison of a model."""
        return self.compare.show(self.workspace, model or "")

    def fingerprint(self) -> str:
        """Return a text that changes when there are other models or one was worked on."""
        workspace = self.workspace
        paths = (workspace.model(name).info_path for name in workspace.model_names())
        return " ".join(f"{path.parent.name}/{path.stat().st_mtime_ns}" for path in paths)

    def open(self, values: Values) -> Updates:
        """Fill a page that was just opened: the model that was worked on last and its settings."""
        return self.refresh({**values, self.known: None})

    def refresh(self, values: Values) -> Updates:
        """Bring the list of models up to date; a new one is chosen at once."""
        workspace, known = self.workspace, values[self.known]
        names = workspace.model_names()
        shown = values[self.form.state]["model"]
        is_new = known is not None and set(names) - set(known)
        chosen = shown if shown in names and not is_new else newest_model(workspace)
        updates = {
            self.known: names,
            self.form.model: gr.update(choices=names, value=chosen or None),
        }
        if chosen == shown and known is not None:
            updates |= self._about(chosen)
        else:
            updates = {**self._choose(chosen, values), **updates}
        show_unavailable(self.form.train, unavailable(workspace), updates)
        return updates

    def choose(self, values: Values) -> Updates:
        """Show another model's settings; those of the one before are kept."""
        return self._choose(values[self.form.model] or "", values)

    def _choose(self, model: str, values: Values) -> Updates:
        self._keep_shown(values)
        try:
            info = readable_info(self.workspace, model)
        except DreamboothError as error:
            return {self.status: explain(error)}
        if info is None:
            return self._about("")
        config, problem = self._settings(info)
        shown = self.form.show(config)
        shown[self.form.model] = gr.update(value=model, choices=self.workspace.model_names())
        about = self._about(model)
        return {**shown, **about, self.status: problem + about[self.status]}

    def _settings(self, info: ModelInfo) -> tuple[TrainConfig, str]:
        """Return the settings kept for a model, and as HTML what is wrong with them."""
        try:
            return settings_of(self.workspace, info), ""
        except DreamboothError as error:
            words = note("The settings kept for this model cannot be used; these are new.", "error")
            return first_settings(info), words + explain(error)

    def _about(self, model: str) -> Updates:
        try:
            info = readable_info(self.workspace, model)
            history = show_history(self.workspace, info) if info else show_status(None)
            about = {self.status: show_status(info), self.select.history: history}
            return {**about, **self.show_comparison(model)}
        except DreamboothError as error:
            return {self.status: explain(error)}

    def keep(self, values: Values) -> None:
        """Keep the settings on the page for their model, once the page shows that model."""
        if values[self.form.model] == values[self.form.state]["model"]:
            self._keep_shown(values)

    def _keep_shown(self, values: Values) -> None:
        """Keep the settings of the model they belong to, unless they cannot be read now."""
        shown = values[self.form.state]["model"]
        if shown != values[self.filled] or shown not in self.workspace.model_names():
            return
        try:
            config = self.form.read_for(shown, values)
        except ConfigError:
            return  # a number is being typed; whoever starts a job is told
        keep(self.workspace.model(shown), config)

    def training(self, values: Values) -> TrainConfig:
        """Return the settings on the page and keep them; raises ConfigError."""
        config = require_model(self.form.read_shown(values))
        keep(self.workspace.model(config.model), config)
        return config

    def checkpoint(self, values: Values) -> SaveConfig:
        """Return what to save and how, from the settings of the Saving tab."""
        config = require_model(self.form.read_shown(values))
        saving = config.saving
        return SaveConfig(
            model=config.model,
            name=saving.name,
            subfolder=saving.subfolder,
            dtype=saving.dtype,
            use_ema=saving.use_ema,
            ema_keys=saving.ema_keys,
        )

    def comparison(self, values: Values) -> CompareConfig:
        """Return what to compare: the newest training's checkpoints, measured if we know whom."""
        config = require_model(self.form.read_shown(values))
        return self.compare.read(values, config.model, config.concepts)

    def load_example(self, values: Values) -> Updates:
        """Fill in the built-in subject and the settings that fit the built-in checkpoint."""
        model = values[self.form.state]["model"]
        if not model:
            words = "Create a model from the built-in checkpoint first, on the Create tab."
            return {self.concepts.message: note(words, "warning")}
        words = "The built-in subject and its settings are filled in. Press Train."
        shown = self.form.show(example_settings(model))
        return {**shown, self.concepts.message: note(words, "good")}


def start(kind: str, config: Any) -> Job:
    """Start a job of the process's conductor; raises DreamboothError if that cannot be."""
    return conductor().start(kind, config)


def build_blocks(host: Host, **options: Any) -> Any:
    """Return the page, to be put into a WebUI's tab or launched alone."""
    with gr.Blocks(analytics_enabled=False, **options) as blocks:
        Page(host)
    return blocks


def launch_alone(
    root: Path, *, listen_to_all: bool, port: int | None, password: str, open_browser: bool
) -> Any:
    """Serve the page and the API from here, until the process is ended; return the Blocks."""
    host = StandaloneHost(Workspace(root), {USER: password} if password else None)
    set_host(host)
    conductor().adopt()
    style = (PROJECT / "style.css").read_text(encoding="utf-8")
    script = (PROJECT / "javascript" / "dreambooth.js").read_text(encoding="utf-8")
    for_blocks, for_launch = page_options(style, script, TITLE)
    blocks = build_blocks(host, **for_blocks)
    logins: Sequence[tuple[str, str]] | None = [(USER, password)] if password else None
    app = start_page(
        blocks,
        server_name="0.0.0.0" if listen_to_all else "127.0.0.1",
        server_port=port,
        auth=logins,
        auth_message=f"The name is {USER}." if password else None,
        inbrowser=open_browser,
        **for_launch,
    )
    api.mount(app, host)
    return blocks
