"""Diffusers' own VAE decoder, one latent frame at a time, as its ``decode`` loop calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wan_trt_core.models.vae_caches import CACHE_FRAMES, CacheSpec

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

    from wan_trt_core.models.component import Tensors


def decode_step(vae: AutoencoderKLWan, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
    """The stock decoder's step: ``sample`` and the caches it leaves, as two frames each.

    Args:
        call: ``latents`` (1, 16, 1, height, width) and, unless ``first``, every cache by its input name.
    """
    latents = call["latents"]
    slots: list[Any] = [None if first else call[cache.name] for cache in caches]
    # one slot for every causal convolution, as diffusers counts them: those of kernel size 1 use none
    slots += [None] * (vae._cached_conv_counts["decoder"] - len(slots))
    frames = vae.decoder(vae.post_quant_conv(latents), feat_cache=slots, feat_idx=[0], first_chunk=first)
    outputs = {"sample": torch.clamp(frames, min=-1.0, max=1.0)}
    for cache, left in zip(caches, slots, strict=False):
        outputs[cache.output] = _two_frames(left, cache, latents)
    return outputs


def _two_frames(left: Tensor | str, cache: CacheSpec, latents: Tensor) -> Tensor:
    if isinstance(left, Tensor) and left.shape[2] == CACHE_FRAMES:
        return left  # as diffusers leaves it: where the step is timed a copy would be the reference's
    height, width = cache.scale * latents.shape[3], cache.scale * latents.shape[4]
    missing = CACHE_FRAMES - (0 if isinstance(left, str) else left.shape[2])
    zeros = latents.new_zeros(1, cache.channels, missing, height, width)
    return zeros if isinstance(left, str) else torch.cat((zeros, left), dim=2)


def random_latents(config: Mapping[str, Any], frames: int, height: int, width: int, *, seed: int) -> Tensor:
    """Noise (1, 16, frames, height, width) with the mean and deviation of the checkpoint's latents."""
    channels = config["z_dim"]
    noise = torch.randn((1, channels, frames, height, width), generator=torch.Generator().manual_seed(seed))
    mean = torch.tensor(config["latents_mean"]).reshape(1, channels, 1, 1, 1)
    deviation = torch.tensor(config["latents_std"]).reshape(1, channels, 1, 1, 1)
    return noise * deviation + mean
