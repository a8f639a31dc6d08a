"""The Wan VAE decoder as two streaming graphs, equal to diffusers' ``AutoencoderKLWan.decode``.

``decode`` must not be exported whole: its loop over the latent frames unrolls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.models.graphs import copying
from wan_trt_core.models.graphs.vae_layers import Caches, CausalConv, MidBlock, Resnet, RmsNorm
from wan_trt_core.models.graphs.vae_shortcuts import UpShortcut, unpatchified
from wan_trt_core.models.vae_caches import CACHE_FRAMES, patch_size

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


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
        self.time_conv = CausalConv(resample.time_conv, first=False) if self.temporal and not first else None
        conv = resample.resample[1]
        self.weight, self.bias = (
            copying.parameter(_transposed(conv.weight)[:, :, None]),
            copying.parameter(conv.bias),
        )

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        if self.time_conv is not None:
            frames = self._double(self.time_conv(frames, caches))
        elif self.temporal:
            caches.leave(functional.pad(torch.zeros_like(frames), (0, 0, 0, 0, CACHE_FRAMES - 1, 0)))
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
    """Residual blocks and an upsampling; in Wan 2.2 a shortcut around both."""

    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(net, first=first) for net in block.resnets)
        shortcut = getattr(block, "avg_shortcut", None)
        self.shortcut = None if shortcut is None else UpShortcut(shortcut, first=first)
        upsampler = block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0]
        self.upsample = None if upsampler is None else _Upsample(upsampler, first=first)

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        given = frames
        for resnet in self.resnets:
            frames = resnet(frames, caches)
        frames = frames if self.upsample is None else self.upsample(frames, caches)
        return frames if self.shortcut is None else frames + self.shortcut(given)


class VaeDecoderGraph(nn.Module):
    """One step of decoding: one latent frame and, except for the first, the caches of the steps before.

    Args:
        vae: diffusers' VAE, in the precision of the graph.
        first: decode the first latent frame (to one frame, no caches taken); else any other (to four).
        block_outputs: return the intermediate outputs too.
        clamp: the frames to [-1, 1]; tiles are blended before.
        lean: less memory. The caches are in half precision, which has the 11 bits that a TF32 product takes of them;
            and the last block, where the frames are largest, does two of them at a time.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        *,
        first: bool,
        block_outputs: bool = False,
        clamp: bool = True,
        lean: bool = False,
    ) -> None:
        super().__init__()
        decoder = vae.decoder
        self.first = first
        self.clamp = clamp
        self.block_outputs = block_outputs
        self.half_caches = self.top_in_pairs = lean
        self.post_quant_conv = copying.conv3d(vae.post_quant_conv)
        self.conv_in = CausalConv(decoder.conv_in, first=first)
        self.mid_block = MidBlock(decoder.mid_block, first=first)
        self.up_blocks = nn.ModuleList(_UpBlock(block, first=first) for block in decoder.up_blocks)
        self.norm_out = RmsNorm(decoder.norm_out)
        self.conv_out = CausalConv(decoder.conv_out, first=first)
        self.patch_size = patch_size(vae.config)
        self.requires_grad_(False).eval()

    def forward(self, latents: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """The frames (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1], the caches, any block outputs.

        Args:
            latents: (1, 16, 1, height, width), de-normalised as ``AutoencoderKLWan.decode`` takes them; of Wan 2.2,
                with 48 channels, each covers 16 x 16 pixels of a frame.
            taken: the caches, each (1, channels, 2, scale * height, scale * width).
        """
        given = None if self.first else iter(taken)
        caches = Caches(given, half=self.half_caches)
        outputs = []
        frames = self.conv_in(self.post_quant_conv(latents), caches)
        outputs.append(frames)
        frames = self.mid_block(frames, caches)
        outputs.append(frames)
        for up_block in self.up_blocks[:-1]:
            frames = up_block(frames, caches)
            outputs.append(frames)
        outputs += self._top(frames, caches, given)
        frames = outputs[-1]
        sample = frames if self.patch_size == 1 else unpatchified(frames, self.patch_size)
        sample = sample.clamp(-1.0, 1.0) if self.clamp else sample
        return (sample, *caches.left, *outputs) if self.block_outputs else (sample, *caches.left)

    def _top(self, frames: Tensor, caches: Caches, given: Iterator[Tensor] | None) -> list[Tensor]:
        """The outputs of the last block and of the last convolution, from what the blocks before gave.

        Args:
            caches: of this step, to which those are added that are left here.
            given: the caches that the blocks before left untaken.
        """
        made = []
        for some in frames.split(2, dim=2) if self.top_in_pairs else (frames,):
            mine = Caches(given, half=self.half_caches)
            image = self.up_blocks[-1](some, mine)
            made.append((image, self.conv_out(functional.silu(self.norm_out(image)), mine)))
            given = iter(mine.left)
        caches.left += mine.left
        return [parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*made, strict=True)]
