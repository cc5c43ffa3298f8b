"""The latent cache: keyed by content, exact, and it never trusts a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreambooth_core.data.cache import LatentCache, latent_key

MEAN = torch.linspace(-2, 2, 4 * 3 * 5).reshape(4, 3, 5)
DEVIATION = MEAN.abs() / 10
BASE = {"file_hash": "a", "size": (64, 32), "flip": False, "crop": 0.5, "vae_hash": "v"}


@pytest.mark.parametrize(
    "change",
    [
        {"file_hash": "b"},
        {"size": (32, 64)},
        {"flip": True},
        {"crop": 0.25},
        {"vae_hash": "w"},
        {"normalized": True},
    ],
)
def test_each_part_of_the_key_matters(change: dict[str, object]) -> None:
    """An edited file, another bucket, a flip, another crop and another VAE are other entries."""
    assert latent_key(**{**BASE, **change}) != latent_key(**BASE)  # type: ignore[arg-type]
    assert latent_key(**BASE) == latent_key(**BASE)  # type: ignore[arg-type]


def test_the_key_of_usual_pictures_is_that_of_older_caches() -> None:
    """Golden: made by `latent_key` as it was at commit 0f58a90."""
    golden = "d3a5e8932c9262ebbfc1c26d7cd9cf7d8badb3311e14ba60f3e16f1f21ec431e"
    assert latent_key(**BASE) == golden  # type: ignore[arg-type]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_put_is_got_bit_for_bit(tmp_path: Path, on_disk: bool) -> None:
    """As fp32 and in memory of its own; an unknown key is None."""
    cache = LatentCache(tmp_path / "cache" if on_disk else None)
    source = MEAN.clone()
    cache.put("key", source, DEVIATION.double())
    source.zero_()
    latents = cache.get("key")
    assert latents is not None
    assert torch.equal(latents.mean, MEAN)
    assert torch.equal(latents.deviation, DEVIATION)
    assert latents.deviation.dtype == torch.float32
    assert cache.get("other") is None
    assert cache.damaged == []


def test_a_non_contiguous_tensor_is_stored_whole(tmp_path: Path) -> None:
    """A slice of a batch is a view; its file holds just that slice."""
    batch = torch.stack([MEAN, DEVIATION], dim=-1)
    LatentCache(tmp_path).put("key", batch[..., 0], batch[..., 1])
    latents = LatentCache(tmp_path).get("key")
    assert latents is not None
    assert torch.equal(latents.mean, MEAN)
    assert (tmp_path / "key.safetensors").stat().st_size < 2 * MEAN.numel() * 4 + 500


def test_files_serve_the_next_run_and_leave_no_temporary_ones(tmp_path: Path) -> None:
    """One file per key."""
    LatentCache(tmp_path).put("key", MEAN, DEVIATION)
    assert [path.name for path in tmp_path.iterdir()] == ["key.safetensors"]
    assert LatentCache(tmp_path).get("key") is not None


def test_every_cut_of_a_file_is_noticed_and_repaired_by_the_next_put(tmp_path: Path) -> None:
    """Cut in the header or the data: absent, listed once, good again after put."""
    LatentCache(tmp_path).put("key", MEAN, DEVIATION)
    path = tmp_path / "key.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        cache = LatentCache(tmp_path)
        assert cache.get("key") is None
        assert cache.get("key") is None
        assert cache.damaged == [path]
    cache.put("key", MEAN, DEVIATION)
    assert cache.get("key") is not None
    assert path.read_bytes() == whole


def test_zeroed_or_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    """The right length is not enough: a crash can leave zeros, a disk a flipped bit."""
    LatentCache(tmp_path).put("key", MEAN, DEVIATION)
    path = tmp_path / "key.safetensors"
    whole = bytearray(path.read_bytes())
    for damage in (bytes(whole[:-64]) + bytes(64), bytes(whole[:-1]) + bytes([whole[-1] ^ 1])):
        path.write_bytes(damage)
        cache = LatentCache(tmp_path)
        assert cache.get("key") is None
        assert cache.damaged == [path]


def test_a_file_of_something_else_is_not_used(tmp_path: Path) -> None:
    """A safetensors file without our tensors counts as damaged too."""
    from safetensors.torch import save_file

    save_file({"weight": MEAN}, tmp_path / "key.safetensors")
    cache = LatentCache(tmp_path)
    assert cache.get("key") is None
    assert len(cache.damaged) == 1
