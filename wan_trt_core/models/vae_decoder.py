"""What the two streaming VAE decoder components share; see ``graphs/vae_decoder.py`` for the graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Tensors, TensorSpec
from wan_trt_core.models.components import require_precision
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.models.vae_caches import CacheSpec, decoder_caches
from wan_trt_core.models.vae_step import VaeStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_trt_core.models.checkpoint import Checkpoint


class VaeDecoder(VaeStep):
    """One step of ``AutoencoderKLWan.decode``: one latent frame, with the caches of the steps before.

    Call tensors: ``latents`` (1, 16, 1, height, width), de-normalised as ``decode`` takes them, and for the
    next-frame component the caches. Outputs: ``sample`` (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1], and the
    caches for the next step.
    """

    inside = "decoder"
    clamps = True
    lean = False

    def of_tiles(self) -> VaeDecoder:
        """The component for tiles, which are blended before anything is clamped: its ``sample`` is as it comes."""
        tiles = copy.copy(self)
        tiles.clamps = False
        return tiles

    def of_steps(self, latents: int) -> VaeDecoder:
        """The component that decodes so many latent frames a step; the first of a video is always decoded alone."""
        longer = copy.copy(self)
        longer.latents = 1 if self.first else latents
        return longer

    def in_less_memory(self) -> VaeDecoder:
        """The component whose caches are in half precision, and whose last block does two frames at a time."""
        leaner = copy.copy(self)
        leaner.lean = True
        return leaner

    def form(self, precision: str) -> dict[str, Any]:
        return {"latents": self.latents, "lean": self.lean}

    def takes(self, checkpoint: Checkpoint) -> TensorSpec:
        return self._latents(checkpoint)

    def gives(self, checkpoint: Checkpoint) -> TensorSpec:
        return self._sample(checkpoint, "out_channels")

    def caches(self, checkpoint: Checkpoint) -> tuple[CacheSpec, ...]:
        return decoder_caches(self._config(checkpoint), half=self.lean)

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.vae_decoder import VaeDecoderGraph

        require_precision(self, precision)
        vae: Any = checkpoint.load(self.part, precision)
        return VaeDecoderGraph(
            vae, first=self.first, block_outputs=block_outputs, clamp=self.clamps, lean=self.lean
        )

    def stock_step(self, vae: Any, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
        from wan_trt_core.models.graphs.vae_reference import decode_step

        return decode_step(vae, call, caches, first=first)

    def random_steps(self, config: dict[str, Any], video: Sizes, steps: int, seed: int) -> Sequence[Tensor]:
        """Latents drawn with the checkpoint's own mean and deviation."""
        import torch

        from wan_trt_core.models.graphs.vae_reference import random_latents

        latents = random_latents(config, steps, video.latent_height, video.latent_width, seed=seed)
        return torch.split(latents, 1, dim=2)

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        count = len(self._config(checkpoint)["dim_mult"])
        return ("conv_in", "mid_block", *(f"up_blocks.{index}" for index in range(count)), "conv_out")
