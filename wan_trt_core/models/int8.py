"""Weights in eight bits: each row of a matrix as integers and the factor that makes them numbers again.

The products stay in floating point: a layer's weights become numbers when it runs, and are forgotten. So a module needs
a quarter of its float32 weights' memory and one layer's weights in full; its outputs differ by the rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 127
"""The largest integer; the smallest is its negative, so that zero is kept."""


class _Int8Rows(nn.Module):
    """A matrix (rows, columns) as ``weight`` int8 and ``scale`` (rows, 1): each row's largest value is ``STEPS``."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        exact = weight.detach().float()
        scale = (exact.abs().amax(dim=1, keepdim=True) / STEPS).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (exact / scale).round_().to(torch.int8))


class Int8Linear(_Int8Rows):
    """In the place of a linear layer: takes and gives tensors of the same dtype, one factor an output."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        product = functional.linear(hidden, self.weight.to(hidden.dtype)) * self.scale.flatten().to(
            hidden.dtype
        )
        return product if self.bias is None else product + self.bias.to(hidden.dtype)


class Int8Embedding(_Int8Rows):
    """In the place of an embedding, one factor a token; gives float32."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__(layer.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(…) to (…, columns)."""
        return functional.embedding(ids, self.weight).float() * functional.embedding(ids, self.scale)


def with_int8_weights(module: nn.Module) -> nn.Module:
    """The module, changed: its linear layers and embeddings hold eight bits a weight, and it computes in float32.

    Layers that share a weight share it still. The small rest (norms) becomes float32.
    """
    made: dict[int, nn.Module] = {}
    kinds: dict[type, Any] = {nn.Linear: Int8Linear, nn.Embedding: Int8Embedding}
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if (kind := kinds.get(type(layer))) is not None:
                key = id(layer.weight)
                made[key] = made.get(key) or kind(layer)
                setattr(parent, name, made[key])
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    return module
