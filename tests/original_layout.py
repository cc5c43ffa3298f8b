"""Key names and shapes of a Stable Diffusion 1 single file, walked from the original architecture.

This is the tests' own source of truth: it follows the constructors of the original latent-diffusion
networks (which block is appended after which), knows nothing of diffusers and nothing of the
product's key map. Checked once against the state dict of the original code itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """The numbers that fix a Stable Diffusion 1 model; the defaults are those of SD 1.5."""

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


SD15 = Layout()
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


def _transformer(width: int, context: int) -> Shapes:
    block = {
        **_attention("attn1", width, width),
        **_affine("ff.net.0.proj", 8 * width, width),
        **_affine("ff.net.2", width, 4 * width),
        **_attention("attn2", width, context),
        **_affine("norm1", width),
        **_affine("norm2", width),
        **_affine("norm3", width),
    }
    return {
        **_affine("norm", width),
        **_affine("proj_in", width, width, 1, 1),
        **_prefixed("transformer_blocks.0.", block),
        **_affine("proj_out", width, width, 1, 1),
    }


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
                shapes |= _prefixed(f"{block}.1.", _transformer(width, layout.context_dim))
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
                parts.append(_transformer(width, layout.context_dim))
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
        **inputs,
        **_prefixed("middle_block.0.", _resnet(width, width, embedding)),
        **_prefixed("middle_block.1.", _transformer(width, layout.context_dim)),
        **_prefixed("middle_block.2.", _resnet(width, width, embedding)),
        **_output_blocks(layout, skips),
        **_affine("out.0", layout.model_channels),
        **_affine("out.2", 4, layout.model_channels, 3, 3),
    }


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
    """Keys below `cond_stage_model.transformer.`."""
    width = layout.context_dim
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


def checkpoint_shapes(layout: Layout) -> Shapes:
    """Every weight of a single file: UNet, VAE, text encoder."""
    return {
        **_prefixed("model.diffusion_model.", unet_shapes(layout)),
        **_prefixed("first_stage_model.", vae_shapes(layout)),
        **_prefixed("cond_stage_model.transformer.", text_shapes(layout)),
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


def side_yaml(layout: Layout) -> str:
    """The side file in the form of v1-inference.yaml, with our block for what no weight tells."""
    resolutions = [2**level for level in layout.attention_levels]
    return f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    image_size: {layout.image_size}
    channels: 4
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {layout.in_channels}
        out_channels: 4
        model_channels: {layout.model_channels}
        attention_resolutions: {resolutions}
        num_res_blocks: {layout.num_res_blocks}
        channel_mult: {list(layout.channel_mult)}
        num_heads: {layout.num_heads}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {layout.context_dim}
        use_checkpoint: False
        legacy: False
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
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
dreambooth:
  text_config:
    num_hidden_layers: {layout.text_layers}
    num_attention_heads: {layout.text_heads}
    hidden_act: quick_gelu
"""
