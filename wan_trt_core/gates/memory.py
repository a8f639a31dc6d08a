"""The memory gate: limits on what is held, and no growth over repeated runs.

One row of the case file serves a CPU and a GPU. ``growth`` is judged on both: pages of the process on a CPU, where the
case's limit says what the allocator may wobble; PyTorch's tensors on a GPU, which are counted to the byte and must not
grow at all. What grows on a GPU outside PyTorch has a limit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.limits import judge_limit, judge_limits, not_finite
from wan_trt_core.gates.statistics import SLOPE_CONFIDENCE, slope_interval
from wan_trt_core.gates.verdict import Check, Reason, Verdict

if TYPE_CHECKING:
    from wan_trt_core.cases import Limit, MemoryGate
    from wan_trt_core.records import Measurement, Metric

GROWTH = "growth"
"""Of the process on a CPU, of PyTorch's tensors on a GPU, in bytes a run."""

DEVICE_GROWTH = "device_growth"
"""Of all that the process uses on a GPU, in bytes a run; not there on a CPU."""


STEP_GROWTH = "step_growth"
"""As :data:`GROWTH`, of a pipeline, in bytes a denoising step."""

DEVICE_STEP_GROWTH = "device_step_growth"
"""As :data:`DEVICE_GROWTH`, of a pipeline, in bytes a denoising step."""

RELEASE = "unreleased"
"""What unloading everything leaves behind, bytes: on a CPU of anonymous memory and files that are mapped, on a GPU of
PyTorch's tensors."""

DEVICE_RELEASE = "device_unreleased"
"""Of all that the process uses on a GPU; not there on a CPU."""

KEPT = "unreleased_tensors"
"""Bytes of PyTorch's tensors that are left, on any device, of the first loading of everything, after unloading it."""

UNATTRIBUTED = "device_unattributed"
"""What the process uses on a GPU and no known owner holds, bytes: neither PyTorch's allocator nor an engine's weights.
Not there on a CPU."""

BUDGET = "memory_budget"
"""The fact that says what a measurement could have of the device: ``bytes``, and what failed for it (``error``)."""


def judge_memory(gate: MemoryGate, measurement: Measurement) -> tuple[Check, ...]:
    """The checks of a memory case that need no baseline."""
    metrics = measurement.metrics
    budget = [judge_budget(measurement.facts[BUDGET])] if BUDGET in measurement.facts else []
    if any(check.verdict is Verdict.FAIL for check in budget):
        return tuple(budget)  # what did not fit could not be measured
    growth = [judge_growth(GROWTH, gate.growth, metrics.get(GROWTH))]
    if DEVICE_GROWTH in metrics:
        growth.append(judge_growth(DEVICE_GROWTH, gate.device_growth, metrics[DEVICE_GROWTH]))
    by_step = {STEP_GROWTH: gate.step_growth, DEVICE_STEP_GROWTH: gate.device_step_growth}
    growth += [
        judge_step_growth(name, limit, metrics[name]) for name, limit in by_step.items() if name in metrics
    ]
    limits = {RELEASE: gate.release, DEVICE_RELEASE: gate.device_release, KEPT: gate.release_tensors}
    release = [judge_release(name, limit, metrics[name]) for name, limit in limits.items() if name in metrics]
    unattributed = metrics.get(UNATTRIBUTED)
    attribution = [judge_attribution(gate.unattributed, unattributed)] if unattributed else []
    return (*budget, *growth, *release, *attribution, *judge_limits("limit", gate.limits, metrics))


def judge_budget(budget: Mapping[str, Any]) -> Check:
    """Whether everything ran while no more of the device could be had; ``budget`` is the fact :data:`BUDGET`."""
    limit, error = budget["bytes"], budget.get("error")
    if error is not None:
        message = f"does not fit into {quantity(limit, 'B')}: {error}; wan-trt memory plan names what would"
        return Check("budget", BUDGET, Verdict.FAIL, Reason.OVER_BUDGET, message, limit=limit)
    message = f"fits into {quantity(limit, 'B')}: no more of the device could be had"
    return Check("budget", BUDGET, Verdict.PASS, Reason.WITHIN_BUDGET, message, limit=limit)


def judge_release(name: str, limit: Limit, metric: Metric) -> Check:
    """What unloading leaves must not exceed ``limit``, and must be nil where every byte is counted."""
    if metric.deterministic:
        limit = limit.model_copy(update={"max": 0.0, "reason": "every byte is counted here"})
    return judge_limit("release", name, limit, metric)


def judge_attribution(limit: Limit, metric: Metric) -> Check:
    """What no known owner holds on a GPU must not exceed ``limit``."""
    check = judge_limit("attribution", UNATTRIBUTED, limit, metric)
    if check.verdict is not Verdict.FAIL or check.reason is Reason.NON_FINITE:
        return check
    found, bound = pair(check.value or 0.0, check.limit or 0.0, metric.unit)
    message = (
        f"{found} on the device are held by no known owner, neither PyTorch's allocator nor an engine's weights; more "
        f"than {bound} ({limit.reason}): look for CUDA graphs, contexts or handles that something keeps"
    )
    return replace(check, reason=Reason.UNATTRIBUTED, message=message)


def judge_growth(name: str, limit: Limit, metric: Metric | None) -> Check:
    """Growth in bytes a run must not exceed ``limit.max``, and must be nil where every byte is counted.

    Shrinking is no fault.
    """
    bound, reason = _bound(limit, metric)
    if bound is None or metric is None or metric.value is None or not math.isfinite(metric.value):
        return _not_held(name, metric, bound)
    value, runs = metric.value, len(metric.samples)
    over = f" over {runs} runs" if runs else ""
    if value > bound:
        shown, text = pair(value, bound, "B")
        total = f", {quantity(metric.samples[-1] - metric.samples[0], 'B')} in all" if runs > 1 else ""
        message = f"memory grows by {shown} a run{over}{total}, more than {text} ({reason}){_owner(metric)}"
        return Check("growth", name, Verdict.FAIL, Reason.GROWTH, message, value, bound)
    message = f"{quantity(value, 'B')} a run{over} is within {quantity(bound, 'B')}"
    return Check("growth", name, Verdict.PASS, Reason.NO_GROWTH, message, value, bound)


def judge_step_growth(name: str, limit: Limit, metric: Metric) -> Check:
    """Growth in bytes a denoising step: the slope of what was held after each (the metric's samples) must not provably
    exceed ``limit.max``, and must not provably be there at all where every byte is counted.

    A single jump is no growth: the first step makes what the others use again.
    """
    bound, reason = _bound(limit, metric)
    if bound is None or metric.value is None or not math.isfinite(metric.value):
        return _not_held(name, metric, bound)
    slope = slope_interval(metric.samples)
    ends = f"{quantity(slope.low, 'B')} to {quantity(slope.high, 'B')} at {SLOPE_CONFIDENCE:.0%}"
    found = f"{quantity(metric.value, 'B')} a denoising step ({ends}, {slope.points} steps)"
    if slope.low > bound:
        message = f"memory grows by {found}, more than {quantity(bound, 'B')} ({reason}){_owner(metric)}"
        return Check("growth", name, Verdict.FAIL, Reason.GROWTH, message, metric.value, bound)
    message = f"{found} is not shown to be more than {quantity(bound, 'B')}"
    return Check("growth", name, Verdict.PASS, Reason.NO_GROWTH, message, metric.value, bound)


def _bound(limit: Limit, metric: Metric | None) -> tuple[float | None, str]:
    """The limit on growth and its reason; nil where every byte is counted."""
    exact = metric is not None and metric.deterministic
    return (0.0, "every byte is counted here") if exact else (limit.max, limit.reason)


def _owner(metric: Metric) -> str:
    """Who grew most, where an engine tells of it."""
    return f"; {metric.detail}" if metric.detail else ""


def _not_held(name: str, metric: Metric | None, bound: float | None) -> Check:
    """The check of a growth that cannot be held against its limit."""
    if bound is None:
        message = "the case's growth limit has no max, so it holds nothing; mend the case file"
        return Check("growth", name, Verdict.INVALID, Reason.GROWTH, message)
    if metric is None or metric.value is None:
        why = metric.detail if metric and metric.detail else "it was not measured"
        message = f"{name} is required and could not be computed: {why}"
        return Check("growth", name, Verdict.MISSING, Reason.METRIC_NOT_COMPUTED, message, limit=bound)
    return not_finite("growth", name, metric, bound)
