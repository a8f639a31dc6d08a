"""What the streaming components of the VAE share: one step of decoding or encoding, with explicit caches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError
from wan_trt_core.models.profiles import TEMPORAL, ShapeProfile, Sizes
from wan_trt_core.models.vae_caches import CacheSpec, patch_size, spatial_scale

if TYPE_CHECKING:
    from torch import Tensor

    from wan_trt_core.models.checkpoint import Checkpoint


class VaeStep(Component):
    """One step of the VAE: from what it takes, and the caches of the step before, to what it gives and new caches.

    Attributes:
        first: the first step of a video, which takes no caches and has one frame of the video; all others have four.
    """

    part = "vae"
    convolutional = True
    fp32_islands = ("RMS norms",)
    first: ClassVar[bool]
    latents = 1
    """Latent frames of a step."""

    @abstractmethod
    def takes(self, checkpoint: Checkpoint) -> TensorSpec:
        """The input beside the caches."""

    @abstractmethod
    def gives(self, checkpoint: Checkpoint) -> TensorSpec:
        """The output beside the caches."""

    @abstractmethod
    def caches(self, checkpoint: Checkpoint) -> tuple[CacheSpec, ...]:
        """The caches that a step leaves and the next takes: the same for the first and all others."""

    @abstractmethod
    def stock_step(self, vae: Any, call: Tensors, caches: Sequence[CacheSpec], *, first: bool) -> Tensors:
        """The step as diffusers does it."""

    @abstractmethod
    def random_steps(self, config: dict[str, Any], video: Sizes, steps: int, seed: int) -> Sequence[Tensor]:
        """What the first steps of a video of this size take, realistic and drawn with a seed."""

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        taken = () if self.first else tuple(cache.taken() for cache in self.caches(checkpoint))
        return (self.takes(checkpoint), *taken)

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (self.gives(checkpoint), *(cache.left() for cache in self.caches(checkpoint)))

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {"height": video.latent_height, "width": video.latent_width}

    def profile_name(self, profile: ShapeProfile) -> str:
        """Without the number of frames (``480p`` of ``480p-81f``): a step sees one latent frame of the video."""
        return profile.name.partition("-")[0]

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """Of the first step, or of the third: with the caches that two of diffusers' own steps left."""
        import torch

        count, config = 0 if self.first else 2, self._config(checkpoint)
        if video.spatial != (scale := spatial_scale(config)):
            raise ComponentError(
                f"{self.name}: a latent of {checkpoint.source} covers {scale} pixels, and the sizes given are for"
                f" {video.spatial}: Sizes(…, spatial={scale})"
            )
        steps = self.random_steps(config, video, count + self.latents, seed)
        before, last = steps[:count], torch.cat(tuple(steps[count:]), dim=2)
        caches, vae, name = self.caches(checkpoint), checkpoint.load(self.part), self.takes(checkpoint).name
        carried: Tensors = {}
        for index, taken in enumerate(before):
            outputs = self.stock_step(vae, {name: taken, **carried}, caches, first=index == 0)
            carried = {cache.name: outputs[cache.output] for cache in caches}
        return {name: last, **carried}

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        caches, name = self.caches(checkpoint), self.takes(checkpoint).name
        dtype = torch_dtype(precision)

        def run(call: Tensors) -> Tensors:
            vae = checkpoint.load(self.part, precision, call[name].device)
            given = {each: tensor.to(dtype) for each, tensor in call.items()}
            return self.stock_step(vae, given, caches, first=self.first)

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        dtypes = {spec.name: spec.torch_dtype(precision) for spec in self.inputs(checkpoint)}
        return lambda call: {name: tensor.to(dtypes[name]) for name, tensor in call.items()}

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.taps import tapped

        names, name = self.blocks(checkpoint), self.takes(checkpoint).name
        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            vae = checkpoint.load(self.part, precision, call[name].device)
            with tapped(vae.get_submodule(self.inside), {name: name for name in names}) as taken:
                reference(call)
            return taken

        return run

    def _latents(self, checkpoint: Checkpoint) -> TensorSpec:
        return TensorSpec("latents", (1, self._config(checkpoint)["z_dim"], self.latents, "height", "width"))

    def _sample(self, checkpoint: Checkpoint, channels: str) -> TensorSpec:
        config = self._config(checkpoint)
        scale, colours = spatial_scale(config), config[channels] // patch_size(config) ** 2
        frames = 1 if self.first else TEMPORAL * self.latents
        return TensorSpec("sample", (1, colours, frames, f"{scale}*height", f"{scale}*width"))

    def _config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return checkpoint.config(self.part)
