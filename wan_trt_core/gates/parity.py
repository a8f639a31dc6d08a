"""The parity gate: finite outputs, floors against the reference, bands against the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_trt_core.gates.limits import judge_finite, judge_limits
from wan_trt_core.gates.verdict import Check

if TYPE_CHECKING:
    from wan_trt_core.cases import ParityGate
    from wan_trt_core.records import Measurement


def judge_parity(gate: ParityGate, measurement: Measurement) -> tuple[Check, ...]:
    """The checks of a parity case that need no baseline."""
    return judge_limits("floor", gate.limits, measurement.metrics) + judge_finite(measurement.metrics)
