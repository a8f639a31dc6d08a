"""The Wan transformer (DiT), rewritten for engines; equal to diffusers' ``WanTransformer3DModel``.

What differs from diffusers' own graph, and why:

1. Modulation is an input. ``scale_shift_table + timestep_proj`` of all blocks is one small tensor, made
   outside once a step; left inside, TensorRT fuses all layers' slices into one slow kernel.
2. RoPE rotates halves. The rows of ``to_q`` and ``to_k`` (weights, biases, norm weights) are reordered once
   per head as even positions, then odd ones. The dot product of q and k does not change, and the rotation
   works on contiguous halves instead of strided slices (ScatterND in ONNX).
3. RMSNorm is written out: the exporter has no rule for ``aten._fused_rms_norm``.
4. Attention is ``softmax(q @ k^T) @ v``, the form that TensorRT fuses into one kernel. The scale is in q's
   norm weights: it must come before the first product, and there it costs nothing.
5. A prompt is padded with zeros to 512 rows, to which every token of the video attends. They are one row many times
   over, so a few of them stand for all: what is added to their scores (:func:`text_scores`) is the logarithm of how
   many rows each stands for, and the softmax is the same.
6. The batch is one, so tokens are the rows of matrices (tokens, dim): a linear layer is then one Gemm with
   its bias, where ONNX Runtime runs a product and an addition for a batch of matrices.

What the variants add, each only where the checkpoint has it, so that the others' graphs stay as they are:

- image to video (``image_dim``): the image encoder's states are one more input, and a cross-attention of its own
  to them is added to that to the text.
- a timestep a token (Wan 2.2 TI2V-5B): within a latent frame all are equal, so the modulation has one row a frame
  where diffusers has one a token: 31 instead of 27,280 for 121 frames of 1280x704.

In half precision the float32 islands are diffusers' own: layer norms, modulation, gates and the rotation; the
residual stream is rounded to half where diffusers rounds it. One more is what embeds the prompt (and the image): every
token attends to its few rows, so that what TensorRT's FP16 loses in their sums would be lost to all alike and not level
out. TensorRT's attention of FP16 sums in it too, and loses precision with every further key. Inside an FP16 graph
self-attention may therefore be in BF16, whose kernels sum in float32, or of values less their mean; that to the prompt
is always of these, which costs next to nothing for so few rows (``docs/attention.md``).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.graphs import copying

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from diffusers import WanTransformer3DModel

    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.component import Tensors


T = TypeVar("T")

SelfAttention = Literal["plain", "centred", "bf16"]
"""Forms of self-attention in FP16: as it is, of values less their mean, of queries, keys and values in BF16."""

CENTRE_EVERY = 61
"""Tokens from one to the next whose values make the mean that others are centred on: it has to be near, not exact. A
prime, for no multiple of a row's tokens."""


def half_rotation_rows(heads: int, head_dim: int) -> Tensor:
    """Order of the rows of ``to_q`` and ``to_k`` that turns RoPE on pairs into RoPE on halves."""
    within_head = torch.cat((torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)))
    return (torch.arange(heads)[:, None] * head_dim + within_head).flatten()


def rope_tables(rope: Any, frames: int, half_height: int, half_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation, each (frames, half_height, half_width, head_dim / 2), float32.

    Args:
        rope: diffusers' ``WanRotaryPosEmbed``, whose buffers hold each value twice (for the pair).
    """
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    grid = (frames, half_height, half_width)

    def table(buffer: Tensor, first: int) -> Tensor:
        axes = []
        for axis, (length, part) in enumerate(zip(grid, torch.split(buffer, sizes, dim=1), strict=True)):
            if length > part.shape[0]:
                raise ValueError(
                    f"a video of {length} positions; this checkpoint has {part.shape[0]} per axis"
                )
            view = [1, 1, 1, -1]
            view[axis] = length
            axes.append(part[:length, first::2].float().reshape(view).expand(*grid, -1))
        return torch.cat(axes, dim=-1)

    return table(rope.freqs_cos, 0), table(rope.freqs_sin, 1)


class Modulation:
    """Diffusers' time path: from a timestep to the modulation of every block, computed once a step.

    The tables of all blocks are stacked once; each step then costs two small linear layers, a projection and
    one addition.

    Args:
        model: only its time path has to have weights (:meth:`~wan_trt_core.models.checkpoint.Checkpoint.time_path`).
    """

    def __init__(self, model: WanTransformer3DModel, device: torch.device | str = "cpu") -> None:
        names = ("timesteps_proj", "time_embedder", "act_fn", "time_proj")
        own = nn.ModuleDict({name: model.condition_embedder.get_submodule(name) for name in names})
        self._embedder: Any = copy.deepcopy(own).to(device)
        with torch.no_grad():
            tables = torch.cat([block.scale_shift_table for block in model.blocks]).float()
            self._tables, self._output_table = (
                table.to(device, copy=True) for table in (tables, model.scale_shift_table[0].float())
            )

    def __call__(
        self, timestep: Tensor, dtype: torch.dtype, *, by_frame: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Modulation (layers, 6, dim) and output modulation (2, dim), float32.

        Args:
            timestep: (1,), as the scheduler gives it; ``by_frame`` (frames,).
            dtype: of ``encoder_hidden_states``, to which diffusers rounds the time embedding.
            by_frame: return (layers, 6, frames, dim) and (2, frames, dim).
        """
        embedder = self._embedder
        projected = embedder.timesteps_proj(timestep)
        weights_dtype = next(embedder.time_embedder.parameters()).dtype
        temb = embedder.time_embedder(projected.to(weights_dtype)).to(dtype)
        timestep_proj = embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))
        if not by_frame:
            return self._tables + timestep_proj.float(), self._output_table + temb.float()
        per_block = self._tables.unsqueeze(2) + timestep_proj.float().transpose(0, 1)
        return per_block, self._output_table.unsqueeze(1) + temb.float()


class RopeTables:
    """RoPE tables of a model, computed once for each video size."""

    def __init__(self, model: WanTransformer3DModel, device: torch.device | str = "cpu") -> None:
        self._rope = copy.deepcopy(model.rope).to(device)
        self._tables: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for latents (1, 16, frames, height, width)."""
        _, _, frames, height, width = hidden_states.shape
        size = (frames, height // 2, width // 2)
        if size not in self._tables:
            self._tables[size] = self.compute(*size)
        return self._tables[size]

    def compute(self, frames: int, half_height: int, half_width: int) -> tuple[Tensor, Tensor]:
        """The tables anew: what the first call for a size costs, to be timed apart."""
        return rope_tables(self._rope, frames, half_height, half_width)


def text_rows(length: int, tokens: int) -> int:
    """How many of a prompt's ``length`` rows an engine attends to: quarters of them, so that there are few shapes.

    Half a quarter of padding, which stands for all the rest, is among them; or there is no rest.

    Args:
        tokens: rows before the padding.
    """
    quarter = _quarter(length)
    return min(length, quarter * -(-(tokens + _standing_for_all(length)) // quarter))


def text_scores(length: int, rows: int) -> Tensor:
    """What is added to the scores of each of the first ``rows`` of ``length`` rows, so that the last of them count for
    the ``length - rows`` that are left out: (rows,) float32."""
    last = min(rows, _standing_for_all(length))
    scores = torch.zeros(rows)
    scores[rows - last :] = math.log((length - rows + last) / last)
    return scores


def _standing_for_all(length: int) -> int:
    return max(1, _quarter(length) // 2)


def _quarter(length: int) -> int:
    return -(-length // 4)


def rows_needed(states: Tensor) -> int:
    """:func:`text_rows` of a prompt's states (1, text_length, text_dim), padded with zeros. Waits for the device."""
    return text_rows(states.shape[1], tokens_of(states))


class ReadOnce(Generic[T]):
    """What ``read`` finds in tensors, for which the device is waited for: once for each, and again after a change in
    place that PyTorch counts (one through ``.data`` or NumPy it does not).

    Tensors of ``torch.inference_mode`` count none, and are read in each call.
    """

    def __init__(self, read: Callable[..., T]) -> None:
        self._read = read
        self._known = WeakIdKeyDictionary()  # by tensor: version and further arguments, and what was read

    def __call__(self, tensor: Tensor, *args: Hashable) -> T:
        """``read(tensor, *args)``."""
        if tensor.is_inference():
            return self._read(tensor, *args)
        asked = (tensor._version, args)
        known: tuple[tuple[int, tuple[Hashable, ...]], T] | None = self._known.get(tensor)
        if known is None or known[0] != asked:
            known = self._known[tensor] = (asked, self._read(tensor, *args))
        return known[1]


class StepModulation:
    """The modulation of the last call's timestep: with guidance the next call of the step takes the very tensor.

    It is computed again for another tensor and after a change in place, as :class:`ReadOnce` says; in each call for a
    tensor of ``torch.inference_mode``, and while a CUDA graph is captured, which would have it fixed in it. It is
    given back with the timestep.
    """

    def __init__(self) -> None:
        self._kept = WeakIdKeyDictionary()  # by timestep, at most one: for what, and the modulation

    def __call__(
        self,
        timestep: Tensor,
        frames: int,
        device: torch.device,
        compute: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """That of a timestep for so many latent frames, on a device."""
        if timestep.is_inference() or capturing(device):
            return compute()
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        made_for = (timestep._version, frames, device, stream)
        known: tuple[tuple[Any, ...], tuple[Tensor, Tensor]] | None = self._kept.get(timestep)
        if known is None or known[0] != made_for:
            self._kept.clear()  # before the next is made: that of a long video takes 70 MB
            known = self._kept[timestep] = (made_for, compute())
        return known[1]


def capturing(device: torch.device) -> bool:
    """Whether what is asked of a device now becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def tokens_of(states: Tensor) -> int:
    """Rows of a prompt's states (1, text_length, text_dim) before the zeros that pad them. Waits for the device."""
    filled = states[0].any(dim=-1).nonzero()
    return int(filled[-1]) + 1 if len(filled) else 0


class DitInputs:
    """What runs before the DiT engine in each call: from the tensors of diffusers' call to the graph's.

    Works on the device of the tensors it is given. The RoPE tables depend on the video's size alone and are
    computed once for each; the modulation once a step, as :class:`StepModulation` says. Of a prompt's states as many
    rows are given on as :func:`rows_needed` says.
    """

    def __init__(self, checkpoint: Checkpoint, precision: str, part: str = "transformer") -> None:
        self._checkpoint, self._part = checkpoint, part
        self._precision = precision
        self._dtype = torch_dtype(precision)
        self._by_frame = checkpoint.timestep_by_frame
        self._sources: dict[torch.device, tuple[Modulation, RopeTables]] = {}
        self._step = StepModulation()
        self._text_rows = ReadOnce(rows_needed)
        self._scores: dict[tuple[int, int, torch.device], Tensor] = {}

    def sources(self, device: torch.device) -> tuple[Modulation, RopeTables]:
        """The two makers of inputs on a device, so that each can be timed apart."""
        if device not in self._sources:
            model: Any = self._checkpoint.time_path(self._part, self._precision)
            self._sources[device] = Modulation(model, device), RopeTables(model, device)
        return self._sources[device]

    def __call__(self, call: Tensors) -> Tensors:
        hidden_states = call["hidden_states"].to(self._dtype)
        modulation, rope = self.sources(hidden_states.device)
        timestep, frames = call["timestep"], hidden_states.shape[2]

        def compute() -> tuple[Tensor, Tensor]:
            rows = frame_timesteps(timestep, frames) if self._by_frame else timestep
            return modulation(rows, self._dtype, by_frame=self._by_frame)

        per_block, output = self._step(timestep, frames, hidden_states.device, compute)
        cos, sin = rope(hidden_states)
        states = call["encoder_hidden_states"]
        image = call.get("encoder_hidden_states_image")
        length, rows = states.shape[1], self._text_rows(states)
        made = {
            "hidden_states": hidden_states,
            "modulation": per_block,
            "output_modulation": output,
            "rope_cos": cos,
            "rope_sin": sin,
            "encoder_hidden_states": states[:, :rows].to(self._dtype),
            "text_scores": self._text_scores(length, rows, states.device),
        }
        return made if image is None else {**made, "encoder_hidden_states_image": image.to(self._dtype)}

    def _text_scores(self, length: int, rows: int, device: torch.device) -> Tensor:
        made = self._scores.get((length, rows, device))
        if made is None:
            made = self._scores[length, rows, device] = text_scores(length, rows).to(device, self._dtype)
        return made


def frame_timesteps(timestep: Tensor, frames: int) -> Tensor:
    """The timestep of each latent frame, from one (1,) for all or one a token (1, frames * tokens of a frame)."""
    return timestep.expand(frames) if timestep.dim() == 1 else timestep.unflatten(1, (frames, -1))[0, :, 0]


def equal_within_frames(timestep: Tensor, frames: int) -> bool:
    """Whether the tokens of each latent frame have the same timestep (1, tokens). Waits for the device."""
    if timestep.shape[1] % frames:
        return False
    by_frame = timestep.unflatten(1, (frames, -1))
    return bool((by_frame == by_frame[..., :1]).all())


class _Attention(nn.Module):
    def __init__(self, attention: Any, *, rotated: bool, bf16: bool) -> None:
        super().__init__()
        self.heads = attention.heads
        self.eps = attention.norm_q.eps
        self.head_dim = attention.inner_dim // attention.heads
        rows = half_rotation_rows(self.heads, self.head_dim) if rotated else torch.arange(attention.inner_dim)
        self.to_q = copying.linear(attention.to_q, rows)
        self.to_k = copying.linear(attention.to_k, rows)
        self.to_v = copying.linear(attention.to_v)
        self.to_out = copying.linear(attention.to_out[0])
        self.bf16 = bf16
        self.norm_q = copying.parameter(attention.norm_q.weight[rows] * (1 / math.sqrt(self.head_dim)))
        self.norm_k = copying.parameter(attention.norm_k.weight[rows])
        if attention.add_k_proj is not None:
            self.add_k = copying.linear(attention.add_k_proj)
            self.add_v = copying.linear(attention.add_v_proj)
            self.norm_added_k = copying.parameter(attention.norm_added_k.weight)

    def forward(
        self,
        tokens: Tensor,
        source: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        added: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Attention of ``tokens`` to ``source``, each (tokens, dim), and to ``image`` where there is one.

        Args:
            added: to the scores of each row of ``source``, (rows of source,).
        """
        dtype = torch.bfloat16 if self.bf16 else tokens.dtype
        query, key, value = self.to_attend(tokens, source, rope, dtype)
        query = query.transpose(1, 2)
        value, centre = self.centred(value, added)
        attended = _attend(query, key, value, added)
        if image is not None:
            key = self._heads(_rms_norm(self.add_k(image), self.norm_added_k, self.eps)).to(dtype)
            value = self._heads(self.add_v(image)).to(dtype)
            attended = attended + _attend(query, key, value)
        return self.mixed(attended, centre)

    def centred(self, value: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values (1, rows, heads, head_dim) less their :meth:`centre`, and that."""
        centre = self.centre(value, added)
        return (value if centre is None else value - self._heads(centre)), centre

    def centre(self, value: Tensor, added: Tensor | None) -> Tensor | None:
        """A row (1, dim) near the mean of values (1, rows, heads, head_dim), which are attended to less it, so that
        sums in half precision have less to lose. The weights of a softmax come to one: the row is in every answer as it
        is, and :meth:`mixed` puts it back. None where values stay as they are.
        """
        if added is None or value.dtype != torch.float16:
            return None
        counts = added.float().exp()  # the rows that each stands for
        shares = (counts / counts.sum()).view(1, -1, 1, 1)
        return (value.float() * shares).sum(1).flatten(1).to(value.dtype)

    def to_attend(
        self, tokens: Tensor, source: Tensor, rope: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query of ``tokens``, key and value of ``source``, each (1, tokens, heads, head_dim) in ``dtype``."""
        query = self._heads(_rms_norm(self.to_q(tokens), self.norm_q, self.eps))
        key = self._heads(_rms_norm(self.to_k(source), self.norm_k, self.eps))
        value = self._heads(self.to_v(source))
        if rope is not None:
            query, key = self.rotate(query, *rope), self.rotate(key, *rope)
        # rounded before the transposes: TensorRT reads a cast right before a product as a wish for its sums alone
        return query.to(dtype), key.to(dtype), value.to(dtype)

    @staticmethod
    def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads (1, tokens, heads, head_dim) turned by tables (tokens, 1, head_dim / 2), half with half."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    def mixed(self, attended: Tensor, centre: Tensor | None = None) -> Tensor:
        """(tokens, dim) of what was attended to, (1, heads, tokens, head_dim), with the ``centre`` of its values."""
        tokens = attended.transpose(1, 2).reshape(-1, self.heads * self.head_dim)
        mixed: Tensor = self.to_out(tokens.to(self.to_out.weight.dtype))
        if centre is None:
            return mixed
        # summed in float32, which an engine need not do in a product: what is lost here is lost to every answer
        return mixed + (self.to_out.weight * centre).float().sum(-1).to(mixed.dtype)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(tokens, dim) to (1, tokens, heads, head_dim)."""
        return tokens.view(1, -1, self.heads, self.head_dim)


class _CentredAttention(_Attention):
    """Self-attention of values less their mean."""

    def centre(self, value: Tensor, added: Tensor | None) -> Tensor:
        """Of some of the rows, which are many."""
        return value[:, ::CENTRE_EVERY].float().mean(1).flatten(1).to(value.dtype)

    def mixed(self, attended: Tensor, centre: Tensor | None = None) -> Tensor:
        """Here what is lost is lost in sums over thousands of tokens; the product's are short and may have it whole."""
        return super().mixed(attended if centre is None else attended + self._heads(centre).transpose(1, 2))


class _Block(nn.Module):
    def __init__(self, block: Any, self_attention: SelfAttention) -> None:
        super().__init__()
        self.eps = block.norm1.eps
        kind = _CentredAttention if self_attention == "centred" else _Attention
        self.attn1 = kind(block.attn1, rotated=True, bf16=self_attention == "bf16")
        self.attn2 = _Attention(block.attn2, rotated=False, bf16=False)
        self.cross_norm = isinstance(block.norm2, nn.LayerNorm)
        if self.cross_norm:
            self.norm2_weight = copying.parameter(block.norm2.weight.float())
            self.norm2_bias = copying.parameter(block.norm2.bias.float())
        self.ffn_in = copying.linear(block.ffn.net[0].proj)
        self.ffn_out = copying.linear(block.ffn.net[2])

    def forward(
        self,
        hidden: Tensor,
        text: tuple[Tensor, Tensor],
        modulation: tuple[Tensor, ...],
        rope: tuple[Tensor, Tensor],
        image: Tensor | None,
    ) -> Tensor:
        """One block on (tokens, dim); ``modulation`` holds six rows (1, dim), or six times (1, frames, dim).

        ``text`` are its rows and what is added to their scores.
        """
        dtype = hidden.dtype
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        normed = _modulated(_layer_norm(hidden, self.eps), shift, scale).to(dtype)
        hidden = (hidden.float() + _gated(self.attn1(normed, normed, rope), gate)).to(dtype)

        normed = hidden
        if self.cross_norm:
            normed = _layer_norm(hidden, self.eps, self.norm2_weight, self.norm2_bias).to(dtype)
        states, added = text
        hidden = hidden + self.attn2(normed, states, None, added, image)

        normed = _modulated(_layer_norm(hidden, self.eps), ffn_shift, ffn_scale).to(dtype)
        fed = self.ffn_out(functional.gelu(self.ffn_in(normed), approximate="tanh"))
        left: Tensor = (hidden.float() + _gated(fed.float(), ffn_gate)).to(dtype)
        return left


class _ImageEmbedder(nn.Module):
    """Diffusers' ``WanImageEmbedding``: the image encoder's states to rows of the model's width."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.eps = embedder.norm1.eps
        self.norm1_weight, self.norm1_bias, self.norm2_weight, self.norm2_bias = (
            copying.parameter(value.float())
            for norm in (embedder.norm1, embedder.norm2)
            for value in (norm.weight, norm.bias)
        )
        self.ff_in = copying.linear(embedder.ff.net[0].proj).float()
        self.ff_out = copying.linear(embedder.ff.net[2]).float()

    def forward(self, image: Tensor) -> Tensor:
        """(image tokens, image_dim) to (image tokens, dim)."""
        normed = _layer_norm(image, self.eps, self.norm1_weight, self.norm1_bias)
        fed = self.ff_out(functional.gelu(self.ff_in(normed)))
        return _layer_norm(fed, self.eps, self.norm2_weight, self.norm2_bias).to(image.dtype)


class DitGraph(nn.Module):
    """The export-friendly transformer. Its weights are copies.

    Args:
        model: diffusers' transformer, in the precision of the graph.
        block_outputs: return the intermediate outputs that ``Dit.blocks`` names too.
        self_attention: its form. But for ``plain`` the rotation before it is in the graph's precision: what BF16 rounds
            off is more, and so is what sums in half precision lose.
    """

    repeated = "blocks"

    def __init__(
        self,
        model: WanTransformer3DModel,
        *,
        block_outputs: bool = False,
        self_attention: SelfAttention = "plain",
    ) -> None:
        super().__init__()
        config = model.config
        self.patch_size = tuple(config.patch_size)
        self.channels = config.out_channels or config.in_channels
        self.eps = config.eps
        self.block_outputs, self.half_rotation = block_outputs, self_attention != "plain"
        self.patch_embedding = copying.conv3d(model.patch_embedding)
        if self.patch_embedding.weight.dtype == torch.bfloat16:
            self.patch_embedding.float()  # ONNX has no convolution of BF16 before opset 22
        text_embedder = model.condition_embedder.text_embedder
        self.text_in = copying.linear(text_embedder.linear_1).float()
        self.text_out = copying.linear(text_embedder.linear_2).float()
        embedder = model.condition_embedder.image_embedder
        self.image_embedder = None if embedder is None else _ImageEmbedder(embedder)
        self.blocks = nn.ModuleList(_Block(block, self_attention) for block in model.blocks)
        self.proj_out = copying.linear(model.proj_out)
        self.requires_grad_(False).eval()

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        output_modulation: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        encoder_hidden_states: Tensor,
        text_scores: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Predicted flow (1, channels, frames, height, width), then the block outputs if asked for.

        Args:
            hidden_states: latents (1, in_channels, frames, height, width).
            modulation: (layers, 6, dim) or (layers, 6, frames, dim) float32, from :class:`Modulation`.
            output_modulation: (2, dim) or (2, frames, dim) float32.
            rope_cos: (frames, height / 2, width / 2, head_dim / 2) float32, from :class:`RopeTables`.
            rope_sin: as ``rope_cos``.
            encoder_hidden_states: (1, text rows, text_dim).
            text_scores: (text rows,), from :func:`text_scores`.
            encoder_hidden_states_image: (1, image tokens, image_dim), of an image-to-video transformer.
        """
        # the grid of patches is read off the tables: their axes are the graph's own symbols, so that no size
        # has to be divided and every output axis stays a plain multiple of an input axis
        grid = rope_cos.shape[:3]
        rope = (rope_cos.flatten(0, 2).unsqueeze(1), rope_sin.flatten(0, 2).unsqueeze(1))
        if self.half_rotation:
            rope = (rope[0].to(hidden_states.dtype), rope[1].to(hidden_states.dtype))
        rows = _rows(_stacked(modulation))
        patches = self.patch_embedding(hidden_states.to(self.patch_embedding.weight.dtype))
        patches = patches.to(hidden_states.dtype)
        hidden = patches.flatten(2).squeeze(0).transpose(0, 1)
        text = self.text_in(encoder_hidden_states.squeeze(0).float())
        text = self.text_out(functional.gelu(text, approximate="tanh")).to(hidden.dtype)
        taken, image = [text], None
        if self.image_embedder is not None:
            assert encoder_hidden_states_image is not None
            image = self.image_embedder(encoder_hidden_states_image.squeeze(0))
            taken.append(image)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, (text, text_scores), rows[6 * index : 6 * index + 6], rope, image)
            taken.append(hidden)
        shift, scale = _rows(output_modulation)
        hidden = _modulated(_layer_norm(hidden, self.eps), shift, scale).to(hidden.dtype)
        hidden = self.proj_out(hidden)
        sample = self._unpatchify(hidden, grid)
        if not self.block_outputs:
            return (sample,)
        return (sample, patches, *(tokens.unsqueeze(0) for tokens in (*taken, hidden)))

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(tokens, values of a patch) to (1, channels, frames, height, width); a patch is one frame deep.

        Height and width are put together one after the other, each as the innermost axes: merging axes of
        dynamic strides makes torch 2.11 guard which stride is smaller, and refuse a dynamic size for it.
        """
        pixels = tokens.reshape(*grid, *self.patch_size[1:], self.channels)
        rows = pixels.permute(5, 2, 4, 0, 1, 3).flatten(4, 5)
        return rows.permute(0, 3, 4, 1, 2).flatten(3, 4).unsqueeze(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None = None) -> Tensor:
    """Of ``query`` (1, heads, tokens, head_dim), already scaled, to keys and values (1, tokens, heads, head_dim).

    ``added`` to the scores of each key: (tokens,).
    """
    value = value.transpose(1, 2)
    scores = query @ key.permute(0, 2, 3, 1)
    return torch.softmax(scores if added is None else scores + added.to(scores.dtype), dim=-1) @ value


def _stacked(modulation: Tensor) -> Tensor:
    """(layers, 6, …) to (6 layers, …).

    With frames in two steps: merging two axes outside of one of dynamic size makes torch 2.11 guard which stride is
    smaller, and refuse a dynamic size for it.
    """
    if modulation.dim() == 3:
        return modulation.flatten(0, 1)
    return modulation.flatten(1).reshape(-1, *modulation.shape[2:])


def _rows(modulation: Tensor) -> tuple[Tensor, ...]:
    """(count, dim) to rows (1, dim), (count, frames, dim) to rows of each frame (1, frames, dim).

    Cut as they lie: of a transposed modulation TensorRT makes the rows of all layers in one slow kernel.
    """
    return modulation.chunk(modulation.shape[0])


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(tokens, dim) scaled and shifted by one row, or by that of each token's frame."""
    if scale.dim() == 2:
        return tokens * (1 + scale) + shift
    framed: Tensor = tokens.unflatten(0, (scale.shape[1], -1)) * (1 + _over_tokens(scale)) + _over_tokens(
        shift
    )
    return framed.flatten(0, 1)


def _gated(tokens: Tensor, gate: Tensor) -> Tensor:
    """(tokens, dim) times one row, or times that of each token's frame."""
    if gate.dim() == 2:
        return tokens * gate
    framed: Tensor = tokens.unflatten(0, (gate.shape[1], -1)) * _over_tokens(gate)
    return framed.flatten(0, 1)


def _over_tokens(row: Tensor) -> Tensor:
    """(1, frames, dim) to (frames, 1, dim): in the block, for what blocks are given must come from one node."""
    return row.squeeze(0).unsqueeze(1)


def _rms_norm(tensor: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis; in half precision only the factor is computed in float32."""
    wide = tensor.float()
    root = torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if tensor.dtype == torch.float32:
        return tensor / root * weight
    return tensor * root.reciprocal().to(tensor.dtype) * weight


def _layer_norm(
    tensor: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    wide = tensor.float()
    return functional.layer_norm(wide, wide.shape[-1:], weight, bias, eps)
