"""Gradio 3.41 (A1111, reForge), 4.40 (Forge) and 6 (alone): all that differs between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.config.pictures import (
    DECODER_ERRORS,
    IMAGE_FORMATS,
    MOST_PIXELS,
    why_not_opened,
)

MAJOR = int(gr.__version__.partition(".")[0])
HAS_TIMER = hasattr(gr, "Timer")
THUMBNAIL_PIXELS = 256
NO_SHARING = {"show_share_button": False, "buttons": ["download", "fullscreen"]}
"""A picture is not offered to sites on the network."""
TICK = "dreambooth_tick_"
"""What the ids of hidden buttons begin with that are pressed again and again; then milliseconds."""
HIDDEN_OPTIONS = {"elem_classes", "elem_id", "visible"}
"""What the containers of Gradio 3 take without saying so."""


def supported(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a function of this version takes."""
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names |= HIDDEN_OPTIONS
    return {name: value for name, value in options.items() if name in names}


def make(component: Callable[..., Any], **options: Any) -> Any:
    """Return a component or a container; the WebUI is kept from freezing its value and range."""
    made = component(**supported(component, options))
    made.do_not_save_to_config = True
    return made


def listen(
    event: Callable[..., Any],
    function: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    *,
    js: str = "",
    waiting: bool = False,
    newest: bool = False,
    queued: bool = True,
) -> Any:
    """Let a function answer an event, out of sight of Gradio's own API page.

    `waiting` shows that an answer takes a moment; `newest` makes sure that the last of many quick
    events is answered, where this version can. What is not `queued` is answered at once.
    """
    options: dict[str, Any] = {
        "show_api": False,
        "api_visibility": "private",
        "show_progress": "full" if waiting else "hidden",
        "_js" if MAJOR < 4 else "js": js or None,
    }
    if not queued:
        options["queue"] = False
    if newest:
        options["trigger_mode"] = "always_last"
    return event(function, inputs=inputs, outputs=outputs, **supported(event, options))


def on_load(function: Callable[..., Any], inputs: Any = None, outputs: Any = None) -> Any:
    """Let a function fill the page when it is opened; called inside the Blocks it belongs to."""
    return listen(_blocks().load, function, inputs, outputs)


def poll(
    function: Callable[..., Any], seconds: float, inputs: Any = None, outputs: Any = None
) -> None:
    """Call a function every so many seconds while the page is open.

    Where there is no Timer, javascript/dreambooth.js presses a hidden button. Gradio 3's `every`
    does not end when its page goes away, and "Reload UI" would wait for that for ever; so it does
    for what is in Gradio's queue as the server closes, which this is not.
    """
    if HAS_TIMER:
        listen(gr.Timer(seconds).tick, function, inputs, outputs, queued=False)
        return
    name = f"{TICK}{round(seconds * 1000)}_{getattr(function, '__name__', '')}"
    button = make(gr.Button, value=name, elem_id=name, visible=False)
    listen(button.click, function, inputs, outputs, queued=False)


def open_tab(tabs: str, label: str, *, or_last: bool = False) -> str:
    """Return the JavaScript that goes to a tab, unless it is given a value that is empty.

    `or_last` goes to the tab that was in view last, if there was one: Gradio loads the page anew
    by itself after every lost connection. javascript/dreambooth.js keeps its name.
    """
    places = f"'#{tabs} [role=tab], #{tabs} > .tab-nav button'"
    wanted = f"sessionStorage.getItem('{tabs}') ?? {label!r}" if or_last else repr(label)
    is_it = f"(tab) => tab.textContent.trim() === ({wanted})"
    press = f"[...document.querySelectorAll({places})].find({is_it})?.click()"
    return f"(...given) => {{ if (given.every(Boolean)) {press}; return given; }}"


def visibility(visible: bool) -> bool | str:
    """Return what `visible` is set to; newer versions would forget what is hidden altogether."""
    annotation = str(inspect.signature(gr.Textbox).parameters["visible"].annotation)
    return visible or ("hidden" if "hidden" in annotation else False)


def settled_events(component: Any, *, typed: bool) -> list[Callable[..., Any]]:
    """Return the events that tell that a value was chosen or typed to its end.

    `.change` alone loses the last letters that are typed while an answer is pending.
    """
    names = ("change", "blur", "submit") if typed else ("change",)
    return [getattr(component, name) for name in names if hasattr(component, name)]


def line_plot(*, title: str, x: str, y: str, color: str, height: int = 280, **options: Any) -> Any:
    """Return an empty line plot; its value is a pandas DataFrame with the three columns."""
    return make(gr.LinePlot, title=title, x=x, y=y, color=color, height=height, **options)


def gallery(*, label: str, columns: int, **options: Any) -> Any:
    """Return an empty gallery; its value is a list of (picture, caption)."""
    options = {"height": "auto", "show_label": False, **NO_SHARING, **options}
    return make(gr.Gallery, label=label, columns=columns, **options)


def picture_display(*, label: str, **options: Any) -> Any:
    """Return a place for one large picture, hidden until there is one."""
    options = {"interactive": False, "show_label": False, "visible": visibility(False), **options}
    return make(gr.Image, label=label, type="pil", **NO_SHARING, **options)


def thumbnail(path: Path, pixels: int = THUMBNAIL_PIXELS) -> Any:
    """Return a small copy of a picture for a gallery, wherever its file lies.

    Gradio refuses files outside its own folders; a picture in memory it takes from anywhere.
    Raises OSError if the file is no picture.
    """
    from PIL import Image, ImageOps  # comes with Gradio, and is not needed to build the page

    reason = why_not_opened(path)
    if reason:
        raise OSError(f"{path}: {reason}")
    Image.init()
    try:
        with Image.open(path, formats=[n for n in IMAGE_FORMATS if n in Image.OPEN]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise OSError(f"{path} is too large")
            image.draft("RGB", (pixels * 2, pixels * 2))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise OSError(f"{path} cannot be shown: {error}") from error
    small.thumbnail((pixels, pixels))
    return small


def uploaded_path(file: Any) -> Path | None:
    """Return where an uploaded file lies: Gradio gives a path or an object with a name."""
    return Path(getattr(file, "name", file)) if file else None


def page_options(css: str, script: str, title: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of Blocks and of launch for a page of our own."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    looks = {"css": css, "theme": theme, "head": f"<script>{script}</script>"}
    in_launch = supported(gr.Blocks.launch, looks)
    blocks = {name: value for name, value in looks.items() if name not in in_launch}
    return {"title": title, **supported(gr.Blocks, {**blocks, "fill_width": True})}, in_launch


def start_page(blocks: Any, **options: Any) -> Any:
    """Queue and launch a page of our own without blocking; return its web application."""
    blocks.queue(**{"concurrency_count" if MAJOR < 4 else "default_concurrency_limit": 8})
    options = {"prevent_thread_lock": True, "share": False, "footer_links": [], **options}
    # Else Gradio asks itself for the page and gives up if that takes more than three seconds.
    options["_frontend"] = False
    app, _, _ = blocks.launch(**supported(blocks.launch, options))
    return app


def _blocks() -> Any:
    from gradio.context import Context

    return Context.root_block
