"""Shape profiles: the range of video sizes an engine must serve, and the size it is tuned for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Point = Literal["min", "opt", "max"]
POINTS: tuple[Point, ...] = ("min", "opt", "max")

SPATIAL = 8
"""Pixels a latent of the Wan 2.1 VAE covers in height and in width; of Wan 2.2's with patches of pixels, twice that."""
TEMPORAL = 4
"""Frames a latent frame covers, after the first, which covers one: of every Wan VAE, and a checkpoint with another is
refused when it is opened."""


@dataclass(frozen=True)
class Sizes:
    """A video's sizes: pixels, frames, and the padded length of its prompt in tokens.

    ``spatial`` is the model's: the pixels that a latent covers in height and in width.

    Raises:
        ValueError: when a size does not fit the model (pixels in multiples of two latents, frames 4k+1).
    """

    height: int
    width: int
    frames: int
    text_length: int
    spatial: int = SPATIAL

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) <= 0 or getattr(self, name) % (2 * self.spatial):
                raise ValueError(
                    f"{name} must be a positive multiple of {2 * self.spatial} pixels, not {getattr(self, name)}"
                )
        if self.frames < 1 or (self.frames - 1) % TEMPORAL:
            raise ValueError(f"frames must be 4k+1 (1, 5, 9, …), not {self.frames}")
        if self.text_length < 1:
            raise ValueError(f"text_length must be positive, not {self.text_length}")

    @property
    def latent_frames(self) -> int:
        """Latent frames: one for the first frame, one for every four after it."""
        return (self.frames - 1) // TEMPORAL + 1

    @property
    def latent_height(self) -> int:
        """Rows of a latent frame: ``spatial`` pixel rows each."""
        return self.height // self.spatial

    @property
    def latent_width(self) -> int:
        """Columns of a latent frame: ``spatial`` pixel columns each."""
        return self.width // self.spatial


@dataclass(frozen=True)
class ShapeProfile:
    """Smallest, tuned-for and largest video of an engine, as ``480p-81f``."""

    name: str
    min: Sizes
    opt: Sizes
    max: Sizes

    def at(self, point: Point) -> Sizes:
        """The sizes at ``min``, ``opt`` (what it is tuned for) or ``max``."""
        sizes: Sizes = getattr(self, point)
        return sizes

    def opt_alone(self) -> ShapeProfile:
        """The profile of the videos of its opt size, and no other."""
        return replace(self, min=self.opt, max=self.opt)

    def outside(self, height: int, width: int, frames: int) -> Iterator[tuple[str, int, int, int]]:
        """The sizes of a video that engines of the profile do not serve: name, value, and the least and the most that
        it may be."""
        for name, value in (("height", height), ("width", width), ("frames", frames)):
            least, most = getattr(self.min, name), getattr(self.max, name)
            if not least <= value <= most:
                yield name, value, least, most


def tile_stride(tile: int) -> int:
    """Pixels from one tile to the next, where tiles have so many a side: they overlap by a quarter, as diffusers'."""
    return 3 * tile // 4


def tiles_of(height: int, width: int, tile: int | None) -> tuple[list[int], list[int]]:
    """Pixels in height of the tiles that frames are decoded in, from top to bottom, and in width, from left to right;
    they overlap, and the first is the largest. One each where no side is longer than a tile, for such frames are
    decoded whole; of others both sides are cut, a shorter one too, as diffusers does it.

    Args:
        tile: pixels a side; ``None`` for whole frames.
    """
    if tile is None or max(height, width) <= tile:
        return [height], [width]
    return _along(height, tile), _along(width, tile)


def tile_profile(profile: ShapeProfile, tile: int) -> ShapeProfile:
    """The profile of the tiles that videos of a profile are decoded in; the profile itself where none is larger than a
    tile, for such are decoded whole.

    Args:
        tile: pixels a side. The tiles at the right and at the bottom are smaller.
    """
    if max(profile.max.height, profile.max.width) <= tile:
        return profile

    def cut(video: Sizes, height: int, width: int) -> Sizes:
        return replace(video, height=min(height, tile), width=min(width, tile))

    def smallest(least: int, most: int) -> int:
        return min(_along(size, tile)[-1] for size in range(least, most + 1, 2 * SPATIAL))

    smallest_sides = (
        smallest(profile.min.height, profile.max.height),
        smallest(profile.min.width, profile.max.width),
    )
    size, dash, frames = profile.name.partition("-")
    return ShapeProfile(
        f"{size}.tile{tile}{dash}{frames}",
        cut(profile.min, *smallest_sides),
        cut(profile.opt, profile.opt.height, profile.opt.width),
        cut(profile.max, profile.max.height, profile.max.width),
    )


def _along(size: int, tile: int) -> list[int]:
    """Pixels of the tiles along a side of so many, the first and largest first."""
    return [min(tile, size - at) for at in range(0, size, tile_stride(tile))]
