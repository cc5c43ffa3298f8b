"""A trained character is taken to another model on the page, by a real job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.job.workspace import ModelInfo, Workspace
from tests.browser.driver import App, Person, browsing, served
from tests.tiny import write_tiny_checkpoint

MEANING, RESULT = "#dreambooth_transfer_meaning", "#dreambooth_transfer_result"
QUERY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The page of a folder with a trained model, its source and another checkpoint."""
    workspace = Workspace(tmp_path)
    folder = workspace.checkpoints_dir
    for seed, name in enumerate(("base", "zwx_80", "paint")):
        write_tiny_checkpoint(folder / f"{name}.safetensors", dtype=torch.float32, seed=seed)
    saved = [str(folder / "zwx_80.safetensors")]
    source = str(folder / "base.safetensors")
    info = ModelInfo(name="zwx", family="sd1", source=source, resolution=64, checkpoints=saved)
    workspace.model("zwx").write_info(info)
    with served(tmp_path) as app:
        yield app


@pytest.fixture
def person(app: App) -> Iterator[Person]:
    """Somebody who has opened the page."""
    with browsing(app.url) as person:
        person.open()
        yield person
        assert person.errors == []


def test_a_character_goes_into_another_model(app: App, person: Person) -> None:
    person.sees("#dreambooth_status", "zwx")
    person.tab("Transfer")
    trained = "dreambooth_merge_secondary"
    person.waits(lambda: person.value(trained), lambda name: name == "zwx_80.safetensors", "B")
    assert person.value("dreambooth_merge_tertiary") == "base.safetensors"
    person.type("dreambooth_merge_primary", "paint.safetensors")
    person.sees(MEANING, "is added to paint.safetensors")
    name = "dreambooth_merge_name"
    person.waits(lambda: person.value(name), lambda text: text == "zwx_80_in_paint", "a name")
    person.press("dreambooth_merge_button")
    shown = person.sees(RESULT, "zwx_80_in_paint.safetensors is ready")
    assert "paint.safetensors, zwx_80.safetensors, base.safetensors" in shown
    folder = Workspace(app.root).checkpoints_dir
    a, b, c = (
        load_file(folder / f"{file}.safetensors")[QUERY].half().float()
        for file in ("paint", "zwx_80", "base")
    )
    made = load_file(folder / "zwx_80_in_paint.safetensors")[QUERY]
    assert torch.allclose(made.float(), a + (b - c), atol=2e-2)
    assert person.repeated_ids() == []


def test_what_is_missing_is_said_with_the_names_on_the_page(person: Person) -> None:
    person.tab("Transfer")
    person.press("dreambooth_transfer_fill")
    person.press("dreambooth_merge_button")
    person.sees("#dreambooth_merge_message", "Target (model A)")
