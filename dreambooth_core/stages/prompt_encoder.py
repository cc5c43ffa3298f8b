"""Prompts to what the UNet reads: anew in every step while the text encoders learn, once after.

Shapes: B examples, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dreambooth_core.config.schema import CaptionsSection, TrainConfig
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import AS_THE_WEBUI, Components, Conditioning, PromptReading


def prompt_reading(captions: CaptionsSection) -> PromptReading:
    """Return how the settings want the prompts of training to be read."""
    return PromptReading(captions.max_token_length, captions.pad_tokens, captions.strict_tokens)


class PromptEncoder:
    """Encodes prompts with a model's text encoders.

    An empty prompt, such as a caption that was dropped, is what the model is told without one.
    """

    def __init__(
        self,
        components: Components,
        clip_skip: int,
        reading: PromptReading = AS_THE_WEBUI,
        *,
        remembers: bool = True,
    ) -> None:
        """Encode anew on every call, with gradients, until `freeze` is called.

        Afterwards too, without gradients, unless it `remembers`; the text encoder is then needed
        to the end.
        """
        self._components = components
        self._family = FAMILIES[components.family]
        self._clip_skip = clip_skip
        self._reading = reading
        self.remembers = remembers
        self._frozen = False
        self._encoded: dict[tuple[str, str], Conditioning] = {}

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of the prompts, one row each, (B,T,D)."""
        if not self._frozen:
            return self._encode(prompts)
        if not self.remembers:
            with torch.no_grad():
                return self._encode(prompts)
        rows = {prompt: self._remembered(prompt) for prompt in prompts}
        longest = max(rows, key=lambda prompt: _tokens(rows[prompt]))
        for prompt, row in rows.items():
            if _tokens(row) < _tokens(rows[longest]):
                rows[prompt] = self._remembered(prompt, beside=longest)
        return Conditioning.cat([rows[prompt] for prompt in prompts])

    def freeze(self, prompts: Sequence[str] = ()) -> None:
        """Encode each distinct prompt once from now on, `prompts` at once, if they are remembered.

        To be called when the text encoder has stopped changing.
        """
        self._frozen = True
        for prompt in prompts if self.remembers else ():
            self._remembered(prompt)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        encoded = self._family.encode_prompts(
            self._components, list(prompts), clip_skip=self._clip_skip, reading=self._reading
        )
        return self._family.unconditional(encoded, [not prompt for prompt in prompts])

    @torch.no_grad()
    def _remembered(self, prompt: str, beside: str = "") -> Conditioning:
        """Return one row; a longer prompt `beside` it makes the row as long as that one's."""
        # Otherwise alone, so that the result does not depend on the prompt's first neighbours.
        key = (prompt, beside)
        if key not in self._encoded:
            self._encoded[key] = self._encode([prompt, beside] if beside else [prompt])[:1]
        return self._encoded[key]


def make_prompt_encoder(config: TrainConfig, components: Components) -> PromptEncoder:
    """Return the encoder that the settings ask for."""
    return PromptEncoder(
        components,
        config.text_encoder.clip_skip,
        prompt_reading(config.captions),
        remembers=not config.captions.read_anew,
    )


def _tokens(row: Conditioning) -> int:
    return row.encoder_hidden_states.shape[1]
