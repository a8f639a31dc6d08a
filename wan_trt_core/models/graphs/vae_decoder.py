"""The Wan 2.1 VAE decoder as two streaming graphs, equal to diffusers' ``AutoencoderKLWan.decode``.

``decode`` must not be exported whole: its loop over the latent frames unrolls. Diffusers keeps, for each
causal convolution, the last two frames of its input; here these caches are inputs and outputs. Every cache
holds two frames always: where diffusers keeps one frame, or the word ``"Rep"`` for none, the missing frames
are zeros, which is what its padding comes to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.models.graphs import copying
from wan_trt_core.models.vae_caches import CACHE_FRAMES

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


class _Caches:
    """Hands each causal convolution its cache and collects what it leaves, in the order of use."""

    def __init__(self, taken: Iterator[Tensor] | None) -> None:
        self._taken = taken
        self.left: list[Tensor] = []

    def exchange(self, frames: Tensor) -> Tensor:
        """The past frames, if any, and the present ones. Leaves the last two for the next step."""
        if self._taken is None:
            self.left.append(functional.pad(frames, (0, 0, 0, 0, CACHE_FRAMES - 1, 0)))
            return frames
        joined = torch.cat((next(self._taken), frames), dim=2)
        # from the present frames where they are enough: the convolution's own copy has another memory layout,
        # and TensorRT would turn it back whole to cut two frames from it
        enough = frames.shape[2] >= CACHE_FRAMES
        self.left.append((frames if enough else joined)[:, :, -CACHE_FRAMES:])
        return joined


class _CausalConv(nn.Module):
    """A convolution over the present frames and the two before them.

    With ``first`` there is no past. What diffusers pads with there are zeros, which only the kernel's last
    frame does not meet, so that frame is all that is kept of it.
    """

    def __init__(self, conv: Any, *, first: bool) -> None:
        super().__init__()
        self.weight = copying.parameter(conv.weight[:, :, -1:] if first else conv.weight)
        self.bias = copying.parameter(conv.bias)
        self.padding = (0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)

    def forward(self, frames: Tensor, caches: _Caches) -> Tensor:
        return functional.conv3d(caches.exchange(frames), self.weight, self.bias, padding=self.padding)


class _RmsNorm(nn.Module):
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


class _Resnet(nn.Module):
    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = _RmsNorm(block.norm1), _CausalConv(block.conv1, first=first)
        self.norm2, self.conv2 = _RmsNorm(block.norm2), _CausalConv(block.conv2, first=first)
        shortcut = block.conv_shortcut
        self.shortcut = copying.conv3d(shortcut) if isinstance(shortcut, nn.Conv3d) else nn.Identity()

    def forward(self, frames: Tensor, caches: _Caches) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(frames)), caches)
        hidden = self.conv2(functional.silu(self.norm2(hidden)), caches)
        total: Tensor = hidden + self.shortcut(frames)
        return total


class _Attention(nn.Module):
    """Self-attention with one head within each frame."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = _RmsNorm(block.norm)
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


def _pointwise(conv: nn.Conv2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert conv.bias is not None
    return copying.parameter(conv.weight.flatten(1)), copying.parameter(conv.bias)


class _Upsample(nn.Module):
    """Twice the height and width, and a convolution; where diffusers has a ``time_conv``, also twice the frames.

    Nearest upsampling repeats each pixel four times, and the convolution after it multiplies all four. Here both are
    one transposed convolution, which multiplies each pixel once, by the sum of the weights that meet it: 16 products
    for 36, and the larger image is never written.

    The first latent frame is not doubled, and leaves a cache of zeros there.
    """

    def __init__(self, resample: Any, *, first: bool) -> None:
        super().__init__()
        self.temporal = resample.mode == "upsample3d"
        self.time_conv = _CausalConv(resample.time_conv, first=False) if self.temporal and not first else None
        conv = resample.resample[1]
        self.weight, self.bias = (
            copying.parameter(_transposed(conv.weight)[:, :, None]),
            copying.parameter(conv.bias),
        )

    def forward(self, frames: Tensor, caches: _Caches) -> Tensor:
        if self.time_conv is not None:
            frames = self._double(self.time_conv(frames, caches))
        elif self.temporal:
            caches.left.append(functional.pad(torch.zeros_like(frames), (0, 0, 0, 0, CACHE_FRAMES - 1, 0)))
        made: Tensor = functional.conv_transpose3d(
            frames, self.weight, self.bias, stride=(1, 2, 2), padding=(0, 1, 1)
        )
        return made

    @staticmethod
    def _double(frames: Tensor) -> Tensor:
        """Channels (2 c) over t frames to c channels over 2 t frames, the two of each frame side by side."""
        _, channels, count, height, width = frames.shape
        pairs = frames.reshape(1, 2, channels // 2, count, height, width)
        return pairs.permute(0, 2, 3, 1, 4, 5).reshape(1, channels // 2, 2 * count, height, width)


def _transposed(weight: Tensor) -> Tensor:
    """The weight (out, in, 3, 3) of a convolution after nearest upsampling to twice the size, as the (in, out, 4, 4)
    of the transposed convolution that equals both: its taps are those of two neighbours, added."""
    flipped, ones = weight.double().flip(-2, -1), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    merged = functional.conv2d(flipped.flatten(0, 1)[:, None], ones, padding=1)
    taps: Tensor = merged.unflatten(0, flipped.shape[:2]).squeeze(2).transpose(0, 1).to(weight.dtype)
    return taps


class _UpBlock(nn.Module):
    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(net, first=first) for net in block.resnets)
        self.upsample = None if block.upsamplers is None else _Upsample(block.upsamplers[0], first=first)

    def forward(self, frames: Tensor, caches: _Caches) -> Tensor:
        for resnet in self.resnets:
            frames = resnet(frames, caches)
        return frames if self.upsample is None else self.upsample(frames, caches)


class VaeDecoderGraph(nn.Module):
    """One step of decoding: one latent frame and, except for the first, the caches of the steps before.

    Args:
        vae: diffusers' VAE, in the precision of the graph.
        first: decode the first latent frame (to one frame, no caches taken); else any other (to four).
        block_outputs: return the intermediate outputs too.
    """

    def __init__(self, vae: AutoencoderKLWan, *, first: bool, block_outputs: bool = False) -> None:
        super().__init__()
        decoder = vae.decoder
        self.first = first
        self.block_outputs = block_outputs
        self.post_quant_conv = copying.conv3d(vae.post_quant_conv)
        self.conv_in = _CausalConv(decoder.conv_in, first=first)
        self.mid_resnets = nn.ModuleList(_Resnet(net, first=first) for net in decoder.mid_block.resnets)
        self.mid_attention = _Attention(decoder.mid_block.attentions[0])
        self.up_blocks = nn.ModuleList(_UpBlock(block, first=first) for block in decoder.up_blocks)
        self.norm_out = _RmsNorm(decoder.norm_out)
        self.conv_out = _CausalConv(decoder.conv_out, first=first)
        self.requires_grad_(False).eval()

    def forward(self, latents: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """The frames (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1], the caches, any block outputs.

        Args:
            latents: (1, 16, 1, height, width), de-normalised as ``AutoencoderKLWan.decode`` takes them.
            taken: the caches, each (1, channels, 2, scale * height, scale * width).
        """
        caches = _Caches(None if self.first else iter(taken))
        outputs = []
        frames = self.conv_in(self.post_quant_conv(latents), caches)
        outputs.append(frames)
        frames = self.mid_resnets[1](self.mid_attention(self.mid_resnets[0](frames, caches)), caches)
        outputs.append(frames)
        for up_block in self.up_blocks:
            frames = up_block(frames, caches)
            outputs.append(frames)
        frames = self.conv_out(functional.silu(self.norm_out(frames)), caches)
        outputs.append(frames)
        sample = frames.clamp(-1.0, 1.0)
        return (sample, *caches.left, *outputs) if self.block_outputs else (sample, *caches.left)
