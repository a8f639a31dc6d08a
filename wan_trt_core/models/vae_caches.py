"""The caches of the streaming VAE: how many, how large, and what they are called."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wan_trt_core.models.component import TensorSpec

CACHE_FRAMES = 2
"""Frames a cache holds: a causal convolution looks back by its kernel's three frames, less the present."""
HALVING_FRAMES = 1
"""The same for the convolution that halves the frames: its kernel's three, less the two that its stride passes."""


@dataclass(frozen=True)
class CacheSpec:
    """One cache: (1, channels, frames, scale * height, scale * width) for latents of (height, width).

    Attributes:
        name: of the input that takes it.
        output: of the output that leaves it for the next step.
        dtype: as of a :class:`TensorSpec`.
    """

    name: str
    output: str
    channels: int
    scale: int
    frames: int = CACHE_FRAMES
    dtype: str = "precision"

    @property
    def axes(self) -> tuple[int | str, ...]:
        factor = "" if self.scale == 1 else f"{self.scale}*"
        return (1, self.channels, self.frames, f"{factor}height", f"{factor}width")

    def taken(self) -> TensorSpec:
        """As an input."""
        return TensorSpec(self.name, self.axes, self.dtype)

    def left(self) -> TensorSpec:
        """As an output."""
        return TensorSpec(self.output, self.axes, self.dtype)


def patch_size(config: Mapping[str, Any]) -> int:
    """Pixels in height and in width that the VAE of this configuration takes for one, in as many more channels."""
    return int(config.get("patch_size") or 1)


def spatial_scale(config: Mapping[str, Any]) -> int:
    """Pixels in height and in width that a latent covers: 8 in Wan 2.1, 16 in Wan 2.2."""
    return int(2 ** (len(config["dim_mult"]) - 1)) * patch_size(config)


def decoder_caches(config: Mapping[str, Any], *, half: bool = False) -> tuple[CacheSpec, ...]:
    """The caches of the decoder that an ``AutoencoderKLWan`` configuration describes, in order of use.

    There is one for each causal convolution that looks back: ``WanDecoder3d`` has two in a residual block,
    one in a temporal upsampling, and its first and last.

    Args:
        half: in half precision, whatever the decoder computes in.
    """
    base = config.get("decoder_base_dim") or config["base_dim"]
    mult = config["dim_mult"]
    dims = [base * factor for factor in (mult[-1], *reversed(mult))]
    temporal = list(reversed(config["temperal_downsample"]))
    found = [(config["z_dim"], 1)] + 4 * [(dims[0], 1)]
    scale = 1
    for index, (inner, outer) in enumerate(itertools.pairwise(dims)):
        entering = inner if index == 0 or config.get("is_residual") else inner // 2
        found += [(entering, scale)] + (2 * config["num_res_blocks"] + 1) * [(outer, scale)]
        if index < len(mult) - 1:
            if temporal[index]:
                found.append((outer, scale))
            scale *= 2
    found.append((dims[-1], scale))
    dtype = "float16" if half else "precision"
    return _named(((channels, factor, CACHE_FRAMES) for channels, factor in found), dtype)


def encoder_caches(config: Mapping[str, Any]) -> tuple[CacheSpec, ...]:
    """As :func:`decoder_caches`, of the encoder: ``WanEncoder3d`` has one cache in a temporal downsampling."""
    mult = config["dim_mult"]
    dims = [config["base_dim"] * factor for factor in (1, *mult)]
    scale = 2 ** (len(mult) - 1)
    found = [(config["in_channels"], scale, CACHE_FRAMES)]
    for index, (inner, outer) in enumerate(itertools.pairwise(dims)):
        found += [(inner, scale, CACHE_FRAMES)]
        found += (2 * config["num_res_blocks"] - 1) * [(outer, scale, CACHE_FRAMES)]
        if index < len(mult) - 1:
            scale //= 2
            if config["temperal_downsample"][index]:
                found.append((outer, scale, HALVING_FRAMES))
    found += 5 * [(dims[-1], scale, CACHE_FRAMES)]
    return _named(found)


def _named(found: Iterable[tuple[int, int, int]], dtype: str = "precision") -> tuple[CacheSpec, ...]:
    return tuple(
        CacheSpec(f"cache_{index:02d}", f"cache_out_{index:02d}", *sizes, dtype)
        for index, sizes in enumerate(found)
    )
