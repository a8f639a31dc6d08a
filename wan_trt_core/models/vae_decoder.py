"""What the two streaming VAE decoder components share; see ``graphs/vae_decoder.py`` for the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError, require_precision
from wan_trt_core.models.profiles import TEMPORAL, ShapeProfile, Sizes
from wan_trt_core.models.vae_caches import CacheSpec, cache_specs

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.models.checkpoint import Checkpoint


class VaeDecoder(Component):
    """One step of ``AutoencoderKLWan.decode``: one latent frame, with the caches of the steps before.

    Call tensors: ``latents`` (1, 16, 1, height, width), de-normalised as ``decode`` takes them, and for the
    next-frame component the caches. Outputs: ``sample`` (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1], and the
    caches for the next step.
    """

    part = "vae"
    fp32_islands = ("RMS norms",)
    first: ClassVar[bool]

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        latents = TensorSpec("latents", (1, self._config(checkpoint)["z_dim"], 1, "height", "width"))
        taken = () if self.first else tuple(cache.taken() for cache in self.caches(checkpoint))
        return (latents, *taken)

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        scale = 2 ** (len(self._config(checkpoint)["dim_mult"]) - 1)
        channels = self._config(checkpoint)["out_channels"]
        frames = 1 if self.first else TEMPORAL
        sample = TensorSpec("sample", (1, channels, frames, f"{scale}*height", f"{scale}*width"))
        return (sample, *(cache.left() for cache in self.caches(checkpoint)))

    def caches(self, checkpoint: Checkpoint) -> tuple[CacheSpec, ...]:
        """The caches that a step leaves and the next takes: the same for both components."""
        return cache_specs(self._config(checkpoint))

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {"height": video.latent_height, "width": video.latent_width}

    def profile_name(self, profile: ShapeProfile) -> str:
        """Without the number of frames (``480p`` of ``480p-81f``): the decoder sees one latent frame at a time."""
        return profile.name.partition("-")[0]

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.vae_decoder import VaeDecoderGraph

        require_precision(self, precision)
        vae: Any = checkpoint.load(self.part, precision)
        return VaeDecoderGraph(vae, first=self.first, block_outputs=block_outputs)

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """Latents drawn with the checkpoint's own mean and deviation; caches from two decoded frames."""
        from wan_trt_core.models.graphs.vae_reference import decode_step, random_latents

        steps = 1 if self.first else 3
        shape = (steps, video.latent_height, video.latent_width)
        latents = random_latents(self._config(checkpoint), *shape, seed=seed).chunk(steps, dim=2)
        vae: Any = checkpoint.load(self.part)
        carried: Tensors = {}
        for index in range(steps - 1):
            outputs = decode_step(
                vae, {"latents": latents[index], **carried}, self.caches(checkpoint), first=index == 0
            )
            carried = {cache.name: outputs[cache.output] for cache in self.caches(checkpoint)}
        return {"latents": latents[-1], **carried}

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.vae_reference import decode_step

        caches = self.caches(checkpoint)
        prepare = self.prepare(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            vae: Any = checkpoint.load(self.part, precision, call["latents"].device)
            return decode_step(vae, prepare(call), caches, first=self.first)

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        dtype = torch_dtype(precision)
        return lambda call: {name: tensor.to(dtype) for name, tensor in call.items()}

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        count = len(self._config(checkpoint)["dim_mult"])
        return ("conv_in", "mid_block", *(f"up_blocks.{index}" for index in range(count)), "conv_out")

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.taps import tapped

        names = self.blocks(checkpoint)
        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            vae: Any = checkpoint.load(self.part, precision, call["latents"].device)
            with tapped(vae.decoder, {name: name for name in names}) as taken:
                reference(call)
            return taken

        return run

    def _config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = checkpoint.config(self.part)
        if config.get("is_residual") or config.get("patch_size"):
            raise ComponentError(
                f"{checkpoint.source}, {self.part}: a Wan 2.2 VAE; {self.name} decodes Wan 2.1's"
            )
        return config
