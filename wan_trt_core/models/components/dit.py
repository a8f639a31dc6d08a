"""The transformer (DiT): one denoising step's prediction. The graph is in ``graphs/dit.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError, require_precision
from wan_trt_core.models.profiles import Sizes

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.models.checkpoint import Checkpoint


class Dit(Component):
    """``WanTransformer3DModel.forward``, batch 1.

    Call tensors: ``hidden_states`` (1, 16, frames, height, width), ``timestep`` (1,),
    ``encoder_hidden_states`` (1, text_length, text_dim). Output: ``sample``, the predicted flow, of the
    latents' shape.
    """

    name = "dit"
    part = "transformer"
    inside = "blocks.0"
    precisions = ("fp32", "fp16", "bf16")
    fp32_islands = ("time embedding", "modulation and gates", "layer norms", "RMS norm factors", "RoPE")

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        config = self._config(checkpoint)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        rope = ("frames", "half_height", "half_width", config["attention_head_dim"] // 2)
        return (
            TensorSpec(
                "hidden_states", (1, config["in_channels"], "frames", "2*half_height", "2*half_width")
            ),
            TensorSpec("modulation", (config["num_layers"], 6, dim), "float32"),
            TensorSpec("output_modulation", (2, dim), "float32"),
            TensorSpec("rope_cos", rope, "float32"),
            TensorSpec("rope_sin", rope, "float32"),
            TensorSpec("encoder_hidden_states", (1, "text_length", config["text_dim"])),
        )

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        config = self._config(checkpoint)
        channels = config["out_channels"] or config["in_channels"]
        return (TensorSpec("sample", (1, channels, "frames", "2*half_height", "2*half_width")),)

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {
            "frames": video.latent_frames,
            "half_height": video.latent_height // 2,
            "half_width": video.latent_width // 2,
            "text_length": video.text_length,
        }

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.dit import DitGraph

        require_precision(self, precision)
        self._config(checkpoint)
        model: Any = checkpoint.load(self.part, precision)
        return DitGraph(model, block_outputs=block_outputs)

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """What the pipeline's first denoising step receives: noise, the first timestep, a real prompt."""
        import torch

        from wan_trt_core.models.prompts import PROMPT, encode_prompt

        channels = self._config(checkpoint)["in_channels"]
        shape = (1, channels, video.latent_frames, video.latent_height, video.latent_width)
        scheduler = checkpoint.scheduler()
        scheduler.set_timesteps(20)
        return {
            "hidden_states": torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
            "timestep": scheduler.timesteps[:1],
            "encoder_hidden_states": encode_prompt(checkpoint, PROMPT, video.text_length),
        }

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        dtype = torch_dtype(precision)

        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["hidden_states"].device)
            (sample,) = model(
                hidden_states=call["hidden_states"].to(dtype),
                timestep=call["timestep"],
                encoder_hidden_states=call["encoder_hidden_states"].to(dtype),
                return_dict=False,
            )
            return {"sample": sample}

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        """A :class:`~wan_trt_core.models.graphs.dit.DitInputs`."""
        from wan_trt_core.models.graphs.dit import DitInputs

        return DitInputs(checkpoint, precision)

    def once(self, prepare: Callable[[Tensors], Tensors], call: Tensors) -> Callable[[], object] | None:
        """The RoPE tables, which depend on the video's size alone."""
        from wan_trt_core.models.graphs.dit import DitInputs

        if not isinstance(prepare, DitInputs):
            raise TypeError(f"expected what Dit.prepare returns, not {type(prepare).__name__}")
        _, _, frames, height, width = call["hidden_states"].shape
        _, rope = prepare.sources(call["hidden_states"].device)
        return lambda: rope.compute(frames, height // 2, width // 2)

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        layers = self._config(checkpoint)["num_layers"]
        return (
            "patch_embedding",
            "text_embedder",
            *(f"blocks.{index}" for index in range(layers)),
            "proj_out",
        )

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.taps import tapped

        paths = {name: name for name in self.blocks(checkpoint)}
        paths["text_embedder"] = "condition_embedder.text_embedder"
        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["hidden_states"].device)
            with tapped(model, paths) as taken:
                reference(call)
            return {name: taken[name] for name in paths}

        return run

    def _config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = checkpoint.config(self.part)
        where = f"{checkpoint.source}, {self.part}"
        if config.get("image_dim") or config.get("added_kv_proj_dim"):
            raise ComponentError(f"{where}: an image-to-video transformer; {self.name} is text-to-video's")
        if list(config["patch_size"]) != [1, 2, 2]:
            raise ComponentError(f"{where}: patch_size is {config['patch_size']}, expected [1, 2, 2]")
        return config


COMPONENT = Dit()
