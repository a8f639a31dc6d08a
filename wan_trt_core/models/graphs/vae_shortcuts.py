"""What the VAE of Wan 2.2 has besides that of Wan 2.1: patches of pixels, and shortcuts around whole blocks.

All of it moves values between the channels and the three axes of a video; nothing here has weights. Written so that
what becomes larger is written once, and what becomes smaller is read once.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

Factors = tuple[int, int, int]
"""By how much frames, height and width change."""


def patchified(video: Tensor, size: int) -> Tensor:
    """Frames (1, c, t, size * h, size * w) as (1, c * size * size, t, h, w); a patch's columns come before its rows."""
    return _split(video, (1, size, size)).permute(0, 1, 7, 5, 3, 2, 4, 6).flatten(1, 4)


def unpatchified(frames: Tensor, size: int) -> Tensor:
    """The inverse of :func:`patchified`."""
    return _joined(frames.unflatten(1, (-1, size, size, 1)).permute(0, 1, 5, 4, 6, 3, 7, 2))


class UpShortcut(nn.Module):
    """Larger in frames, height and width, each value repeated or taken from channels of its own (``DupUp3D``).

    The first latent frame is not doubled: of its two frames only the last is kept.
    """

    def __init__(self, shortcut: Any, *, first: bool) -> None:
        super().__init__()
        self.factors = _factors(shortcut)
        self.own = _from_channels(self.factors, shortcut.repeats)
        self.dropped = shortcut.factor_t - 1 if first else 0

    def forward(self, frames: Tensor) -> Tensor:
        time, height, width = self.factors
        pieces = frames.unflatten(1, (-1, *self.own)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        whole = pieces.expand(-1, -1, -1, time, -1, height, -1, width)
        return _joined(whole)[:, :, self.dropped :]


class DownShortcut(nn.Module):
    """Smaller in frames, height and width, values averaged or put into channels of their own (``AvgDown3D``).

    The first frame has none before it to be halved with: diffusers puts zeros there.
    """

    def __init__(self, shortcut: Any, *, first: bool) -> None:
        super().__init__()
        self.factors = _factors(shortcut)
        own = _from_channels(self.factors, shortcut.group_size)
        axes = zip((3, 5, 7), own, self.factors, strict=True)
        self.averaged = [axis for axis, kept, factor in axes if kept < factor]
        self.missing = shortcut.factor_t - 1 if first else 0

    def forward(self, frames: Tensor) -> Tensor:
        if self.missing:
            frames = functional.pad(frames, (0, 0, 0, 0, self.missing, 0))
        pieces = _split(frames, self.factors)
        if self.averaged:
            pieces = pieces.mean(self.averaged, keepdim=True)
        return pieces.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _split(frames: Tensor, factors: Factors) -> Tensor:
    """(1, c, t, h, w) as (1, c, t', a, h', b, w', c): each axis in so many values side by side."""
    _, channels, *sizes = frames.shape
    shape = [part for size, factor in zip(sizes, factors, strict=True) for part in (size // factor, factor)]
    return frames.reshape(1, channels, *shape)


def _joined(pieces: Tensor) -> Tensor:
    """The inverse of :func:`_split`.

    In two steps over the same order of values: merging two axes outside of one of dynamic size makes torch 2.11 guard
    which stride is smaller, and refuse a dynamic size for it.
    """
    _, channels, time, a, height, b, width, c = pieces.shape
    return pieces.flatten(5, 7).reshape(1, channels, time * a, height * b, width * c)


def _factors(shortcut: Any) -> Factors:
    return shortcut.factor_t, shortcut.factor_s, shortcut.factor_s


def _from_channels(factors: Factors, shared: int) -> Factors:
    """Of each axis how many values have channels of their own: all or one.

    A channel becomes (or is made of) ``math.prod(factors)`` values in the order time, row, column; diffusers shares the
    channels among each ``shared`` that follow each other, which in every Wan VAE is whole axes, the last ones.

    Raises:
        ValueError: when it is not.
    """
    left, own = math.prod(factors) // shared, []
    for factor in factors:
        own.append(factor if left > 1 else 1)
        left //= own[-1]
    if math.prod(own) * shared != math.prod(factors):
        raise ValueError(
            f"a shortcut by {factors} with channels shared by {shared} values is that of no Wan VAE"
        )
    return own[0], own[1], own[2]
