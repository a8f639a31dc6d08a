"""What the two streaming VAE encoder components share; see ``graphs/vae_encoder.py`` for the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError, require_precision
from wan_trt_core.models.profiles import TEMPORAL, Sizes
from wan_trt_core.models.vae_caches import CacheSpec, encoder_caches
from wan_trt_core.models.vae_step import VaeStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_trt_core.models.checkpoint import Checkpoint


class VaeEncoder(VaeStep):
    """One step of ``AutoencoderKLWan.encode``: a chunk of frames, with the caches of the steps before.

    Call tensors: ``sample`` (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1], and for the next-frames component the
    caches. Outputs: ``latents`` (1, 16, 1, height, width), and the caches for the next step. The latents are the
    mode (the mean) of the distribution that ``encode`` returns, not normalised: that is the caller's to do.
    """

    inside = "encoder"

    def takes(self, checkpoint: Checkpoint) -> TensorSpec:
        return self._sample(checkpoint, "in_channels")

    def gives(self, checkpoint: Checkpoint) -> TensorSpec:
        return self._latents(checkpoint)

    def caches(self, checkpoint: Checkpoint) -> tuple[CacheSpec, ...]:
        return encoder_caches(self._config(checkpoint))

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.vae_encoder import VaeEncoderGraph

        require_precision(self, precision)
        vae: Any = checkpoint.load(self.part, precision)
        return VaeEncoderGraph(vae, first=self.first, block_outputs=block_outputs)

    def stock_step(self, vae: Any, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
        from wan_trt_core.models.graphs.vae_reference import encode_step

        return encode_step(vae, call, caches, first=first)

    def random_steps(self, config: dict[str, Any], video: Sizes, steps: int, seed: int) -> Sequence[Tensor]:
        """A smooth video of random colours."""
        import torch

        from wan_trt_core.models.graphs.vae_reference import random_video

        chunks = [1, *(steps - 1) * [TEMPORAL]]
        given = random_video(config, sum(chunks), video.height, video.width, seed=seed)
        return torch.split(given, chunks, dim=2)

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        config = self._config(checkpoint)
        count = len(config["dim_mult"])
        if not config.get("is_residual"):  # one by one: the last has no downsampling
            count = count * (config["num_res_blocks"] + 1) - 1
        return ("conv_in", *(f"down_blocks.{index}" for index in range(count)), "mid_block", "conv_out")

    def _config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super()._config(checkpoint)
        if config.get("attn_scales"):
            raise ComponentError(
                f"{checkpoint.source}, {self.part}: attention between the encoder's blocks (attn_scales is"
                f" {config['attn_scales']}), which no Wan VAE has"
            )
        return config
