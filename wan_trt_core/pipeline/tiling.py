"""The VAE decoder in tiles, as ``AutoencoderKLWan.tiled_decode``: caches and scratch memory are those of one tile."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from wan_trt_core.backends.base import Engine
from wan_trt_core.models.profiles import SPATIAL, tile_stride
from wan_trt_core.pipeline.streaming import StreamingDecoder


class TiledDecoder:
    """A streaming decoder that sees one tile at a time, each through all frames; the tiles overlap and are blended.

    Args:
        decoder: whose engines serve a tile, and the smaller ones at the right and at the bottom. They do not clamp
            what they give, or the blended pixels would differ from diffusers'.
        tile: pixels a side.
    """

    def __init__(self, decoder: StreamingDecoder, tile: int) -> None:
        self._decoder, self._tile = decoder, tile
        # what is kept of a tile would be cut from that piece, and the next tile take another
        decoder.in_one_piece = False

    @property
    def dtype(self) -> torch.dtype:
        """What the engines compute in."""
        return self._decoder.dtype

    @property
    def engines(self) -> tuple[Engine, Engine]:
        """The engine of the first step, and that of every next one."""
        return self._decoder.engines

    def decode(self, latents: Tensor) -> Tensor:
        """The whole video: (1, 3, frames, height, width) in [-1, 1]. One no larger than a tile is decoded whole.

        Args:
            latents: (1, 16, latent frames, height/8, width/8), de-normalised as ``AutoencoderKLWan.decode`` takes them.

        Raises:
            ValueError: when the latents have another rank or batch, or no frames.
        """
        height, width = (SPATIAL * size for size in latents.shape[-2:])
        if max(height, width) <= self._tile:
            return self._decoder.decode(latents).clamp_(-1.0, 1.0)
        tile, stride = self._tile, tile_stride(self._tile)
        video: Tensor | None = None
        above: list[Tensor] = []
        for top in range(0, height, stride):
            row: list[Tensor] = []
            left_of: Tensor | None = None
            for left in range(0, width, stride):
                rows, columns = (slice(at // SPATIAL, (at + tile) // SPATIAL) for at in (top, left))
                frames = self._decoder.decode(latents[..., rows, columns])
                if above:
                    _blend(above[len(row)], frames, dim=-2)
                if left_of is not None:
                    _blend(left_of, frames, dim=-1)
                # of a tile that is done only the edges count that the next ones overlap
                row.append(frames[..., -(tile - stride) :, :].clone())
                left_of = frames[..., -(tile - stride) :].clone()
                if video is None:
                    video = frames.new_empty((*frames.shape[:3], height, width))
                kept = frames[..., :stride, :stride]
                video[..., top : top + kept.shape[-2], left : left + kept.shape[-1]] = kept
                del frames, kept  # or they would be held while the next tile is decoded
            above = row
        assert video is not None  # a tile is smaller than the video
        return video.clamp_(-1.0, 1.0)


def tiled(vae: Any, tile: int) -> Any:
    """Diffusers' VAE with the same weights, in the same tiles; ``vae`` itself is left as it was."""
    twin = copy.copy(vae)
    twin.enable_tiling(tile, tile, tile_stride(tile), tile_stride(tile))
    return twin


def _blend(before: Tensor, tile: Tensor, dim: int) -> None:
    """Let ``tile`` begin as ``before`` ends, and change over to itself by equal steps; ``tile`` is changed."""
    size = min(before.shape[dim], tile.shape[dim])
    share = torch.arange(size, dtype=tile.dtype, device=tile.device) / size
    if dim == -2:
        share = share[:, None]
    begin = tile.narrow(dim, 0, size)
    begin.copy_(before.narrow(dim, before.shape[dim] - size, size) * (1 - share) + begin * share)
