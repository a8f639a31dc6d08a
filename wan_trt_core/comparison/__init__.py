"""Reference and candidate side by side: the measurements that the gates judge.

:func:`measure_case` and, for a case that failed, :func:`explain_case` are the entries; everything heavy is imported
when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.comparison.context import Context
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.records import Measurement


def measure_case(case: Case, suite: str, context: Context) -> Measurement:
    """Measure one case for one suite (``parity``, ``perf`` or ``memory``).

    Raises:
        BackendUnavailable: when the case's backend cannot run on this machine.
        CheckpointError, ExportError, EngineError: when a stage before the measurement fails.
    """
    from wan_trt_core.comparison import memory, parity, perf

    measure = {"parity": parity.measure, "perf": perf.measure, "memory": memory.measure}[suite]
    return measure(case, context.under(case))


def explain_case(
    case: Case, suite: str, context: Context, measurement: Measurement, baseline: BaselineEntry | None = None
) -> tuple[str, ...]:
    """Lines for a person that say why a measured case failed; none where the suite has nothing to add.

    The parity suite runs the case again with every block's output; the others have what was
    measured.

    Args:
        measurement: the one that failed.
        baseline: what is stored of the case, if anything is.

    Raises:
        ExportError, EngineError: when the engines that give out every block's output cannot be made.
    """
    if suite == "parity":
        from wan_trt_core.comparison import parity

        return parity.explain(case, context.under(case))
    if suite == "perf":
        from wan_trt_core.comparison.against_baseline import explain_perf

        return explain_perf(measurement, baseline)
    from wan_trt_core.comparison.against_baseline import explain_memory

    return explain_memory(measurement, baseline)
