"""The words of the world among CLIP's, and a text encoder that learns what captions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.world.build import language
from dreambooth_core.world.build.language import Words, train_text_encoder
from dreambooth_core.world.captions import FILLERS


@pytest.fixture(scope="module")
def tokenizer(module_folder: Path) -> CLIPTokenizer:
    write_tokenizer(module_folder)
    return CLIPTokenizer.from_pretrained(module_folder, local_files_only=True)


@pytest.fixture(scope="module")
def words(tokenizer: CLIPTokenizer) -> Words:
    return Words(tokenizer)


def test_narrowed_ids_stand_for_clips_own(tokenizer: CLIPTokenizer, words: Words) -> None:
    texts = ["photo of a ohwx man in a striped red shirt with glasses at night", ""]
    wanted = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(torch.tensor(words.token_ids)[words.ids(texts)], wanted)


def test_the_words_are_few_and_hold_every_filler(tokenizer: CLIPTokenizer, words: Words) -> None:
    assert len(words.token_ids) < 120
    assert words.token_ids == sorted(set(words.token_ids))
    assert {47993, 48136} <= set(words.token_ids)  # ohwx and sks, one token each
    for filler in FILLERS:
        assert set(tokenizer(filler).input_ids) <= set(words.token_ids)


def test_a_long_text_is_cut_before_the_end_token(words: Words) -> None:
    ids = words.ids(["red " * 200])
    assert ids.shape == (1, 77)
    assert ids[0, -1] == words.end
    assert (ids[0, 1:-1] == ids[0, 1]).all()


def test_features_are_read_at_the_end_token_or_in_the_padding(words: Words) -> None:
    ids = words.ids(["photo of a dog", "photo of a red car at night"] * 50)
    at = language._end_or_padding(ids, words.end)
    assert (ids[torch.arange(100), at] == words.end).all()
    ends = (ids == words.end).int().argmax(1)
    assert 20 < (at == ends).sum() < 80


def test_training_lowers_the_loss_and_keeps_the_encoder(
    tmp_path: Path,
    words: Words,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(language, "BATCH_SIZE", 8)
    monkeypatch.setattr("dreambooth_core.world.build.fitting.LOG_EVERY_STEPS", 12)
    encoder = train_text_encoder(tmp_path, words, steps=24)
    losses = [float(line.split()[5]) for line in capsys.readouterr().out.splitlines()]
    assert losses[1] < losses[0]
    kept = torch.load(tmp_path / "text.pt", weights_only=True)
    for key, weight in encoder.state_dict().items():
        assert torch.equal(kept[key], weight)
