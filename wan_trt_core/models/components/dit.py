"""The transformer (DiT): one denoising step's prediction. The graph is in ``graphs/dit.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError, require_precision
from wan_trt_core.models.profiles import Sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.graphs.dit import SelfAttention
    from wan_trt_core.models.profiles import Point, ShapeProfile

TEXT_LENGTH_WITH_IMAGE = 512
"""Diffusers' ``WanAttnProcessor`` takes the last 512 of the states for the prompt's, those before for the image's."""

IMAGE_TOKENS = 257
"""Of the image encoder of every published Wan 2.1: 16 by 16 patches and the class."""


class Dit(Component):
    """``WanTransformer3DModel.forward``, batch 1.

    Call tensors: ``hidden_states`` (1, in_channels, frames, height, width), ``timestep`` (1,) or, where the pipeline
    expands timesteps, (1, tokens), ``encoder_hidden_states`` (1, text_length, text_dim), and of an image-to-video
    transformer ``encoder_hidden_states_image`` (1, image tokens, image_dim). Output: ``sample``, the predicted flow
    (1, out_channels, frames, height, width).
    """

    name = "dit"
    part = "transformer"
    inside = "blocks.0"
    precisions = ("fp32", "fp16", "bf16")
    fp32_islands = (
        "embeddings of time, prompt and image", "modulation and gates", "layer norms", "RMS norm factors", "RoPE",
    )  # fmt: skip
    self_attention: SelfAttention = "plain"

    def with_self_attention(self, form: SelfAttention) -> Dit:
        """The component with this form of self-attention where it is in FP16."""
        other = copy.copy(self)
        other.self_attention = form
        return other

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        config = self._config(checkpoint)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        rope = ("frames", "half_height", "half_width", config["attention_head_dim"] // 2)
        rows = ("frames", dim) if checkpoint.timestep_by_frame else (dim,)
        of_image = config.get("image_dim")
        specs = (
            TensorSpec(
                "hidden_states", (1, config["in_channels"], "frames", "2*half_height", "2*half_width")
            ),
            TensorSpec("modulation", (config["num_layers"], 6, *rows), "float32"),
            TensorSpec("output_modulation", (2, *rows), "float32"),
            TensorSpec("rope_cos", rope, "float32"),
            TensorSpec("rope_sin", rope, "float32"),
            TensorSpec("encoder_hidden_states", (1, "text_rows", config["text_dim"])),
            TensorSpec("text_scores", ("text_rows",)),
        )
        if not of_image:
            return specs
        return (*specs, TensorSpec("encoder_hidden_states_image", (1, image_tokens(checkpoint), of_image)))

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        config = self._config(checkpoint)
        channels = config["out_channels"] or config["in_channels"]
        return (TensorSpec("sample", (1, channels, "frames", "2*half_height", "2*half_width")),)

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {
            "frames": video.latent_frames,
            "half_height": video.latent_height // 2,
            "half_width": video.latent_width // 2,
            "text_rows": video.text_length,
        }

    def sizes_at(self, profile: ShapeProfile, point: Point) -> dict[str, int]:
        """At min and opt a prompt is short, as most are: of the fewest rows that there can be."""
        sizes = super().sizes_at(profile, point)
        if point == "max":
            return sizes
        from wan_trt_core.models.graphs.dit import text_rows

        return {**sizes, "text_rows": text_rows(profile.at(point).text_length, tokens=0)}

    def form(self, precision: str) -> dict[str, Any]:
        return {"self_attention": self.self_attention if precision == "fp16" else "plain"}

    def has_bf16(self, precision: str) -> bool:
        return super().has_bf16(precision) or self.form(precision)["self_attention"] == "bf16"

    def tokens(self, video: Sizes) -> int:
        """What attention is among: one for each 2x2 latents of every latent frame."""
        sizes = self.sizes(video)
        return sizes["frames"] * sizes["half_height"] * sizes["half_width"]

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.dit import DitGraph

        require_precision(self, precision)
        self._config(checkpoint)
        model: Any = checkpoint.load(self.part, precision)
        return DitGraph(model, block_outputs=block_outputs, **self.form(precision))

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """What the pipeline's first denoising step receives: noise, the first timestep, a real prompt."""
        return self._call_at(self._timesteps(checkpoint)[:1], checkpoint, video, seed)

    def calibration_calls(self, checkpoint: Checkpoint, video: Sizes) -> tuple[Tensors, ...]:
        """At the first, the middle and the last timestep; noise stands for the latents, whose variance is that of noise
        throughout."""
        timesteps = self._timesteps(checkpoint)
        picked = dict.fromkeys((0, len(timesteps) // 2, len(timesteps) - 1))
        return tuple(
            self._call_at(timesteps[index : index + 1], checkpoint, video, seed=0) for index in picked
        )

    def _call_at(self, timestep: Tensor, checkpoint: Checkpoint, video: Sizes, seed: int) -> Tensors:
        import torch

        from wan_trt_core.models.prompts import PROMPT, encode_prompt

        sizes, noise = self.sizes(video), torch.Generator().manual_seed(seed)
        specs = {spec.name: spec for spec in self.inputs(checkpoint)}
        shapes = {name: spec.shape(sizes) for name, spec in specs.items()}
        call = {
            "hidden_states": torch.randn(shapes["hidden_states"], generator=noise),
            "timestep": timestep,
            "encoder_hidden_states": encode_prompt(checkpoint, PROMPT, shapes["encoder_hidden_states"][1]),
        }
        if (name := "encoder_hidden_states_image") in specs:
            call[name] = torch.randn(shapes[name], generator=noise)
        if checkpoint.timestep_by_frame:  # as the pipeline has it for a video that begins with an image
            by_frame = timestep.float().repeat(sizes["frames"])
            by_frame[0] = 0
            tokens = sizes["half_height"] * sizes["half_width"]
            call["timestep"] = by_frame.repeat_interleave(tokens).unsqueeze(0)
        return call

    def in_full(self, checkpoint: Checkpoint, call: Tensors) -> Tensors:
        """With a prompt that is too long, so that no row is padding."""
        from wan_trt_core.models.prompts import PROMPT, encode_prompt

        length = call["encoder_hidden_states"].shape[1]
        return {**call, "encoder_hidden_states": encode_prompt(checkpoint, f"{PROMPT} " * length, length)}

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        dtype = torch_dtype(precision)

        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["hidden_states"].device)
            rounded = {name: tensor.to(dtype) for name, tensor in call.items() if name != "timestep"}
            (sample,) = model(**rounded, timestep=call["timestep"], return_dict=False)
            return {"sample": sample}

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        """A :class:`~wan_trt_core.models.graphs.dit.DitInputs`."""
        from wan_trt_core.models.graphs.dit import DitInputs

        return DitInputs(checkpoint, precision, self.part)

    def once(self, prepare: Callable[[Tensors], Tensors], call: Tensors) -> Callable[[], object] | None:
        """The RoPE tables, which depend on the video's size alone."""
        from wan_trt_core.models.graphs.dit import DitInputs

        if not isinstance(prepare, DitInputs):
            raise TypeError(f"expected what Dit.prepare returns, not {type(prepare).__name__}")
        _, _, frames, height, width = call["hidden_states"].shape
        _, rope = prepare.sources(call["hidden_states"].device)
        return lambda: rope.compute(frames, height // 2, width // 2)

    def of_another_step(self, call: Tensors) -> Tensors:
        """With a timestep that is a tensor of its own: the modulation is made anew, as diffusers' call makes it."""
        return {**call, "timestep": call["timestep"].view_as(call["timestep"])}

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        layers = self._config(checkpoint)["num_layers"]
        return (
            "patch_embedding",
            "text_embedder",
            *(["image_embedder"] if self._config(checkpoint).get("image_dim") else []),
            *(f"blocks.{index}" for index in range(layers)),
            "proj_out",
        )

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.dit import rows_needed
        from wan_trt_core.models.graphs.taps import tapped

        paths = {name: name for name in self.blocks(checkpoint)}
        for name in paths.keys() & {"text_embedder", "image_embedder"}:
            paths[name] = f"condition_embedder.{name}"
        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["hidden_states"].device)
            with tapped(model, paths) as taken:
                reference(call)
            rows = rows_needed(call["encoder_hidden_states"])  # the graph has no more of them
            taken["text_embedder"] = taken["text_embedder"][:, :rows]
            return {name: taken[name] for name in paths}

        return run

    def _timesteps(self, checkpoint: Checkpoint) -> Tensor:
        """Those of the scheduler at which this transformer predicts."""
        scheduler = checkpoint.scheduler()
        scheduler.set_timesteps(20)
        timesteps: Tensor = scheduler.timesteps
        return timesteps

    def _config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = checkpoint.config(self.part)
        where = f"{checkpoint.source}, {self.part}"
        if config.get("pos_embed_seq_len"):
            raise ComponentError(
                f"{where}: a transformer from first and last frame; {self.name} has no graph of it"
            )
        if list(config["patch_size"]) != [1, 2, 2]:
            raise ComponentError(f"{where}: patch_size is {config['patch_size']}, expected [1, 2, 2]")
        return config


def image_tokens(checkpoint: Checkpoint) -> int:
    """States of the image that an image-to-video transformer attends to."""
    if "image_encoder" not in checkpoint.parts:
        return IMAGE_TOKENS
    config = checkpoint.config("image_encoder")
    return int((config["image_size"] // config["patch_size"]) ** 2 + 1)


COMPONENT = Dit()
