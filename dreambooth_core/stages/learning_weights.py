"""Which weights of a network learn, by their names in diffusers and transformers.

Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dreambooth_core.config.schema import TrainConfig

UNET_PARTS = {
    "all": "",
    "attention": r"\.attn[12]\.",
    "cross_attention": r"\.attn2\.",
    "cross_attention_kv": r"\.attn2\.to_[kv]\.",
}
"""What the names of the layers contain that a choice trains.

The keys and values of cross-attention are what Custom Diffusion trains, Kumari et al. 2022
(arXiv 2212.04488), section 3.2.
"""

CLIP_NORM_LAYERS = r"(^|\.)(layer_norm1|layer_norm2|final_layer_norm)\."


def learning_weights(config: TrainConfig, component: str, names: Iterable[str]) -> set[str]:
    """Return which of a network's weights learn while the network as a whole does."""
    if component == "unet":
        return {name for name in names if re.search(UNET_PARTS[config.unet.parts], name)}
    if config.text_encoder.freeze_norm_layers:
        return {name for name in names if not re.search(CLIP_NORM_LAYERS, name)}
    return set(names)
