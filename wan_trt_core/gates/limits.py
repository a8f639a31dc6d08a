"""Limits that hold besides any baseline: at least, at most, finite, and measured at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wan_trt_core.gates.formatting import pair
from wan_trt_core.gates.verdict import Check, Reason, Verdict

if TYPE_CHECKING:
    from wan_trt_core.cases import Limit
    from wan_trt_core.records import Metric

NON_FINITE = "non_finite"
"""The metric that counts NaN and infinite elements; prefixed by an output's name where there are several."""


def judge_limits(gate: str, limits: Mapping[str, Limit], metrics: Mapping[str, Metric]) -> tuple[Check, ...]:
    """Hold each limited metric against its limit; one that was not computed is missing, never passed over.

    The checks come in the order of the case file, so that its first limit heads the report.
    """
    return tuple(judge_limit(gate, name, limits[name], metrics.get(name)) for name in limits)


def judge_limit(gate: str, name: str, limit: Limit, metric: Metric | None) -> Check:
    """Hold one metric against ``limit``."""
    if metric is None or metric.value is None:
        why = metric.detail if metric and metric.detail else "it was not measured"
        return Check(
            gate,
            name,
            Verdict.MISSING,
            Reason.METRIC_NOT_COMPUTED,
            f"{name} is required and could not be computed: {why}",
            limit=limit.min if limit.min is not None else limit.max,
        )
    value = metric.value
    if not math.isfinite(value):
        return not_finite(gate, name, metric, limit.min if limit.min is not None else limit.max)
    if limit.min is not None and value < limit.min:
        return _beyond(gate, name, metric, value, limit.min, "<", limit.reason)
    if limit.max is not None and value > limit.max:
        return _beyond(gate, name, metric, value, limit.max, ">", limit.reason)
    bound = limit.min if limit.min is not None else limit.max
    if bound is None:
        message = f"the limit of {name} has neither min nor max, so it holds nothing; mend the case file"
        return Check(gate, name, Verdict.INVALID, Reason.BEYOND_LIMIT, message, value)
    shown, text = pair(value, bound, metric.unit)
    sign = ">=" if limit.min is not None else "<="
    return Check(gate, name, Verdict.PASS, Reason.WITHIN_LIMIT, f"{name} {shown} {sign} {text}", value, bound)


def not_finite(gate: str, name: str, metric: Metric, bound: float | None = None) -> Check:
    """The check of a metric that is NaN or infinite, which fails whatever ``bound`` it is held against."""
    why = f" ({metric.detail})" if metric.detail else ""
    message = f"{name} is {metric.value}{why}"
    return Check(gate, name, Verdict.FAIL, Reason.NON_FINITE, message, metric.value, bound)


def judge_finite(metrics: Mapping[str, Metric]) -> tuple[Check, ...]:
    """One check for every count of non-finite elements: any such element fails."""
    counts = {name: m for name, m in metrics.items() if name.rpartition(".")[2] == NON_FINITE}
    return tuple(_finite(name, counts[name]) for name in sorted(counts))


def _finite(name: str, metric: Metric) -> Check:
    if metric.value is None:
        message = f"{name} could not be counted: {metric.detail or 'it was not measured'}"
        return Check("finite", name, Verdict.MISSING, Reason.METRIC_NOT_COMPUTED, message, limit=0.0)
    if metric.value == 0:
        message = "every element is finite"
        return Check("finite", name, Verdict.PASS, Reason.WITHIN_LIMIT, message, 0.0, 0.0)
    where = f" ({metric.detail})" if metric.detail else ""
    message = f"{metric.value:g} elements are NaN or infinite{where}"
    return Check("finite", name, Verdict.FAIL, Reason.NON_FINITE, message, metric.value, 0.0)


def _beyond(gate: str, name: str, metric: Metric, value: float, bound: float, sign: str, why: str) -> Check:
    shown, text = pair(value, bound, metric.unit)
    told = "; ".join(filter(None, (metric.detail, f"limit: {why}")))
    message = f"{name} {shown} {sign} {text} ({told})"
    return Check(gate, name, Verdict.FAIL, Reason.BEYOND_LIMIT, message, value, bound)
