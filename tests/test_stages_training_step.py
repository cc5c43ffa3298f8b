"""Tests of one step on a network of a single weight, where every number can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dreambooth_core.config.schema import LossSection
from dreambooth_core.data.loading import Batch
from dreambooth_core.data.masks import random_masks
from dreambooth_core.diffusion.noise import multires_noise, stream
from dreambooth_core.errors import NonFiniteError
from dreambooth_core.families import FAMILIES
from dreambooth_core.stages.gradients import GradientLimits
from dreambooth_core.stages.training_step import (
    Objective,
    StepResult,
    train_step,
    weighed_in_epoch,
)

SEED = 3
ALPHAS_CUMPROD = torch.linspace(0.99, 0.01, 10)
SHAPE = (4, 8, 8)


class OneWeight(nn.Module):
    """A network whose output is its input times one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, noisy_latents: Tensor) -> Tensor:
        """Scale the input."""
        return self.weight * noisy_latents


class Told:
    """A conditioning that keeps what it is given."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts
        self.sizes: Tensor | None = None
        self.canvas: Tensor | None = None

    def beside(self, sizes: Tensor, canvas: Tensor | None) -> Told:
        """Keep these too."""
        self.sizes, self.canvas = sizes, canvas
        return self


class FakeFamily:
    """A family whose prediction is that of `OneWeight`; it keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Any]] = []

    def canvas(self, components: Any, pixels: Tensor, masks: Tensor) -> Tensor:
        """Return what was given."""
        return torch.cat([pixels, masks], dim=1)

    def predict(self, components: Any, noisy: Tensor, timesteps: Tensor, told: Any) -> Tensor:
        """Return the network's output."""
        self.seen.append((noisy, timesteps, told))
        return components.unet(noisy)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFamily]:
    """The fake family under the name "fake", and Accelerate as in a new process."""
    fake = FakeFamily()
    monkeypatch.setitem(FAMILIES, "fake", fake)  # type: ignore[arg-type]
    AcceleratorState._reset_state(True)
    yield fake
    AcceleratorState._reset_state(True)


def make_batch(
    count: int, is_class: Sequence[bool] = (), prior: float = 1.0, seed: int = 0
) -> Batch:
    """A batch of random latents without spread; class examples weigh `prior`."""
    flags = list(is_class) or [False] * count
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, *SHAPE, generator=generator)
    weights = torch.tensor([prior if flag else 1.0 for flag in flags])
    sizes = torch.arange(6.0).expand(count, 6)
    return Batch(mean, torch.zeros_like(mean), ["a"] * count, weights, torch.tensor(flags), sizes)


def make_objective(weight: float = 0.0, kind: str = "epsilon", **loss: Any) -> Objective:
    """An objective over the one-weight network."""
    components: Any = SimpleNamespace(family="fake", unet=OneWeight(weight), prediction_type=kind)
    encode: Any = Told
    settings = LossSection(**loss)
    return Objective(components, encode, ALPHAS_CUMPROD, settings, torch.device("cpu"))


def make_step(
    objective: Objective,
    batches: Sequence[Batch],
    *,
    step: int = 0,
    max_grad_norm: float = 0.0,
    learning_rate: float = 0.1,
    accelerator: Accelerator | None = None,
) -> StepResult:
    """One step of plain gradient descent."""
    accelerator = accelerator or Accelerator(cpu=True)
    optimizer = torch.optim.SGD(objective.components.unet.parameters(), lr=learning_rate)
    return train_step(
        accelerator,
        accelerator.prepare_optimizer(optimizer),
        objective,
        batches,
        seed=SEED,
        step=step,
        limits=GradientLimits(max_grad_norm),
    )


def drawn(count: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """The noise and timesteps that a step draws."""
    noise = torch.randn(count, *SHAPE, generator=stream(SEED, "noise", step))
    timesteps = torch.randint(0, 10, (count,), generator=stream(SEED, "timesteps", step))
    return noise, timesteps


def mean_squares(tensor: Tensor) -> Tensor:
    """The mean square of each example."""
    return tensor.square().flatten(1).mean(1)


def test_a_network_that_predicts_nothing_loses_the_targets_mean_square() -> None:
    result = make_step(make_objective(0.0), [make_batch(3)])
    noise, _ = drawn(3)
    assert result.loss == pytest.approx(mean_squares(noise).mean().item(), rel=1e-6)
    assert result.loss == result.loss_instance
    assert result.loss_class is None


def test_gradient_and_update_are_those_of_the_mean_square_by_hand() -> None:
    objective, batch = make_objective(0.5), make_batch(2)
    result = make_step(objective, [batch], learning_rate=0.1)
    noise, timesteps = drawn(2)
    alpha = ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.latents_mean + (1 - alpha).sqrt() * noise
    gradient = (2 * (0.5 * noisy - noise) * noisy).mean().item()
    assert result.grad_norm == pytest.approx(abs(gradient), rel=1e-5)
    assert objective.components.unet.weight.item() == pytest.approx(0.5 - 0.1 * gradient, rel=1e-6)
    assert result.loss == pytest.approx((0.5 * noisy - noise).square().mean().item(), rel=1e-6)


def test_the_target_follows_the_prediction_type() -> None:
    batch = make_batch(2)
    result = make_step(make_objective(0.0, kind="v_prediction"), [batch])
    noise, timesteps = drawn(2)
    alpha = ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents_mean
    assert result.loss == pytest.approx(velocity.square().mean().item(), rel=1e-6)


def test_latents_are_drawn_from_their_spread(family: FakeFamily) -> None:
    batch = make_batch(2)
    spread = replace(batch, latents_deviation=torch.ones_like(batch.latents_mean))
    make_step(make_objective(), [spread])
    noise, timesteps = drawn(2)
    alpha = ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)
    draw = torch.randn(2, *SHAPE, generator=stream(SEED, "latents", 0))
    expected = alpha.sqrt() * (batch.latents_mean + draw) + (1 - alpha).sqrt() * noise
    assert torch.allclose(family.seen[0][0], expected, atol=1e-6)


@pytest.mark.turns("train.loss.prior_loss_weight")
@pytest.mark.parametrize("prior", [1.0, 0.75, 0.1])
def test_class_examples_count_with_the_prior_weight_in_sum_and_normaliser(prior: float) -> None:
    batch = make_batch(3, [False, True, False], prior)
    result = make_step(make_objective(0.0), [batch])
    losses = mean_squares(drawn(3)[0])
    expected = (losses[0] + losses[2] + prior * losses[1]) / (2 + prior)
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    assert result.loss_instance == pytest.approx(((losses[0] + losses[2]) / 2).item(), rel=1e-6)
    assert result.loss_class == pytest.approx(losses[1].item(), rel=1e-6)


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    flags = [False, True, False, True, False]
    whole, parts = make_objective(0.5), make_objective(0.5)
    batch = make_batch(5, flags, prior=0.5)
    split = [_slice(batch, slice(0, 2)), _slice(batch, slice(2, 3)), _slice(batch, slice(3, 5))]
    large = make_step(whole, [batch])
    small = make_step(parts, split)
    assert small.loss == pytest.approx(large.loss, rel=1e-6)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-5)
    weight = whole.components.unet.weight.item()
    assert parts.components.unet.weight.item() == pytest.approx(weight, rel=1e-6)


def _slice(batch: Batch, part: slice) -> Batch:
    return Batch(
        batch.latents_mean[part],
        batch.latents_deviation[part],
        batch.prompts[part],
        batch.weights[part],
        batch.is_class[part],
        batch.sizes[part],
        masks=None if batch.masks is None else batch.masks[part],
    )


@pytest.mark.turns("train.loss.offset_noise")
def test_offset_noise_shifts_each_channel_of_noise_and_target() -> None:
    result = make_step(make_objective(0.0, offset_noise=0.5), [make_batch(2)])
    generator = stream(SEED, "noise", 0)
    noise = torch.randn(2, *SHAPE, generator=generator)
    shifted = noise + 0.5 * torch.randn(2, 4, 1, 1, generator=generator)
    assert result.loss == pytest.approx(mean_squares(shifted).mean().item(), rel=1e-6)


@pytest.mark.turns("train.loss.min_snr_gamma")
def test_min_snr_gamma_lowers_the_almost_clean_timesteps_alone() -> None:
    result = make_step(make_objective(0.0, min_snr_gamma=2.0), [make_batch(8)])
    noise, timesteps = drawn(8)
    snr = ALPHAS_CUMPROD[timesteps] / (1 - ALPHAS_CUMPROD[timesteps])
    weights = (2.0 / snr).clamp(max=1.0)
    assert weights.min() < 1.0 == weights.max()  # the draw has both kinds
    expected = (weights * mean_squares(noise)).mean()  # normalised by the examples, not the SNR
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    assert result.loss < make_step(make_objective(0.0), [make_batch(8)]).loss


def alphas_at(timesteps: Tensor) -> Tensor:
    """The share of signal at timesteps, beside latents."""
    return ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)


@pytest.mark.turns("train.loss.multires_noise_iterations", "train.loss.multires_noise_discount")
def test_multires_noise_is_in_noise_and_target(family: FakeFamily) -> None:
    batch = make_batch(2)
    noise, timesteps = drawn(2)
    losses = []
    for iterations, discount in ((6, 0.8), (6, 0.2), (2, 0.8)):
        settings: dict[str, Any] = {
            "multires_noise_iterations": iterations,
            "multires_noise_discount": discount,
        }
        losses.append(make_step(make_objective(0.0, **settings), [batch]).loss)
        expected = multires_noise(noise, stream(SEED, "multires", 0), iterations, discount)
        assert losses[-1] == pytest.approx(expected.square().mean().item(), rel=1e-6)
        noisy = alphas_at(timesteps).sqrt() * batch.latents_mean
        noisy = noisy + (1 - alphas_at(timesteps)).sqrt() * expected
        torch.testing.assert_close(family.seen[-1][0], noisy)
    coarse = [
        torch.nn.functional.avg_pool2d(noisy - family.seen[-1][0], 4).abs().mean().item()
        for noisy, _, _ in family.seen
    ]
    assert coarse[0] > coarse[1]
    assert len(set(losses)) == 3


@pytest.mark.turns("train.loss.input_perturbation")
def test_input_perturbation_is_in_the_input_and_not_in_the_target(family: FakeFamily) -> None:
    batch = make_batch(2)
    plain = make_step(make_objective(0.0), [batch])
    result = make_step(make_objective(0.0, input_perturbation=0.3), [batch])
    assert result.loss == plain.loss  # the network says nothing: the loss is the target alone
    extra = 0.3 * torch.randn(2, *SHAPE, generator=stream(SEED, "perturbation", 0))
    share = (1 - alphas_at(drawn(2)[1])).sqrt()
    torch.testing.assert_close(family.seen[1][0] - family.seen[0][0], share * extra)


@pytest.mark.turns("train.loss.debiased_estimation")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_debiased_estimation_weighs_each_example_by_its_timestep(kind: str) -> None:
    flags = [False, True, False, True, False, True, False, True]
    batch = make_batch(8, flags, prior=0.5)
    result = make_step(make_objective(0.0, kind, debiased_estimation=True), [batch])
    noise, timesteps = drawn(8)
    alpha = alphas_at(timesteps)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents_mean
    losses = mean_squares(noise if kind == "epsilon" else velocity)
    snr = (alpha / (1 - alpha)).flatten()
    weights = 1 / snr.sqrt() if kind == "epsilon" else snr.sqrt() / (snr + 1)
    expected = (batch.weights * weights * losses).sum() / batch.weights.sum()
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.loss_class == pytest.approx((weights * losses)[1::2].mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_instance_and_class_examples_by_their_own_timesteps(kind: str) -> None:
    """With prior preservation the weights are per example, and the normaliser stays theirs."""
    flags = [False, True, False, True]
    batch = make_batch(4, flags, prior=0.25)
    result = make_step(make_objective(0.0, kind, min_snr_gamma=1.0), [batch])
    noise, timesteps = drawn(4)
    alpha = alphas_at(timesteps)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents_mean
    losses = mean_squares(noise if kind == "epsilon" else velocity)
    snr = (alpha / (1 - alpha)).flatten()
    weights = snr.clamp(max=1.0) / (snr if kind == "epsilon" else snr + 1)
    assert len(weights.unique()) > 1
    expected = (batch.weights * weights * losses).sum() / 2.5
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.turns("train.loss.loss_type", "train.loss.huber_delta", "train.loss.huber_schedule")
def test_huber_losses_count_large_errors_less(family: FakeFamily) -> None:
    noise, timesteps = drawn(4)
    plain = make_step(make_objective(0.0), [make_batch(4)]).loss

    def loss(kind: str, delta: float, schedule: str) -> float:
        settings: dict[str, Any] = {
            "loss_type": kind,
            "huber_delta": delta,
            "huber_schedule": schedule,
        }
        return make_step(make_objective(0.0, **settings), [make_batch(4)]).loss

    huber = 2 * torch.nn.functional.huber_loss(noise, torch.zeros_like(noise), delta=0.5)
    assert loss("huber", 0.5, "constant") == pytest.approx(huber.item(), rel=1e-5)
    smooth = 2 * 0.5 * ((noise.square() + 0.25).sqrt() - 0.5)
    assert loss("pseudo_huber", 0.5, "constant") == pytest.approx(smooth.mean().item(), rel=1e-5)
    for kind in ("huber", "pseudo_huber"):
        by_delta = [loss(kind, delta, "constant") for delta in (0.1, 0.5, 2.0)]
        assert by_delta == sorted(by_delta) and by_delta[-1] < plain
    shares = (0.1 ** (timesteps / 10)).reshape(-1, 1, 1, 1)
    waning = 2 * shares * ((noise.square() + shares**2).sqrt() - shares)
    exponential = loss("pseudo_huber", 0.1, "exponential")
    assert exponential == pytest.approx(waning.mean().item(), rel=1e-5)
    by_snr = loss("pseudo_huber", 0.1, "snr")
    assert loss("pseudo_huber", 0.1, "constant") < by_snr < plain
    assert by_snr != exponential


@pytest.mark.turns("train.loss.min_timestep", "train.loss.max_timestep")
@pytest.mark.parametrize(("lowest", "highest"), [(4, 6), (0, 2), (7, 999)])
def test_timesteps_keep_to_their_range(family: FakeFamily, lowest: int, highest: int) -> None:
    objective = make_objective(0.0, min_timestep=lowest, max_timestep=highest)
    for step in range(20):
        make_step(objective, [make_batch(2)], step=step)
    seen = torch.cat([timesteps for _, timesteps, _ in family.seen])
    assert sorted(set(seen.tolist())) == list(range(lowest, min(highest, 9) + 1))


@pytest.mark.turns("train.loss.unmasked_weight")
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_unmasked_area_counts_by_its_weight(weight: float) -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :, :4] = 1.0
    masks[1] = 1.0
    batch = replace(make_batch(2), masks=masks)
    result = make_step(make_objective(0.0, unmasked_weight=weight), [batch])
    squares = drawn(2)[0].square()
    left, right = squares[0, :, :, :4].mean().item(), squares[0, :, :, 4:].mean().item()
    first = (left + weight * right) / (1 + weight)
    assert result.loss == pytest.approx((first + squares[1].mean().item()) / 2, rel=1e-5)


@pytest.mark.turns("train.loss.dream", "train.loss.dream_detail_preservation")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("preservation", [0.5, 2.0])
def test_dream_trains_from_where_the_networks_mistake_leads(
    family: FakeFamily, kind: str, preservation: float
) -> None:
    batch = make_batch(2)
    objective = make_objective(0.5, kind, dream=True, dream_detail_preservation=preservation)
    result = make_step(objective, [batch])
    noise, timesteps = drawn(2)
    alpha, latents = alphas_at(timesteps), batch.latents_mean
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal * latents + sigma * noise
    guess = 0.5 * noisy if kind == "epsilon" else sigma * noisy + signal * 0.5 * noisy
    rectified = noise + sigma**preservation * (noise - guess)
    noisy = signal * latents + sigma * rectified
    wanted = rectified if kind == "epsilon" else signal * rectified - sigma * latents
    torch.testing.assert_close(family.seen[1][0], noisy)
    assert result.loss == pytest.approx((0.5 * noisy - wanted).square().mean().item(), rel=1e-5)
    gradient = (2 * (0.5 * noisy - wanted) * noisy).mean().item()  # none through the first guess
    assert result.grad_norm == pytest.approx(abs(gradient), rel=1e-4)


def test_dream_predicts_twice_and_once_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gradients, forward, cleared = [], OneWeight.forward, []

    def spied(self: OneWeight, noisy: Tensor) -> Tensor:
        with_gradients.append(torch.is_grad_enabled())
        return forward(self, noisy)

    monkeypatch.setattr(OneWeight, "forward", spied)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(len(with_gradients)))
    make_step(make_objective(0.5, dream=True), [make_batch(2)])
    assert with_gradients == [False, True]
    assert cleared[0] == 1  # between the two: older torch would keep casts without gradients


@pytest.mark.turns(
    "train.loss.prior_loss_scale",
    "train.loss.prior_loss_target",
    "train.loss.prior_loss_weight_min",
)
def test_a_scaled_prior_weight_falls_from_epoch_to_epoch() -> None:
    batch = make_batch(2, [False, True], prior=1.5)  # 0.75 of the loss, 2 of the concept
    off = LossSection(prior_loss_target=4, prior_loss_weight_min=0.15)
    assert weighed_in_epoch(batch, off, 3) is batch
    on = replace(off, prior_loss_scale=True)
    weights = [weighed_in_epoch(batch, on, epoch).weights.tolist() for epoch in (0, 2, 4, 9)]
    assert [one for one, _ in weights] == [1.0] * 4
    assert [two for _, two in weights] == pytest.approx([1.5, 0.9, 0.3, 0.3])
    slower = weighed_in_epoch(batch, replace(on, prior_loss_target=8), 2).weights[1]
    assert slower.item() == pytest.approx(1.2)
    to_zero = weighed_in_epoch(batch, replace(on, prior_loss_weight_min=0.0), 4)
    losses = mean_squares(drawn(2)[0])
    result = make_step(make_objective(0.0), [to_zero])
    assert result.loss == pytest.approx(losses[0].item(), rel=1e-6)
    instances = make_batch(2)
    assert weighed_in_epoch(instances, replace(on, prior_loss_weight=0.0), 1) is instances


def test_all_of_it_at_once_is_the_same_in_parts() -> None:
    """Every emphasis multiplies, so accumulation stays exact but for noise that a part draws."""
    settings: dict[str, Any] = {
        "min_snr_gamma": 5.0,
        "loss_type": "pseudo_huber",
        "dream": True,
        "input_perturbation": 0.1,
        "min_timestep": 2,
    }
    batch = replace(make_batch(4, [False, True] * 2, prior=0.5), masks=torch.rand(4, 1, 8, 8))
    whole, parts = make_objective(0.5, **settings), make_objective(0.5, **settings)
    large = make_step(whole, [batch])
    small = make_step(parts, [_slice(batch, slice(0, 3)), _slice(batch, slice(3, 4))])
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    weight = whole.components.unet.weight.item()
    assert parts.components.unet.weight.item() == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_clipping_limits_the_update_and_reports_the_norm_before(limit: float) -> None:
    objective = make_objective(0.5)
    result = make_step(objective, [make_batch(2)], max_grad_norm=limit, learning_rate=1.0)
    moved = abs(objective.components.unet.weight.item() - 0.5)
    assert result.grad_norm > 0.01
    expected = 0.01 if limit == 0.01 else result.grad_norm
    assert moved == pytest.approx(expected, rel=1e-3)


def test_random_numbers_belong_to_the_step_and_not_to_what_ran_before() -> None:
    first = make_step(make_objective(), [make_batch(2)], step=0)
    fifth = make_step(make_objective(), [make_batch(2)], step=5)
    torch.manual_seed(99)
    torch.randn(7)
    assert make_step(make_objective(), [make_batch(2)], step=5) == fifth
    assert first.loss != fifth.loss
    assert fifth.loss == pytest.approx(mean_squares(drawn(2, step=5)[0]).mean().item(), rel=1e-6)


def test_prompts_reach_the_network(family: FakeFamily) -> None:
    batch = make_batch(2)
    make_step(make_objective(), [replace(batch, prompts=["x", "y"])])
    told = family.seen[0][2]
    assert told.prompts == ["x", "y"]
    assert torch.equal(told.sizes, batch.sizes)
    assert told.canvas is None
    assert torch.equal(family.seen[0][1], drawn(2)[1])


def test_an_inpainting_network_sees_masked_pictures_with_masks_of_the_step(
    family: FakeFamily,
) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    for step in (0, 0, 1):
        make_step(make_objective(), [replace(make_batch(2), pixels=pixels)], step=step)
    seen = [told.canvas for _, _, told in family.seen]
    masks = random_masks(2, 64, 64, stream(SEED, "masks", 0))
    assert torch.equal(seen[0], torch.cat([pixels, masks], dim=1))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_masks_are_drawn_from_a_stream_of_their_own(family: FakeFamily) -> None:
    plain = make_step(make_objective(), [make_batch(2)])
    masked = make_step(make_objective(), [replace(make_batch(2), pixels=torch.rand(2, 3, 8, 8))])
    assert masked == plain


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_no_weight(value: float) -> None:
    objective, batch = make_objective(0.5), make_batch(2)
    batch.latents_mean[1, 0, 0, 0] = value
    with pytest.raises(NonFiniteError) as caught:
        make_step(objective, [batch], step=41)
    assert "loss of step 42" in caught.value.message
    assert "resume" in caught.value.remedy
    assert objective.components.unet.weight.item() == 0.5


class _BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def test_a_gradient_that_is_no_number_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make_objective(0.5)
    forward = OneWeight.forward
    monkeypatch.setattr(OneWeight, "forward", lambda self, x: _BadGradient.apply(forward(self, x)))
    with pytest.raises(NonFiniteError, match="gradient of step 1 "):
        make_step(objective, [make_batch(2)], max_grad_norm=1.0)
    assert objective.components.unet.weight.item() == 0.5


def _with_scaler(initial: float) -> Accelerator:
    """Accelerate as it is with fp16 on a GPU: gradients pass through a loss scaler."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=initial)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    return accelerator


needs_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="this torch has loss scalers for CUDA only"
)


@needs_scaler
def test_an_overflowing_loss_scale_is_halved_until_the_step_works() -> None:
    plain, scaled = make_objective(9.0), make_objective(9.0)
    expected = make_step(plain, [make_batch(2)])
    accelerator = _with_scaler(2.0**127)
    result = make_step(scaled, [make_batch(2)], accelerator=accelerator)
    assert accelerator.scaler.get_scale() < 2.0**126
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    weight = plain.components.unet.weight.item()
    assert scaled.components.unet.weight.item() == pytest.approx(weight, rel=1e-6)


@needs_scaler
def test_a_gradient_that_overflows_at_every_loss_scale_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = make_objective(0.5)
    forward = OneWeight.forward
    monkeypatch.setattr(OneWeight, "forward", lambda self, x: _BadGradient.apply(forward(self, x)))
    with pytest.raises(NonFiniteError, match="gradient"):
        make_step(objective, [make_batch(2)], accelerator=_with_scaler(1024.0))
    assert objective.components.unet.weight.item() == 0.5
