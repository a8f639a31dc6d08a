"""The UMT5 encoder, rewritten for engines; equal to transformers' ``UMT5EncoderModel``.

Two things keep the stock module from a good graph: its default attention does not export, and it finds the
bucket of each relative position by a logarithm, whose rounding at the buckets' edges may differ between
backends. Here attention is written out, and the buckets are a table made once by the stock module itself.

In half precision ``wo`` stays in float32, as transformers keeps it, and with it the residual stream after the
first feed-forward layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.models.graphs import copying

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel


class _Norm(nn.Module):
    """RMS norm that, as T5's, only scales; the variance is computed in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = copying.parameter(norm.weight)
        self.eps = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden / torch.sqrt(variance + self.eps)).to(self.weight.dtype)


class _Block(nn.Module):
    def __init__(self, block: Any, buckets: Tensor) -> None:
        super().__init__()
        attention, feed_forward = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
        self.heads = attention.n_heads
        self.attention_norm = _Norm(block.layer[0].layer_norm)
        self.q, self.k = copying.linear(attention.q), copying.linear(attention.k)
        self.v, self.o = copying.linear(attention.v), copying.linear(attention.o)
        self.distance_bias = copying.parameter(attention.relative_attention_bias.weight[buckets])
        self.feed_forward_norm = _Norm(block.layer[-1].layer_norm)
        self.gated = hasattr(feed_forward, "wi_0")
        self.wi = copying.linear(feed_forward.wi_0 if self.gated else feed_forward.wi)
        if self.gated:
            self.wi_1 = copying.linear(feed_forward.wi_1)
        self.wo = copying.linear(feed_forward.wo)
        self.act = feed_forward.act

    def forward(self, hidden: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden + self._attend(self.attention_norm(hidden), distances, mask)
        if hidden.dtype == torch.float16:
            # transformers' guard against overflow; the exact bound matters only to values beyond half's range
            limit = torch.finfo(torch.float16).max
            hidden = hidden.clamp(-limit, limit)
        normed = self.feed_forward_norm(hidden)
        inner = self.act(self.wi(normed))
        if self.gated:
            inner = inner * self.wi_1(normed)
        left: Tensor = hidden + self.wo(inner.to(self.wo.weight.dtype))
        return left

    def _attend(self, normed: Tensor, distances: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        bias = functional.embedding(distances, self.distance_bias).permute(2, 0, 1).unsqueeze(0)
        # T5 does not scale: the scale is in its weights
        weights = torch.softmax(query @ key.transpose(2, 3) + bias + mask, dim=-1)
        mixed: Tensor = self.o((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class TextEncoderGraph(nn.Module):
    """The export-friendly text encoder. Its weights are copies.

    Args:
        model: transformers' encoder, in the precision of the graph.
        block_outputs: return the intermediate outputs too.
    """

    repeated = "blocks"

    def __init__(self, model: UMT5EncoderModel, *, block_outputs: bool = False) -> None:
        super().__init__()
        encoder = model.encoder
        self.block_outputs = block_outputs
        self.embedding = copying.parameter(encoder.embed_tokens.weight)
        self.furthest = int(model.config.relative_attention_max_distance)
        buckets = distance_buckets(encoder.block[0].layer[0].SelfAttention, self.furthest)
        self.blocks = nn.ModuleList(_Block(block, buckets) for block in encoder.block)
        self.final_norm = _Norm(encoder.final_layer_norm)
        self.requires_grad_(False).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The last hidden state (1, text_length, dim), then the block outputs if asked for.

        Args:
            input_ids: (1, text_length) int64.
            attention_mask: (1, text_length) int64, one for each token of the prompt, zero for padding.
        """
        hidden = functional.embedding(input_ids, self.embedding)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = position[None, :] - position[:, None]
        distance = distance.clamp(-self.furthest, self.furthest) + self.furthest
        closed = (1 - attention_mask)[:, None, None, :].to(hidden.dtype)
        mask = closed * torch.finfo(hidden.dtype).min
        taken = []
        for block in self.blocks:
            hidden = block(hidden, distance, mask)
            taken.append(hidden)
        states = self.final_norm(hidden)
        return (states, *taken) if self.block_outputs else (states,)


def distance_buckets(attention: Any, furthest: int) -> Tensor:
    """The bucket of every distance from ``-furthest`` to ``furthest``; further ones share the outermost."""
    buckets: Tensor = attention._relative_position_bucket(torch.arange(-furthest, furthest + 1))
    return buckets
