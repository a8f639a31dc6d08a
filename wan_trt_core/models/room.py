"""The disk and the host memory that it takes to make a model's engines, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_trt_core.models.footprint import engine_bytes, stock_bytes

if TYPE_CHECKING:
    from wan_trt_core.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Room:
    """What making engines takes, bytes. Python and its libraries come on top, 1.5 to 2 GiB of host memory.

    Attributes:
        cache: on disk, for one profile: the weights of each as ONNX and once more as an engine.
        export: in host memory: one component at a time, and the text encoder in float32, which encodes a prompt and is
            let go: before a transformer in FP16, of which the range is looked at first, and beside any other. Not the
            comparison with PyTorch, which is left out where it does not fit (:mod:`wan_trt_core.export.affordable`).
        build: in host memory at least, while TensorRT builds the largest: the weights that it read, and the plan.
    """

    cache: int
    export: int
    build: int


def room(checkpoint: Checkpoint, precisions: Mapping[str, str]) -> Room:
    """What the engines of some components take.

    Args:
        precisions: by component.
    """
    sizes = {name: engine_bytes(checkpoint, name, precision) for name, precision in precisions.items()}
    largest = max(sizes.values())
    encodes = "dit" in sizes and "text_encoder" in checkpoint.parts and not checkpoint.random
    beside = 0 if precisions.get("dit") == "fp16" else sizes.get("dit", 0)
    encoder = stock_bytes(checkpoint, "text_encoder", "fp32") + beside if encodes else 0
    return Room(cache=2 * sum(sizes.values()), export=max(largest, encoder), build=2 * largest)
