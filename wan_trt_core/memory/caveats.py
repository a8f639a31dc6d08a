"""What a prediction does not count, in sentences for who reads it."""

from __future__ import annotations

from collections.abc import Iterator

from wan_trt_core.memory.prediction import Workload


def caveats(work: Workload) -> Iterator[str]:
    """What the prediction for a workload leaves out."""
    if work.backend == "torch-compile":
        yield (
            "This is the memory of PyTorch's own modules: the buffers of compiled ones, and what compiling them needs,"
            " are not counted."
        )
    if work.known("shapes") == "not measured":
        yield (
            f"No memory of {work.backend} was measured: its engines are taken to need what TensorRT's do, in every row"
            " that is known from 'not measured'. Record a run (wan-trt run --profile-memory) before relying on it."
        )
