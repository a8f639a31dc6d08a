"""Copies of stock layers, so that a graph never shares weights with the module it was made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def parameter(tensor: Tensor) -> nn.Parameter:
    """A contiguous copy of a tensor as a parameter without gradient."""
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)


def linear(layer: nn.Linear, rows: Tensor | None = None) -> nn.Linear:
    """A copy of a linear layer, its output features taken in the order ``rows`` where given."""
    copied = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    copied.weight = parameter(layer.weight if rows is None else layer.weight[rows])
    if layer.bias is not None:
        copied.bias = parameter(layer.bias if rows is None else layer.bias[rows])
    return copied


def conv3d(layer: nn.Conv3d, outputs: int | None = None) -> nn.Conv3d:
    """A copy of a 3-D convolution, padding and stride included; with its first ``outputs`` channels only."""
    copied = nn.Conv3d(
        layer.in_channels,
        outputs or layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
        device="meta",
    )
    copied.weight = parameter(layer.weight[:outputs])
    if layer.bias is not None:
        copied.bias = parameter(layer.bias[:outputs])
    return copied
