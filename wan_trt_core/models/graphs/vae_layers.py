"""What the streaming graphs of the Wan VAEs are made of: causal convolutions with explicit caches, and the rest.

Diffusers keeps, for each causal convolution, the last frames of its input; here these caches are inputs and outputs of
a graph that does one step. Every cache has the same number of frames always: where diffusers keeps fewer, or the word
``"Rep"`` for none, the missing frames are zeros, which is what its padding comes to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.models.graphs import copying


class Caches:
    """Hands each causal convolution its cache and collects what it leaves, in the order of use.

    Args:
        taken: the caches of the step before; None in the first.
        half: leave them in half precision. Taken they are in that of the frames.
    """

    def __init__(self, taken: Iterator[Tensor] | None, *, half: bool = False) -> None:
        self._taken = taken
        self._half = half
        self.left: list[Tensor] = []

    def leave(self, frames: Tensor) -> None:
        """For the next step."""
        self.left.append(frames.half() if self._half else frames)

    def exchange(self, frames: Tensor, count: int) -> Tensor:
        """The past frames, if any, and the present ones. Leaves the last ``count`` for the next step."""
        if self._taken is None:
            self.leave(functional.pad(frames, (0, 0, 0, 0, count - 1, 0)))
            return frames
        joined = torch.cat((next(self._taken).to(frames.dtype), frames), dim=2)
        # from the present frames where they are enough: the convolution's own copy has another memory layout,
        # and TensorRT would turn it back whole to cut two frames from it
        enough = frames.shape[2] >= count
        self.leave((frames if enough else joined)[:, :, -count:])
        return joined


class CausalConv(nn.Module):
    """A convolution over the present frames and those before them, as many as its kernel is longer than its stride.

    With ``first`` there is no past. What diffusers pads with there are zeros, which only the kernel's last
    frame does not meet, so that frame is all that is kept of it.
    """

    def __init__(self, conv: Any, *, first: bool) -> None:
        super().__init__()
        self.weight = copying.parameter(conv.weight[:, :, -1:] if first else conv.weight)
        self.bias = copying.parameter(conv.bias)
        self.stride, self.past = conv.stride, conv.kernel_size[0] - conv.stride[0]
        self.padding = (0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        joined = caches.exchange(frames, self.past)
        return functional.conv3d(joined, self.weight, self.bias, self.stride, self.padding)


class RmsNorm(nn.Module):
    """RMS norm over the channels (axis 1), computed in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.gamma = copying.parameter(norm.gamma.float() * norm.scale)

    def forward(self, tensor: Tensor) -> Tensor:
        wide = tensor.float()
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        # 1e-12 is the eps of torch.nn.functional.normalize, which diffusers calls here
        normed: Tensor = (wide / length.clamp_min(1e-12) * self.gamma).to(tensor.dtype)
        return normed


class Resnet(nn.Module):
    """A residual block: twice a norm, SiLU and a causal convolution."""

    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = RmsNorm(block.norm1), CausalConv(block.conv1, first=first)
        self.norm2, self.conv2 = RmsNorm(block.norm2), CausalConv(block.conv2, first=first)
        shortcut = block.conv_shortcut
        self.shortcut = copying.conv3d(shortcut) if isinstance(shortcut, nn.Conv3d) else nn.Identity()

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(frames)), caches)
        hidden = self.conv2(functional.silu(self.norm2(hidden)), caches)
        total: Tensor = hidden + self.shortcut(frames)
        return total


class Attention(nn.Module):
    """Self-attention with one head within each frame."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = RmsNorm(block.norm)
        self.qkv_weight, self.qkv_bias = _pointwise(block.to_qkv)
        self.proj_weight, self.proj_bias = _pointwise(block.proj)

    def forward(self, frames: Tensor) -> Tensor:
        channels, height, width = frames.shape[1], frames.shape[3], frames.shape[4]
        images = frames.transpose(1, 2).flatten(0, 1)
        pixels = self.norm(images).flatten(2).transpose(1, 2)
        query, key, value = functional.linear(pixels, self.qkv_weight, self.qkv_bias).chunk(3, dim=-1)
        query = query * (1 / math.sqrt(channels))
        attended = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
        mixed = functional.linear(attended, self.proj_weight, self.proj_bias)
        images = mixed.transpose(1, 2).reshape(-1, channels, height, width)
        return images.unsqueeze(0).transpose(1, 2) + frames


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(net, first=first) for net in block.resnets)
        self.attention = Attention(block.attentions[0])

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        hidden: Tensor = self.attention(self.resnets[0](frames, caches))
        mixed: Tensor = self.resnets[1](hidden, caches)
        return mixed


def _pointwise(conv: nn.Conv2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert conv.bias is not None
    return copying.parameter(conv.weight.flatten(1)), copying.parameter(conv.bias)
