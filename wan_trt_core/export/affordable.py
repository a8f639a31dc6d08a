"""At which sizes a graph is compared with PyTorch on the CPU: what that takes is counted, and nothing computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_trt_core.gates.formatting import GIB
from wan_trt_core.measure.environment import free_memory_bytes
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Component, TensorSpec
from wan_trt_core.models.profiles import POINTS, ShapeProfile, Sizes

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

HEIGHT, WIDTH, FRAMES, TEXT_LENGTH = 96, 64, 5, 32
"""Of the video that a graph is compared at where the profile's smallest is too large: small, and in nothing as the one
that it was traced with, so that an axis that the trace has fixed shows."""

WEIGHT_BYTES = 8
"""Bytes for each weight, at most: ONNX Runtime holds a half-precision model as it is and in float32 (5.2 bytes for each
weight of the 1.3B), and of one with BF16 both PyTorch and ONNX Runtime may compute with a copy in float32."""


@dataclass(frozen=True)
class Place:
    """A size at which a graph is compared with PyTorch.

    Attributes:
        name: a point of the profile, or the size of a smaller video.
        profile: the profile's name; empty where the video is smaller than all of its.
        shapes: of each of the graph's inputs.
    """

    name: str
    profile: str
    video: Sizes
    shapes: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        return f"{self.name} of {self.profile}" if self.profile else self.name


@dataclass(frozen=True)
class Cost:
    """What one call takes, for the greater of PyTorch and ONNX Runtime.

    Attributes:
        tflop: operations, 10^12; a multiplication and its addition are two.
        memory: bytes, the weights' included.
    """

    tflop: float
    memory: int

    def __str__(self) -> str:
        return f"{self.tflop:,.3g} TFLOP and {self.memory / GIB:,.1f} GiB"


def affordable_places(
    component: Component,
    checkpoint: Checkpoint,
    graph: nn.Module,
    profile: ShapeProfile,
    precision: str,
    tflop: float | None,
) -> list[Place]:
    """The profile's min, opt and max, as far as a call there takes at most so many TFLOP (``None``: whatever it takes)
    and the memory that is free; a smaller video where min takes more already. What is left out is told by a warning."""
    inputs, places = component.inputs(checkpoint), _points(component, checkpoint, profile)
    if tflop is None:
        return places
    free = free_memory_bytes()

    def too_much(place: Place) -> Cost | None:
        cost = call_cost(graph, inputs, place.shapes, precision)
        return cost if cost.tflop > tflop or cost.memory > free else None

    # from the smallest up: what is larger than one that takes too much does so as well, and is not counted
    costs = ((index, too_much(place)) for index, place in enumerate(places))
    try:
        first, cost = next(((index, cost) for index, cost in costs if cost), (len(places), None))
    except Exception as error:  # a graph may be traced and not counted: where values decide what is done
        logger.warning(
            "%s %s is compared with PyTorch at %s of %s alone: what a call takes cannot be counted: %s: %s"
            " (export.check_tflop=null compares at all)",
            component.name,
            precision,
            places[0].name,
            profile.name,
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return places[:1]
    left_out, places = places[first:], places[:first]
    if not left_out:
        return places
    if not places and not too_much(smaller := _smaller(component, inputs, profile)):
        places = [smaller]
    logger.warning(
        "%s %s is compared with PyTorch at %s, not at %s of %s: at %s a call takes %s; allowed are %g TFLOP"
        " (export.check_tflop; null compares at all, whatever they take) and the %.1f GiB that are free",
        component.name,
        precision,
        " and ".join(place.name for place in places) or "no size",
        " and ".join(place.name for place in left_out),
        profile.name,
        left_out[0].name,
        cost,
        tflop,
        free / GIB,
    )
    return places


def call_cost(
    graph: nn.Module, inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], precision: str
) -> Cost:
    """What a call of the graph takes with inputs of these shapes. Neither the graph's weights are read nor memory is
    taken for its results."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from wan_trt_core.models.footprint import live_bytes

    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        tensors = [torch.empty(shapes[spec.name], dtype=spec.torch_dtype(precision)) for spec in inputs]
        working, _ = live_bytes(lambda: graph(*tensors), graph, fused=False)
    widened = 1 if precision == "fp32" else 2  # ONNX Runtime's CPU computes half precision in float32
    weights = sum(parameter.numel() for parameter in graph.parameters())
    return Cost(counter.get_total_flops() / 1e12, WEIGHT_BYTES * weights + widened * working)


def _points(component: Component, checkpoint: Checkpoint, profile: ShapeProfile) -> list[Place]:
    """Min, opt and max; a point that repeats another is left out."""
    places: dict[str, Place] = {}
    for point in POINTS:
        sizes = component.sizes_at(profile, point)
        shapes = {spec.name: spec.shape(sizes) for spec in component.inputs(checkpoint)}
        places.setdefault(str(shapes), Place(point, profile.name, profile.at(point), shapes))
    return list(places.values())


def _smaller(component: Component, inputs: Sequence[TensorSpec], profile: ShapeProfile) -> Place:
    """A video that is smaller than the profile's, which an ONNX file serves all the same."""
    text_length = min(profile.min.text_length, TEXT_LENGTH)
    video = Sizes(HEIGHT, WIDTH, FRAMES, text_length, profile.min.spatial)
    sizes = component.sizes(video)
    shapes = {spec.name: spec.shape(sizes) for spec in inputs}
    return Place(f"{WIDTH}x{HEIGHT}, {FRAMES} frames", "", video, shapes)
