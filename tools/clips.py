"""Synthetic clips for tiny-wan: one coloured shape moves in one direction over grey ground.

A clip is described by six attributes (shape, colour, size, speed, direction, ground), held as a row of
indices into `ATTRIBUTES`, so that a whole batch is one integer tensor and is rendered without a Python loop
over clips. Everything runs on whatever device the specifications live on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FRAME_SIZE = 128  # pixels, height and width
NUM_FRAMES = 17  # 4 * 4 + 1: five latent frames
FPS = 8

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.8, 0.0),
    "blue": (0.1, 0.2, 1.0),
    "yellow": (1.0, 0.9, 0.0),
    "purple": (0.65, 0.1, 0.9),
    "cyan": (0.0, 0.85, 0.9),
}
RADII: dict[str, float] = {"small": 17.0, "medium": 22.0, "large": 28.0}  # pixels
TRAVEL: dict[str, float] = {"slowly": 28.0, "steadily": 40.0, "quickly": 52.0}  # pixels, first to last frame
HEADINGS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

SHAPES = ("square", "circle", "triangle", "cross")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(PALETTE),
    "size": tuple(RADII),
    "speed": tuple(TRAVEL),
    "direction": tuple(HEADINGS),
    "ground": ("plain", "textured"),
}
COLUMN = {name: column for column, name in enumerate(ATTRIBUTES)}

# Every word a caption can contain, for the tokenizer.
CAPTION_WORDS = ("a", "moves", "over", "ground", *itertools.chain.from_iterable(ATTRIBUTES.values()))


@dataclass(frozen=True)
class Rendered:
    """A batch of rendered clips.

    video: (batch, 3, frames, height, width), values in [-1, 1].
    distance: (batch, 1, frames, height, width), distance to the shape's edge in pixels, negative inside.
    """

    video: torch.Tensor
    distance: torch.Tensor


def is_held_out(specs: torch.Tensor) -> torch.Tensor:
    """Which specifications belong to the held-out quarter of the colour-shape-direction triples.

    Each colour-shape pair loses exactly one of its four directions, so training sees every pair of attributes
    but never these 24 triples, in any size, speed or ground.

    specs: (..., 6) indices. Returns a bool tensor of shape (...).
    """
    diagonal = specs[..., COLUMN["shape"]] + specs[..., COLUMN["colour"]]
    return diagonal % len(HEADINGS) == specs[..., COLUMN["direction"]]


def all_specs(*, held_out: bool) -> torch.Tensor:
    """Every specification of one side of the split, in a fixed order: (count, 6) indices on the CPU."""
    specs = torch.tensor(list(itertools.product(*(range(len(values)) for values in ATTRIBUTES.values()))))
    return specs[is_held_out(specs) == held_out]


def held_out_benchmark(count: int = 96) -> torch.Tensor:
    """The fixed list of held-out specifications that the checker generates.

    Round robin over the 24 held-out triples, each time with another size and speed, so that captions (which
    do not name the ground here) differ and any multiple of 24 covers all triples equally.

    Returns (count, 6) indices on the CPU.
    """
    specs = all_specs(held_out=True)
    order = torch.randperm(len(specs), generator=torch.Generator().manual_seed(0))
    triples: dict[tuple[int, ...], list[torch.Tensor]] = {}
    captions: set[str] = set()
    for spec in specs[order]:
        if caption(spec) in captions:
            continue
        captions.add(caption(spec))
        key = tuple(int(spec[COLUMN[name]]) for name in ("shape", "colour", "direction"))
        triples.setdefault(key, []).append(spec)
    rounds = itertools.zip_longest(*triples.values())
    ordered = [spec for round_ in rounds for spec in round_ if spec is not None]
    return torch.stack(ordered[:count])


def sample_specs(count: int, pool: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` rows of `pool` with replacement, on the generator's device."""
    rows = torch.randint(len(pool), (count,), generator=generator, device=generator.device)
    return pool.to(generator.device)[rows]


def describe(spec: Sequence[int] | torch.Tensor) -> dict[str, str]:
    """One specification's words: {"shape": "square", ...}. spec: (6,) indices."""
    return {name: values[int(spec[COLUMN[name]])] for name, values in ATTRIBUTES.items()}


def caption(
    spec: Sequence[int] | torch.Tensor, *, ground: bool = False, size: bool = True, speed: bool = True
) -> str:
    """The caption of one clip, such as "a small red square moves left slowly". spec: (6,) indices.

    The flags say which of the optional words are spoken.
    """
    words = describe(spec)
    parts = ["a"]
    if size:
        parts.append(words["size"])
    parts += [words["colour"], words["shape"], "moves", words["direction"]]
    if speed:
        parts.append(words["speed"])
    if ground:
        parts += ["over", words["ground"], "ground"]
    return " ".join(parts)


def signed_distance(
    shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor | float
) -> torch.Tensor:
    """Signed distance (pixels, negative inside, approximate at corners) to a shape centred on the origin.

    x, y: coordinates in pixels, y downwards; broadcast against each other and `radius`.

    Raises:
        KeyError: `shape` is not one of `SHAPES`.
    """
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * radius
    if shape == "circle":
        return (x.square() + y.square()).sqrt() - radius
    if shape == "triangle":  # apex up; the base lies 0.8 radius below the centre
        slope = 1.8
        side = (slope * x.abs() - y - radius) / math.hypot(slope, 1.0)
        return torch.maximum(y - 0.8 * radius, side)
    if shape == "cross":
        arm = 0.33 * radius
        horizontal = torch.maximum(x.abs() - radius, y.abs() - arm)
        vertical = torch.maximum(x.abs() - arm, y.abs() - radius)
        return torch.minimum(horizontal, vertical)
    raise KeyError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _lookup(values: dict[str, float], specs: torch.Tensor, name: str) -> torch.Tensor:
    """The number behind one attribute, shaped (batch, 1, 1, 1) to broadcast over (frames, height, width)."""
    table = torch.tensor(list(values.values()), device=specs.device)
    return table[specs[:, COLUMN[name]]].view(-1, 1, 1, 1)


def render(specs: torch.Tensor, generator: torch.Generator, *, window: int = FRAME_SIZE) -> Rendered:
    """Render a batch of clips with random start points and grounds.

    specs: (batch, 6) indices on the generator's device.
    window: side in pixels of the square that is rendered; below `FRAME_SIZE` it is a crop around the shape's
        path, for cheap autoencoder training.
    """
    batch, device = len(specs), specs.device

    def uniform(low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator, device=device)

    radius, travel = _lookup(RADII, specs, "size"), _lookup(TRAVEL, specs, "speed")
    headings = torch.tensor(list(HEADINGS.values()), device=device)[specs[:, COLUMN["direction"]]].float()
    time = torch.linspace(0, 1, NUM_FRAMES, device=device).view(1, -1, 1, 1)

    # Start so that the whole path stays one pixel inside the frame.
    centres, corners = [], []
    for axis in range(2):
        step = headings[:, axis].view(-1, 1, 1, 1) * travel
        start = uniform(radius + 1 - step.clamp(max=0), FRAME_SIZE - radius - 1 - step.clamp(min=0))
        centres.append(start + step * time)
        jitter = uniform(-window / 3, window / 3)
        corners.append((start + step / 2 + jitter - window / 2).round().clamp(0, FRAME_SIZE - window))

    pixels = torch.arange(window, device=device) + 0.5
    x = corners[0] + pixels.view(1, 1, 1, -1)  # (batch, 1, 1, width)
    y = corners[1] + pixels.view(1, 1, -1, 1)  # (batch, 1, height, 1)

    distance = torch.zeros(batch, NUM_FRAMES, window, window, device=device)
    for index, shape in enumerate(SHAPES):
        chosen = specs[:, COLUMN["shape"]] == index
        offsets = x[chosen] - centres[0][chosen], y[chosen] - centres[1][chosen]
        distance[chosen] = signed_distance(shape, *offsets, radius[chosen])
    cover = (0.5 - distance).clamp(0, 1).unsqueeze(1)  # one pixel of antialiasing

    level = uniform(0.25, 0.75)
    phase = x * uniform(3, 14) / FRAME_SIZE + y * uniform(-14, 14) / FRAME_SIZE + uniform(0, 2 * math.pi)
    textured = (specs[:, COLUMN["ground"]] == 1).view(-1, 1, 1, 1)
    ground = (level + 0.12 * textured * phase.sin()).unsqueeze(1)  # (batch, 1, 1, height, width)

    palette = torch.tensor(list(PALETTE.values()), device=device)
    colour = palette[specs[:, COLUMN["colour"]]].view(batch, 3, 1, 1, 1)
    video = ground * (1 - cover) + colour * cover
    return Rendered(video=video * 2 - 1, distance=distance.unsqueeze(1))
