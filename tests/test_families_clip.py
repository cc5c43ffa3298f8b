"""CLIP's tokenizer and prompts: vocabulary, chunks of 75 tokens, clip skip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import MERGES_FILE, vocabulary, write_tokenizer
from dreambooth_core.errors import InputError
from dreambooth_core.families import FAMILIES, Components, load_components
from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.clip_text import chunked_token_ids
from dreambooth_core.job.workspace import Workspace

SD1 = FAMILIES["sd1"]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer(module_folder: Path) -> CLIPTokenizer:
    write_tokenizer(module_folder)
    return CLIPTokenizer.from_pretrained(module_folder, local_files_only=True)


@pytest.fixture(scope="module")
def components(_created_model: Path) -> Components:
    """The networks of a created model; read only."""
    return load_components(Workspace(_created_model).model("tiny"))


def test_the_vocabulary_is_clips() -> None:
    """The numbers are those of OpenAI's published CLIP vocabulary."""
    table = vocabulary()
    assert len(table) == 49408
    assert sorted(table.values()) == list(range(49408))
    known = {"!": 0, "!</w>": 256, "in": 512, "a</w>": 320, "photo</w>": 1125, "dog</w>": 1929}
    assert {token: table[token] for token in known} == known
    assert (table["<|startoftext|>"], table["<|endoftext|>"]) == (START, END)


def test_the_shipped_merges_are_small() -> None:
    assert MERGES_FILE.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ohwx", [47993]),
        ("sks", [48136]),
        ("a photo of sks dog", [320, 1125, 539, 48136, 1929]),
        ("  A PHOTO   of ", [320, 1125, 539]),
        ("", []),
    ],
)
def test_text_becomes_clips_numbers(tokenizer: CLIPTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer(text, add_special_tokens=False).input_ids == ids


def test_any_text_survives(tokenizer: CLIPTokenizer) -> None:
    text = "ünïcode 🦊 漢字"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_the_tokenizer_pads_with_the_end_token_to_77(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("dog", padding="max_length").input_ids
    assert ids == [START, 1929] + [END] * 75


def test_four_files_are_written(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "merges.txt",
        "vocab.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (151, 3)])
def test_a_prompt_is_cut_into_chunks_of_75(
    tokenizer: CLIPTokenizer, words: int, chunks: int
) -> None:
    ids = chunked_token_ids(tokenizer, [" ".join(["dog"] * words)])
    assert ids.shape == (1, chunks, 77)
    assert (ids[:, :, 0] == START).all()
    assert (ids[:, :, 76] == END).all()
    assert int((ids == 1929).sum()) == words
    last = words - 75 * (chunks - 1)
    assert ids[0, -1].tolist() == [START] + [1929] * last + [END] * (76 - last)


def test_shorter_prompts_are_filled_with_empty_chunks(tokenizer: CLIPTokenizer) -> None:
    ids = chunked_token_ids(tokenizer, ["dog", " ".join(["dog"] * 80)])
    assert ids.shape == (2, 2, 77)
    assert ids[0, 1].tolist() == [START] + [END] * 76


def test_each_chunk_is_encoded_on_its_own(components: Components) -> None:
    long = " ".join(["dog"] * 75 + ["sks"])
    with torch.no_grad():
        states = SD1.encode_prompts(components, [long, "cat"]).encoder_hidden_states
        first = SD1.encode_prompts(components, [" ".join(["dog"] * 75)]).encoder_hidden_states
        second = SD1.encode_prompts(components, ["sks"]).encoder_hidden_states
        empty = SD1.encode_prompts(components, [""]).encoder_hidden_states
    assert states.shape == (2, 154, 32)
    assert torch.allclose(states[0, :77], first[0], atol=1e-5)
    assert torch.allclose(states[0, 77:], second[0], atol=1e-5)
    assert torch.allclose(states[1, 77:], empty[0], atol=1e-5)


def test_clip_skip_takes_an_earlier_layer_through_the_final_norm(components: Components) -> None:
    encoder = components.text_encoder
    with torch.no_grad():
        ids = chunked_token_ids(components.tokenizer, ["a dog"])[:, 0]
        output = encoder(ids, output_hidden_states=True)
        earlier = encoder.text_model.final_layer_norm(output.hidden_states[-2])
        plain = SD1.encode_prompts(components, ["a dog"]).encoder_hidden_states
        skipped = SD1.encode_prompts(components, ["a dog"], clip_skip=2).encoder_hidden_states
    assert torch.allclose(plain, output.last_hidden_state, atol=1e-6)
    assert torch.allclose(skipped, earlier, atol=1e-6)
    assert not torch.allclose(plain, skipped, atol=1e-2)


@pytest.mark.parametrize("clip_skip", [0, 3, -1])
def test_clip_skip_beyond_the_encoders_layers_is_refused(
    components: Components, clip_skip: int
) -> None:
    with pytest.raises(InputError, match="has 2 layers"):
        SD1.encode_prompts(components, ["a dog"], clip_skip=clip_skip)


def test_gradients_reach_the_text_encoder(components: Components) -> None:
    embedding = components.text_encoder.text_model.embeddings.token_embedding.weight
    SD1.encode_prompts(components, ["a dog"]).encoder_hidden_states.square().mean().backward()
    used = embedding.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert used == [320, 1929, START, END]


def test_all_that_is_told_is_joined_cut_and_moved() -> None:
    def told(n: int) -> Conditioning:
        states, pooled = torch.full((n, 77, 4), float(n)), torch.full((n, 3), float(n))
        return Conditioning(states, pooled, torch.full((n, 6), 2.0), torch.zeros(n, 5, 8, 8))

    both = Conditioning.cat([told(1), told(2)])
    for name in ("pooled", "sizes", "canvas"):
        whole = getattr(both, name)
        assert len(whole) == 3
        assert torch.equal(getattr(both[1:], name), whole[1:])
        assert getattr(both.to(dtype=torch.float16), name).dtype == torch.float16
    assert torch.equal(both[1:].pooled, told(2).pooled)
    bare = both.beside(None, None)
    assert bare.canvas is None and bare.sizes is None and bare.pooled is both.pooled


def test_conditionings_are_joined_cut_and_moved() -> None:
    first, second = (Conditioning(torch.full((n, 77, 4), float(n))) for n in (1, 2))
    both = Conditioning.cat([first, second])
    assert len(both) == 3
    assert torch.equal(both[1:].encoder_hidden_states, second.encoder_hidden_states)
    assert both.to("cpu", torch.float16).encoder_hidden_states.dtype == torch.float16
