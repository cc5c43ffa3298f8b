"""Random streams are independent and order-free; noise and the forward process by formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth_core.diffusion.noise import (
    add_noise,
    gaussian_noise,
    multires_noise,
    sample_timesteps,
    stream,
)
from dreambooth_core.diffusion.schedule import scaled_linear_alphas_cumprod


def numbers(seed: int, name: str, step: int) -> torch.Tensor:
    """Return the first numbers of a stream."""
    return torch.randn(1000, generator=stream(seed, name, step))


def test_the_same_address_gives_the_same_numbers_in_any_order() -> None:
    """Drawing other streams first, or torch's global seed, changes nothing."""
    first = numbers(7, "noise", 3)
    numbers(7, "noise", 2)
    torch.manual_seed(99)
    torch.randn(5)
    assert torch.equal(numbers(7, "noise", 3), first)


@pytest.mark.parametrize("other", [(8, "noise", 3), (7, "timesteps", 3), (7, "noise", 4)])
def test_each_part_of_the_address_matters(other: tuple[int, str, int]) -> None:
    """Another seed, purpose or step is an uncorrelated stream (1000 draws: |r| < 0.13 is 4 s)."""
    pair = torch.stack([numbers(7, "noise", 3), numbers(*other)])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.13


def test_parts_of_the_address_do_not_run_together() -> None:
    """("1", "2") must not be ("12", ""): all addresses below differ."""
    addresses = [(1, "1", 1), (11, "", 1), (1, "", 11), (1, "11", 1), (11, "1", 1), (1, "1", 11)]
    firsts = [numbers(*address)[0].item() for address in addresses]
    assert len(set(firsts)) == len(firsts)


def test_many_steps_do_not_repeat() -> None:
    """2000 steps of three purposes give 6000 different first numbers."""
    pairs = itertools.product(("noise", "timesteps", "posterior"), range(2000))
    firsts = [torch.randn(2, generator=stream(0, *pair)).sum().item() for pair in pairs]
    assert len(set(firsts)) > 5990  # a few of 6000 sums may coincide in fp32


def test_a_stream_is_pinned() -> None:
    r"""Golden: sha256(b"420420\0noise\x000")[:8] little-endian >> 1, taken with hashlib alone.

    A change here would silently change what a resumed run draws.
    """
    assert stream(420420, "noise", 0).initial_seed() == 6577848138363130608


def test_noise_is_standard_normal() -> None:
    """40,000 draws: the mean is within 4 / sqrt(n), the variance within 4 sqrt(2 / n)."""
    noise = gaussian_noise((10, 4, 100, 10), stream(0, "noise", 0))
    assert noise.shape == (10, 4, 100, 10)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.var().item() - 1) < 0.03


def test_offset_noise_adds_one_number_per_channel() -> None:
    """The difference to plain noise is constant over h and w, and scales with the strength."""
    shape = (2, 4, 8, 8)
    plain = gaussian_noise(shape, stream(0, "noise", 0))
    tenth = gaussian_noise(shape, stream(0, "noise", 0), 0.1) - plain
    fifth = gaussian_noise(shape, stream(0, "noise", 0), 0.2) - plain
    torch.testing.assert_close(tenth, tenth[:, :, :1, :1].expand(shape), atol=1e-6, rtol=0)
    torch.testing.assert_close(fifth, 2 * tenth, atol=1e-6, rtol=0)
    offsets = tenth[:, :, 0, 0].flatten() / 0.1
    assert offsets.unique().numel() == 8
    assert 0.3 < offsets.std().item() < 2.5


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_offset_noise_by_its_definition(strength: float) -> None:
    """eps + s * o, where o is drawn after eps from the same stream."""
    generator = stream(0, "noise", 0)
    expected = torch.randn(2, 4, 8, 8, generator=generator)
    expected += strength * torch.randn(2, 4, 1, 1, generator=generator)
    assert torch.equal(gaussian_noise((2, 4, 8, 8), stream(0, "noise", 0), strength), expected)


def test_micro_batches_drawing_in_turn_get_what_one_batch_gets() -> None:
    """Without offset noise a stream holds nothing but the noise, one example after the other."""
    whole, parts = stream(0, "noise", 0), stream(0, "noise", 0)
    two = gaussian_noise((2, 4, 8, 8), whole)
    each = [gaussian_noise((1, 4, 8, 8), parts) for _ in range(2)]
    assert torch.equal(torch.cat(each), two)


def multires(count: int, iterations: int, discount: float, side: int = 64) -> torch.Tensor:
    """Multires noise from streams of its own."""
    plain = gaussian_noise((count, 4, side, side), stream(0, "noise", 0))
    return multires_noise(plain, stream(0, "multires", 0), iterations, discount)


@pytest.mark.parametrize("iterations", [2, 6])
def test_multires_noise_by_its_definition(iterations: int) -> None:
    """The layers one by one through torch's Upsample, as kohya's trainer does it for one image."""
    shape = (1, 4, 24, 40)
    plain = gaussian_noise(shape, stream(0, "noise", 0))
    generator, expected = stream(0, "multires", 0), plain.clone()
    upsample = torch.nn.Upsample(size=(24, 40), mode="bilinear")
    for i in range(iterations):
        r = torch.rand((), generator=generator).item() * 2 + 2
        height, width = max(1, int(24 / r**i)), max(1, int(40 / r**i))
        expected += upsample(torch.randn(1, 4, height, width, generator=generator)) * 0.4**i
        if height == 1 or width == 1:
            break
    result = multires_noise(plain, stream(0, "multires", 0), iterations, 0.4)
    torch.testing.assert_close(result, expected / expected.std())


def test_no_iterations_leave_the_noise_and_the_stream_alone() -> None:
    plain, generator = torch.randn(2, 4, 8, 8), stream(0, "multires", 0)
    before = generator.get_state()
    assert multires_noise(plain, generator, 0, 0.5) is plain
    assert torch.equal(generator.get_state(), before)


def test_multires_noise_has_unit_deviation_in_each_example_and_more_of_the_coarse() -> None:
    """Means over 16 x 16 blocks deviate by 1/16 in white noise; more layers and discount raise."""
    white, weak, strong = (multires(8, *how) for how in ((0, 0.0), (6, 0.3), (6, 0.8)))
    for noise in (weak, strong):
        torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(8))
    coarse = [torch.nn.functional.avg_pool2d(n, 16).std().item() for n in (white, weak, strong)]
    assert coarse[0] == pytest.approx(1 / 16, rel=0.2)
    assert coarse[0] * 1.1 < coarse[1] < coarse[2] / 2
    fewer = torch.nn.functional.avg_pool2d(multires(8, 2, 0.8), 16).std().item()
    assert fewer < coarse[2]


def test_the_first_layer_alone_is_white_noise() -> None:
    """One iteration adds noise of the same size: (n + n_0) / sqrt(2), whatever the discount."""
    coarse = torch.nn.functional.avg_pool2d(multires(8, 1, 0.8), 16).std().item()
    assert coarse == pytest.approx(1 / 16, rel=0.2)


def test_layers_end_at_one_row() -> None:
    """Twenty layers of an 8 x 8 latent are no more than those down to one number."""
    assert torch.equal(multires(2, 20, 0.9, side=8), multires(2, 10, 0.9, side=8))


def test_timesteps_keep_to_their_range_ends_included() -> None:
    generator = stream(0, "timesteps", 0)
    timesteps = sample_timesteps(2000, generator, 1000, lowest=100, highest=109)
    assert sorted(set(timesteps.tolist())) == list(range(100, 110))
    few = sample_timesteps(2000, generator, 10, lowest=7, highest=999)
    assert sorted(set(few.tolist())) == [7, 8, 9]


def test_a_whole_range_draws_what_no_range_draws() -> None:
    """Golden losses do not change with the range at its default."""
    whole = sample_timesteps(50, stream(0, "timesteps", 0), 1000, lowest=0, highest=999)
    assert torch.equal(whole, sample_timesteps(50, stream(0, "timesteps", 0), 1000))


def test_timesteps_are_uniform_over_the_whole_range() -> None:
    """Both ends occur; each of 10 bins of 10,000 draws holds 1000 within 5 standard deviations."""
    timesteps = sample_timesteps(10_000, stream(0, "timesteps", 0), 1000)
    assert timesteps.dtype == torch.int64
    assert timesteps.min() == 0
    assert timesteps.max() == 999
    counts = torch.bincount(timesteps // 100, minlength=10)
    assert (counts - 1000).abs().max() < 150


def test_add_noise_by_hand() -> None:
    """alpha_bar 0.64: 0.8 * 2 + 0.6 * 1 = 2.2; alpha_bar 0.36: 0.6 * 2 + 0.8 * 1 = 2.0."""
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.ones(2, 1, 1, 1)
    result = add_noise(latents, noise, torch.tensor([0.64, 0.36]), torch.tensor([0, 1]))
    torch.testing.assert_close(result.flatten(), torch.tensor([2.2, 2.0]))


def test_add_noise_equals_diffusers() -> None:
    """The same formula in diffusers' scheduler, at both ends and in between."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    alphas_cumprod = scaled_linear_alphas_cumprod(0.00085, 0.012, 1000)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=stream(0, "test", 0))
    timesteps = torch.tensor([0, 500, 999])
    ours = add_noise(latents, noise, alphas_cumprod, timesteps)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps))
