"""The words that the text encoder learns, and its training to tell what a caption says.

Real checkpoints carry a text encoder that knew its language before any picture was drawn. So does
this one: it first learns to name, at the caption's end and at any padding after it, every
attribute that the caption states.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_core.world.build.fitting import Fit, Rates, keep
from dreambooth_core.world.build.networks import TEXT_WIDTH, new_text_encoder
from dreambooth_core.world.captions import FILLERS, caption, parse_prompt
from dreambooth_core.world.palette import ATTRIBUTES
from dreambooth_core.world.pictures import sample_scene

TOKENS = 77
BATCH_SIZE = 64
STEPS = 900
CAPTIONS_FOR_WORDS = 20_000
START, END = "<|startoftext|>", "<|endoftext|>"


class Words:
    """CLIP's tokenizer narrowed to the tokens that occur in the world's captions."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        """Collect the tokens of many captions and of all fillers."""
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        rng = random.Random(1)
        texts = [caption(sample_scene(rng).parts, rng) for _ in range(CAPTIONS_FOR_WORDS)]
        used = {token for text in (*texts, *FILLERS) for token in self._clip_ids(text)}
        self.token_ids = sorted(used | {tokenizer.bos_token_id, tokenizer.eos_token_id})
        self._index = {token: index for index, token in enumerate(self.token_ids)}

    @property
    def end(self) -> int:
        """The narrowed id of the end token, which is also the padding."""
        return self._index[self._tokenizer.eos_token_id]

    def ids(self, texts: list[str]) -> Tensor:
        """Return narrowed token ids (B, 77)."""
        rows = torch.full((len(texts), TOKENS), self.end)
        for row, text in zip(rows, texts, strict=True):
            found = [self._tokenizer.bos_token_id, *self._clip_ids(text)][: TOKENS - 1]
            row[: len(found)] = torch.tensor([self._index[token] for token in found])
        return rows

    def _clip_ids(self, text: str) -> list[int]:
        """Tokenize word by word, which for these captions is the same and can be remembered."""
        for word in text.split():
            if word not in self._known:
                self._known[word] = self._tokenizer(word).input_ids[1:-1]
        return [token for word in text.split() for token in self._known[word]]


def train_text_encoder(out: Path, words: Words, steps: int = STEPS) -> CLIPTextModel:
    """Train the text encoder on captions alone and keep it in `out`/text.pt."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = new_text_encoder(len(words.token_ids), words.end)
    heads = nn.ModuleDict(
        {name: nn.Linear(TEXT_WIDTH, len(values) + 1) for name, values in ATTRIBUTES.items()}
    )
    rng = random.Random(5)

    def loss_of_step(step: int) -> Tensor:
        texts = [caption(sample_scene(rng).parts, rng) for _ in range(BATCH_SIZE)]
        ids = words.ids(texts)
        states = encoder(input_ids=ids).last_hidden_state  # (B, 77, D)
        at = _end_or_padding(ids, words.end)
        return _attribute_loss(heads, states[torch.arange(len(texts)), at], texts)

    learning = [*encoder.parameters(), *heads.parameters()]
    Fit([(learning, Rates(2e-3, 2e-4))], ema_decay=0.99).run(steps, loss_of_step, "text encoder")
    keep(out / "text.pt", encoder.state_dict())
    return encoder


def _end_or_padding(ids: Tensor, end: int) -> Tensor:
    """Return for each row the end token's place, or half of the time one of the padding's."""
    ends = (ids == end).int().argmax(1)
    padding = ends + (torch.rand(len(ids)) * (TOKENS - ends)).long()
    return torch.where(torch.rand(len(ids)) < 0.5, ends, padding)


def _attribute_loss(heads: nn.ModuleDict, features: Tensor, texts: list[str]) -> Tensor:
    """Return the cross-entropy of every attribute's value, "not said" being one of them."""
    said = [parse_prompt(text) for text in texts]
    loss = features.new_zeros(())
    for name, values in ATTRIBUTES.items():
        answers = [values.index(s[name]) if name in s else len(values) for s in said]
        loss = loss + F.cross_entropy(heads[name](features), torch.tensor(answers))
    return loss
