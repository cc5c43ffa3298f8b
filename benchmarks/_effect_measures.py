"""What a checkpoint does, in numbers read by the world's judge.

Shapes: B pictures, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image

from dreambooth_core.diffusion.noise import add_noise
from dreambooth_core.families import FAMILIES
from dreambooth_core.families.base import Components
from dreambooth_core.stages.sampling import generate
from dreambooth_core.world.captions import PLACES
from dreambooth_core.world.judge import Judge, to_pixels
from dreambooth_core.world.palette import ATTRIBUTES, BACKGROUNDS
from dreambooth_core.world.pictures import render
from dreambooth_core.world.subjects import Subject, prompts, subject_scene

NEIGHBOURS = {"man": "woman", "woman": "man", "dog": "car"}
SEEN_SEEDS, UNSEEN_SEEDS, PLAIN_PICTURES, CLASS_PICTURES = 1, 2, 6, 5
STEPS, CFG_SCALE, SAMPLER, SIZE, BATCH = 20, 5.0, "dpm++_2m", 128, 16
FIRST_SEED = 1000
HELD_OUT_TIMESTEPS = (100, 300, 500, 700, 900)


def _draw(components: Components, texts: Sequence[str]) -> list[Image.Image]:
    pictures = generate(
        components,
        texts,
        [""] * len(texts),
        width=SIZE,
        height=SIZE,
        steps=STEPS,
        cfg_scale=CFG_SCALE,
        sampler=SAMPLER,
        seeds=range(FIRST_SEED, FIRST_SEED + len(texts)),
        batch_size=BATCH,
    )
    return list(pictures)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _obeyed(judge: Judge, pictures: Sequence[Image.Image], backgrounds: Sequence[str]) -> float:
    """Return the share of pictures whose background is the one that was asked for."""
    read = judge.read(pictures)["background"].argmax(1).tolist()
    wanted = [ATTRIBUTES["background"].index(name) for name in backgrounds]
    return _mean([float(one == other) for one, other in zip(read, wanted, strict=True)])


def evaluate(components: Components, subject: Subject) -> dict[str, float]:
    """Draw with a checkpoint and return its measures."""
    judge, asked = Judge.load(), prompts(subject)
    seen = _draw(components, asked.token_seen * SEEN_SEEDS)
    unseen = _draw(components, asked.token_unseen * UNSEEN_SEEDS)
    plain = _draw(components, [asked.token_plain] * PLAIN_PICTURES)
    classes = [asked.class_plain] * CLASS_PICTURES + list(asked.class_places[:CLASS_PICTURES])
    neighbour = [f"photo of a {NEIGHBOURS[subject.class_noun]}"] * PLAIN_PICTURES

    def score(pictures: Sequence[Image.Image]) -> float:
        return _mean(judge.subject_score(pictures, subject.name))

    return {
        "subject": score([*seen, *unseen]),
        "subject_plain": score(plain),
        "leak": score(_draw(components, classes)),
        "leak_neighbour": score(_draw(components, neighbour)),
        "background_seen": _obeyed(judge, seen, subject.seen * SEEN_SEEDS),
        "background_unseen": _obeyed(judge, unseen, subject.unseen * UNSEEN_SEEDS),
        "held_out_loss": held_out_loss(components, subject),
    }


@torch.no_grad()
def held_out_loss(components: Components, subject: Subject) -> float:
    """Return the noise prediction error on ten pictures of the subject that no run trains on."""
    family, rng = FAMILIES[components.family], random.Random(2024)
    scenes = [subject_scene(subject, background, rng) for background in BACKGROUNDS]
    pixels = to_pixels([render(scene, SIZE) for scene in scenes]) * 2 - 1  # (B, 3, H, W)
    noun = f"photo of a {subject.token} {subject.class_noun}"
    conditioning = family.encode_prompts(components, [f"{noun} {PLACES[b]}" for b in BACKGROUNDS])
    latents, _ = family.encode_images(components, pixels)  # (B, C, h, w)
    generator = torch.Generator().manual_seed(2024)
    alphas_cumprod = components.noise_scheduler.alphas_cumprod
    losses = []
    for step in HELD_OUT_TIMESTEPS:
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.full((len(latents),), step)
        noisy = add_noise(latents, noise, alphas_cumprod, timesteps)
        prediction = family.predict(components, noisy, timesteps, conditioning)
        losses.append(float((prediction - noise).square().mean()))
    return _mean(losses)
