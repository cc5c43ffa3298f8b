"""Names, shapes and configs of every family against the original layouts and diffusers' own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from diffusers.loaders import single_file_utils as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.checkpoint.header import Header
from dreambooth_core.errors import CheckpointError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Config, KeyPair, pairs_by_source
from tests.original_layout import (
    SD15,
    SD21,
    SDXL,
    TINY,
    TINY_SD2,
    TINY_SDXL,
    Layout,
    checkpoint_shapes,
    side_yaml,
    unused,
)
from tests.tiny import header_of, tiny_weights

LAYOUTS = {
    "sd2.1": SD21,
    "sdxl": SDXL,
    "sd1.5 inpainting": replace(SD15, in_channels=9),
    "sd2 inpainting": replace(SD21, in_channels=9),
    "sdxl inpainting": replace(SDXL, in_channels=9),
    "tiny sd2": TINY_SD2,
    "tiny sdxl": TINY_SDXL,
    "tiny sdxl, attention in all levels": replace(
        TINY_SDXL, channel_mult=(1, 2), attention_levels=(0, 1), depths=(2, 3)
    ),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
TINY_ONES = {"sd1": TINY, "sd2": TINY_SD2, "sdxl": TINY_SDXL}
tiny_ones = pytest.mark.parametrize("layout", TINY_ONES.values(), ids=TINY_ONES.keys())
OPEN_CLIP = {
    "sd2": ("text_encoder", "cond_stage_model.model."),
    "sdxl": ("text_encoder_2", "conditioner.embedders.1.model."),
}


def side_of(layout: Layout) -> Any:
    return yaml.safe_load(side_yaml(layout))


@cache
def described(layout: Layout) -> tuple[Header, dict[str, Config], list[KeyPair]]:
    """A header of the layout and what the family makes of it; read only."""
    header = header_of(checkpoint_shapes(layout))
    family = FAMILIES[layout.family]
    configs = family.configs(header, side_of(layout))
    return header, configs, family.key_map(header, configs)


def converted_by_diffusers(
    layout: Layout, tensors: Mapping[str, torch.Tensor], configs: Mapping[str, Config]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What diffusers' functions make of a checkpoint, by component."""
    yield "unet", oracle.convert_ldm_unet_checkpoint(dict(tensors), configs["unet"])
    yield "vae", oracle.convert_ldm_vae_checkpoint(dict(tensors), configs["vae"])
    if layout.family != "sd2":
        prefix = "cond_stage_model.transformer."
        renamed = {
            key.replace("conditioner.embedders.0.transformer.", prefix): value
            for key, value in tensors.items()
        }
        yield "text_encoder", oracle.convert_ldm_clip_checkpoint(renamed)
    if layout.family in OPEN_CLIP:
        component, prefix = OPEN_CLIP[layout.family]
        theirs = oracle.convert_open_clip_checkpoint(None, dict(tensors), prefix)
        yield component, _without_last(theirs, layout) if layout.family == "sd2" else theirs


def _without_last(theirs: dict[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """Leave out what diffusers leaves out of ViT-H by its number of layers, which ours has less."""
    last = f"text_model.encoder.layers.{layout.open_clip_layers - 1}."
    return {k: v for k, v in theirs.items() if not k.startswith((last, "text_projection"))}


@layouts
def test_every_weight_of_the_original_layout_is_mapped_once(layout: Layout) -> None:
    _, configs, pairs = described(layout)
    carried = {key for key in checkpoint_shapes(layout) if key.startswith(unused(layout))}
    by_source = pairs_by_source(pairs)
    assert sorted(by_source) == sorted(checkpoint_shapes(layout).keys() - carried)
    assert len({(pair.component, pair.target) for pair in pairs}) == len(pairs)
    for parts in by_source.values():
        assert [pair.part for pair in parts] == [(n, len(parts)) for n in range(len(parts))]
    assert set(configs) == {*FAMILIES[layout.family].networks, "scheduler"}


@layouts
def test_unet_and_vae_are_named_and_shaped_as_by_diffusers(layout: Layout) -> None:
    header, configs, pairs = described(layout)
    keys = list(header.tensors)
    tagged = {  # these take no memory, and each is filled with its own number
        key: torch.tensor(float(number)).expand(header.tensors[key].shape)
        for number, key in enumerate(keys)
    }
    ours = {
        (pair.component, pair.target): (
            pair.source,
            pair.target_shape(header.tensors[pair.source].shape),
        )
        for pair in pairs
        if pair.component in ("unet", "vae")
    }
    converted = converted_by_diffusers(layout, tagged, configs)
    theirs = {
        (component, target): (keys[int(value.flatten()[0])], tuple(value.shape))
        for component, weights in (next(converted), next(converted))
        for target, value in weights.items()
    }
    assert ours == theirs


@tiny_ones
def test_all_weights_become_what_diffusers_makes_of_them_and_come_back(layout: Layout) -> None:
    weights = tiny_weights(layout)
    _, configs, pairs = described(layout)
    ours: dict[str, dict[str, torch.Tensor]] = {}
    for pair in pairs:
        value = pair.to_target(weights[pair.source])
        ours.setdefault(pair.component, {})[pair.target] = value
    for component, theirs in converted_by_diffusers(layout, weights, configs):
        assert ours[component].keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[component][name], value), name
    for source, parts in pairs_by_source(pairs).items():
        back = [pair.to_source(ours[pair.component][pair.target]) for pair in parts]
        assert torch.equal(torch.cat(back).reshape(weights[source].shape), weights[source])


def test_only_bigGs_projection_is_turned() -> None:
    _, _, pairs = described(SDXL)
    turned = [(pair.source, pair.target) for pair in pairs if pair.transform == "transposed"]
    source = "conditioner.embedders.1.model.text_projection"
    assert turned == [(source, "text_projection.weight")]
    joined = {pair.source.rpartition("resblocks.")[2] for pair in pairs if pair.part[1] == 3}
    assert joined == {f"{n}.attn.in_proj_{leaf}" for n in range(32) for leaf in ("weight", "bias")}


@pytest.mark.parametrize(
    ("layout", "counts", "tensors", "expected"),
    [
        (SD21, [686, 248, 372], 1228, "SD21"),
        (SDXL, [1680, 248, 196, 517], 2514, "SDXL"),
    ],
    ids=["sd2.1", "sdxl"],
)
def test_the_tables_are_the_golden_ones(
    layout: Layout, counts: list[int], tensors: int, expected: str
) -> None:
    """Digests were taken of tables that the tests above had found right.

    With the position ids of its first encoder the published SDXL file has 2,515 tensors.
    """
    _, _, pairs = described(layout)
    networks = FAMILIES[layout.family].networks
    assert [sum(pair.component == part for pair in pairs) for part in networks] == counts
    assert len(checkpoint_shapes(layout)) == tensors
    lines = sorted(f"{p.source} {p.component} {p.target} {p.transform} {p.part}" for p in pairs)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == GOLDEN[expected]


GOLDEN = {
    "SD21": "9a873f603b331836da7144aa1ee189b9367de18653ef119e402707aa2b2cd252",
    "SDXL": "cc0150ab3465ccf2657fbd0393c7b49f3f3797075ba5d2012bd14e135a65ef4a",
}


@pytest.mark.filterwarnings("ignore:.image_size. is deprecated:FutureWarning")
@layouts
def test_the_configs_are_those_that_diffusers_reads_from_the_yaml(layout: Layout) -> None:
    _, ours, _ = described(layout)
    original, size = side_of(layout), layout.image_size * 8
    theirs = oracle.create_unet_diffusers_config_from_ldm(original, {}, image_size=size)
    mine = ours["unet"]
    shared = (theirs.keys() & mine.keys()) - {"sample_size"}
    if layout.family == "sdxl" and layout.context_dim != SDXL.context_dim:
        # diffusers knows SDXL by its width alone
        shared -= {name for name in shared if name.startswith(("addition", "projection"))}
    assert len(shared) >= 9
    depths = [max(1, depth) for depth in layout.depths[: len(layout.channel_mult)]]
    for name in shared - {"transformer_layers_per_block"}:
        expected = theirs[name]
        assert mine[name] == (list(expected) if isinstance(expected, tuple) else expected), name
    assert mine["transformer_layers_per_block"] == (depths if max(depths) > 1 else 1)
    assert mine["sample_size"] == layout.image_size
    assert ours["vae"]["sample_size"] == size
    assert ours["vae"]["scaling_factor"] == layout.scale_factor


@pytest.mark.parametrize("layout", [SD21, SDXL], ids=["sd2.1", "sdxl"])
def test_the_configs_of_published_models_need_no_yaml(layout: Layout) -> None:
    header, family = header_of(checkpoint_shapes(layout)), FAMILIES[layout.family]
    assert family.configs(header, None, "epsilon") == family.configs(header, side_of(layout))


def test_the_text_encoders_of_published_models() -> None:
    facts = {
        name: (
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["hidden_act"],
            config["pad_token_id"],
            config["projection_dim"],
        )
        for layout in (SD21, SDXL)
        for component, config in described(layout)[1].items()
        if component.startswith("text_encoder")
        for name in [f"{layout.family} {component}"]
    }
    assert facts == {
        "sd2 text_encoder": (1024, 23, 16, "gelu", 0, 1024),
        "sdxl text_encoder": (768, 12, 12, "quick_gelu", 49407, 768),
        "sdxl text_encoder_2": (1280, 32, 20, "gelu", 0, 1280),
    }


@pytest.mark.parametrize("blocks", [23, 24])
def test_a_file_without_vit_hs_unused_block_is_read_the_same(blocks: int) -> None:
    header = header_of(checkpoint_shapes(replace(SD21, open_clip_layers=blocks)))
    family = FAMILIES["sd2"]
    configs = family.configs(header, None, "epsilon")
    assert configs["text_encoder"]["num_hidden_layers"] == 23
    sources = {pair.source for pair in family.key_map(header, configs)}
    assert "cond_stage_model.model.transformer.resblocks.22.ln_1.weight" in sources
    assert "cond_stage_model.model.transformer.resblocks.23.ln_1.weight" not in sources


@pytest.mark.parametrize(
    ("layout", "prediction_type", "resolution", "architecture"),
    [
        (SD15, "epsilon", 512, "stable-diffusion-v1"),
        (replace(SD15, in_channels=9), "epsilon", 512, "stable-diffusion-v1-inpainting"),
        (SD21, "epsilon", 512, "stable-diffusion-v2-512"),
        (SD21, "v_prediction", 768, "stable-diffusion-v2-768-v"),
        (replace(SD21, in_channels=9), "epsilon", 512, "stable-diffusion-v2-inpainting"),
        (SDXL, "epsilon", 1024, "stable-diffusion-xl-v1-base"),
        (replace(SDXL, in_channels=9), "epsilon", 1024, "stable-diffusion-xl-v1-inpainting"),
    ],
)
def test_what_a_model_is_called_and_how_large_its_pictures_are(
    layout: Layout, prediction_type: str, resolution: int, architecture: str
) -> None:
    family = FAMILIES[layout.family]
    configs = family.configs(header_of(checkpoint_shapes(layout)), None, prediction_type)
    assert configs["vae"]["sample_size"] == resolution
    assert family.architecture(configs) == architecture


@tiny_ones
def test_heads_that_nothing_tells_are_asked_for(layout: Layout) -> None:
    family, side = FAMILIES[layout.family], side_of(layout)
    header = header_of(checkpoint_shapes(layout))
    params = side["model"]["params"]
    unet = params.get("unet_config") or params["network_config"]
    for name in ("num_heads", "num_head_channels"):
        removed = unet["params"].pop(name, None)
        if removed is not None:
            with pytest.raises(CheckpointError, match="UNet of unusual width") as raised:
                family.configs(header, side)
            assert name in raised.value.remedy
            unet["params"][name] = removed
    for name in list(side["dreambooth"]):
        if name.startswith("text_config"):
            del side["dreambooth"][name]["num_attention_heads"]
            with pytest.raises(CheckpointError, match="text encoder of unusual") as raised:
                family.configs(header, side)
            assert f"dreambooth.{name}.num_attention_heads" in raised.value.remedy
            side["dreambooth"][name]["num_attention_heads"] = 4


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight", (73, 24)),
        ("conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias", (71,)),
        ("conditioner.embedders.1.model.text_projection", (25, 24)),
        ("model.diffusion_model.label_emb.0.0.weight", (128, 73)),
    ],
)
def test_a_weight_of_another_shape_is_named(key: str, shape: tuple[int, ...]) -> None:
    shapes = checkpoint_shapes(TINY_SDXL) | {key: shape}
    family, header = FAMILIES["sdxl"], header_of(shapes)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        family.key_map(header, family.configs(header, side_of(TINY_SDXL)))


@st.composite
def small_layouts(draw: st.DrawFn) -> Layout:
    """Layouts of all families, of any depth and of widths that their norms allow."""
    base = draw(st.sampled_from([TINY, TINY_SD2, TINY_SDXL]))
    levels = draw(st.integers(1, 3))
    rest = draw(st.lists(st.integers(1, 2), min_size=levels - 1, max_size=levels - 1))
    attends = draw(st.sets(st.integers(0, levels - 1))) | {levels - 1}
    deep = base.family == "sdxl"
    depths = tuple(draw(st.integers(1, 2)) if deep else 1 for _ in range(levels))
    return replace(
        base,
        channel_mult=(1, *rest),
        attention_levels=tuple(sorted(attends)),
        depths=tuple(d if n in attends else 0 for n, d in enumerate(depths)),
        num_res_blocks=draw(st.integers(1, 2)),
        in_channels=draw(st.sampled_from([4, 9])),
        vae_num_res_blocks=draw(st.integers(1, 2)),
        open_clip_layers=draw(st.integers(2, 4)) if base.open_clip_layers else 0,
        text_layers=draw(st.integers(1, 3)),
    )


@settings(max_examples=15, deadline=None)
@given(small_layouts())
def test_any_width_and_depth_is_mapped_whole(layout: Layout) -> None:
    header, _, pairs = described(layout)
    carried = {key for key in checkpoint_shapes(layout) if key.startswith(unused(layout))}
    assert {pair.source for pair in pairs} == checkpoint_shapes(layout).keys() - carried
    for pair in pairs:
        source = header.tensors[pair.source].shape
        count = torch.Size(source).numel() // pair.part[1]
        assert torch.Size(pair.target_shape(source)).numel() == count
