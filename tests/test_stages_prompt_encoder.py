"""Tests of the prompt encoder: anew while the text encoder learns, once per prompt after."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_core.config.schema import TrainConfig
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import AS_THE_WEBUI, Conditioning, PromptReading
from dreambooth_core.stages.prompt_encoder import (
    PromptEncoder,
    make_prompt_encoder,
    prompt_reading,
)

CHUNK = 4


class Letters:
    """A family that encodes a prompt as its letters, padded in chunks to the longest's length."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.readings: list[PromptReading] = []
        self.weight = torch.tensor(1.0, requires_grad=True)

    def encode_prompts(
        self,
        model: Any,
        prompts: Sequence[str],
        clip_skip: int,
        reading: PromptReading = AS_THE_WEBUI,
    ) -> Conditioning:
        """One hidden number per letter, times a weight that can learn."""
        self.calls.append(list(prompts))
        self.readings.append(reading)
        chunks = max(1, *(-(-len(prompt) // CHUNK) for prompt in prompts))
        rows = [[float(ord(c)) for c in p.ljust(chunks * CHUNK)] for p in prompts]
        return Conditioning(torch.tensor(rows)[:, :, None] * self.weight * clip_skip)

    def unconditional(self, encoded: Conditioning, rows: Sequence[bool]) -> Conditioning:
        """Zeros in these rows."""
        keep = torch.tensor([0.0 if row else 1.0 for row in rows])
        return Conditioning(encoded.encoder_hidden_states * keep[:, None, None])


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    """The family under the name "letters"."""
    family = Letters()
    monkeypatch.setitem(FAMILIES, "letters", family)  # type: ignore[arg-type]
    return family


def make_encoder(
    clip_skip: int = 1, reading: PromptReading = AS_THE_WEBUI, *, remembers: bool = True
) -> PromptEncoder:
    """An encoder of the letters family."""
    components: Any = SimpleNamespace(family="letters")
    return PromptEncoder(components, clip_skip, reading, remembers=remembers)


def test_a_learning_text_encoder_is_asked_every_time(letters: Letters) -> None:
    encode = make_encoder()
    assert encode(["a", "a"]).encoder_hidden_states.requires_grad
    encode(["a"])
    assert letters.calls == [["a", "a"], ["a"]]


def test_a_frozen_one_is_asked_once_for_each_prompt(letters: Letters) -> None:
    encode = make_encoder()
    encode.freeze(["a", "b"])
    assert letters.calls == [["a"], ["b"]]
    rows = encode(["b", "a", "b", "c"]).encoder_hidden_states
    assert not rows.requires_grad
    assert rows[:, 0, 0].tolist() == [98.0, 97.0, 98.0, 99.0]
    encode(["c", ""])
    assert letters.calls == [["a"], ["b"], ["c"], [""]]


def test_what_was_encoded_before_freezing_is_forgotten(letters: Letters) -> None:
    encode = make_encoder()
    encode(["a"])
    letters.weight = torch.tensor(2.0, requires_grad=True)
    encode.freeze()
    assert encode(["a"]).encoder_hidden_states[0, 0, 0].item() == 2 * 97.0


def test_an_empty_prompt_is_what_the_family_says_without_one(letters: Letters) -> None:
    encode = make_encoder()
    states = encode(["ab", ""]).encoder_hidden_states
    assert states[0].abs().min() > 0 and states[1].abs().max() == 0
    encode.freeze(["", "abcdefgh"])
    states = encode(["abcdefgh", ""]).encoder_hidden_states
    assert states[0].abs().min() > 0 and states[1].abs().max() == 0


def test_clip_skip_reaches_the_family(letters: Letters) -> None:
    assert make_encoder(3)(["a"]).encoder_hidden_states[0, 0, 0].item() == 3 * 97.0


def test_a_short_prompt_beside_a_long_one_is_as_long(letters: Letters) -> None:
    encode = make_encoder()
    encode.freeze()
    together = encode(["ab", "abcdefgh", "ab"]).encoder_hidden_states
    expected = Letters().encode_prompts(None, ["ab", "abcdefgh", "ab"], 1).encoder_hidden_states
    assert torch.equal(together, expected)
    assert encode(["ab"]).encoder_hidden_states.shape[1] == CHUNK
    calls = len(letters.calls)
    encode(["abcdefgh", "ab"])
    assert len(letters.calls) == calls


def test_prompts_that_are_never_twice_the_same_are_read_anew_without_gradients(
    letters: Letters,
) -> None:
    """As with shuffled tags: nothing is kept of a frozen encoder, nothing is stale."""
    encode = make_encoder(remembers=False)
    assert encode(["a"]).encoder_hidden_states.requires_grad
    encode.freeze(["a", "b"])
    assert letters.calls == [["a"]]
    rows = encode(["b", "a"]).encoder_hidden_states
    assert not rows.requires_grad
    assert rows[:, 0, 0].tolist() == [98.0, 97.0]
    encode(["b", "a"])
    assert letters.calls == [["a"], ["b", "a"], ["b", "a"]]


def test_without_padding_a_batch_is_read_together(letters: Letters) -> None:
    """Its length is that of its longest prompt, so that rows of other batches do not fit."""
    config = TrainConfig(model="tiny")
    components: Any = SimpleNamespace(family="letters")
    assert make_prompt_encoder(config, components).remembers
    config.captions.pad_tokens = False
    encode = make_prompt_encoder(config, components)
    encode.freeze(["a"])
    encode(["a", "bb"])
    assert letters.calls == [["a", "bb"]]


def test_the_reading_of_the_settings_reaches_the_family(letters: Letters) -> None:
    config = TrainConfig(model="tiny")
    config.captions.max_token_length, config.captions.strict_tokens = 150, True
    components: Any = SimpleNamespace(family="letters")
    encode = make_prompt_encoder(config, components)
    encode(["a"])
    encode.freeze(["b"])
    assert letters.readings == [PromptReading(150, True, True)] * 2
    assert encode.remembers
    config.captions.shuffle_tags = True
    assert not make_prompt_encoder(config, components).remembers
    assert prompt_reading(TrainConfig(model="tiny").captions) == AS_THE_WEBUI
