"""Trainings of the tiny model with long, shuffled, unpadded and strictly read prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.families import load_components
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.families.sd1 import StableDiffusion1
from dreambooth_core.job.events import Notice
from dreambooth_core.stages.prompt_encoder import make_prompt_encoder
from tests.trainings import Trainings, same, trainings_in

FROZEN: dict[str, Any] = {"batch": {"batch_size": 2}, "text_encoder": {"train_ratio": 0.0}}
LONG = ", ".join(["a red dog and a blue cat in a green house"] * 40)


@pytest.fixture(scope="module")
def trainings(module_folder: Path, _created_model: Path) -> Trainings:
    """One workspace with a tiny model for all tests of this module."""
    return trainings_in(module_folder, _created_model)


@pytest.fixture(scope="module")
def model(trainings: Trainings) -> Components:
    """The model before training."""
    return load_components(trainings.workspace.model("tiny"))


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """The prompts of each call of the text encoder, and how many states it gave for each."""
    seen: list[tuple[list[str], int]] = []
    encode = StableDiffusion1.encode_prompts

    def spied(self: Any, components: Any, prompts: Any, *how: Any, **read: Any) -> Conditioning:
        told = encode(self, components, prompts, *how, **read)
        seen.append((list(prompts), told.encoder_hidden_states.shape[1]))
        return told

    monkeypatch.setattr(StableDiffusion1, "encode_prompts", spied)
    return seen


@torch.no_grad()
def states(
    trainings: Trainings, model: Components, prompts: list[str], captions: dict[str, Any]
) -> torch.Tensor:
    """What the UNet is told of prompts under settings of captions, (B,T,D)."""
    encode = make_prompt_encoder(trainings.config({"captions": captions}), model)
    return encode(prompts).encoder_hidden_states


@pytest.mark.turns("train.captions.max_token_length")
@pytest.mark.parametrize(("length", "chunks"), [(75, 1), (150, 2), (225, 3), (300, 4), (0, 7)])
def test_the_token_length_is_where_prompts_end(
    trainings: Trainings, model: Components, length: int, chunks: int
) -> None:
    told = states(trainings, model, [LONG], {"max_token_length": length})
    whole = states(trainings, model, [LONG], {})
    assert told.shape[1] == 77 * chunks
    assert torch.allclose(told, whole[:, : 77 * chunks], atol=1e-5)


def test_a_training_tells_which_prompts_it_cuts(
    trainings: Trainings, lengths: list[tuple[list[str], int]]
) -> None:
    changes = {
        **FROZEN,
        "concept": {"instance_prompt": f"zwx, {LONG}"},
        "captions": {"max_token_length": 75},
        "intervals": {"max_steps": 1},
    }
    run = trainings.run(changes, "cut")
    told = [n.message for n in run.events_of(Notice) if n.level == "warning"]
    assert any("longer than 75 tokens" in message for message in told)
    assert {length for _, length in lengths} == {77}


@pytest.mark.turns("train.captions.pad_tokens")
def test_without_padding_a_prompt_is_as_long_as_its_batch(
    trainings: Trainings, model: Components
) -> None:
    """Words and two marks: 4 for "a dog", 3 more for the longest of its batch."""
    off = {"pad_tokens": False}
    assert states(trainings, model, ["a dog"], {}).shape[1] == 77
    assert states(trainings, model, ["a dog"], off).shape[1] == 4
    assert states(trainings, model, ["a dog", "a dog in the snow"], off).shape[1] == 7


def test_prompts_of_different_lengths_train_without_padding(
    trainings: Trainings, lengths: list[tuple[list[str], int]]
) -> None:
    """A frozen text encoder reads each batch together, so that its prompts fit each other."""
    for number, path in enumerate(sorted(trainings.pictures.glob("*.png"))):
        path.with_suffix(".txt").write_text("zwx dog" + " red" * number)
    run = trainings.run({**FROZEN, "captions": {"pad_tokens": False}}, "unpadded")
    for path in trainings.pictures.glob("*.txt"):
        path.unlink()
    assert len(run.losses) == 4
    assert len(lengths) == 4
    for prompts, length in lengths:
        assert length == 2 + max(len(words_of(prompt)) for prompt in prompts)


def words_of(prompt: str) -> list[str]:
    """The tokens of a prompt of plain words: "zwx" is two."""
    return prompt.replace("zwx", "z wx").split()


@pytest.mark.turns("train.captions.strict_tokens")
def test_strict_tokens_part_the_phrases(trainings: Trainings, model: Components) -> None:
    """What stands before the first separator is told as before, what follows is not."""
    prompts = ["a dog, red, in snow"]
    plain = states(trainings, model, prompts, {})
    strict = states(trainings, model, prompts, {"strict_tokens": True})
    assert strict.shape == plain.shape
    assert torch.allclose(strict[:, :3], plain[:, :3], atol=1e-5)
    assert not torch.allclose(strict[:, 3:8], plain[:, 3:8], atol=1e-3)
    one = [states(trainings, model, ["a dog"], {"strict_tokens": on}) for on in (False, True)]
    assert torch.equal(*one)


def test_shuffled_tags_are_read_anew_while_the_text_encoder_is_frozen(
    trainings: Trainings, lengths: list[tuple[list[str], int]]
) -> None:
    """Each step's own order reaches the UNet, and a frozen encoder stays as it is."""
    changes = {
        **FROZEN,
        "intervals": {"epochs": 3},
        "concept": {"instance_prompt": "zwx dog, red, blue, green, snow"},
        "captions": {"shuffle_tags": True},
    }
    run = trainings.run(changes, "shuffled")
    assert set(run.weights) == {"unet"}
    assert [len(prompts) for prompts, _ in lengths] == [2] * 6
    read = [prompt for prompts, _ in lengths for prompt in prompts]
    assert len(set(read)) > 6
    assert all(prompt.startswith("zwx dog, ") for prompt in read)
    again = trainings.run(changes, "shuffled again")
    assert again.losses == run.losses


def test_a_resumed_run_draws_the_same_prompts_repeats_and_crops(
    trainings: Trainings, tmp_path: Path
) -> None:
    """Stopped in the middle of an epoch; the weights end bit for bit the same."""
    (tmp_path / "templates.txt").write_text("[name], a, b, c\nmy [name], [filewords], d, e\n")
    changes: dict[str, Any] = {
        "intervals": {"epochs": 2},
        "batch": {"batch_size": 4},
        "concept": {"repeats": 2, "prompt_templates": str(tmp_path / "templates.txt")},
        "captions": {"shuffle_tags": True, "dropout": 0.2},
        "images": {"crop": "random", "horizontal_flip": True},
        "text_encoder": {"train_ratio": 0.5},
    }
    whole = trainings.run(changes, "whole")
    first = trainings.run(changes, "first", at_step={1: ["stop"]})
    rest = trainings.run({**changes, "resume": True}, "rest")
    assert len(whole.losses) == 4
    assert first.losses + rest.losses == whole.losses
    assert same(rest.weights, whole.weights)
