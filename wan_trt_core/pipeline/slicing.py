"""Attention in PyTorch some queries at a time: the scores of all of them never exist at once.

Every row of scores has a softmax of its own, so the result is that of the whole but for the order of sums. It saves
memory only where PyTorch has no fused kernel for the call and writes the scores down; diffusers' own
``enable_attention_slicing`` does nothing for Wan's modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Sliced(TorchFunctionMode):
    """Meanwhile every unmasked attention looks at so many queries at a time."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self._queries = queries

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, query: Tensor, *others: Any, **kwargs: Any) -> Tensor:
        attend = functional.scaled_dot_product_attention
        whole = len(others) > 2 or kwargs.get("attn_mask") is not None or kwargs.get("is_causal")
        if whole or query.shape[-2] <= self._queries:
            return attend(query, *others, **kwargs)
        return torch.cat([attend(part, *others, **kwargs) for part in query.split(self._queries, -2)], -2)


def with_sliced_attention(module: Any, queries: int) -> Any:
    """A twin of a transformer or a VAE that shares its weights and slices its attention."""
    twin = copy.copy(module)
    if hasattr(module, "decode"):  # entered through decode and encode, which call these
        halves = {
            name: with_sliced_attention(module.get_submodule(name), queries)
            for name in ("encoder", "decoder")
        }
        twin._modules = {**module._modules, **halves}
        return twin
    forward = module.forward

    @wraps(forward)
    def sliced(*args: Any, **kwargs: Any) -> Any:
        with _Sliced(queries):
            return forward(*args, **kwargs)

    twin.forward = sliced
    return twin
