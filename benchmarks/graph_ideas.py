"""What would another form of a graph win? Each idea is built beside the graph as it is, and timed against it in pairs.

    python benchmarks/graph_ideas.py dit --model wan2.1-t2v-1.3b --layers 10 --profile 480p-17f --precision fp16
    python benchmarks/graph_ideas.py vae_decoder_next --model wan2.1-t2v-1.3b --profile 480p-17f --backend tensorrt

An idea changes the graph only, and must compute what the graph computes: its error against the graph in float32 in
PyTorch is printed beside its gain, as is that of the graph as it is. ``half-rotation+bf16-output`` is both at once.
``--point opt max`` runs all at the largest shape of the profile too, where attention has the most keys to sum over.
What wins here is then put into
``wan_trt_core/models/graphs``; ``docs/performance.md`` has the outcome of each. Random weights at the true shapes are
made where no checkpoint is given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.backends.base import Engine, EngineBackend, OnnxModel
from wan_trt_core.backends.registry import device_of, get_backend
from wan_trt_core.comparison.conditions import equal_conditions, synchronize, without_tf32
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.export.exporter import export_component
from wan_trt_core.gates.statistics import paired_ratio
from wan_trt_core.measure.kernels import breakdown, kernels_of
from wan_trt_core.measure.timing import PairedTimer
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.component import Component, Tensors, TensorSpec
from wan_trt_core.models.components import get_component
from wan_trt_core.models.graphs import dit, vae_decoder
from wan_trt_core.models.graphs.vae_layers import CausalConv
from wan_trt_core.models.profiles import POINTS, Point, ShapeProfile
from wan_trt_core.models.vae_caches import CACHE_FRAMES
from wan_trt_core.pipeline.engines import form_of

AS_IS = "as it is"
PAIRS = 8


@dataclass(frozen=True)
class Idea:
    """Another form of a graph.

    Attributes:
        change: from the graph as it is to the changed one.
        text: one line for the table.
        channels_last: its caches have the channels last.
        half_caches: its caches are in half precision.
        latents: latent frames that one step of the VAE decodes.
        prompts: that one call of the DiT answers, the second of which is the first one's negative.
        specs: from the inputs of the graph as it is to its own.
        given: what it is called with, of the graph as it is and what that is called with; None if that is the same.
    """

    change: Callable[[nn.Module], nn.Module]
    text: str
    channels_last: bool = False
    half_caches: bool = False
    latents: int = 1
    prompts: int = 1
    specs: Callable[[tuple[TensorSpec, ...]], tuple[TensorSpec, ...]] = lambda specs: specs
    given: Callable[[Any, Tensors], Tensors] | None = None

    @property
    def calls(self) -> int:
        """Of the graph as it is, that one of its own is for."""
        return self.latents * self.prompts


# ---- the DiT: what its pointwise kernels compute in, and its products -------------------------------------


def _half_layer_norm(graph: nn.Module) -> nn.Module:
    """Layer norms take and give half precision; ONNX's LayerNormalization still computes in float32."""

    class Block(dit._Block):
        def forward(self, hidden: Tensor, text: Any, modulation: Any, rope: Any, image: Any) -> Tensor:
            shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
            dtype, width = hidden.dtype, hidden.shape[-1:]
            normed = functional.layer_norm(hidden, width, eps=self.eps).float() * (1 + scale) + shift
            hidden = (hidden.float() + self.attn1(normed.to(dtype), normed.to(dtype), rope) * gate).to(dtype)
            weight, bias = self.norm2_weight.to(dtype), self.norm2_bias.to(dtype)
            hidden = hidden + self.attn2(
                functional.layer_norm(hidden, width, weight, bias, self.eps), text[0], None, text[1], image
            )
            normed = functional.layer_norm(hidden, width, eps=self.eps).float() * (1 + ffn_scale) + ffn_shift
            fed = self.ffn_out(functional.gelu(self.ffn_in(normed.to(dtype)), approximate="tanh"))
            return (hidden.float() + fed.float() * ffn_gate).to(dtype)

    return _blocks_as(graph, Block)


def _half_modulation(graph: nn.Module) -> nn.Module:
    """Modulation, gates and residual sums in half precision."""

    class Block(dit._Block):
        def forward(self, hidden: Tensor, text: Any, modulation: Any, rope: Any, image: Any) -> Tensor:
            dtype = hidden.dtype
            shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (row.to(dtype) for row in modulation)
            normed = dit._layer_norm(hidden, self.eps).to(dtype) * (1 + scale) + shift
            hidden = hidden + self.attn1(normed, normed, rope) * gate
            normed = dit._layer_norm(hidden, self.eps, self.norm2_weight, self.norm2_bias).to(dtype)
            hidden = hidden + self.attn2(normed, text[0], None, text[1], image)
            normed = dit._layer_norm(hidden, self.eps).to(dtype) * (1 + ffn_scale) + ffn_shift
            fed = self.ffn_out(functional.gelu(self.ffn_in(normed), approximate="tanh"))
            return hidden + fed * ffn_gate

    return _blocks_as(graph, Block)


def _half_rotation(graph: nn.Module) -> nn.Module:
    """RoPE in half precision."""

    class Attention(dit._Attention):
        def forward(self, tokens: Tensor, source: Tensor, rope: Any, *more: Any) -> Tensor:
            halves = None if rope is None else tuple(table.to(tokens.dtype) for table in rope)
            return super().forward(tokens, source, halves, *more)

    return _attentions_as(graph, Attention)


def _one_product(graph: nn.Module) -> nn.Module:
    """Query, key and value of self-attention in one product."""

    class Attention(dit._Attention):
        def to_attend(self, tokens: Tensor, source: Tensor, rope: Any, dtype: torch.dtype) -> Any:
            if rope is None:
                return super().to_attend(tokens, source, rope, dtype)
            query, key, value = functional.linear(tokens, self.qkv_weight, self.qkv_bias).chunk(3, dim=-1)
            query = self._heads(dit._rms_norm(query, self.norm_q, self.eps))
            key = self._heads(dit._rms_norm(key, self.norm_k, self.eps))
            query, key = self.rotate(query, *rope), self.rotate(key, *rope)
            return query.to(dtype), key.to(dtype), self._heads(value).to(dtype)

    for block in graph.blocks:
        layers = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        block.attn1.qkv_weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), False)
        block.attn1.qkv_bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), False)
    return _attentions_as(graph, Attention)


class _Float32Sums(nn.Linear):
    """A product of half-precision tensors whose sums are float32, as TensorRT reads casts around a product."""

    def forward(self, tokens: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(tokens.float(), self.weight.float(), bias).to(tokens.dtype)


def _float32_sums(graph: nn.Module) -> nn.Module:
    """The linear layers' sums in float32; left alone TensorRT sums most of them in half precision."""
    for part in graph.modules():
        if type(part) is nn.Linear:
            part.__class__ = _Float32Sums
    return graph


def _float32_scores(graph: nn.Module) -> nn.Module:
    """The scores of attention summed in float32, up to the softmax."""

    class Attention(dit._Attention):
        def forward(
            self, tokens: Tensor, source: Tensor, rope: Any, added: Any = None, image: Any = None
        ) -> Tensor:
            assert image is None, "an idea of text to video"
            query, key, value = self.to_attend(tokens, source, rope, tokens.dtype)
            value, centre = self.centred(value, added)
            scores = query.transpose(1, 2).float() @ key.permute(0, 2, 3, 1).float()
            scores = scores if added is None else scores + added.float()
            attended = torch.softmax(scores, dim=-1).to(value.dtype) @ value.transpose(1, 2)
            return self.mixed(attended, centre)

    return _attentions_as(graph, Attention)


class _Plain(dit._Attention):
    """Of values as they are, whatever form it had."""

    centre = dit._Attention.centre


def _in_bf16(*, video: bool, text: bool) -> Callable[[nn.Module], nn.Module]:
    """Attention of the video's tokens to themselves and to the prompt in BF16, or in the graph's precision, the video's
    values as they are."""

    def change(graph: nn.Module) -> nn.Module:
        for block in graph.blocks:
            block.attn1.bf16, block.attn2.bf16 = video, text
        return _attentions_as(graph, _Plain, "attn1")

    return change


def _centred_values(graph: nn.Module) -> nn.Module:
    """The form of self-attention that is named ``centred`` in the settings."""
    for block in graph.blocks:
        block.attn1.bf16 = False
    if isinstance(graph.blocks[0].attn1, dit._CentredAttention):  # as a setting has it already
        return graph
    return _attentions_as(graph, dit._CentredAttention, "attn1")


def _mean_behind(graph: nn.Module) -> nn.Module:
    """Self-attention of centred values, whose mean is added behind the product as the prompt's is."""

    class Attention(dit._CentredAttention):
        mixed = dit._Attention.mixed

    return _attentions_as(_centred_values(graph), Attention, "attn1")


def _prompt_mean_before(graph: nn.Module) -> nn.Module:
    """Attention to the prompt, whose mean is added before the product: no second copy of the weights."""

    class Attention(dit._Attention):
        def mixed(self, attended: Tensor, centre: Tensor | None = None) -> Tensor:
            back = 0 if centre is None else self._heads(centre).transpose(1, 2)
            return super().mixed(attended + back)

    return _attentions_as(graph, Attention, "attn2")


class _RotatedByHeads(dit._Attention):
    """RoPE on (heads, tokens, head_dim), the order in which attention reads."""

    @staticmethod
    def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = dit._Attention.rotate(heads.transpose(1, 2), cos.transpose(0, 1), sin.transpose(0, 1))
        return turned.transpose(1, 2)


class _RotatedBySums(dit._Attention):
    """RoPE as a sum of two products, with nothing to cut and to join."""

    @staticmethod
    def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turns = torch.stack((torch.stack((cos, -sin), -2), torch.stack((sin, cos), -2)), -3)
        return (heads.unflatten(-1, (1, 2, -1)) * turns).sum(-2).flatten(-2)


class _Bf16Product(nn.Linear):
    """A product of BF16 weights, whatever it is given."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.bfloat16())


def _bf16_products(*names: str) -> Callable[[nn.Module], nn.Module]:
    """Linear layers of self-attention in BF16, which then takes or gives what they have: no tensor is cast."""

    def change(graph: nn.Module) -> nn.Module:
        for block in graph.blocks:
            for name in names:
                layer = getattr(block.attn1, name).bfloat16()
                layer.__class__ = _Bf16Product
        return graph

    return change


def _by_head(graph: nn.Module) -> nn.Module:
    """Self-attention one head after the other: at a large shape a GPU cannot hold the float32 scores of all."""

    class Attention(dit._Attention):
        def forward(self, tokens: Tensor, source: Tensor, rope: Any, *more: Any) -> Tensor:
            if rope is None:
                return super().forward(tokens, source, rope, *more)
            taken = self.to_attend(tokens, source, rope, tokens.dtype)
            heads = zip(*(each.split(1, dim=2) for each in taken), strict=True)
            attended = [dit._attend(query.transpose(1, 2), key, value) for query, key, value in heads]
            return self.to_out(torch.cat(attended, dim=-1).squeeze(0, 1))

    return _attentions_as(graph, Attention)


def _blocks_as(graph: nn.Module, kind: type) -> nn.Module:
    for block in graph.blocks:
        block.__class__ = kind
    return graph


def _attentions_as(graph: nn.Module, kind: type, *names: str) -> nn.Module:
    """Every block's attentions of these names, both unless some are given, as ``kind`` on top of what they are."""
    for block in graph.blocks:
        for name in names or ("attn1", "attn2"):
            part = getattr(block, name)
            part.__class__ = type(kind.__name__, (kind, type(part)), {})
    return graph


# ---- the DiT: what a prompt needs once, and both prompts of a guided step at once --------------------------


class _PromptOnce(nn.Module):
    """Keys and values of the prompt are inputs, made once a video: (layers, rows, dim) each."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.dit, self.text_dim = _attentions_as(graph, _OfKeys, "attn2"), graph.text_in.in_features
        for index, block in enumerate(graph.blocks):
            block.attn2.index = index

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        output_modulation: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        text_keys: Tensor,
        text_values: Tensor,
        text_scores: Tensor,
    ) -> tuple[Tensor, ...]:
        unread = text_keys.new_zeros(1, 1, self.text_dim)
        of_text = (text_scores, text_keys, text_values)
        sample: tuple[Tensor, ...] = self.dit(
            hidden_states, modulation, output_modulation, rope_cos, rope_sin, unread, of_text
        )
        return sample

    @staticmethod
    def specs(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        layers, _, dim = next(spec.axes for spec in specs if spec.name == "modulation")
        rows = [TensorSpec(name, (layers, "text_rows", dim)) for name in ("text_keys", "text_values")]
        cut = [spec.name for spec in specs].index("encoder_hidden_states")
        return (*specs[:cut], *rows, *specs[cut + 1 :])

    @staticmethod
    def given(graph: Any, calls: Tensors) -> Tensors:
        states = calls["encoder_hidden_states"]
        text = functional.gelu(graph.text_in(states.squeeze(0).float()), approximate="tanh")
        text, parts = graph.text_out(text).to(states.dtype), [block.attn2 for block in graph.blocks]
        keys = torch.stack([dit._rms_norm(part.to_k(text), part.norm_k, part.eps) for part in parts])
        values = torch.stack([part.to_v(text) for part in parts])
        rest = {name: value for name, value in calls.items() if name != "encoder_hidden_states"}
        return {**rest, "text_keys": keys, "text_values": values}


class _OfKeys(dit._Attention):
    """Attention to rows whose keys and values are made already."""

    index: int

    def forward(self, tokens: Tensor, source: Any, rope: Any, added: Any = None, image: Any = None) -> Tensor:
        scores, keys, values = added
        return super().forward(tokens, (keys[self.index], values[self.index]), rope, scores, image)

    def to_attend(self, tokens: Tensor, source: Any, rope: Any, dtype: torch.dtype) -> Any:
        query = self._heads(dit._rms_norm(self.to_q(tokens), self.norm_q, self.eps))
        return query.to(dtype), *(self._heads(rows).to(dtype) for rows in source)


class _Guided(dit.DitGraph):
    """Both prompts of a guided step in one call: the tokens of the two videos, one after the other."""

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        return torch.cat(
            [super(_Guided, self)._unpatchify(half, grid) for half in tokens.unflatten(0, (2, -1))]
        )


class _OfBoth(dit._Attention):
    """Attention within each video, and of each to its prompt."""

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(2, -1, self.heads, self.head_dim)

    def centre(self, value: Tensor, added: Tensor | None) -> Tensor | None:
        if added is None or value.dtype != torch.float16:
            return super().centre(value, added)
        shares = torch.softmax(added.float(), dim=-1).view(2, -1, 1, 1)
        return (value.float() * shares).sum(1).flatten(1).to(value.dtype)

    def mixed(self, attended: Tensor, centre: Tensor | None = None) -> Tensor:
        if centre is None or isinstance(self, dit._CentredAttention):
            return super().mixed(attended, centre)
        mixed = super().mixed(attended)
        behind = (self.to_out.weight * centre.unsqueeze(1)).float().sum(-1).to(mixed.dtype)
        return (mixed.unflatten(0, (2, -1)) + behind.unsqueeze(1)).flatten(0, 1)


class _OfTwo(dit._Block):
    """The first block, whose tokens are those of both."""

    def forward(self, hidden: Tensor, *more: Any) -> Tensor:
        return super().forward(torch.cat((hidden, hidden)), *more)


def _guided(graph: Any) -> nn.Module:
    graph.__class__, graph.blocks[0].__class__ = _Guided, _OfTwo
    graph.repeated = ""  # its first block is not as the others
    return _attentions_as(graph, _OfBoth)


def _guided_specs(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    axes: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
        "encoder_hidden_states": lambda axes: (1, 2, *axes[1:]),
        "text_scores": lambda axes: (2, 1, 1, *axes),
    }
    return tuple(
        TensorSpec(spec.name, axes[spec.name](spec.axes), spec.dtype) if spec.name in axes else spec
        for spec in specs
    )


def _guided_calls(graph: Any, calls: Tensors) -> Tensors:
    states = [call["encoder_hidden_states"] for call in _prompts(calls, 2)]
    scores = calls["text_scores"].expand(2, 1, 1, -1).contiguous()
    return {**calls, "encoder_hidden_states": torch.stack(states, 1), "text_scores": scores}


# ---- the VAE decoder: channels last, as the convolutions' kernels want them -------------------------------


class _ChannelsLast(nn.Module):
    """The decoder's next step on frames (1, frames, height, width, channels).

    TensorRT's convolutions work on channels-last memory and its pointwise kernels on channels-first, so that every
    convolution is surrounded by changes of layout. Here everything but the convolutions is written channels-last: a
    norm over the last axis is one kernel with what follows it, and a convolution's transposes change no memory if
    TensorRT sees that they undo its own.
    """

    def __init__(self, graph: vae_decoder.VaeDecoderGraph) -> None:
        super().__init__()
        self.decoder = graph

    def forward(self, latents: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        graph, caches, self.left = self.decoder, iter(taken), []
        frames = self._conv(graph.conv_in, graph.post_quant_conv(latents).permute(0, 2, 3, 4, 1), caches)
        frames = self._resnet(graph.mid_block.resnets[0], frames, caches)
        frames = self._attention(graph.mid_block.attention, frames)
        frames = self._resnet(graph.mid_block.resnets[1], frames, caches)
        for block in graph.up_blocks:
            for net in block.resnets:
                frames = self._resnet(net, frames, caches)
            if block.upsample is not None:
                frames = self._upsample(block.upsample, frames, caches)
        frames = self._conv(graph.conv_out, functional.silu(self._norm(graph.norm_out, frames)), caches)
        return (frames.permute(0, 4, 1, 2, 3).clamp(-1.0, 1.0), *self.left)

    def _conv(self, conv: Any, frames: Tensor, caches: Iterator[Tensor]) -> Tensor:
        joined = torch.cat((next(caches), frames), dim=1)
        enough = frames.shape[1] >= CACHE_FRAMES
        self.left.append((frames if enough else joined)[:, -CACHE_FRAMES:])
        made = functional.conv3d(joined.permute(0, 4, 1, 2, 3), conv.weight, conv.bias, padding=conv.padding)
        return made.permute(0, 2, 3, 4, 1)

    @staticmethod
    def _norm(norm: Any, frames: Tensor) -> Tensor:
        wide = frames.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide / length.clamp_min(1e-12) * norm.gamma.flatten()).to(frames.dtype)

    def _resnet(self, net: Any, frames: Tensor, caches: Iterator[Tensor]) -> Tensor:
        hidden = self._conv(net.conv1, functional.silu(self._norm(net.norm1, frames)), caches)
        hidden = self._conv(net.conv2, functional.silu(self._norm(net.norm2, hidden)), caches)
        if isinstance(net.shortcut, nn.Identity):
            return hidden + frames
        return hidden + functional.linear(frames, net.shortcut.weight.flatten(1), net.shortcut.bias)

    def _attention(self, attention: Any, frames: Tensor) -> Tensor:
        pixels = self._norm(attention.norm, frames).flatten(2, 3).squeeze(0)
        mixed = functional.linear(pixels, attention.qkv_weight, attention.qkv_bias)
        query, key, value = mixed.chunk(3, dim=-1)
        scores = (query * frames.shape[-1] ** -0.5) @ key.transpose(1, 2)
        attended = torch.softmax(scores, dim=-1) @ value
        mixed = functional.linear(attended, attention.proj_weight, attention.proj_bias)
        return mixed.reshape(frames.shape) + frames

    def _upsample(self, up: Any, frames: Tensor, caches: Iterator[Tensor]) -> Tensor:
        if up.time_conv is not None:
            pairs = self._conv(up.time_conv, frames, caches).unflatten(-1, (2, -1))
            frames = pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        images, stride, padding = frames.permute(0, 4, 1, 2, 3), (1, 2, 2), (0, 1, 1)
        return functional.conv_transpose3d(images, up.weight, up.bias, stride, padding).permute(0, 2, 3, 4, 1)


def _half_convolutions(graph: nn.Module) -> nn.Module:
    """The products of the convolutions in half precision; norms, sums and caches stay as they are."""

    class HalfConv(CausalConv):
        def forward(self, frames: Tensor, caches: Any) -> Tensor:
            joined = caches.exchange(frames, self.past).half()
            weight, bias = self.weight.half(), self.bias.half()
            return functional.conv3d(joined, weight, bias, padding=self.padding).to(frames.dtype)

    return _convolutions_as(graph, HalfConv)


def _stacked_frames(graph: nn.Module) -> nn.Module:
    """Convolutions over frames as ones of images, whose channels are those of the frames that each looks at."""

    class StackedConv(CausalConv):
        def forward(self, frames: Tensor, caches: Any) -> Tensor:
            joined, looked_at = caches.exchange(frames, self.past), self.weight.shape[2]
            count = joined.shape[2] - looked_at + 1
            stacked = torch.cat([joined[:, :, first : first + count] for first in range(looked_at)], dim=1)
            weight = self.weight.transpose(1, 2).flatten(1, 2)
            images = stacked.transpose(1, 2).flatten(0, 1)
            images = functional.conv2d(images, weight, self.bias, padding=self.padding[1:])
            return images.unsqueeze(0).transpose(1, 2)

    return _convolutions_as(graph, StackedConv)


def _convolutions_as(graph: nn.Module, kind: type) -> nn.Module:
    for part in graph.modules():
        if isinstance(part, CausalConv):
            part.__class__ = kind
    return graph


# ---- the VAE decoder: less memory --------------------------------------------------------------------------


def _half_caches(graph: nn.Module) -> nn.Module:
    """Caches in half precision, which has the 11 bits that a TF32 product takes of them."""
    graph.half_caches = True  # type: ignore[assignment]
    return graph


def _top_in_pairs(graph: nn.Module) -> nn.Module:
    """The last block, where the frames are largest, on two of its four frames at a time."""
    graph.top_in_pairs = True  # type: ignore[assignment]
    return graph


# ---- the VAE decoder: other forms of twice the size and the convolution after it --------------------------


def _resized(graph: nn.Module) -> nn.Module:
    """As diffusers computes it: the larger image written, then convolved."""

    class Upsample(vae_decoder._Upsample):
        def forward(self, frames: Tensor, caches: Any) -> Tensor:
            frames = self._double(self.time_conv(frames, caches)) if self.time_conv is not None else frames
            images = frames.transpose(1, 2).flatten(0, 1)
            images = functional.interpolate(images, scale_factor=2.0, mode="nearest")
            images = functional.conv2d(images, self.other, self.bias, padding=1)
            return images.unsqueeze(0).transpose(1, 2)

    return _upsamples_as(graph, Upsample, _single_taps)


def _transposed_images(graph: nn.Module) -> nn.Module:
    """As a transposed convolution of images."""

    class Upsample(vae_decoder._Upsample):
        def forward(self, frames: Tensor, caches: Any) -> Tensor:
            frames = self._double(self.time_conv(frames, caches)) if self.time_conv is not None else frames
            images = frames.transpose(1, 2).flatten(0, 1)
            images = functional.conv_transpose2d(images, self.other, self.bias, stride=2, padding=1)
            return images.unsqueeze(0).transpose(1, 2)

    return _upsamples_as(graph, Upsample, lambda merged: merged[:, :, 0])


def _phased(graph: nn.Module) -> nn.Module:
    """As a convolution at the small size for the four pixels that each becomes, and a change of order."""

    class Upsample(vae_decoder._Upsample):
        def forward(self, frames: Tensor, caches: Any) -> Tensor:
            frames = self._double(self.time_conv(frames, caches)) if self.time_conv is not None else frames
            height, width = frames.shape[3:]
            made = functional.conv3d(frames, self.other, self.bias.repeat(4), padding=(0, 1, 1))
            phases = made.unflatten(1, (2, 2, -1))
            rows = [
                self.between(*(phases[:, a, b, :, :, a : a + height, b : b + width] for b in (0, 1)))
                for a in (0, 1)
            ]
            return self.between(*(row.transpose(3, 4) for row in rows)).transpose(3, 4)

        @staticmethod
        def between(first: Tensor, second: Tensor) -> Tensor:
            """Two tensors' values in turns along the last axis."""
            return torch.stack((first, second), dim=-1).flatten(-2)

    return _upsamples_as(graph, Upsample, lambda merged: _phase_taps(_single_taps(merged)))


def _single_taps(merged: Tensor) -> Tensor:
    """The transposed convolution's (in, out, 1, 4, 4) to the (out, in, 3, 3) that it was made of."""

    def single(taps: Tensor, axis: int) -> Tensor:
        first, second, _, last = taps.unbind(axis)
        return torch.stack((first, second - first, last), axis)

    return single(single(merged[:, :, 0], -1), -2).transpose(0, 1).flip(-2, -1)


def _phase_taps(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) to (4 out, in, 1, 2, 2): the upper left, upper right, lower left and lower right pixel."""

    def phases(taps: Tensor, axis: int) -> Tensor:
        before, at, after = taps.unbind(axis)
        return torch.stack([torch.stack((before, at + after), axis), torch.stack((before + at, after), axis)])

    columns = phases(weight, -1)
    return torch.stack([phases(column, -2) for column in columns], dim=1).flatten(0, 2)[:, :, None]


def _upsamples_as(graph: nn.Module, kind: type, taps: Callable[[Tensor], Tensor]) -> nn.Module:
    """Every upsampling in another form, with ``other`` weights made of the graph's own."""
    for part in graph.modules():
        if isinstance(part, vae_decoder._Upsample):
            other = taps(part.weight.double()).to(part.weight.dtype).contiguous()
            part.other = nn.Parameter(other, requires_grad=False)
            part.__class__ = kind
    return graph


IDEAS: Mapping[str, Mapping[str, Idea]] = {
    "dit": {
        "half-layer-norm": Idea(_half_layer_norm, "layer norms on half-precision tensors"),
        "half-modulation": Idea(_half_modulation, "modulation, gates and residual sums in half precision"),
        "half-rotation": Idea(_half_rotation, "RoPE in half precision"),
        "one-product": Idea(_one_product, "q, k and v of self-attention in one product"),
        "float32-sums": Idea(
            _float32_sums, "the linear layers' sums in float32, their tensors in half precision"
        ),
        "float32-scores": Idea(_float32_scores, "the scores of attention summed in float32"),
        "bf16-attention": Idea(
            _in_bf16(video=True, text=True), "attention in BF16, to the prompt too: sums in float32"
        ),
        "bf16-self-attention": Idea(
            _in_bf16(video=True, text=False), "self-attention in BF16, as for long videos"
        ),
        "fp16-attention": Idea(_in_bf16(video=False, text=False), "attention in FP16, however many tokens"),
        "rotation-by-heads": Idea(
            lambda graph: _attentions_as(graph, _RotatedByHeads), "RoPE in the order in which attention reads"
        ),
        "rotation-by-sums": Idea(
            lambda graph: _attentions_as(graph, _RotatedBySums), "RoPE as a sum: nothing to cut and to join"
        ),
        "bf16-output": Idea(_bf16_products("to_out"), "the product behind BF16 self-attention in BF16 too"),
        "bf16-values": Idea(
            _bf16_products("to_v"), "the values of BF16 self-attention in BF16 from the start"
        ),
        "centred-values": Idea(
            _centred_values,
            "attention in FP16, values about their mean: sums in half precision then lose less",
        ),
        "mean-behind": Idea(
            _mean_behind,
            "the mean of centred values added behind the product, in float32: short sums lose nothing",
        ),
        "prompt-mean-before": Idea(
            _prompt_mean_before, "the mean of the prompt's values added before the product: its weights once"
        ),
        "prompt-once": Idea(
            _PromptOnce,
            "the prompt's keys and values as inputs, made once a video",
            specs=_PromptOnce.specs,
            given=_PromptOnce.given,
        ),
        "guided": Idea(
            _guided,
            "both prompts of a guided step in one call, the second a negative of the first",
            prompts=2,
            specs=_guided_specs,
            given=_guided_calls,
        ),
    },
    "vae_decoder_next": {
        "channels-last": Idea(
            _ChannelsLast,  # type: ignore[arg-type]
            "frames and caches channels-last, as the convolutions' kernels want them",
            channels_last=True,
        ),
        "resized": Idea(_resized, "upsampling and the convolution after it apart, as diffusers has them"),
        "transposed-images": Idea(_transposed_images, "both as a transposed convolution, of images"),
        "phased": Idea(_phased, "both as one convolution at the small size and a change of order"),
        "two-latents": Idea(
            lambda graph: graph,
            "two latent frames a step: half the passes over the caches, twice the memory",
            latents=2,
        ),
        "half-caches": Idea(
            _half_caches, "caches in half precision: half their memory and copies", half_caches=True
        ),
        "top-in-pairs": Idea(_top_in_pairs, "the last block on two frames at a time: less scratch"),
        "stacked-frames": Idea(
            _stacked_frames, "convolutions over frames as ones of images with the channels of three frames"
        ),
        "half-convolutions": Idea(
            _half_convolutions,
            "products of the convolutions in half precision between float32 norms and sums",
        ),
    },
}


def idea_named(component: str, name: str) -> Idea:
    """One idea of a component, or several with a plus between them: ``half-rotation+bf16-output``.

    Raises:
        ValueError: when one of them is not known.
    """
    known, named = IDEAS[component], name.split("+")
    unknown = set(named) - set(known)
    if unknown:
        raise ValueError(f"no idea {min(unknown)!r}; there are {', '.join(known)}")
    ideas = [known[each] for each in named]

    def change(graph: nn.Module) -> nn.Module:
        for idea in ideas:
            graph = idea.change(graph)
        return graph

    def specs(given: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        for idea in ideas:
            given = idea.specs(given)
        return given

    return Idea(
        change,
        name,
        channels_last=any(idea.channels_last for idea in ideas),
        half_caches=any(idea.half_caches for idea in ideas),
        latents=max(idea.latents for idea in ideas),
        prompts=max(idea.prompts for idea in ideas),
        specs=specs,
        given=next((idea.given for idea in ideas if idea.given is not None), None),
    )


def changed(component: Component, idea: Idea) -> Component:
    """The component with its graph in another form."""

    class Changed(type(component)):  # type: ignore[misc]
        def graph(self, *arguments: Any, **named: Any) -> nn.Module:
            return idea.change(super().graph(*arguments, **named))

        def inputs(self, checkpoint: Any) -> tuple[TensorSpec, ...]:
            return self._laid_out(idea.specs(super().inputs(checkpoint)))

        def outputs(self, checkpoint: Any) -> tuple[TensorSpec, ...]:
            return self._laid_out(super().outputs(checkpoint))

        def _laid_out(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(spec.name, self._axes(spec), self._dtype(spec)) for spec in specs)

        def _dtype(self, spec: TensorSpec) -> str:
            return "float16" if idea.half_caches and spec.name.startswith("cache") else spec.dtype

        def _axes(self, spec: TensorSpec) -> tuple[int | str, ...]:
            axes = spec.axes
            if idea.channels_last and spec.name.startswith("cache"):
                return (axes[0], *axes[2:], axes[1])
            return (idea.prompts, *axes[1:]) if spec.name == "sample" else axes

    form = Changed()
    vars(form).update(vars(component))
    return _of_steps(form, idea.latents)


def _of_steps(component: Any, latents: int) -> Any:
    """The component with so many latent frames a step."""
    return component.of_steps(latents) if latents > 1 else component


@dataclass(frozen=True)
class Row:
    """One line of the table: times in milliseconds, the gain over the graph as it is.

    Attributes:
        relative_l2: the error against the same graph in float32 in PyTorch.
        scratch_mib: what the engine needs beside weights, inputs and outputs; 0 where its backend does not say.
        run: its engine once more, to look at its kernels when all timing is over: a process that has profiled launches
            more slowly afterwards.
    """

    name: str
    point: Point
    milliseconds: float
    as_it_is_milliseconds: float
    gain: float
    relative_l2: float
    build_seconds: float
    scratch_mib: float
    run: Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """What is measured: a component of a model at a shape and precision, as an engine of a backend.

    Attributes:
        points: of the profile, at which the engines run; they are built for all of it.
    """

    component: str
    model: str
    layers: int | None
    profile: str | None
    precision: str
    backend: str
    settings: Settings
    points: tuple[Point, ...] = ("opt",)

    def resolved(self) -> tuple[ResolvedModel, ShapeProfile]:
        """The model, and the profile of it."""
        model = resolve(self.model, layers=self.layers)
        return model, model.profile(self.profile)

    def form(self, idea: str) -> Component:
        """The component as an idea has it, or as it is."""
        component = form_of(self.component, self.resolved()[1], self.backend, self.settings)
        return component if idea == AS_IS else changed(component, idea_named(self.component, idea))


def export(subject: Subject, idea: str, folder: Path) -> OnnxModel:
    """Export one form of the graph into a folder of its own."""
    folder = folder / idea / "onnx"
    folder.mkdir(parents=True)
    model, profile = subject.resolved()
    return export_component(
        subject.form(idea), model.checkpoint, profile, subject.precision, folder, subject.settings
    )


def measure(subject: Subject, ideas: list[str], folder: Path, jobs: int) -> Iterator[Row]:
    """Build the graph as it is and each idea, and time them in interleaved pairs on random inputs.

    Args:
        jobs: exports at a time, each in a process of its own; with 1 all are made in this one.
    """
    names = [AS_IS, *ideas]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            models = list(pool.map(export, repeat(subject), names, repeat(folder)))
    else:
        models = [export(subject, name, folder) for name in names]
    backend = get_backend(subject.backend)
    assert isinstance(backend, EngineBackend)
    device = device_of(subject.settings, backend.name)
    as_it_is: dict[Point, Callable[[], object]] = {}
    exact: dict[tuple[Point, int], Tensor] = {}
    for name, exported in zip(names, models, strict=True):
        engine_folder = folder / name / "engine"
        engine_folder.mkdir()
        seconds = float(backend.build(exported, engine_folder, subject.settings).get("build_seconds", 0.0))
        engine = backend.load(engine_folder, subject.settings)
        idea = Idea(lambda graph: graph, AS_IS) if name == AS_IS else idea_named(subject.component, name)
        for point in subject.points:
            calls = _random_inputs(subject, point, idea.latents, device)
            if (point, idea.calls) not in exact:  # of the same inputs for every idea of as many calls
                exact[point, idea.calls] = torch.cat(
                    [_exact(subject, call, device) for call in _prompts(calls, idea.prompts)]
                )
            if idea.channels_last:
                calls = {
                    key: _last(value) if key.startswith("cache") else value for key, value in calls.items()
                }
            if idea.half_caches:
                calls = {
                    key: value.half() if key.startswith("cache") else value for key, value in calls.items()
                }
            if idea.given is not None:
                calls = _given(subject, idea, calls, device)
            found = engine.run(calls)["sample"].double()
            expected = exact[point, idea.calls]
            error = float((found - expected).norm() / expected.norm())
            candidate = _into(engine, calls)
            before, after, gain = _time(as_it_is.setdefault(point, candidate), candidate, device)
            scratch = engine.memory().get("scratch", 0) / 2**20
            yield Row(
                name,
                point,
                after / idea.calls,
                before,
                gain * idea.calls,
                error,
                seconds,
                scratch,
                candidate,
            )


def _prompts(calls: Tensors, count: int) -> list[Tensors]:
    """The calls of as many prompts, two at most: :attr:`Idea.prompts`."""
    name = "encoder_hidden_states"
    return [calls, {**calls, name: -calls[name]}][:count] if name in calls else [calls]


def _given(subject: Subject, idea: Idea, calls: Tensors, device: str) -> Tensors:
    """What an idea's engine is called with, as the graph as it is has it in PyTorch."""
    graph = subject.form(AS_IS).graph(subject.resolved()[0].checkpoint, subject.precision).to(device)
    assert idea.given is not None
    with torch.no_grad():
        return idea.given(graph, calls)


def _exact(subject: Subject, calls: Tensors, device: str) -> Tensor:
    """What the graph computes in float32 in PyTorch, without TF32: (…) float64."""
    graph = get_component(subject.component).graph(subject.resolved()[0].checkpoint, "fp32").to(device)
    if isinstance(graph, dit.DitGraph):
        graph = _by_head(graph)
    with without_tf32():
        return graph(*(value.float() for value in calls.values()))[0].double()


def _time(
    reference: Callable[[], object], candidate: Callable[[], object], device: str
) -> tuple[float, float, float]:
    """Both medians in milliseconds, and the ratio of the arms, over :data:`PAIRS` interleaved pairs."""
    timer = PairedTimer(reference, candidate, synchronize=synchronize, warmup=3)
    timer.warm_up()
    timer.calibrate(0.2 if device == "cuda" else 0.0)
    pairs = tuple(islice(timer.pairs(), PAIRS))
    first, second = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
    return 1e3 * median(first), 1e3 * median(second), paired_ratio(first, second)


def _random_inputs(subject: Subject, point: Point, latents: int, device: str) -> Tensors:
    model, profile = subject.resolved()
    component = _of_steps(get_component(subject.component), latents)
    sizes, generator = component.sizes_at(profile, point), torch.Generator().manual_seed(0)
    specs = component.inputs(model.checkpoint)
    made = {spec.name: torch.randn(spec.shape(sizes), generator=generator) for spec in specs}
    tables = [name for name in made if name.startswith("rope_")]
    if tables:
        # rotations, as a video's are: anything else changes the size of the scores, and so the softmax
        length = torch.hypot(*(made[name] for name in tables))
        made |= {name: made[name] / length for name in tables}
    return {spec.name: made[spec.name].to(device, spec.torch_dtype(subject.precision)) for spec in specs}


def _into(engine: Engine, calls: Tensors) -> Callable[[], object]:
    outputs = {name: torch.empty_like(value) for name, value in engine.run(calls).items()}
    return lambda: engine.run_into(calls, outputs)


def _last(frames: Tensor) -> Tensor:
    return frames.permute(0, 2, 3, 4, 1).contiguous()


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write it with every number to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("component", choices=sorted(IDEAS))
    parser.add_argument("ideas", nargs="*", help="all of the component's unless named")
    parser.add_argument("--model", default="tiny-wan")
    parser.add_argument("--layers", type=int, help="of the transformer, with random weights")
    parser.add_argument("--profile")
    parser.add_argument(
        "--point", choices=POINTS, nargs="+", default=["opt"], help="of the profile, to run at"
    )
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="exports side by side")
    parser.add_argument("--json", type=Path)
    given = parser.parse_intermixed_args(arguments)
    try:
        for name in given.ideas:
            idea_named(given.component, name)
    except ValueError as error:
        parser.error(str(error))
    settings = load_settings(overrides={"export.check": False, "perf.allow_tf32": given.tf32}).settings
    backend = get_backend(given.backend)
    if not isinstance(backend, EngineBackend):
        parser.error(f"the backend {given.backend} has no engines")
    backend.require(settings)
    named = (given.component, given.model, given.layers, given.profile, given.precision, given.backend)
    rows: list[dict[str, Any]] = []
    device = device_of(settings, backend.name)
    with tempfile.TemporaryDirectory(prefix="wan-trt-") as folder, equal_conditions(settings):
        measured = []
        ideas = given.ideas or list(IDEAS[given.component])
        for row in measure(Subject(*named, settings, tuple(given.point)), ideas, Path(folder), given.jobs):
            measured.append(row)
            print(
                f"{row.name:18} {row.point} {row.milliseconds:8.2f} ms  gain {row.gain:5.3f}x  relative L2"
                f" {row.relative_l2:.1e}  build {row.build_seconds:4.0f} s  scratch {row.scratch_mib:,.0f} MiB",
                flush=True,
            )
        for row in measured:
            numbers = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "run"}
            rows.append({**numbers, "kernels": breakdown(kernels_of(row.run, device))})
            groups = {name: spent for name, spent in rows[-1]["kernels"]["groups_ms"].items() if spent}
            if groups:
                told = ", ".join(f"{name} {spent:.1f} ms" for name, spent in groups.items())
                print(f"{row.name:18} {row.point} {told}", flush=True)
            if given.json:
                given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
