"""Reference and candidate side by side: the measurements that the gates judge.

:func:`measure_case` is the one entry; everything heavy is imported when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.comparison.context import Context
    from wan_trt_core.records import Measurement


def measure_case(case: Case, suite: str, context: Context) -> Measurement:
    """Measure one case for one suite (``parity``, ``perf`` or ``memory``).

    Raises:
        BackendUnavailable: when the case's backend cannot run on this machine.
        CheckpointError, ExportError, EngineError: when a stage before the measurement fails.
    """
    from wan_trt_core.comparison import memory, parity, perf

    measure = {"parity": parity.measure, "perf": perf.measure, "memory": memory.measure}[suite]
    return measure(case, context)
