"""Masks from opacity and from files, cropped and mirrored exactly as their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dreambooth_core.data.images import fit_to_bucket
from dreambooth_core.data.loss_masks import fit_mask, open_mask
from dreambooth_core.data.picture_files import has_mask
from dreambooth_core.errors import InputError


def picture(path: Path, size: tuple[int, int] = (64, 32), mode: str = "RGB") -> Path:
    Image.new(mode, size, (10, 20, 30, 51)[: len(mode)]).save(path)
    return path


def test_where_a_mask_comes_from(tmp_path: Path) -> None:
    plain = picture(tmp_path / "a.png")
    opaque_in_part = picture(tmp_path / "b.png", mode="RGBA")
    Image.new("L", (64, 32), 200).save(tmp_path / "a.mask.png")
    found = {
        source: [has_mask(path, source) for path in (plain, opaque_in_part)]
        for source in ("none", "alpha", "files")
    }
    assert found == {"none": [False, False], "alpha": [False, True], "files": [True, False]}
    values = {}
    for source, path in (("files", plain), ("alpha", opaque_in_part)):
        mask = open_mask(path, source)
        assert mask is not None and mask.mode == "L"
        values[source] = mask.getpixel((0, 0))
    assert values == {"files": 200, "alpha": 51}
    assert open_mask(plain, "alpha") is None
    assert open_mask(opaque_in_part, "files") is None
    assert open_mask(plain, "none") is None


def test_a_mask_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    """The same shape at another size is fine."""
    path = picture(tmp_path / "a.png")
    Image.new("L", (32, 16)).save(tmp_path / "a.mask.png")
    assert open_mask(path, "files") is not None
    Image.new("L", (32, 32)).save(tmp_path / "a.mask.png")
    with pytest.raises(InputError, match=r"a\.mask\.png is 32x32 pixels, .* 64x32"):
        open_mask(path, "files")


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (tmp_path / "a.mask.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.mask\.png cannot be read"):
        open_mask(path, "files")


def test_a_latents_value_is_the_mean_of_its_area() -> None:
    """8x8 pixels, of which the left three columns are white and the fourth is half white."""
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 3, 8))
    mask.paste(128, (3, 0, 4, 8))
    fitted = fit_mask(mask, (8, 8), (2, 2))
    assert fitted.shape == (1, 2, 2)
    half = (3 + 128 / 255) / 4
    torch.testing.assert_close(fitted[0], torch.tensor([[half, 0.0], [half, 0.0]]))
    assert torch.equal(fit_mask(mask, (8, 8), (2, 2), flip=True), fitted.flip(-1))
    assert torch.equal(fit_mask(Image.new("L", (9, 5), 255), (8, 8), (2, 2)), torch.ones(1, 2, 2))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("source", [(200, 100), (100, 230), (77, 131)])
def test_a_mask_lies_where_its_picture_does(
    source: tuple[int, int], position: float, flip: bool
) -> None:
    """A picture that is its own mask, averaged to the latents' size, is the mask."""
    noise = numpy.random.default_rng(0).integers(0, 2, (source[1] // 9 + 1, source[0] // 9 + 1))
    blocks = numpy.kron(noise, numpy.ones((9, 9))) * 255
    image = Image.fromarray(blocks[: source[1], : source[0]].astype(numpy.uint8))
    pixels = fit_to_bucket(image.convert("RGB"), (64, 48), position, flip=flip)
    seen = torch.nn.functional.avg_pool2d((pixels + 1) / 2, 8)[:1]
    mask = fit_mask(image, (64, 48), (8, 6), position, flip=flip)
    assert (seen - mask).abs().mean() < 0.02
    wrong = fit_mask(image, (64, 48), (8, 6), position, flip=not flip)
    assert (seen - wrong).abs().mean() > 0.1
