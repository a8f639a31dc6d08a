"""The text encoder (UMT5): a prompt's tokens to its states. The graph is in ``graphs/text_encoder.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import require_precision
from wan_trt_core.models.profiles import ShapeProfile, Sizes

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.models.checkpoint import Checkpoint


class TextEncoder(Component):
    """``UMT5EncoderModel.forward``, batch 1: the module's own call, so that an engine can stand in its place.

    Call tensors: ``input_ids`` and ``attention_mask`` (1, text_length) int64, padded as the pipeline pads.
    Output: ``last_hidden_state`` (1, text_length, dim). Zeroing the states of padding is the pipeline's own
    work, after this call.
    """

    name = "text_encoder"
    part = "text_encoder"
    inside = "encoder"
    fp32_islands = (
        "RMS norm variances",
        "feed-forward output layers (wo)",
        "residual stream after the first",
    )

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        shape = (1, "text_length")
        return (TensorSpec("input_ids", shape, "int64"), TensorSpec("attention_mask", shape, "int64"))

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("last_hidden_state", (1, "text_length", checkpoint.config(self.part)["d_model"])),)

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {"text_length": video.text_length}

    def profile_name(self, profile: ShapeProfile) -> str:
        """The length of the prompt alone: no size of the video matters."""
        return f"text-{profile.opt.text_length}"

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from wan_trt_core.models.graphs.text_encoder import TextEncoderGraph

        require_precision(self, precision)
        model: Any = checkpoint.load(self.part, precision)
        return TextEncoderGraph(model, block_outputs=block_outputs)

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """A real prompt, tokenised and padded as the pipeline does it; the seed changes nothing."""
        from wan_trt_core.models.prompts import PROMPT, tokenize

        return tokenize(checkpoint, PROMPT, video.text_length)

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["input_ids"].device)
            return {"last_hidden_state": model(call["input_ids"], call["attention_mask"]).last_hidden_state}

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        return lambda call: {name: call[name] for name in ("input_ids", "attention_mask")}

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        layers = checkpoint.config(self.part)["num_layers"]
        return tuple(f"block.{index}" for index in range(layers))  # the final norm gives the graph's output

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.taps import tapped

        names = self.blocks(checkpoint)
        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            model: Any = checkpoint.load(self.part, precision, call["input_ids"].device)
            with tapped(model.encoder, {name: name for name in names}) as taken:
                reference(call)
            return taken

        return run


COMPONENT = TextEncoder()
