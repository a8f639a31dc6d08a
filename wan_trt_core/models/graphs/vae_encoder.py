"""The Wan VAE encoder as two streaming graphs, equal to the mode of diffusers' ``AutoencoderKLWan.encode``.

As ``decode``, ``encode`` must not be exported whole: its loop over the chunks of frames unrolls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from wan_trt_core.models.graphs import copying
from wan_trt_core.models.graphs.vae_layers import Caches, CausalConv, MidBlock, Resnet, RmsNorm
from wan_trt_core.models.graphs.vae_shortcuts import DownShortcut, patchified
from wan_trt_core.models.vae_caches import HALVING_FRAMES, patch_size

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


class _Downsample(nn.Module):
    """Half the height and width by a convolution; where diffusers has a ``time_conv``, also half the frames.

    The first frame is not halved, and is itself what the next step finds before its own.

    Diffusers pads one row below and one column to the right. Here the kernel has a row and a column of zeros before
    its own and the padding is the convolution's, on all sides: TensorRT 10.6 fails where it fuses an image padded by
    itself with the convolution behind it ("Cannot add shapes of unequal rank"), and no larger image is written.
    """

    def __init__(self, resample: Any, *, first: bool) -> None:
        super().__init__()
        conv = resample.resample[1]
        self.weight = copying.parameter(functional.pad(conv.weight[:, :, None], (1, 0, 1, 0)))
        self.bias = copying.parameter(conv.bias)
        self.temporal = resample.mode == "downsample3d"
        self.time_conv = CausalConv(resample.time_conv, first=False) if self.temporal and not first else None

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        halved = functional.conv3d(frames, self.weight, self.bias, stride=(1, 2, 2), padding=(0, 1, 1))
        if self.time_conv is not None:
            halved = self.time_conv(halved, caches)
        elif self.temporal:
            halved = caches.exchange(halved, HALVING_FRAMES)
        return halved


class _DownBlock(nn.Module):
    """Of Wan 2.2: residual blocks and a downsampling, and a shortcut around both."""

    def __init__(self, block: Any, *, first: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(net, first=first) for net in block.resnets)
        self.downsample = None if block.downsampler is None else _Downsample(block.downsampler, first=first)
        self.shortcut = DownShortcut(block.avg_shortcut, first=first)

    def forward(self, frames: Tensor, caches: Caches) -> Tensor:
        shortcut: Tensor = self.shortcut(frames)
        for resnet in self.resnets:
            frames = resnet(frames, caches)
        return shortcut + (frames if self.downsample is None else self.downsample(frames, caches))


def _block(block: Any, *, first: bool) -> nn.Module:
    if hasattr(block, "avg_shortcut"):
        return _DownBlock(block, first=first)
    return (_Downsample if hasattr(block, "resample") else Resnet)(block, first=first)


class VaeEncoderGraph(nn.Module):
    """One step of encoding: the first frame, or four with the caches of the steps before.

    Of the distribution that diffusers returns only the mean is computed, which is its mode.

    Args:
        vae: diffusers' VAE, in the precision of the graph.
        first: encode the first frame (no caches taken); else any four after it. Either becomes one latent frame.
        block_outputs: return the intermediate outputs too.
    """

    def __init__(self, vae: AutoencoderKLWan, *, first: bool, block_outputs: bool = False) -> None:
        super().__init__()
        encoder = vae.encoder
        self.first = first
        self.block_outputs = block_outputs
        self.conv_in = CausalConv(encoder.conv_in, first=first)
        self.patch_size = patch_size(vae.config)
        self.down_blocks = nn.ModuleList(_block(block, first=first) for block in encoder.down_blocks)
        self.mid_block = MidBlock(encoder.mid_block, first=first)
        self.norm_out = RmsNorm(encoder.norm_out)
        self.conv_out = CausalConv(encoder.conv_out, first=first)
        self.quant_conv = copying.conv3d(vae.quant_conv, vae.config.z_dim)
        self.requires_grad_(False).eval()

    def forward(self, sample: Tensor, *taken: Tensor) -> tuple[Tensor, ...]:
        """The latents (1, 16, 1, height, width), not normalised, the caches, any block outputs.

        Args:
            sample: (1, 3, 1 or 4, 8 height, 8 width) in [-1, 1]; 16 height and width of Wan 2.2.
            taken: the caches, each (1, channels, 1 or 2, scale * height, scale * width).
        """
        caches = Caches(None if self.first else iter(taken))
        outputs = []
        frames = sample if self.patch_size == 1 else patchified(sample, self.patch_size)
        for block in (self.conv_in, *self.down_blocks, self.mid_block):
            frames = block(frames, caches)
            outputs.append(frames)
        frames = self.conv_out(functional.silu(self.norm_out(frames)), caches)
        outputs.append(frames)
        latents = self.quant_conv(frames)
        return (latents, *caches.left, *outputs) if self.block_outputs else (latents, *caches.left)
