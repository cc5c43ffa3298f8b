"""Pictures from a model: classifier-free guidance over diffusers' schedulers, one seed a picture.

Shapes: B pictures of a batch, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from dreambooth_core.errors import InputError, NonFiniteError
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components, Conditioning
from dreambooth_core.stages.png import png_info

Progress = Callable[[int, int], None]
"""Called after every denoising step with (done, total), in steps times pictures."""

_NOISE_SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_ZERO_SNR_KEYS = ("rescale_betas_zero_snr", "timestep_spacing")


@dataclass(frozen=True)
class Sampler:
    """A sampler: the WebUI's name for it, diffusers' scheduler class and its options."""

    label: str
    scheduler: type[Any]
    options: dict[str, Any]
    ancestral: bool = False


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        "DDIM",
        DDIMScheduler,
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "euler": Sampler("Euler", EulerDiscreteScheduler, {}),
    "euler_a": Sampler("Euler a", EulerAncestralDiscreteScheduler, {}, ancestral=True),
    "dpm++_2m": Sampler(
        "DPM++ 2M",
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False},
    ),
    "unipc": Sampler("UniPC", UniPCMultistepScheduler, {}),
}


def build_scheduler(components: Components, sampler: str) -> Any:
    """Make the sampler's scheduler on the model's own noise schedule and prediction type."""
    if sampler not in SAMPLERS:
        raise InputError(
            f"There is no sampler called {sampler!r}.", remedy=f"Use one of {', '.join(SAMPLERS)}."
        )
    entry = SAMPLERS[sampler]
    trained = components.noise_scheduler.config
    zero_snr = _ZERO_SNR_KEYS if trained.get("rescale_betas_zero_snr") else ()
    schedule = {key: trained[key] for key in (*_NOISE_SCHEDULE_KEYS, *zero_snr)}
    return entry.scheduler(**schedule, prediction_type=components.prediction_type, **entry.options)


@contextmanager
def _evaluation_mode(components: Components) -> Iterator[None]:
    modules = list(components.modules().values())
    training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.train(was_training)


def initial_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw one picture's noise of `shape` (C, h, w) from each generator: (B, C, h, w)."""
    return torch.stack([torch.randn(tuple(shape), generator=each) for each in generators])


def guided_prediction(
    components: Components,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: Conditioning,
    cfg_scale: float,
) -> torch.Tensor:
    """Predict with classifier-free guidance, u + s (c - u) (Ho & Salimans 2022, eq. 6).

    `conditioning` holds the negative prompts first and then the prompts, 2 B rows for latents
    (B, C, h, w); with a scale of 1 it holds the prompts alone, since u drops out.
    """
    family = FAMILIES[components.family]
    guided = cfg_scale != 1.0
    model_input = torch.cat([latents, latents]) if guided else latents
    model_input = model_input.to(components.unet.dtype)
    timesteps = timestep.to(latents.device).expand(len(model_input))
    prediction = family.predict(components, model_input, timesteps, conditioning).float()
    if not guided:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + cfg_scale * (positive - negative)


@dataclass(frozen=True)
class Row:
    """One picture to paint."""

    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class _Settings:
    """What all batches of one call share."""

    width: int
    height: int
    steps: int
    cfg_scale: float
    sampler: str
    clip_skip: int


def _check_size(components: Components, settings: _Settings) -> None:
    quantum = FAMILIES[components.family].quantum(components)
    for name, value in (("width", settings.width), ("height", settings.height)):
        if value <= 0 or value % quantum:
            raise InputError(
                f"A {name} of {value} pixels does not fit this model.",
                remedy=f"Use a multiple of {quantum}.",
                field=name,
            )


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Turn pixels (B, 3, H, W) in 0..1 into 8-bit RGB pictures; NaN is refused."""
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteError(
            "The model painted values that are not numbers.",
            remedy="Use a checkpoint from earlier in the training, or fp32 precision.",
        )
    levels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _encode(components: Components, row: Row, settings: _Settings) -> Conditioning:
    """Encode one picture's texts by themselves: company of another length would change them."""
    texts = [row.prompt] if settings.cfg_scale == 1.0 else [row.negative_prompt, row.prompt]
    family = FAMILIES[components.family]
    encoded = family.encode_prompts(components, texts, clip_skip=settings.clip_skip)
    return family.unconditional(encoded, [not text for text in texts[:-1]] + [False])


def _with_pictures_form(
    components: Components, conditioning: Conditioning, settings: _Settings
) -> Conditioning:
    """Tell of a whole picture of the asked size, and of all of it being to be painted."""
    rows, height, width = len(conditioning), settings.height, settings.width
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    canvas = None
    if components.paints_into_pictures():
        gray, everything = torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width)
        family = FAMILIES[components.family]
        canvas = family.canvas(components, gray, everything).expand(rows, -1, -1, -1)
    return conditioning.beside(sizes.expand(rows, -1), canvas)


def _join(parts: Sequence[Conditioning]) -> Conditioning:
    """Join pictures' conditionings: all negative prompts, if there are any, then all prompts."""
    negatives = [part[:1] for part in parts if len(part) > 1]
    return Conditioning.cat([*negatives, *(part[-1:] for part in parts)])


def _denoise(
    components: Components,
    conditioning: Conditioning,
    seeds: Sequence[int],
    settings: _Settings,
    on_step: Callable[[int], None],
) -> torch.Tensor:
    device = components.unet.device
    scheduler = build_scheduler(components, settings.sampler)
    scheduler.set_timesteps(settings.steps, device=device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents: torch.Tensor = initial_noise(
        components.latent_shape(settings.width, settings.height), generators
    )
    latents = latents.to(device) * scheduler.init_noise_sigma
    extra = {"generator": generators} if SAMPLERS[settings.sampler].ancestral else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = guided_prediction(
            components, scaled, timestep, conditioning, settings.cfg_scale
        )
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
        on_step(len(seeds))
    return latents


@torch.no_grad()
def _paint(
    components: Components, rows: Sequence[Row], settings: _Settings, on_step: Callable[[int], None]
) -> list[Image.Image]:
    """Paint a batch; pictures whose prompts differ in length go through the UNet separately."""
    pictures: list[Image.Image] = []
    with _evaluation_mode(components):
        encoded = [(row, _encode(components, row, settings)) for row in rows]
        for _, members in itertools.groupby(encoded, key=lambda pair: _tokens(pair[1])):
            group = list(members)
            told = _join([part for _, part in group])
            conditioning = _with_pictures_form(components, told, settings)
            conditioning = conditioning.to(components.unet.device)
            seeds = [row.seed for row, _ in group]
            latents = _denoise(components, conditioning, seeds, settings, on_step)
            family = FAMILIES[components.family]
            decoded = family.decode_latents(components, latents.to(components.vae.device))
            pictures += to_images(decoded)
    return pictures


def _tokens(conditioning: Conditioning) -> int:
    return int(conditioning.encoder_hidden_states.shape[1])


def generate(
    components: Components,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    *,
    width: int,
    height: int,
    steps: int,
    cfg_scale: float,
    sampler: str,
    seeds: Sequence[int],
    batch_size: int = 1,
    clip_skip: int = 1,
    on_progress: Progress | None = None,
) -> Iterator[Image.Image]:
    """Yield one picture per prompt, in order; a picture depends on its own seed alone.

    `prompts`, `negative_prompts` and `seeds` have one entry per picture. Batches are painted when
    their first picture is asked for, so a caller may stop between them.
    """
    settings = _Settings(width, height, steps, cfg_scale, sampler, clip_skip)
    _check_size(components, settings)
    rows = [Row(*row) for row in zip(prompts, negative_prompts, seeds, strict=True)]
    done = 0

    def count_step(pictures: int) -> None:
        nonlocal done
        done += pictures
        if on_progress is not None:
            on_progress(done, steps * len(rows))

    for start in range(0, len(rows), batch_size):
        yield from _paint(components, rows[start : start + batch_size], settings, count_step)


def picture_info(
    prompt: str,
    negative_prompt: str,
    *,
    steps: int,
    sampler: str,
    cfg_scale: float,
    seed: int,
    size: tuple[int, int],
    model: str,
) -> str:
    """Return the text of a picture made by `generate`; `size` is (width, height)."""
    settings: dict[str, object] = {
        "Steps": steps,
        "Sampler": SAMPLERS[sampler].label,
        "CFG scale": float(cfg_scale),
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": model,
    }
    return png_info(prompt, negative_prompt, settings)
