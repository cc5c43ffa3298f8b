"""What the WebUI calls, in the order that it does: settings, tab, start. All may come again."""

from __future__ import annotations

import importlib.util
from typing import Any

from dreambooth_core.config.control import field_specs
from dreambooth_core.host.base import Host, current_host, has_host, set_host
from dreambooth_core.host.settings import CATEGORY, PREFIX, SECTION, HostSettings

TITLE = "Dreambooth"
ELEM_ID = "dreambooth"


def webui_host() -> Host:
    """Return the WebUI that called us; chosen once, as it may be holding its queue."""
    if not has_host():
        set_host(_make_host())
    return current_host()


def add_settings() -> None:
    """Add our page to the WebUI's settings; one that is there already is replaced."""
    from modules import shared

    for spec in field_specs(HostSettings):
        option = shared.OptionInfo(
            spec.default, spec.control.label, section=SECTION, category_id=CATEGORY
        )
        shared.opts.add_option(PREFIX + spec.path, option.info(spec.control.help))


def tab() -> list[tuple[Any, str, str]]:
    """Return our tab as the WebUI wants it: the blocks, the title and the element's id."""
    from dreambooth_core.ui.app import build_blocks

    return [(build_blocks(webui_host()), TITLE, ELEM_ID)]


def started(demo: Any, app: Any) -> None:
    """Add our routes to a server that has just been started, and find jobs that still run."""
    from dreambooth_core.api import mount
    from dreambooth_core.host.conductor import conductor

    webui_host()
    conductor().adopt()
    mount(app, webui_host())


def _make_host() -> Host:
    if importlib.util.find_spec("modules_forge") is None:
        from dreambooth_core.host.a1111 import A1111Host

        return A1111Host()
    from dreambooth_core.host.forge import ForgeHost

    return ForgeHost()
