"""Key names and shapes of Stable Diffusion single files, walked from the original architectures.

This is the tests' own source of truth: it follows the constructors of the original latent-diffusion
networks (which block is appended after which), knows nothing of diffusers and nothing of the
product's key map. Checked once against the state dict of the original code itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """The numbers that fix a Stable Diffusion model; the defaults are those of SD 1.5.

    `head_channels` fixes the width of attention heads instead of their number; `depths` are the
    transformer blocks of each level. SDXL's context is its two encoders' widths together.
    """

    family: str = "sd1"

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    num_heads: int = 8
    in_channels: int = 4
    context_dim: int = 768
    vae_channels: int = 128
    vae_channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_num_res_blocks: int = 2
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 49408
    image_size: int = 64
    head_channels: int = 0
    depths: tuple[int, ...] = (1, 1, 1, 1)
    open_clip_width: int = 0
    open_clip_layers: int = 0
    open_clip_heads: int = 0
    size_embedding: int = 256
    scale_factor: float = 0.18215

    @property
    def linear(self) -> bool:
        """Whether matrices, and not convolutions, stand around the attention."""
        return self.family != "sd1"

    @property
    def clip_width(self) -> int:
        """The width of CLIP-L; 0 where there is none."""
        return 0 if self.family == "sd2" else self.context_dim - self.open_clip_width


SD15 = Layout()
SD21 = replace(
    SD15,
    family="sd2",
    context_dim=1024,
    head_channels=64,
    open_clip_width=1024,
    open_clip_layers=24,
    open_clip_heads=16,
)
SDXL = replace(
    SD15,
    family="sdxl",
    channel_mult=(1, 2, 4),
    attention_levels=(1, 2),
    depths=(0, 2, 10),
    context_dim=2048,
    head_channels=64,
    open_clip_width=1280,
    open_clip_layers=32,
    open_clip_heads=20,
    image_size=128,
    scale_factor=0.13025,
)
TINY = Layout(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(0, 1),
    num_heads=4,
    context_dim=32,
    vae_channels=32,
    vae_channel_mult=(1, 1, 1, 1),
    vae_num_res_blocks=1,
    text_layers=2,
    text_heads=4,
    image_size=8,
)
TINY_SD2 = replace(
    TINY,
    family="sd2",
    head_channels=8,
    open_clip_width=32,
    open_clip_layers=3,
    open_clip_heads=4,
)
TINY_SDXL = replace(
    TINY,
    family="sdxl",
    channel_mult=(1, 1, 2),
    attention_levels=(1, 2),
    depths=(0, 1, 2),
    context_dim=32 + 24,
    head_channels=8,
    open_clip_width=24,
    open_clip_layers=3,
    open_clip_heads=4,
    size_embedding=8,
    scale_factor=0.13025,
)


def _affine(prefix: str, *weight: int) -> Shapes:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}


def _prefixed(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}


def _resnet(source: int, width: int, embedding: int) -> Shapes:
    shapes = {
        **_affine("in_layers.0", source),
        **_affine("in_layers.2", width, source, 3, 3),
        **_affine("emb_layers.1", width, embedding),
        **_affine("out_layers.0", width),
        **_affine("out_layers.3", width, width, 3, 3),
    }
    if source != width:
        shapes |= _affine("skip_connection", width, source, 1, 1)
    return shapes


def _attention(prefix: str, width: int, context: int) -> Shapes:
    return {
        f"{prefix}.to_q.weight": (width, width),
        f"{prefix}.to_k.weight": (width, context),
        f"{prefix}.to_v.weight": (width, context),
        **_affine(f"{prefix}.to_out.0", width, width),
    }


def _transformer(layout: Layout, width: int, level: int) -> Shapes:
    context = layout.context_dim
    block = {
        **_attention("attn1", width, width),
        **_affine("ff.net.0.proj", 8 * width, width),
        **_affine("ff.net.2", width, 4 * width),
        **_attention("attn2", width, context),
        **_affine("norm1", width),
        **_affine("norm2", width),
        **_affine("norm3", width),
    }
    projection = (width, width) if layout.linear else (width, width, 1, 1)
    shapes = _affine("norm", width) | _affine("proj_in", *projection)
    for number in range(layout.depths[level]):
        shapes |= _prefixed(f"transformer_blocks.{number}.", block)
    return shapes | _affine("proj_out", *projection)


def _input_blocks(layout: Layout) -> tuple[Shapes, list[int]]:
    """The encoder half and the widths that its blocks leave for the skip connections."""
    width, embedding = layout.model_channels, 4 * layout.model_channels
    shapes = _affine("input_blocks.0.0", width, layout.in_channels, 3, 3)
    skips = [width]
    for level, factor in enumerate(layout.channel_mult):
        for _ in range(layout.num_res_blocks):
            source, width = width, factor * layout.model_channels
            block = f"input_blocks.{len(skips)}"
            shapes |= _prefixed(f"{block}.0.", _resnet(source, width, embedding))
            if level in layout.attention_levels:
                shapes |= _prefixed(f"{block}.1.", _transformer(layout, width, level))
            skips.append(width)
        if level != len(layout.channel_mult) - 1:
            shapes |= _affine(f"input_blocks.{len(skips)}.0.op", width, width, 3, 3)
            skips.append(width)
    return shapes, skips


def _output_blocks(layout: Layout, skips: list[int]) -> Shapes:
    shapes: Shapes = {}
    width, embedding = skips[-1], 4 * layout.model_channels
    index = 0
    for level, factor in reversed(list(enumerate(layout.channel_mult))):
        for i in range(layout.num_res_blocks + 1):
            source, width = width + skips.pop(), factor * layout.model_channels
            parts = [_resnet(source, width, embedding)]
            if level in layout.attention_levels:
                parts.append(_transformer(layout, width, level))
            if level and i == layout.num_res_blocks:
                parts.append(_affine("conv", width, width, 3, 3))
            for sub, part in enumerate(parts):
                shapes |= _prefixed(f"output_blocks.{index}.{sub}.", part)
            index += 1
    return shapes


def unet_shapes(layout: Layout) -> Shapes:
    """Keys below `model.diffusion_model.`."""
    embedding = 4 * layout.model_channels
    inputs, skips = _input_blocks(layout)
    width = skips[-1]
    return {
        **_affine("time_embed.0", embedding, layout.model_channels),
        **_affine("time_embed.2", embedding, embedding),
        **_label_embedding(layout),
        **inputs,
        **_prefixed("middle_block.0.", _resnet(width, width, embedding)),
        **_prefixed("middle_block.1.", _transformer(layout, width, len(layout.channel_mult) - 1)),
        **_prefixed("middle_block.2.", _resnet(width, width, embedding)),
        **_output_blocks(layout, skips),
        **_affine("out.0", layout.model_channels),
        **_affine("out.2", 4, layout.model_channels, 3, 3),
    }


def _label_embedding(layout: Layout) -> Shapes:
    """What takes in the pooled prompt and six embedded sizes."""
    if layout.family != "sdxl":
        return {}
    embedding = 4 * layout.model_channels
    told = layout.open_clip_width + 6 * layout.size_embedding
    return _affine("label_emb.0.0", embedding, told) | _affine(
        "label_emb.0.2", embedding, embedding
    )


def _vae_resnet(source: int, width: int) -> Shapes:
    shapes = {
        **_affine("norm1", source),
        **_affine("conv1", width, source, 3, 3),
        **_affine("norm2", width),
        **_affine("conv2", width, width, 3, 3),
    }
    if source != width:
        shapes |= _affine("nin_shortcut", width, source, 1, 1)
    return shapes


def _vae_mid(width: int) -> Shapes:
    attention = {**_affine("norm", width)}
    for name in ("q", "k", "v", "proj_out"):
        attention |= _affine(name, width, width, 1, 1)
    return {
        **_prefixed("mid.block_1.", _vae_resnet(width, width)),
        **_prefixed("mid.attn_1.", attention),
        **_prefixed("mid.block_2.", _vae_resnet(width, width)),
    }


def _vae_encoder(layout: Layout) -> Shapes:
    width = layout.vae_channels
    shapes = _affine("conv_in", width, 3, 3, 3)
    for level, factor in enumerate(layout.vae_channel_mult):
        for i in range(layout.vae_num_res_blocks):
            source, width = width, factor * layout.vae_channels
            shapes |= _prefixed(f"down.{level}.block.{i}.", _vae_resnet(source, width))
        if level != len(layout.vae_channel_mult) - 1:
            shapes |= _affine(f"down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= _vae_mid(width) | _affine("norm_out", width)
    return shapes | _affine("conv_out", 8, width, 3, 3)


def _vae_decoder(layout: Layout) -> Shapes:
    width = layout.vae_channels * layout.vae_channel_mult[-1]
    shapes = _affine("conv_in", width, 4, 3, 3) | _vae_mid(width)
    for level, factor in reversed(list(enumerate(layout.vae_channel_mult))):
        for i in range(layout.vae_num_res_blocks + 1):
            source, width = width, factor * layout.vae_channels
            shapes |= _prefixed(f"up.{level}.block.{i}.", _vae_resnet(source, width))
        if level:
            shapes |= _affine(f"up.{level}.upsample.conv", width, width, 3, 3)
    return shapes | _affine("norm_out", width) | _affine("conv_out", 3, width, 3, 3)


def vae_shapes(layout: Layout) -> Shapes:
    """Keys below `first_stage_model.`."""
    return {
        **_prefixed("encoder.", _vae_encoder(layout)),
        **_prefixed("decoder.", _vae_decoder(layout)),
        **_affine("quant_conv", 8, 8, 1, 1),
        **_affine("post_quant_conv", 4, 4, 1, 1),
    }


def text_shapes(layout: Layout) -> Shapes:
    """Keys of CLIP-L, below `cond_stage_model.transformer.` in SD1."""
    width = layout.clip_width
    layer: Shapes = {}
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer |= _affine(f"self_attn.{name}", width, width)
    layer |= _affine("layer_norm1", width) | _affine("layer_norm2", width)
    layer |= _affine("mlp.fc1", 4 * width, width) | _affine("mlp.fc2", width, 4 * width)
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (layout.vocabulary, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for i in range(layout.text_layers):
        shapes |= _prefixed(f"encoder.layers.{i}.", layer)
    return _prefixed("text_model.", shapes | _affine("final_layer_norm", width))


def open_clip_shapes(layout: Layout) -> Shapes:
    """Keys of OpenCLIP's text encoder, below `cond_stage_model.model.` in SD2."""
    width = layout.open_clip_width
    block = {
        **_affine("ln_1", width),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        **_affine("attn.out_proj", width, width),
        **_affine("ln_2", width),
        **_affine("mlp.c_fc", 4 * width, width),
        **_affine("mlp.c_proj", width, 4 * width),
    }
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (layout.vocabulary, width),
        **_affine("ln_final", width),
    }
    for i in range(layout.open_clip_layers):
        shapes |= _prefixed(f"transformer.resblocks.{i}.", block)
    return shapes


def _text_parts(layout: Layout) -> Shapes:
    if layout.family == "sd1":
        return _prefixed("cond_stage_model.transformer.", text_shapes(layout))
    if layout.family == "sd2":
        return _prefixed("cond_stage_model.model.", open_clip_shapes(layout))
    return {
        **_prefixed("conditioner.embedders.0.transformer.", text_shapes(layout)),
        **_prefixed("conditioner.embedders.1.model.", open_clip_shapes(layout)),
    }


def unused(layout: Layout) -> tuple[str, ...]:
    """Beginnings of the keys that no part of the network needs: SD2 reads the last layer but one.

    They are kept in the files all the same.
    """
    if layout.family == "sd1":
        return ()
    if layout.family == "sdxl":
        return ("conditioner.embedders.1.model.logit_scale",)
    last = f"cond_stage_model.model.transformer.resblocks.{layout.open_clip_layers - 1}."
    return (last, "cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection")


def checkpoint_shapes(layout: Layout) -> Shapes:
    """Every weight of a single file: UNet, VAE, text encoders."""
    return {
        **_prefixed("model.diffusion_model.", unet_shapes(layout)),
        **_prefixed("first_stage_model.", vae_shapes(layout)),
        **_text_parts(layout),
    }


SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""Float32 vectors of 1000 numbers that the original training code leaves in its files."""


def _unet_yaml(layout: Layout) -> str:
    resolutions = [2**level for level in layout.attention_levels]
    heads = (
        f"num_head_channels: {layout.head_channels}"
        if layout.head_channels
        else f"num_heads: {layout.num_heads}"
    )
    depth = 1 if layout.family != "sdxl" else list(layout.depths)
    return f"""\
        image_size: 32
        in_channels: {layout.in_channels}
        out_channels: 4
        model_channels: {layout.model_channels}
        attention_resolutions: {resolutions}
        num_res_blocks: {layout.num_res_blocks}
        channel_mult: {list(layout.channel_mult)}
        {heads}
        use_spatial_transformer: True
        use_linear_in_transformer: {layout.linear}
        transformer_depth: {depth}
        context_dim: {layout.context_dim}
        use_checkpoint: False
        legacy: False
"""


def _vae_yaml(layout: Layout) -> str:
    return f"""\
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {layout.vae_channels}
          ch_mult: {list(layout.vae_channel_mult)}
          num_res_blocks: {layout.vae_num_res_blocks}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""


def _text_yaml(layout: Layout) -> str:
    clip = (layout.text_layers, layout.text_heads, "quick_gelu")
    open_clip = (layout.open_clip_layers, layout.open_clip_heads, "gelu")
    if layout.family == "sd2":
        open_clip = (layout.open_clip_layers - 1, layout.open_clip_heads, "gelu")
    encoders = {"sd1": [clip], "sd2": [open_clip], "sdxl": [clip, open_clip]}[layout.family]
    text = "dreambooth:\n"
    if layout.family == "sdxl":
        text += f"  image_size: {layout.image_size}\n"
    for name, (layers, heads, activation) in zip(
        ("text_config", "text_config_2"), encoders, strict=False
    ):
        text += f"""\
  {name}:
    num_hidden_layers: {layers}
    num_attention_heads: {heads}
    hidden_act: {activation}
"""
    return text


def side_yaml(layout: Layout, parameterization: str = "eps") -> str:
    """The side file in the form of the original ones, with our block for what no weight tells.

    `parameterization` is "eps" or "v".
    """
    if layout.family == "sdxl":
        return _xl_yaml(layout, parameterization)
    return f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "{parameterization}"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    image_size: {layout.image_size}
    channels: 4
    scale_factor: {layout.scale_factor}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
{_unet_yaml(layout)}{_vae_yaml(layout)}\
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
{_text_yaml(layout)}"""


def _xl_yaml(layout: Layout, parameterization: str) -> str:
    scaling = {"eps": "EpsScaling", "v": "VScaling"}[parameterization]
    return f"""\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: {layout.scale_factor}
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: {layout.open_clip_width + 6 * layout.size_embedding}
        num_classes: sequential
{_unet_yaml(layout)}{_vae_yaml(layout)}{_text_yaml(layout)}"""
