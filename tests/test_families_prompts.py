"""Prompts through the text encoders as the WebUI encodes them, against references written here.

The chunks are those of the WebUI's own loop over tokens, and OpenCLIP is computed from the file's
tensors by the formulas of its paper's code; transformers' CLIP-L serves as it is.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from dreambooth_core.data.prompt_chunks import cut_into_chunks
from dreambooth_core.families import FAMILIES, Components, load_components
from dreambooth_core.families.base import PromptReading
from dreambooth_core.families.clip_text import chunked_token_ids
from dreambooth_core.job.workspace import Workspace
from tests.original_layout import TINY_SD2, TINY_SDXL
from tests.tiny import VARIANTS, tiny_model, tiny_weights

START, END, COMMA = 49406, 49407, 267
SHORT = "a photo of ohwx man"
LONG = ", ".join(["a red dog and a blue cat in a green house"] * 9)
EXACT = " ".join(["dog"] * 75)


def webui_chunks(ids: Sequence[int], backtrack: int = 20) -> list[list[int]]:
    """The WebUI's loop: a full chunk is closed behind its last comma if that is not far back."""
    chunks: list[list[int]] = []
    chunk: list[int] = []
    last_comma = -1
    for token in ids:
        if token == COMMA:
            last_comma = len(chunk)
        elif len(chunk) == 75 and last_comma != -1 and len(chunk) - last_comma <= backtrack:
            moved = chunk[last_comma + 1 :]
            chunks.append(chunk[: last_comma + 1])
            chunk, last_comma = moved, -1
        if len(chunk) == 75:
            chunks.append(chunk)
            chunk, last_comma = [], -1
        chunk.append(token)
    if chunk or not chunks:
        chunks.append(chunk)
    return chunks


@given(st.lists(st.sampled_from([COMMA, 5, 6, 7, 8, 9, 10, 11, 12, 13]), max_size=400))
def test_chunks_are_those_of_the_webuis_loop(ids: list[int]) -> None:
    assert cut_into_chunks(ids, COMMA) == webui_chunks(ids)


@pytest.mark.parametrize(
    ("comma", "first"), [(74, 75), (60, 61), (55, 56), (54, 75), (10, 75), (75, 75)]
)
def test_a_phrase_goes_whole_into_the_next_chunk_if_its_comma_is_near(
    comma: int, first: int
) -> None:
    """By hand: of 75 tokens the last 20 are looked at, and the comma itself stays."""
    ids = [5] * comma + [COMMA] + [6] * (90 - comma)
    assert [len(chunk) for chunk in cut_into_chunks(ids, COMMA)] == [first, 91 - first]


def models(name: str, folder: Path) -> Components:
    """A model of a kind, in fp32, made from fp16 weights."""
    return load_components(tiny_model(Workspace(folder), variant=VARIANTS[name]))


@pytest.fixture(scope="module")
def sd2(module_folder: Path) -> Components:
    """Read only."""
    return models("sd2", module_folder / "sd2")


@pytest.fixture(scope="module")
def sdxl(module_folder: Path) -> Components:
    """Read only."""
    return models("sdxl", module_folder / "sdxl")


def padded(tokenizer: Any, prompt: str, pad: int, count: int) -> Tensor:
    """The chunks of a prompt as the encoders see them, `count` of them, (count, 77)."""
    words = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True).input_ids
    chunks = webui_chunks(words)
    rows = []
    for chunk in [*chunks, *[[]] * (count - len(chunks))]:
        row = [START, *chunk, *[END] * (75 - len(chunk)), END]
        end = row.index(END)
        rows.append([*row[: end + 1], *[pad] * (76 - end)])
    return torch.tensor(rows)


def open_clip_states(weights: Mapping[str, Tensor], ids: Tensor, heads: int) -> list[Tensor]:
    """The states after the embedding and after each block, from the file's own tensors."""
    states = [weights["token_embedding.weight"][ids] + weights["positional_embedding"]]
    width = states[0].shape[-1]
    while (block := f"transformer.resblocks.{len(states) - 1}.") + "ln_1.weight" in weights:
        w = {key.removeprefix(block): t for key, t in weights.items() if key.startswith(block)}
        x = states[-1]
        y = layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"])
        qkv = (y @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + mixed @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        y = layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"])
        y = gelu(y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"])
        states.append(x + y @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"])
    return states


def source_weights(layout: Any, prefix: str) -> dict[str, Tensor]:
    """The file's tensors below a prefix, rounded to fp16 as the file has them."""
    weights = tiny_weights(layout)
    return {k.removeprefix(prefix): t.half().float() for k, t in weights.items() if prefix in k}


def final_norm(weights: Mapping[str, Tensor], states: Tensor) -> Tensor:
    width = states.shape[-1]
    return layer_norm(states, (width,), weights["ln_final.weight"], weights["ln_final.bias"])


@pytest.mark.parametrize("prompt", ["", SHORT, LONG, EXACT, "wow! a dog, really"])
@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_sd2_reads_the_last_block_but_one_through_the_final_norm(
    sd2: Components, prompt: str, clip_skip: int
) -> None:
    weights = source_weights(TINY_SD2, "cond_stage_model.model.")
    ids = padded(sd2.tokenizer, prompt, 0, 1)
    expected = final_norm(weights, open_clip_states(weights, ids, 4)[-2]).flatten(0, 1)
    ours = FAMILIES["sd2"].encode_prompts(sd2, [prompt], clip_skip=clip_skip)
    assert torch.allclose(ours.encoder_hidden_states[0], expected, atol=2e-5)
    assert ours.pooled is None


@pytest.mark.parametrize("prompt", ["", SHORT, LONG, "wow! a dog, really"])
@torch.no_grad()
def test_sdxl_reads_both_encoders_and_the_pooled_first_chunk(sdxl: Components, prompt: str) -> None:
    weights = source_weights(TINY_SDXL, "conditioner.embedders.1.model.")
    first = padded(sdxl.tokenizer, prompt, END, 1)
    ids = padded(sdxl.tokenizer, prompt, 0, 1)
    clip = sdxl.text_encoder(first, output_hidden_states=True).hidden_states[-2]
    states = open_clip_states(weights, ids, 4)
    ours = FAMILIES["sdxl"].encode_prompts(sdxl, [prompt, ""], clip_skip=2)
    expected = torch.cat([clip.flatten(0, 1), states[-2].flatten(0, 1)], dim=-1)
    assert torch.allclose(ours.encoder_hidden_states[0], expected, atol=2e-5)
    end = int((ids[0] == END).int().argmax())
    pooled = final_norm(weights, states[-1])[0, end] @ weights["text_projection"]
    assert ours.pooled is not None
    assert torch.allclose(ours.pooled[0], pooled, atol=2e-5)


@torch.no_grad()
def test_sdxl_gives_zeros_for_no_negative_prompt_alone(sdxl: Components) -> None:
    family = FAMILIES["sdxl"]
    encoded = family.encode_prompts(sdxl, ["", SHORT])
    told = family.unconditional(encoded, [True, False])
    assert told.pooled is not None and encoded.pooled is not None
    assert not told.encoder_hidden_states[0].any() and not told.pooled[0].any()
    assert torch.equal(told.encoder_hidden_states[1], encoded.encoder_hidden_states[1])
    assert torch.equal(told.pooled[1], encoded.pooled[1])
    assert encoded.encoder_hidden_states[0].any()


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_gradients_reach_every_encoder(family: str, request: pytest.FixtureRequest) -> None:
    components = request.getfixturevalue(family)
    told = FAMILIES[family].encode_prompts(components, [SHORT])
    total = told.encoder_hidden_states.square().mean()
    (total if told.pooled is None else total + told.pooled.square().mean()).backward()
    for encoder in components.text_encoders().values():
        assert encoder.text_model.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
        encoder.zero_grad()


def test_ids_are_remembered_as_long_as_the_tokenizer_is_there() -> None:
    asked: list[str] = []

    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = START, END, END

        def __call__(self, prompt: str, **options: bool) -> SimpleNamespace:
            asked.append(prompt)
            return SimpleNamespace(input_ids=[len(prompt)])

        def convert_tokens_to_ids(self, token: str) -> int:
            return COMMA

    tokenizer = Tokenizer()
    for prompt in ("a", "bb", "a"):
        assert chunked_token_ids(tokenizer, [prompt])[0, 0, 1] == len(prompt)
    assert asked == ["a", "bb"]
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_an_exclamation_mark_is_a_word_though_it_pads(sd2: Components, sdxl: Components) -> None:
    """256 is "!" as a word in CLIP's vocabulary, 0 the letter with which OpenCLIP pads."""
    for tokenizer, pad in ((sd2.tokenizer, 0), (sdxl.tokenizer, END), (sdxl.tokenizer_2, 0)):
        assert chunked_token_ids(tokenizer, ["dog!"])[0, 0, :6].tolist() == [
            START,
            1929,
            256,
            END,
            pad,
            pad,
        ]


@pytest.mark.parametrize("limit", [75, 150, 225, 300])
def test_a_limit_keeps_the_first_chunks_as_the_webui_cuts_them(sd2: Components, limit: int) -> None:
    """Against the WebUI's own loop; what is shorter stays whole."""
    long = ", ".join(["a red dog and a blue cat in a green house"] * 40)
    words = sd2.tokenizer(long, add_special_tokens=False, split_special_tokens=True).input_ids
    expected = webui_chunks(words)[: limit // 75]
    ids = chunked_token_ids(sd2.tokenizer, [long, SHORT], PromptReading(limit))
    assert ids.shape == (2, limit // 75, 77)
    read = [row[1 : 1 + row.index(END, 1) - 1] for row in ids[0].tolist()]
    assert read == expected
    whole = chunked_token_ids(sd2.tokenizer, [SHORT])
    assert torch.equal(ids[1, :1], whole[0])


def test_no_limit_reads_everything(sd2: Components) -> None:
    """As the WebUI does: 450 tokens without a comma are six chunks."""
    text = " ".join(["dog"] * 450)
    assert chunked_token_ids(sd2.tokenizer, [text]).shape == (1, 6, 77)
    assert chunked_token_ids(sd2.tokenizer, [text], PromptReading(300)).shape == (1, 4, 77)


@torch.no_grad()
def test_a_cut_prompt_is_encoded_as_its_beginning(sdxl: Components) -> None:
    """Both encoders; the pooled vector is that of the first chunk in any case."""
    family, text = FAMILIES["sdxl"], " ".join(["dog"] * 100)
    cut = family.encode_prompts(sdxl, [text], 1, PromptReading(75))
    whole = family.encode_prompts(sdxl, [text])
    begin = family.encode_prompts(sdxl, [" ".join(["dog"] * 75)])
    assert cut.encoder_hidden_states.shape[1] == 77
    assert torch.allclose(cut.encoder_hidden_states, begin.encoder_hidden_states, atol=1e-5)
    assert torch.allclose(cut.encoder_hidden_states, whole.encoder_hidden_states[:, :77], atol=1e-5)
    assert cut.pooled is not None and whole.pooled is not None
    assert torch.allclose(cut.pooled, whole.pooled, atol=1e-5)


def test_every_encoder_pads_with_its_own_token_or_not_at_all(sdxl: Components) -> None:
    """Without padding a batch is as wide as its longest chunk, and ends nowhere twice."""
    for tokenizer, pad in ((sdxl.tokenizer, END), (sdxl.tokenizer_2, 0)):
        filled = chunked_token_ids(tokenizer, ["a dog"])[0, 0].tolist()
        assert filled == [START, 320, 1929, END, *[pad] * 73]
        bare = chunked_token_ids(tokenizer, ["a dog", "dog"], PromptReading(pad=False))
        assert bare.tolist() == [[[START, 320, 1929, END]], [[START, 1929, END, pad]]]
        assert chunked_token_ids(tokenizer, [""], PromptReading(pad=False)).tolist() == [
            [[START, END]]
        ]


@torch.no_grad()
def test_states_without_padding_are_those_of_the_words(sd2: Components) -> None:
    """The encoder is causal: what stands behind a word does not change its state."""
    family = FAMILIES["sd2"]
    padded = family.encode_prompts(sd2, ["a dog"]).encoder_hidden_states
    bare = family.encode_prompts(sd2, ["a dog"], 1, PromptReading(pad=False)).encoder_hidden_states
    assert bare.shape[1] == 4
    assert torch.allclose(bare, padded[:, :4], atol=1e-5)


def test_strict_tokens_give_each_phrase_its_own_start_and_end(sd2: Components) -> None:
    """The separator and the white space behind it end a phrase; a point inside a word does not."""
    reading = PromptReading(strict=True)
    ids = chunked_token_ids(sd2.tokenizer, ["a dog, red; v1.5 cat."], reading)[0, 0].tolist()
    version = sd2.tokenizer("v1.5 cat", add_special_tokens=False).input_ids
    between = [END, COMMA, START]
    red = sd2.tokenizer("red", add_special_tokens=False).input_ids
    expected = [START, 320, 1929, *between, *red, *between, *version, END]
    assert ids == [*expected, *[0] * (77 - len(expected))]
    plain = chunked_token_ids(sd2.tokenizer, ["a dog"], reading)
    assert torch.equal(plain, chunked_token_ids(sd2.tokenizer, ["a dog"]))
    assert chunked_token_ids(sd2.tokenizer, [""], reading)[0, 0, :2].tolist() == [START, END]


def test_strict_phrases_are_kept_whole_at_the_end_of_a_chunk(sd2: Components) -> None:
    """Phrases of 30 words: 30 + 3 + 30 fit into 75, a third does not; 100 words are cut."""
    reading = PromptReading(strict=True)
    phrase = " ".join(["dog"] * 30)
    ids = chunked_token_ids(sd2.tokenizer, [", ".join([phrase] * 3)], reading)
    dogs = [int((chunk == 1929).sum()) for chunk in ids[0]]
    assert dogs == [60, 30]
    assert [int((chunk == START).sum()) for chunk in ids[0]] == [2, 1]
    ids = chunked_token_ids(sd2.tokenizer, [" ".join(["dog"] * 100)], reading)
    assert [int((chunk == 1929).sum()) for chunk in ids[0]] == [75, 25]
    limited = chunked_token_ids(
        sd2.tokenizer, [", ".join([phrase] * 3)], PromptReading(75, strict=True)
    )
    assert limited.shape == (1, 1, 77)


def test_emphasis_is_read_letter_by_letter(sd2: Components) -> None:
    """Captions hold no weights: parentheses, backslashes, numbers and BREAK are words."""
    text = r"a (dog:1.2) \(red\) BREAK cat"
    ids = chunked_token_ids(sd2.tokenizer, [text])
    assert ids.shape == (1, 1, 77)
    words = sd2.tokenizer(text, add_special_tokens=False).input_ids
    assert ids[0, 0, 1 : 1 + len(words)].tolist() == words
    spoken = "".join(sd2.tokenizer.convert_ids_to_tokens(words)).replace("</w>", "")
    assert spoken == text.replace(" ", "").lower()
