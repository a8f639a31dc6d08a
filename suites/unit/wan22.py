"""The VAE of Wan 2.2 TI2V-5B, tiny: shortcuts around its blocks, patches of pixels, a latent of 16 x 16 pixels."""

from __future__ import annotations

from typing import Any

from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.models.random_weights import RandomCheckpoint, wan21_configs

VAE: dict[str, Any] = {
    "base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "latents_mean": [0.1] * 6, "latents_std": [1.5] * 6,
    "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
}  # fmt: skip

SIZES = Sizes(64, 96, 9, 16, spatial=16)
PROFILE = ShapeProfile("wan22", SIZES, SIZES, SIZES)


def checkpoint(**changes: Any) -> RandomCheckpoint:
    """Random weights; the transformer is nobody's."""
    return RandomCheckpoint({**wan21_configs(128, 1, 128), "vae": {**VAE, **changes}}, "")
