"""The gate: what it asks, how it counts answers, and that it samples a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from dreambooth_core.families.base import Conditioning
from dreambooth_core.world.build import gate
from dreambooth_core.world.captions import parse_prompt
from dreambooth_core.world.judge import Judge
from dreambooth_core.world.palette import ATTRIBUTES, BACKGROUNDS, COLORS, KINDS


def test_the_gate_asks_for_everything_that_words_name() -> None:
    prompts = gate.gate_prompts()
    assert len(prompts) >= 300
    asked = {pair for prompt in prompts for pair in parse_prompt(prompt).items()}
    for name, values in (("kind", KINDS), ("background", BACKGROUNDS), ("color", COLORS)):
        assert {value for attribute, value in asked if attribute == name} == set(values)
    named = {attribute for attribute, _ in asked}
    assert named == set(ATTRIBUTES) - {"skin"}


def test_every_prompt_is_fully_understood() -> None:
    """Each names a kind and a place, and everything between them is an attribute."""
    for prompt in gate.gate_prompts():
        wanted = parse_prompt(prompt)
        assert {"kind", "background"} <= set(wanted), prompt
        bare = f"photo of a {wanted['kind']} "
        assert len(wanted) > 2 or prompt.startswith(bare), prompt


class ToldJudge(Judge):
    """Reads a picture's first pixel as the number of its kind and background."""

    def __init__(self) -> None:
        pass

    def read(self, images: object) -> dict[str, Tensor]:
        assert isinstance(images, Tensor)
        index = images[:, 0, 0, 0].long()
        return {
            name: torch.nn.functional.one_hot(index.clamp(max=len(values) - 1), len(values))
            for name, values in ATTRIBUTES.items()
        }


def test_answers_and_their_report() -> None:
    prompts = ["photo of a man on a pink background", "photo of a woman on a pink background"]
    pictures = torch.zeros(2, 3, 4, 4)
    results = gate.answers(ToldJudge(), prompts, pictures)
    assert [answer.right for answer in results] == [
        {"kind": True, "background": True},
        {"kind": False, "background": True},
    ]
    result = gate.report(results)
    assert result["attributes"] == {
        "kind": {"right": 0.5, "count": 2},
        "background": {"right": 1.0, "count": 2},
    }
    assert result["kinds"]["woman kind"] == {"right": 0.0, "count": 1}  # type: ignore[index]
    assert result["failed"] == ["kind"]
    assert result["wrong"] == [prompts[1]]


@pytest.mark.parametrize(
    ("attribute", "needed"), [("kind", 0.9), ("background", 0.9), ("color", 0.9), ("hat", 0.8)]
)
def test_kinds_colors_and_backgrounds_need_more_than_parts(attribute: str, needed: float) -> None:
    assert gate.threshold(attribute) == needed


def test_the_table_marks_what_is_below() -> None:
    lines = gate.table(
        {"man kind": {"right": 0.85, "count": 20}, "hat": {"right": 0.85, "count": 4}}
    ).splitlines()
    assert lines[1].split() == ["man", "kind", "0.85", "0.90", "20", "below"]
    assert lines[2].split() == ["hat", "0.85", "0.80", "4"]


def test_sampling_finds_what_the_prediction_points_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction that is exact for the latents 0.7 leads there; guidance adds nothing to it."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(20)
    told: list[int] = []

    def predict(latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        told.append(len(latents))
        kept = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (latents - kept.sqrt() * 0.7) / (1 - kept).sqrt()

    noise = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    latents = gate.sample_latents(predict, Conditioning(torch.zeros(6, 77, 8)), noise, scheduler)
    assert latents.shape == noise.shape
    assert float((latents - 0.7).abs().max()) < 0.05
    assert told == [6] * 20


def test_guidance_goes_from_the_empty_prompt_past_the_prompt() -> None:
    class Keep:
        timesteps = torch.tensor([1])

        def step(self, guided: Tensor, timestep: Tensor, latents: Tensor) -> object:
            return type("Step", (), {"prev_sample": guided})

    def predict(latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return conditioning.encoder_hidden_states[:, :1, :1, None].expand(-1, 1, 1, 1)

    told = Conditioning(torch.tensor([1.0, 3.0]).view(2, 1, 1))
    latents = gate.sample_latents(predict, told, torch.zeros(1, 1, 1, 1), Keep())  # type: ignore[arg-type]
    assert latents.item() == 1.0 + gate.CFG_SCALE * (3.0 - 1.0)


def test_it_measures_a_checkpoint_and_tells_that_a_random_one_fails(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tiny_checkpoint, tiny_checkpoint.with_suffix(".yaml")):
        shutil.copy(path, tmp_path / path.name)
    checkpoint = tmp_path / tiny_checkpoint.name
    monkeypatch.setattr(gate, "STEPS", 2)
    sheet = tmp_path / "sheet.png"
    assert gate.main([str(checkpoint), "--limit", "4", "--sheet", str(sheet)]) == 1
    result = json.loads(checkpoint.with_suffix(".gate.json").read_text(encoding="utf-8"))
    assert result["samples"] >= 4
    assert result["failed"]
    with Image.open(sheet) as image:
        assert image.width == 16 * 64


def test_sampling_is_the_same_for_the_same_seed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "STEPS", 2)
    components = gate.load_checkpoint(tiny_checkpoint)
    first, again, other = (gate.sample(components, ["photo of a man"], seed) for seed in (1, 1, 2))
    assert first.shape == (1, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
