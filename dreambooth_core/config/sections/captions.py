"""How captions are used."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control


@dataclass(kw_only=True)
class CaptionsSection:
    """How captions are used."""

    dropout: float = control(
        0.0,
        "Caption dropout",
        "The share of instance examples that are shown with an empty prompt, chosen anew each "
        "time. A little (0.05 to 0.1) keeps the picture less tied to the words.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
