"""The transformer's text projection: a prompt's states to the width of its blocks, which is done once a video."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import require_precision
from wan_trt_core.models.profiles import Sizes

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.models.checkpoint import Checkpoint


class TextProjection(Component):
    """``PixArtAlphaTextProjection.forward``: two linear layers with GELU between them.

    Call tensors: ``encoder_hidden_states`` (1, text_length, text_dim). Output: ``projected`` (1, text_length, dim).
    """

    name = "text_projection"
    part = "transformer"
    inside = "condition_embedder.text_embedder"

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        text_dim = checkpoint.config(self.part)["text_dim"]
        return (TensorSpec("encoder_hidden_states", (1, "text_length", text_dim)),)

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        config = checkpoint.config(self.part)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return (TensorSpec("projected", (1, "text_length", dim)),)

    def sizes(self, video: Sizes) -> dict[str, int]:
        return {"text_length": video.text_length}

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        from torch import Tensor, nn

        from wan_trt_core.models.graphs import copying

        require_precision(self, precision)
        stock: Any = checkpoint.load(self.part, precision).get_submodule(self.inside)

        class Graph(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear_1 = copying.linear(stock.linear_1)
                self.linear_2 = copying.linear(stock.linear_2)

            def forward(self, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
                first = self.linear_1(encoder_hidden_states)
                projected = self.linear_2(nn.functional.gelu(first, approximate="tanh"))
                return (projected, first) if block_outputs else (projected,)

        return Graph().eval()

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        from wan_trt_core.models.prompts import PROMPT, encode_prompt

        return {"encoder_hidden_states": encode_prompt(checkpoint, PROMPT, video.text_length)}

    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        def run(call: Tensors) -> Tensors:
            states = call["encoder_hidden_states"].to(torch_dtype(precision))
            model = checkpoint.load(self.part, precision, states.device)
            return {"projected": model.get_submodule(self.inside)(states)}

        return run

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.checkpoint import torch_dtype

        name = "encoder_hidden_states"
        return lambda call: {name: call[name].to(torch_dtype(precision))}

    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return ("linear_1",)  # linear_2 gives the graph's own output

    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        from wan_trt_core.models.graphs.taps import tapped

        reference = self.reference(checkpoint, precision)

        def run(call: Tensors) -> Tensors:
            model = checkpoint.load(self.part, precision, call["encoder_hidden_states"].device)
            with tapped(model.get_submodule(self.inside), {"linear_1": "linear_1"}) as taken:
                reference(call)
            return taken

        return run


COMPONENT = TextProjection()
