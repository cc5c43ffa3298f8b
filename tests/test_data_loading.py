"""From samples to tensors: each picture encoded once, batches in the samples' order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.data.cache import LatentCache
from dreambooth_core.data.dataset import MicroBatch, Sample, TrainingSet
from dreambooth_core.data.examples import Example
from dreambooth_core.data.loading import Batch, LatentSource
from dreambooth_core.data.picture_files import file_hash
from dreambooth_core.diffusion.noise import stream
from dreambooth_core.errors import InputError, NonFiniteError


class Encoder:
    """Stands in for the VAE: mean = 8x8 average of each colour, deviation = 0.1; counts calls."""

    def __init__(self) -> None:
        """No calls yet."""
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B,3,H/8,W/8) twice."""
        self.batches.append(tuple(pixels.shape))
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return mean, torch.full_like(mean, 0.1)


def example(path: Path, colors: tuple[str, str], **settings: object) -> Example:
    """Write a 64x32 picture with a left and a right colour and return it as an example."""
    image = Image.new("RGB", (64, 32), colors[0])
    image.paste(colors[1], (32, 0, 64, 32))
    image.save(path)
    base = Example(path, f"prompt of {path.stem}", (32, 16), file_hash=file_hash(path))
    return replace(base, **settings)  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Example]:
    """Two instance pictures and a class picture in one bucket."""
    return [
        example(tmp_path / "a.png", ("black", "white")),
        example(tmp_path / "b.png", ("white", "white")),
        example(tmp_path / "c.png", ("black", "black"), is_class=True, weight=0.75),
    ]


def test_a_batch_holds_what_its_samples_say(pictures: list[Example]) -> None:
    """Order, prompts, weights, class marks; black is -1 and white 1; flip mirrors."""
    samples = [Sample(one, one.prompt) for one in pictures] + [Sample(pictures[0], "", flip=True)]
    source = LatentSource(LatentCache(), Encoder(), "vae")
    batch = source.batch(MicroBatch((32, 16), tuple(samples)))
    assert batch.latents_mean.shape == batch.latents_deviation.shape == (4, 3, 2, 4)
    rows = batch.latents_mean[:, 0, 0, :]
    expected = [[-1, -1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1], [1, 1, -1, -1]]
    assert (rows.round().tolist()) == expected
    assert batch.prompts == ["prompt of a", "prompt of b", "prompt of c", ""]
    assert batch.weights.tolist() == [1.0, 1.0, 0.75, 1.0]
    assert batch.is_class.tolist() == [False, False, True, False]


def test_a_batch_tells_sizes_and_crops(pictures: list[Example]) -> None:
    """64x32 pictures in a bucket of 16x16: scaled to 32x16, of which 16 columns are cut away."""
    one = replace(pictures[0], bucket=(16, 16), source_size=(64, 32))
    samples = [
        Sample(one, ""),
        Sample(one, "", crop=0.0),
        Sample(one, "", crop=0.0, flip=True),
        Sample(replace(one, source_size=(0, 0)), ""),  # unknown: taken for what it became
    ]
    source = LatentSource(LatentCache(), Encoder(), "vae")
    batch = source.batch(MicroBatch((16, 16), tuple(samples)))
    assert batch.sizes.dtype == torch.float32
    assert batch.sizes.tolist() == [
        [32, 64, 0, 8, 16, 16],
        [32, 64, 0, 0, 16, 16],
        [32, 64, 0, 16, 16, 16],
        [16, 16, 0, 0, 16, 16],
    ]


def test_pictures_come_with_a_batch_on_request(pictures: list[Example]) -> None:
    """The same crop and flip as the latents were made of; nothing is encoded for them."""
    samples = (Sample(pictures[0], ""), Sample(pictures[0], "", flip=True))
    encoder = Encoder()
    source = LatentSource(LatentCache(), encoder, "vae", with_pixels=True)
    batch = source.batch(MicroBatch((32, 16), samples))
    assert batch.pixels is not None and batch.pixels.shape == (2, 3, 16, 32)
    assert torch.equal(batch.pixels[1], batch.pixels[0].flip(-1))
    mean = torch.nn.functional.avg_pool2d(batch.pixels, 8)
    assert torch.allclose(mean, batch.latents_mean)
    count = len(encoder.batches)
    source.batch(MicroBatch((32, 16), samples))
    assert len(encoder.batches) == count
    plain = LatentSource(LatentCache(), Encoder(), "vae")
    assert plain.batch(MicroBatch((32, 16), samples)).pixels is None


def test_fill_encodes_each_variant_once_in_batches(pictures: list[Example]) -> None:
    """3 pictures x 2 flips in batches of 4: 4 + 2; nothing again, the encoder is then unused."""
    encoder, progress = Encoder(), []
    source = LatentSource(LatentCache(), encoder, "vae")
    training_set = TrainingSet(pictures[:2], pictures[2:], seed=0, horizontal_flip=True)
    variants = training_set.variants()
    count = source.fill(variants, batch_size=4, on_progress=lambda *x: progress.append(x))
    assert count == 6
    assert encoder.batches == [(4, 3, 16, 32), (2, 3, 16, 32)]
    assert progress == [(4, 6), (6, 6)]
    assert source.fill(variants) == 0
    for epoch in range(5):
        for step in training_set.epoch_batches(epoch):
            for micro_batch in step.micro_batches:
                source.batch(micro_batch)
    assert len(encoder.batches) == 2


def test_random_crops_are_all_encoded_ahead(pictures: list[Example]) -> None:
    """Five positions per picture; the left crop of a black and white picture is black."""
    square = [replace(one, bucket=(16, 16)) for one in pictures]
    encoder = Encoder()
    source = LatentSource(LatentCache(), encoder, "vae")
    training_set = TrainingSet(square, seed=0, random_crop=True)
    assert source.fill(training_set.variants(), batch_size=100) == 15
    left = source.latents(Sample(square[0], "", crop=0.0)).mean
    right = source.latents(Sample(square[0], "", crop=1.0)).mean
    assert left.mean().item() == pytest.approx(-1, abs=0.02)  # Lanczos sees across the cut
    assert right.mean().item() == pytest.approx(1, abs=0.02)
    assert len(encoder.batches) == 1


def test_latents_do_not_depend_on_where_an_earlier_run_was_ended(
    pictures: list[Example], tmp_path: Path
) -> None:
    """The last bits depend on the size of the batch: one that lacks a picture is encoded whole."""
    samples = [Sample(one, one.prompt, flip=flip) for one in pictures for flip in (False, True)]

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.nn.functional.avg_pool2d(pixels, 8) + 2.0 ** -len(pixels)
        return mean, torch.full_like(mean, 0.1)

    folder = tmp_path / "cache"
    LatentSource(LatentCache(folder), encode, "vae").fill(samples, batch_size=4)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    lost = sorted(whole)[1:3]
    for path in lost:
        path.unlink()
    LatentSource(LatentCache(folder), encode, "vae").fill(samples, batch_size=4)
    assert {path: path.read_bytes() for path in folder.iterdir()} == whole


def test_an_edited_picture_is_encoded_again(tmp_path: Path) -> None:
    """The key is the content: the same name with other bytes is another entry on disk."""
    cache_folder, encoder = tmp_path / "cache", Encoder()
    for colors in (("black", "black"), ("white", "white"), ("black", "black")):
        one = example(tmp_path / "a.png", colors)
        source = LatentSource(LatentCache(cache_folder), encoder, "vae")
        value = source.latents(Sample(one, "")).mean.mean().item()
        assert value == pytest.approx(-1 if colors[0] == "black" else 1)
    assert len(encoder.batches) == 2
    LatentSource(LatentCache(cache_folder), encoder, "other").latents(Sample(one, ""))
    assert len(encoder.batches) == 3


def test_a_damaged_file_is_encoded_again_and_listed(
    tmp_path: Path, pictures: list[Example]
) -> None:
    """The caller can tell the person which files were made anew."""
    samples = [Sample(one, "") for one in pictures]
    LatentSource(LatentCache(tmp_path / "cache"), Encoder(), "vae").fill(samples)
    victim = sorted((tmp_path / "cache").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-3])
    source = LatentSource(LatentCache(tmp_path / "cache"), Encoder(), "vae")
    assert source.fill(samples) == 1
    assert source.cache.damaged == [victim]
    assert source.fill(samples) == 0


def test_a_broken_vae_is_an_error_and_nothing_is_stored(pictures: list[Example]) -> None:
    """NaN never reaches the cache."""
    cache = LatentCache()
    source = LatentSource(cache, lambda x: (x * float("nan"), x), "vae")
    with pytest.raises(NonFiniteError, match=r"a\.png into values that are not finite"):
        source.latents(Sample(pictures[0], ""))
    good = LatentSource(cache, Encoder(), "vae")
    assert good.fill([Sample(pictures[0], "")]) == 1


def test_drawing_from_the_posterior() -> None:
    """Mean 3, deviation 0.5 over 40,000 numbers; deviation 0 gives the mean; streams repeat."""
    shape = (10, 4, 100, 10)
    batch = Batch(
        torch.full(shape, 3.0),
        torch.full(shape, 0.5),
        [],
        torch.ones(10),
        torch.ones(10),
        torch.ones(10, 6),
    )
    latents = batch.latents(stream(0, "posterior", 0))
    assert latents.mean().item() == pytest.approx(3, abs=0.01)
    assert latents.std().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(latents, batch.latents(stream(0, "posterior", 0)))
    certain = replace(batch, latents_deviation=torch.zeros(shape))
    assert torch.equal(certain.latents(stream(0, "posterior", 0)), batch.latents_mean)


def with_mask(one: Example, left: int, right: int, suffix: str = ".mask.png") -> Example:
    """Give a 64x32 picture a mask file with a gray value for each half."""
    mask = Image.new("L", (64, 32), left)
    mask.paste(right, (32, 0, 64, 32))
    mask.save(one.path.with_name(one.path.stem + suffix))
    return replace(one, masked=True)


def test_masks_come_with_a_batch_in_the_size_of_its_latents(pictures: list[Example]) -> None:
    """White is 1, black 0; mirrored with the picture; ones without a mask; None if unasked."""
    one = with_mask(pictures[0], 255, 0)
    samples = (Sample(one, ""), Sample(one, "", flip=True), Sample(pictures[2], ""))
    source = LatentSource(LatentCache(), Encoder(), "vae", masks="files")
    batch = source.batch(MicroBatch((32, 16), samples))
    assert batch.masks is not None and batch.masks.shape == (3, 1, 2, 4)
    assert batch.masks[:, 0, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    plain = LatentSource(LatentCache(), Encoder(), "vae")
    assert plain.batch(MicroBatch((32, 16), samples)).masks is None


def test_a_mask_follows_the_crop(pictures: list[Example]) -> None:
    """The left and the right half of a picture whose left half counts in part, the right wholly."""
    one = replace(with_mask(pictures[0], 51, 255), bucket=(16, 16))
    source = LatentSource(LatentCache(), Encoder(), "vae", masks="files")
    left, right = (source.mask(Sample(one, "", crop=crop)) for crop in (0.0, 1.0))
    torch.testing.assert_close(left, torch.full((1, 2, 2), 0.2))
    torch.testing.assert_close(right, torch.ones(1, 2, 2))


def test_opacity_is_a_mask(tmp_path: Path) -> None:
    """The picture is seen over white, and its transparent half does not count."""
    image = Image.new("RGBA", (64, 32), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    image.save(tmp_path / "a.png")
    one = Example(tmp_path / "a.png", "", (32, 16), file_hash="a", masked=True)
    source = LatentSource(LatentCache(), Encoder(), "vae", masks="alpha")
    batch = source.batch(MicroBatch((32, 16), (Sample(one, ""),)))
    assert batch.masks is not None
    assert batch.masks[0, 0, 0].tolist() == [1, 1, 0, 0]
    assert batch.latents_mean[0, 0, 0].round().tolist() == [-1, -1, 1, 1]


def test_a_mask_that_leaves_nothing_is_named_before_the_first_step(
    pictures: list[Example],
) -> None:
    """Which may be so in one of the random crops only."""
    one = replace(with_mask(pictures[0], 255, 0), bucket=(16, 16))
    source = LatentSource(LatentCache(), Encoder(), "vae", masks="files")
    samples = TrainingSet([one], seed=0, random_crop=True).variants()
    with pytest.raises(InputError, match=r"The mask of .*a\.png leaves nothing") as caught:
        source.fill(samples)
    assert caught.value.field == "images.masks"


def test_masks_are_read_once_and_twins_keep_their_own(
    tmp_path: Path, pictures: list[Example]
) -> None:
    """Two files with the same bytes have one entry of latents, and each its mask."""
    first = with_mask(pictures[1], 255, 0)
    other = tmp_path / "twin.png"
    other.write_bytes(first.path.read_bytes())
    second = with_mask(replace(first, path=other), 0, 255, "-masklabel.png")
    encoder = Encoder()
    source = LatentSource(LatentCache(), encoder, "vae", masks="files")
    assert source.fill([Sample(first, ""), Sample(second, "")]) >= 1
    other.with_name("twin-masklabel.png").unlink()
    masks = [source.mask(Sample(one, ""))[0, 0].tolist() for one in (first, second)]
    assert masks == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_normalized_pictures_are_other_latents(tmp_path: Path, pictures: list[Example]) -> None:
    """Mean 0 and deviation 1 reach the encoder; the cache keeps both kinds apart."""
    seen: list[Tensor] = []

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(pixels)
        return pixels, pixels

    sample = Sample(replace(pictures[0], bucket=(64, 32)), "")
    for normalize in (False, True, True, False):
        LatentSource(LatentCache(tmp_path), encode, "vae", normalize=normalize).fill([sample])
    assert len(seen) == 2
    assert (seen[0].min().item(), seen[0].max().item()) == (-1, 1)
    assert seen[1].mean().item() == pytest.approx(0, abs=1e-5)
    assert seen[1].std().item() == pytest.approx(1, abs=1e-5)
