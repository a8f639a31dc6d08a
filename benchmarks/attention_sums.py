"""What does self-attention lose by sums in half precision? Emulated on a CPU, layer by layer, for any weights.

    python benchmarks/attention_sums.py
    python benchmarks/attention_sums.py --model wan2.1-t2v-1.3b --checkpoint FOLDER

A denoising step of noise runs in float32. In every layer some queries are answered again as engines do it, and told is
the relative L2 of the answers to those in float64:

- ``fp16``: TensorRT's fused attention of half-precision tensors, which sums the values in half precision too.
- ``centred``: the same of values less their mean, which is added to the answer: the weights of a softmax come to one.
- ``bf16``: of queries, keys and values in BF16, whose sums are float32: what the backend does for long videos.

How many products TensorRT's kernel adds up before it rounds is not told by anyone. ``--group`` is what comes nearest to
what an H200 lost in the 1.3B with random weights (``docs/attention.md``). How many keys a query attends to says how
flat attention is: the exponential of the entropy of its weights. A sum is divided by its weights at the end only, so
that it grows with these keys: the largest of all is told too, of plain values and of centred ones. Beyond 65,504 half
precision is infinite, and so is the video. ``--sharper`` multiplies the scores. With
``--carried`` the step runs once more, every answer a hundredth too small: what of a loss in attention is left in the
prediction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from wan_trt_core.cli.videos import sized
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.components.dit import COMPONENT
from wan_trt_core.models.graphs import dit
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.report.markdown import markdown_table

if TYPE_CHECKING:
    from wan_trt_core.models.checkpoint import Checkpoint

LOST = 0.01
"""Of every answer, to see what is left of such a loss in the prediction."""

TILE = 128
"""Keys between two looks at the largest score."""


@dataclass(frozen=True)
class Row:
    """Relative L2 of one layer's answers by each way to compute them; its keys, how many of them count, and the largest
    sum."""

    layer: int
    sharper: float
    keys: int
    effective_keys: float
    fp16: float
    centred: float
    bf16: float
    largest_sum: float
    largest_centred: float

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        lost = (f"{value:.1e}" for value in (self.fp16, self.centred, self.bf16))
        counted = (f"{value:,.0f}" for value in (self.keys, self.effective_keys))
        sums = (f"{value:,.0f}" for value in (self.largest_sum, self.largest_centred))
        return (str(self.layer), f"{self.sharper:g}", *counted, *lost, *sums)


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries (heads, queries, head_dim), already scaled, to keys and values (heads, keys, head_dim)."""
    return torch.softmax(query.double() @ key.double().transpose(1, 2), dim=-1) @ value.double()


def in_half(query: Tensor, key: Tensor, value: Tensor, group: int) -> Tensor:
    """As :func:`exact`, tile by tile; the sum is rounded to half precision whenever ``group`` more are added."""
    query, key, value = map(_half, (query, key, value))
    largest = torch.full((*query.shape[:2], 1), -torch.inf)
    total, answer = torch.zeros_like(largest), torch.zeros_like(query)
    for keys, values in zip(key.split(TILE, dim=1), value.split(TILE, dim=1), strict=True):
        scores = _half(query @ keys.transpose(1, 2))
        before, largest = largest, torch.maximum(largest, scores.amax(-1, keepdim=True))
        smaller, weights = torch.exp(before - largest), torch.exp(scores - largest)
        total = total * smaller + weights.sum(-1, keepdim=True)
        answer = _half(answer * smaller)
        for some, of in zip(_half(weights).split(group, dim=2), values.split(group, dim=1), strict=True):
            answer = _half(answer + some @ of)
    return _half(answer / total)


def centred(query: Tensor, key: Tensor, value: Tensor, group: int) -> Tensor:
    """As :func:`in_half`, of values less their mean."""
    mean = _half(value.mean(1, keepdim=True))
    return in_half(query, key, value - mean, group) + mean


def in_bf16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As :func:`exact`, rounded where BF16 meets, summed in float32."""
    query, key, value = map(_bf16, (query, key, value))
    scores = query @ key.transpose(1, 2)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return _bf16(_bf16(weights) @ value / weights.sum(-1, keepdim=True))


def _half(tensor: Tensor) -> Tensor:
    return tensor.half().float()


def _bf16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().float()


def losses(query: Tensor, key: Tensor, value: Tensor, group: int) -> dict[str, float]:
    """What each way loses, how many keys count, and the largest sums before they are divided."""
    expected = exact(query, key, value)
    ways: dict[str, Callable[..., Tensor]] = {
        "fp16": partial(in_half, group=group),
        "centred": partial(centred, group=group),
        "bf16": in_bf16,
    }
    scores = query @ key.transpose(1, 2)
    log_weights = torch.log_softmax(scores, dim=-1)
    entropy = -(log_weights.exp() * log_weights).sum(-1)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return {
        "effective_keys": float(entropy.exp().mean()),
        "largest_sum": float((weights @ value).abs().amax()),
        "largest_centred": float((weights @ (value - value.mean(1, keepdim=True))).abs().amax()),
        **{
            name: float((way(query, key, value) - expected).norm() / expected.norm())
            for name, way in ways.items()
        },
    }


class _Watched(dit._Attention):
    """By PyTorch's own kernel, which keeps no scores: those of a long video take more than a machine has."""

    seen: Callable[[Tensor, Tensor, Tensor], None] | None
    lost: float = 0

    def forward(self, tokens: Tensor, source: Tensor, rope: Any, *more: Any) -> Tensor:
        """Self-attention, told of to ``seen`` as (heads, tokens, head_dim), less what is ``lost`` of it."""
        taken = self.to_attend(tokens, source, rope, tokens.dtype)
        query, key, value = (each.transpose(1, 2) for each in taken)
        if self.seen is not None:
            self.seen(query[0], key[0], value[0])
        answers = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.mixed(answers * (1 - self.lost))


def losses_by_layer(
    checkpoint: Checkpoint, video: Sizes, queries: int, group: int, sharper: Sequence[float], *, carried: bool
) -> tuple[list[Row], float | None]:
    """The rows of all layers, in the order of computation, and what :data:`LOST` in all of them becomes."""
    graph: Any = COMPONENT.graph(checkpoint, "fp32")
    found: list[Row] = []

    def seen(query: Tensor, key: Tensor, value: Tensor, *, layer: int) -> None:
        some = torch.randperm(query.shape[1], generator=torch.Generator().manual_seed(layer))[:queries]
        for times in sharper:
            lost = losses(query[:, some] * times, key, value, group)
            found.append(Row(layer, times, key.shape[1], **lost))

    for layer, block in enumerate(graph.blocks):
        block.attn1.__class__ = _Watched
        block.attn1.seen = partial(seen, layer=layer)
    inputs = COMPONENT.prepare(checkpoint, "fp32")(COMPONENT.call_tensors(checkpoint, video)).values()
    (expected,) = graph(*inputs)
    if not carried:
        return found, None
    for block in graph.blocks:
        block.attn1.seen, block.attn1.lost = None, LOST
    (other,) = graph(*inputs)
    return found, float((other - expected).norm() / expected.norm())


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it with every number to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-wan")
    parser.add_argument("--checkpoint")
    parser.add_argument("--layers", type=int, help="of the transformer, with random weights")
    parser.add_argument("--size", default="480x832x81", help="height x width x frames")
    parser.add_argument("--queries", type=int, default=48, help="answered again in each layer")
    parser.add_argument("--group", type=int, default=4, help="products between two roundings")
    parser.add_argument("--sharper", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--carried", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    try:
        model = resolve(given.model, given.checkpoint, layers=given.layers)
        video = sized(model.profile(None).opt, given.size)
    except ValueError as error:
        parser.error(str(error))
    with torch.no_grad():
        rows, left = losses_by_layer(
            model.checkpoint, video, given.queries, given.group, given.sharper, carried=given.carried
        )
    header = tuple(field.name.replace("_", " ") for field in fields(Row))
    print(markdown_table(header, [row.cells() for row in rows]))
    if left is not None:
        print(f"\n{LOST:.0%} of every answer lost is {left:.2%} of the prediction")
    if given.json:
        told = {"rows": [asdict(row) for row in rows], "carried": left}
        given.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
