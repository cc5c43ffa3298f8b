"""How the judge is made: labels, damages, reconstructions, and that training learns."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from dreambooth_core.world.build import judge as building
from dreambooth_core.world.build import subjects as making
from dreambooth_core.world.build.judge import (
    DAMAGES,
    UNSEEN,
    CellPool,
    Pool,
    accuracy,
    cell_pool,
    compressed,
    damaged,
    drawn,
    labels,
    loss_of,
    reconstructed,
    rounded,
    train,
    varied_scene,
    visible,
)
from dreambooth_core.world.build.subjects import asset, pictures_of, pools
from dreambooth_core.world.judge import ASSET, ColorCells, Judge, JudgeNetwork
from dreambooth_core.world.palette import ATTRIBUTES, UNNAMED_COLORS
from dreambooth_core.world.pictures import Scene, render, sample_parts
from dreambooth_core.world.subjects import SUBJECTS

COLUMN = {name: column for column, name in enumerate(ATTRIBUTES)}


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [varied_scene(rng) for _ in range(count)]


class Identity:
    """A VAE without loss, whose latents are pixels; `noises` keeps what was decoded."""

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        self.encoded = pixels
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        self.decoded = latents
        return (latents,)


def test_varied_scenes_show_unnamed_colors_more_often() -> None:
    drawn_colors = [scene.parts["color"] for scene in scenes(2000)]
    unnamed = sum(color in UNNAMED_COLORS for color in drawn_colors) / 2000
    assert 0.2 < unnamed < 0.28
    for scene in scenes(500, seed=1):
        assert scene.parts["color"] not in (scene.parts.get("second"), scene.parts.get("collar"))


def test_what_is_not_there_has_no_label() -> None:
    man = {**sample_parts(random.Random(0), "man"), "background": "snow"}
    plain = {**man, "hat": "none", "pattern": "plain"}
    assert set(man) - set(visible(plain)) == {"hat_color", "second"}
    worn = {**man, "hat": "cap", "pattern": "striped"}
    assert visible(worn) == worn
    woman = {**worn, "kind": "woman", "beard": "no"}
    assert set(woman) - set(visible(woman)) == {"beard"}


def test_labels_are_the_positions_of_values() -> None:
    parts = {"kind": "tree", "color": "green", "form": "pointed", "background": "night"}
    row = labels([Scene(parts)])[0]
    for name, value in parts.items():
        assert ATTRIBUTES[name][int(row[COLUMN[name]])] == value
    assert (row == UNSEEN).sum() == len(ATTRIBUTES) - 4


def test_drawn_pictures_are_small_and_mostly_exact() -> None:
    some = scenes(20)
    pixels = drawn(some, random.Random(1))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (20, 3, 64, 64))
    exact = [
        torch.equal(one, torch.tensor(list(render(scene, 64).getdata())).T.view(3, 64, 64))
        for one, scene in zip(pixels.int(), some, strict=True)
    ]
    assert 10 <= sum(exact) < 20


def test_compression_keeps_the_picture_roughly() -> None:
    picture = render(scenes(1)[0])
    strong, weak = (compressed(picture, quality) for quality in (20, 90))
    assert strong.size == picture.size
    errors = [
        float((drawn_levels(one) - drawn_levels(picture)).abs().mean()) for one in (strong, weak)
    ]
    assert 0 < errors[1] < errors[0] < 12


def drawn_levels(picture: object) -> Tensor:
    return torch.tensor(list(picture.getdata())).float()  # type: ignore[attr-defined]


def test_reconstructions_go_through_the_vae_with_noise_for_most() -> None:
    vae = Identity()
    pixels = reconstructed(vae, scenes(30), torch.Generator().manual_seed(0))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (30, 3, 64, 64))
    assert -1 <= vae.encoded.min() < -0.5 and 0.5 < vae.encoded.max() <= 1
    noises = (vae.decoded - vae.encoded).flatten(1).std(1) / vae.encoded.std()
    assert 12 <= (noises > 0).sum() <= 26
    assert noises[noises > 0].min() > 0.02 and noises.max() < 0.3


@pytest.mark.parametrize("damage", [damage for _, damage in DAMAGES])
def test_every_damage_changes_a_picture_but_not_beyond_recognition(damage: object) -> None:
    torch.manual_seed(0)
    pixels = drawn(scenes(8), random.Random(0)).float() / 255
    result = damage(pixels, random.Random(1))  # type: ignore[operator]
    assert result.shape == pixels.shape
    assert 0.0005 < float((result - pixels).abs().mean()) < 0.15


def test_damaged_pictures_are_in_range_and_not_all_alike() -> None:
    torch.manual_seed(0)
    pixels = drawn(scenes(40), random.Random(0)).float() / 255
    result = damaged(pixels, random.Random(2))
    assert result.shape == pixels.shape
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    errors = [float((a - b).abs().mean()) for a, b in zip(result, pixels, strict=True)]
    assert max(errors) > 3 * min(errors)


def test_cells_are_kept_for_each_damaged_copy() -> None:
    pool = Pool(drawn(scenes(10), random.Random(0)), labels(scenes(10)))
    kept = cell_pool(pool, random.Random(0), times=2)
    assert kept.cells.shape == (20, ColorCells().channels, 16, 16)
    assert torch.equal(kept.classes[10:], kept.classes[:10])
    assert not torch.equal(kept.cells[10:], kept.cells[:10])
    cells, classes = kept.pick(5)
    assert cells.shape[0] == len(classes) == 5
    assert float(cells.max()) <= 1.0


def test_the_loss_counts_only_what_is_visible() -> None:
    logits = {name: torch.zeros(2, len(values)) for name, values in ATTRIBUTES.items()}
    classes = torch.full((2, len(ATTRIBUTES)), UNSEEN)
    classes[:, COLUMN["glasses"]] = torch.tensor([1, UNSEEN])
    assert float(loss_of(logits, classes)) == pytest.approx(torch.tensor(2.0).log().item())
    classes[:, COLUMN["skin"]] = 0
    both = torch.tensor(2.0).log() + torch.tensor(3.0).log()
    assert float(loss_of(logits, classes)) == pytest.approx(both.item())


def test_training_learns_colors_from_few_pictures() -> None:
    some = scenes(40)
    pool = Pool(drawn(some, random.Random(0)), labels(some))
    cells = CellPool((ColorCells()(pool.pixels.float() / 255) * 255).to(torch.uint8), pool.classes)
    losses: list[float] = []
    torch.manual_seed(0)
    network = JudgeNetwork()
    pair = {"drawn": cells, "reconstructed": cells}
    train(network, pair, 50, lambda step, loss: losses.append(loss))
    assert len(losses) == 50
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert not network.training
    assert accuracy(network, pool)["legs_color"] > 0.5


def test_accuracy_leaves_out_what_cannot_be_seen() -> None:
    class Told(JudgeNetwork):
        def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logits = {name: torch.zeros(len(pixels), len(v)) for name, v in ATTRIBUTES.items()}
            return torch.zeros(len(pixels), 1), logits  # always the first value

    classes = torch.full((4, len(ATTRIBUTES)), UNSEEN)
    classes[:, COLUMN["kind"]] = torch.tensor([0, 0, 0, 1])
    classes[:2, COLUMN["ears"]] = torch.tensor([0, 1])
    shares = accuracy(Told(), Pool(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), classes))
    assert shares["kind"] == 0.75
    assert shares["ears"] == 0.5


def test_weights_are_rounded_and_refused_if_they_do_not_fit() -> None:
    kept = rounded({"a": torch.tensor([1.0, 2.0], requires_grad=True)})
    assert kept["a"].dtype == torch.float16
    assert not kept["a"].requires_grad
    with pytest.raises(ValueError, match="fp16"):
        rounded({"a": torch.tensor([1e6])})


def test_pools_and_pictures_have_a_row_for_each_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pools(Identity(), drawings=6, reconstructions=4, seed=0)
    assert {name: len(pool.pixels) for name, pool in made.items()} == {
        "drawn": 6,
        "reconstructed": 4,
    }
    assert all(len(pool.pixels) == len(pool.classes) for pool in made.values())
    pixels, order = pictures_of(Identity(), scenes(5), 3, random.Random(0))
    assert len(pixels) == len(order) == 13
    assert order == [*range(5), *range(5), 0, 1, 2]


def test_the_asset_holds_a_judge_that_knows_every_subject() -> None:
    torch.manual_seed(0)
    shipped = asset(JudgeNetwork(), Identity(), count=30, reconstructions=4)
    assert len(to_bytes(shipped)) < 1.5e6
    judge = Judge({name: weight.float() for name, weight in shipped.items()})
    for name in SUBJECTS:
        assert 0 <= judge.subject_score(torch.rand(1, 3, 128, 128), name)[0] <= 1


def test_the_build_writes_judge_and_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("DRAWN", 28), ("RECONSTRUCTED", 20), ("EXAMPLES", 20)):
        monkeypatch.setattr(making, name, value)
    monkeypatch.setattr(making, "load_checkpoint", lambda path: SimpleNamespace(vae=Identity()))
    assert making.main(["any.safetensors", "--steps", "2", "--out", str(tmp_path)]) == 0
    judge = Judge({name: one.float() for name, one in load_file(tmp_path / ASSET.name).items()})
    assert len(judge.subject_score(torch.rand(2, 3, 64, 64), "rex")) == 2
    assert sorted(path.name for path in (tmp_path / "subjects").iterdir()) == sorted(SUBJECTS)


def test_batches_mix_in_reconstructions() -> None:
    assert 0.3 <= building.RECONSTRUCTED_SHARE <= 0.5
