"""Why a case got slower, or needs more memory: against its baseline. Pure; what was measured is all it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_trt_core.gates.perf import CANDIDATE, REFERENCE
from wan_trt_core.measure.differences import (
    ends,
    held_by,
    kernel_difference,
    machine,
    memory_difference,
    most_changed,
    shortened,
    slower_call,
)

if TYPE_CHECKING:
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.records import Measurement

TOP = 5
"""Layers or kernels that a failing test lists, of those whose time changed by most."""


def explain_perf(measurement: Measurement, baseline: BaselineEntry | None) -> tuple[str, ...]:
    """Lines for a person: what share of a slower call is the kernels', their difference, what the machine did
    meanwhile, and what changed by most: layers where both have them, since these name PyTorch's modules, else kernels.

    Where the baseline has no kernels stock diffusers and the candidate of this run are compared; none where the run has
    no kernels itself.
    """
    kernels = measurement.facts.get("kernels", {})
    if "reference" not in kernels:
        return ()
    times = {name: metric.value for name, metric in measurement.metrics.items()}
    if baseline is None or baseline.kernels is None:
        time = times.get(REFERENCE)
        beside: tuple[str, ...] = ()
        against = "stock diffusers of this run (no baseline holds any)"
        difference = kernel_difference(kernels["reference"], kernels)
    else:
        stored = baseline.metrics.get(CANDIDATE)
        time = stored.value if stored else None
        beside = (f"  {machine(baseline.kernels, kernels)}",)
        against = "those of the baseline"
        difference = kernel_difference(baseline.kernels, kernels)
    call = slower_call(difference.total, time, times.get(CANDIDATE))
    return (
        *filter(None, (call,)),
        f"kernels, against {against}: {difference.describe()}",
        *beside,
        *(
            f"  {change.added:+.3f} ms {shortened(change.name)} ({ends(change)})"
            for change in most_changed(difference.layers or difference.kernels, TOP)
            if change.added
        ),
    )


def explain_memory(measurement: Measurement, baseline: BaselineEntry | None) -> tuple[str, ...]:
    """A line for a person: who holds more than when the baseline was made, as far as it has bands to tell; none without
    the total that decides."""
    if baseline is None:
        return ()
    before = {name: metric.value for name, metric in baseline.metrics.items() if metric.unit == "B"}
    now = {name: size for name, size in held_by(measurement).items() if name in before}
    try:
        difference = memory_difference(before, now)
    except ValueError:
        return ()
    return (f"memory, against the baseline's: {difference.describe()}",)
