"""Faults put into export-friendly graphs: what a parity check must notice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Skip(nn.Module):
    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        return hidden


class _Scaled(nn.Module):
    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs) * self.factor


def drop_block(graph: Any, index: int = 1) -> None:
    """Leave one block of the transformer out."""
    graph.blocks[index] = _Skip()


def swap_heads(graph: Any, index: int = 1) -> None:
    """Exchange the first two heads of one block's self-attention before its output projection."""
    attention = graph.blocks[index].attn1
    order = list(range(attention.heads))
    order[0], order[1] = order[1], order[0]
    per_head = attention.to_out.weight.unflatten(1, (attention.heads, -1))
    attention.to_out.weight = nn.Parameter(per_head[:, order].flatten(1), requires_grad=False)


def scale_block(graph: Any, index: int = 1, factor: float = 1.01) -> None:
    """Make one block's output wrong by a factor."""
    graph.blocks[index] = _Scaled(graph.blocks[index], factor)


def poison(graph: Any, index: int = 1) -> None:
    """Put one NaN among the weights of a transformer block."""
    bias = graph.blocks[index].ffn_out.bias.clone()
    bias[0] = float("nan")
    graph.blocks[index].ffn_out.bias = nn.Parameter(bias, requires_grad=False)


def negate_angles(tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """RoPE tables of a rotation the other way."""
    cosines, sines = tables
    return cosines, -sines


def permute_caches(caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Exchange the first two caches of one shape."""
    shapes = [cache.shape for cache in caches]
    first, second = next((i, j) for j in range(len(shapes)) for i in range(j) if shapes[i] == shapes[j])
    order = list(caches)
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def relative(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of what is expected."""
    return float(torch.linalg.vector_norm(found.double() - expected.double()) / expected.double().norm())
