"""The `.yaml` that is written beside a checkpoint where its weights alone do not tell the host all.

In the form of the original training configurations, of which the WebUI reads the same fields, with
a block of our own for what those leave to the text encoder's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from dreambooth_core.checkpoint.contents import Header
from dreambooth_core.errors import InputError
from dreambooth_core.families import family_of
from dreambooth_core.families.base import Config, Family
from dreambooth_core.families.ldm_unet import paints_in
from dreambooth_core.families.loading import read_configs
from dreambooth_core.families.noise_schedule import ending_in_noise
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import ModelFolder
from dreambooth_core.stages.model_shape import read_layout

Configs = Mapping[str, Config]
Settings = dict[str, Any]
SGM = "sgm.modules.diffusionmodules"
SIZE_INPUTS = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


def side_settings(folder: ModelFolder, zero_snr: bool = False) -> bytes | None:
    """Return what belongs beside the model's checkpoints; None if the weights tell everything.

    `zero_snr` is whether training made the noise schedule end in pure noise. The source's own file
    is kept as it is; the checkpoint's key tells it then.
    """
    if folder.kept_side_file.exists():
        return disk.read(folder.kept_side_file)
    family = family_of(folder)
    configs = read_configs(folder, family)
    if zero_snr:
        configs["scheduler"] = ending_in_noise(configs["scheduler"])
    return needed_settings(family, read_layout(folder), configs)


def needed_settings(family: Family, layout: Header, configs: Configs) -> bytes | None:
    """Return what a checkpoint with these tensors needs beside it; None if they tell everything.

    Weights tell the WebUI of no other prediction type than epsilon.
    """
    is_epsilon = configs["scheduler"]["prediction_type"] == "epsilon"
    if is_epsilon and tells_itself(family, layout, configs):
        return None
    return side_text(family.name, configs).encode("utf-8")


def tells_itself(family: Family, layout: Header, configs: Configs) -> bool:
    """Return whether reading the weights without a `.yaml` gives the same configs."""
    try:
        told = family.configs(layout, None)
    except InputError:
        return False
    return all(
        told[component][name] == configs[component].get(name, value)
        for component, values in told.items()
        for name, value in values.items()
    )


def side_text(family: str, configs: Configs) -> str:
    """Return the settings of a model of the named family."""
    settings = _FORMS[family](configs)
    own: Settings = {
        f"text_config{name.removeprefix('text_encoder')}": {
            field: configs[name][field]
            for field in ("num_hidden_layers", "num_attention_heads", "hidden_act")
        }
        for name in ("text_encoder", "text_encoder_2")
        if name in configs
    }
    own["image_size"] = configs["unet"]["sample_size"]
    if configs["scheduler"].get("rescale_betas_zero_snr"):
        own["zero_terminal_snr"] = True
    text: str = yaml.safe_dump({**settings, "dreambooth": own}, sort_keys=False)
    return text


def _latent_diffusion(configs: Configs, text: Settings) -> Settings:
    """Return the form of Stable Diffusion 1 and 2."""
    scheduler, vae, unet = configs["scheduler"], configs["vae"], configs["unet"]
    inpaints = paints_in(configs)
    kind = "LatentInpaintDiffusion" if inpaints else "LatentDiffusion"
    params = {
        "parameterization": "v" if _is_v(configs) else "eps",
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "num_timesteps_cond": 1,
        "timesteps": scheduler["num_train_timesteps"],
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": vae["latent_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid" if inpaints else "crossattn",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {"image_size": 32, **_unet(configs), "transformer_depth": 1},
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": _vae(configs),
        },
        "cond_stage_config": text,
    }
    if inpaints:
        params["finetune_keys"] = None
    return {"model": {"target": f"ldm.models.diffusion.ddpm.{kind}", "params": params}}


def _stable_diffusion_1(configs: Configs) -> Settings:
    return _latent_diffusion(configs, {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"})


def _stable_diffusion_2(configs: Configs) -> Settings:
    target = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
    return _latent_diffusion(
        configs, {"target": target, "params": {"freeze": True, "layer": "penultimate"}}
    )


def _stable_diffusion_xl(configs: Configs) -> Settings:
    unet, scheduler = configs["unet"], configs["scheduler"]
    kind = "V" if _is_v(configs) else "Eps"
    depths = unet["transformer_layers_per_block"]
    params = {
        "scale_factor": configs["vae"]["scaling_factor"],
        "disable_first_stage_autocast": True,
        "denoiser_config": {
            "target": f"{SGM}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": scheduler["num_train_timesteps"],
                "weighting_config": {"target": f"{SGM}.denoiser_weighting.{kind}Weighting"},
                "scaling_config": {"target": f"{SGM}.denoiser_scaling.{kind}Scaling"},
                "discretization_config": {"target": f"{SGM}.discretizer.LegacyDDPMDiscretization"},
            },
        },
        "network_config": {
            "target": f"{SGM}.openaimodel.UNetModel",
            "params": {
                "adm_in_channels": unet["projection_class_embeddings_input_dim"],
                "num_classes": "sequential",
                **_unet(configs),
                "transformer_depth": depths if isinstance(depths, int) else list(depths),
                "spatial_transformer_attn_type": "softmax-xformers",
            },
        },
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {"emb_models": _conditioners(configs)},
        },
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": _vae(configs),
        },
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}


def _conditioners(configs: Configs) -> list[Settings]:
    """Return what the UNet is told: both text encoders' states, and the sizes."""
    encoders = "sgm.modules.encoders.modules"
    layers = configs["text_encoder"]["num_hidden_layers"]
    clip = {"layer": "hidden", "layer_idx": layers - 1}
    open_clip = {
        "arch": "ViT-bigG-14",
        "version": "laion2b_s39b_b160k",
        "freeze": True,
        "layer": "penultimate",
        "always_return_pooled": True,
        "legacy": False,
    }
    told = [
        ("txt", "FrozenCLIPEmbedder", clip),
        ("txt", "FrozenOpenCLIPEmbedder2", open_clip),
        *(
            (
                name,
                "ConcatTimestepEmbedderND",
                {"outdim": configs["unet"]["addition_time_embed_dim"]},
            )
            for name in SIZE_INPUTS
        ),
    ]
    return [
        {
            "is_trainable": False,
            "input_key": name,
            "target": f"{encoders}.{target}",
            "params": dict(params),
        }
        for name, target, params in told
    ]


def _unet(configs: Configs) -> Settings:
    unet = configs["unet"]
    widths, heads = unet["block_out_channels"], unet["attention_head_dim"]
    attention: Settings = {"num_heads": heads}
    if not isinstance(heads, int):
        attention = {"num_head_channels": widths[0] // heads[0], "use_linear_in_transformer": True}
    return {
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [
            2**level
            for level, block in enumerate(unet["down_block_types"])
            if block.startswith("CrossAttn")
        ],
        "num_res_blocks": unet["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths],
        **attention,
        "use_spatial_transformer": True,
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae(configs: Configs) -> Settings:
    vae = configs["vae"]
    widths = vae["block_out_channels"]
    return {
        "embed_dim": vae["latent_channels"],
        "ddconfig": {
            "double_z": True,
            "z_channels": vae["latent_channels"],
            "resolution": 256,
            "in_channels": vae["in_channels"],
            "out_ch": vae["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": vae["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }


def _is_v(configs: Configs) -> bool:
    return bool(configs["scheduler"]["prediction_type"] == "v_prediction")


_FORMS = {
    "sd1": _stable_diffusion_1,
    "sd2": _stable_diffusion_2,
    "sdxl": _stable_diffusion_xl,
}
"""The form of each family's settings."""
