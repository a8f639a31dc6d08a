"""JUnit properties of a case: plain scalars, so that any CI system can list and chart them."""

from __future__ import annotations

from wan_trt_core.records import CaseRecord
from wan_trt_core.report.summary import BELOW_GATE, deciding_check


def junit_properties(case: CaseRecord) -> list[tuple[str, str]]:
    """Name and value of each property, to be added to the test item's ``user_properties``."""
    properties = {
        "wan.case": case.case,
        "wan.suite": case.suite,
        "wan.model": case.model,
        "wan.component": case.component,
        "wan.profile": case.profile,
        "wan.backend": case.backend,
        "wan.verdict": case.verdict.value,
        "wan.reason": case.reason.value,
        "wan.message": case.message,
    }
    if case.below_gate:
        properties["wan.below_gate"] = BELOW_GATE
    if case.random_weights:
        properties["wan.random_weights"] = case.random_weights
    if check := deciding_check(case):
        properties["wan.deciding_metric"] = check.metric
        if check.value is not None:
            properties["wan.value"] = repr(check.value)
        if check.limit is not None:
            properties["wan.limit"] = repr(check.limit)
    for name, metric in sorted(case.measurement.metrics.items()):
        if metric.value is not None:
            properties[f"wan.metric.{name}"] = repr(metric.value)
    return list(properties.items())
