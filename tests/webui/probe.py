"""An extension of the tests, put into a real WebUI beside ours: what its model makes of prompts."""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, sd_models, shared


def conditioning(prompts: list[str]) -> list[Any]:
    """Return the states (B,T,D) that the WebUI's UNet would read."""
    import torch

    sd_models.reload_model_weights()  # the one that is chosen, not one of an override
    with torch.no_grad():
        states: list[Any] = shared.sd_model.get_learned_conditioning(prompts).float().tolist()
        return states


def add_route(_: Any, app: Any) -> None:
    """Serve `conditioning` as POST /probe/conditioning."""
    app.add_api_route("/probe/conditioning", conditioning, methods=["POST"])


script_callbacks.on_app_started(add_route)
