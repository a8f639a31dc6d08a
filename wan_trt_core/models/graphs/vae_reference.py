"""Diffusers' own VAE, one step at a time, as the loops of its ``decode`` and ``encode`` call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from wan_trt_core.models.vae_caches import CacheSpec, patch_size, spatial_scale

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

    from wan_trt_core.models.component import Tensors


def decode_step(vae: AutoencoderKLWan, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
    """The stock decoder's step: ``sample`` and the caches it leaves, whole.

    Args:
        call: ``latents`` (1, 16, 1, height, width) and, unless ``first``, every cache by its input name.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    latents = call["latents"]
    slots = _slots(vae, "decoder", call, caches, first)
    frames = vae.decoder(vae.post_quant_conv(latents), feat_cache=slots, feat_idx=[0], first_chunk=first)
    frames = unpatchify(frames, patch_size(vae.config))
    return {"sample": torch.clamp(frames, min=-1.0, max=1.0), **_left(slots, caches, latents)}


def encode_step(vae: AutoencoderKLWan, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
    """The stock encoder's step: ``latents``, the mode of what it returns, and the caches it leaves, whole.

    Args:
        call: ``sample`` (1, 3, 1 or 4, 8 height, 8 width) and, unless ``first``, every cache by its input name.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    slots = _slots(vae, "encoder", call, caches, first)
    video = patchify(call["sample"], patch_size(vae.config))
    frames = vae.encoder(video, feat_cache=slots, feat_idx=[0])
    latents = DiagonalGaussianDistribution(vae.quant_conv(frames)).mode()
    return {"latents": latents, **_left(slots, caches, latents)}


def _slots(
    vae: AutoencoderKLWan, half: str, call: Tensors, caches: Sequence[CacheSpec], first: bool
) -> list[Any]:
    slots: list[Any] = [None if first else call[cache.name] for cache in caches]
    # one slot for every causal convolution, as diffusers counts them: those of kernel size 1 use none
    return slots + [None] * (vae._cached_conv_counts[half] - len(slots))


def _left(slots: Sequence[Any], caches: Sequence[CacheSpec], latents: Tensor) -> Tensors:
    return {cache.output: _whole(left, cache, latents) for cache, left in zip(caches, slots, strict=False)}


def _whole(left: Tensor | str, cache: CacheSpec, latents: Tensor) -> Tensor:
    if isinstance(left, Tensor) and left.shape[2] == cache.frames:
        return left  # as diffusers leaves it: where the step is timed a copy would be the reference's
    height, width = cache.scale * latents.shape[3], cache.scale * latents.shape[4]
    missing = cache.frames - (0 if isinstance(left, str) else left.shape[2])
    zeros = latents.new_zeros(1, cache.channels, missing, height, width)
    return zeros if isinstance(left, str) else torch.cat((zeros, left), dim=2)


def random_latents(config: Mapping[str, Any], frames: int, height: int, width: int, *, seed: int) -> Tensor:
    """Noise (1, 16, frames, height, width) with the mean and deviation of the checkpoint's latents."""
    channels = config["z_dim"]
    noise = torch.randn((1, channels, frames, height, width), generator=torch.Generator().manual_seed(seed))
    mean = torch.tensor(config["latents_mean"]).reshape(1, channels, 1, 1, 1)
    deviation = torch.tensor(config["latents_std"]).reshape(1, channels, 1, 1, 1)
    return noise * deviation + mean


def random_video(config: Mapping[str, Any], frames: int, height: int, width: int, *, seed: int) -> Tensor:
    """A video (1, 3, frames, height, width) in (-1, 1), in pixels, that is smooth in space and time."""
    scale, colours = spatial_scale(config), config["in_channels"] // patch_size(config) ** 2
    shape = (1, colours, 1 + frames // 4, height // scale, width // scale)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(noise, (frames, height, width), mode="trilinear").tanh()
