"""A tab and an API that do nothing, so that tests of the host need no gradio and no server."""

from __future__ import annotations

import types
from typing import Any


def replacements() -> dict[str, Any]:
    """Return them by their names in sys.modules; the app notes what was mounted."""
    app = types.ModuleType("dreambooth_core.ui.app")
    app.build_blocks = lambda host: f"blocks of {host.name}"
    api = types.ModuleType("dreambooth_core.api")
    api.mount = lambda app, host: app.mounted.append(host.name)
    return {"dreambooth_core.ui": types.ModuleType("ui"), app.__name__: app, api.__name__: api}
