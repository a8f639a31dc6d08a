"""Memory: what the candidate holds and needs, and that repeated runs do not grow.

Measured in a process of its own: the resident set of a test process depends on every test that ran in it before,
and a number that depends on the order of the tests cannot be held to a baseline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from wan_trt_core.backends.base import EngineError
from wan_trt_core.cases import Case
from wan_trt_core.comparison.conditions import equal_conditions
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import target_of
from wan_trt_core.config import Settings
from wan_trt_core.measure.memory import growth_metric, memory_by_run, peak_metrics, peak_resident_set
from wan_trt_core.records import Measurement, Metric


def measure(case: Case, context: Context) -> Measurement:
    """Measure in a fresh process; the engines are built first, here, so that a build is not part of it.

    Raises:
        EngineError: when the process fails, with the end of what it said.
    """
    if case.memory is None:
        raise ValueError(f"case {case.id} has no memory gate")
    _ = target_of(case, context).candidate
    request = json.dumps(
        {"case": case.model_dump(mode="json"), "settings": context.settings.model_dump(mode="json")}
    )
    child = subprocess.run(
        [sys.executable, "-m", __name__], input=request, capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise EngineError(
            f"memory of {case.id}: the measuring process failed: {child.stderr.strip()[-2000:]}"
        )
    return Measurement.model_validate_json(child.stdout.splitlines()[-1])


def measure_here(case: Case, context: Context) -> Measurement:
    """Measure in this process, which should have done nothing else."""
    settings = context.settings
    with equal_conditions(settings):
        target = target_of(case, context)
        inputs = target.perf_inputs()
        arm = target.candidate
        return measure_call(
            lambda: arm.call(inputs), settings, engine_bytes=target.engine_bytes(), facts=target.facts()
        )


def measure_call(
    call: Callable[[], object],
    settings: Settings,
    *,
    engine_bytes: dict[str, int] | None = None,
    facts: dict[str, object] | None = None,
) -> Measurement:
    """Peak of one call after warm-up, and the growth over ``settings.memory.runs`` further ones.

    Args:
        call: one whole run of the candidate.
        engine_bytes: bytes of what is deterministic (files, weights, workspace), by name.
    """
    held = memory_by_run(call, settings.memory.runs, warmup=settings.memory.warmup)
    fixed = {
        name: Metric(value=float(size), unit="B", better="lower", deterministic=True)
        for name, size in (engine_bytes or {}).items()
    }
    metrics = fixed | peak_metrics(peak_resident_set(call)) | {"growth": growth_metric(held)}
    return Measurement(metrics=metrics, facts=facts or {})


def main() -> None:
    """Read case and settings as JSON from standard input, write the measurement as JSON."""
    request = json.load(sys.stdin)
    case, settings = Case.model_validate(request["case"]), Settings.model_validate(request["settings"])
    print(measure_here(case, Context(settings)).model_dump_json())


if __name__ == "__main__":
    main()
