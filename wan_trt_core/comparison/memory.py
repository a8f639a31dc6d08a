"""Memory: what the candidate holds and needs, and that repeated runs do not grow.

Measured in a process of its own: the resident set of a test process depends on every test that ran in it before,
and a number that depends on the order of the tests cannot be held to a baseline. The process is forked from a
server that has imported PyTorch and diffusers and done nothing else.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from wan_trt_core.backends.base import EngineError
from wan_trt_core.cases import Case
from wan_trt_core.comparison.conditions import equal_conditions
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import target_of
from wan_trt_core.config import Settings
from wan_trt_core.measure.memory import growth_metric, memory_by_run, peak_metrics, peak_resident_set
from wan_trt_core.records import Measurement, Metric

_IMPORTED = (__name__, "diffusers.pipelines.wan.pipeline_wan", "onnxruntime")
"""What the server imports, once for all cases: most of what a fresh process would spend its time on."""


def start_server() -> None:
    """Let the server begin its imports now, beside whatever runs next; without this it starts when needed."""
    if _can_fork():
        _context()
        forkserver.ensure_running()


def measure(case: Case, context: Context) -> Measurement:
    """Measure in a fresh process; the engines are built first, here, so that a build is not part of it.

    Raises:
        EngineError: when the process dies, which is what running out of memory looks like.
    """
    if case.memory is None:
        raise ValueError(f"case {case.id} has no memory gate")
    _ = target_of(case, context).candidate
    with ProcessPoolExecutor(max_workers=1, mp_context=_context()) as fresh:
        try:
            return fresh.submit(measure_here, case, context.settings).result()
        except BrokenProcessPool as error:
            raise EngineError(
                f"memory of {case.id}: the measuring process died; the system may have run out of memory"
            ) from error


def measure_here(case: Case, settings: Settings) -> Measurement:
    """Measure in this process, which should have done nothing else."""
    with equal_conditions(settings):
        target = target_of(case, Context(settings))
        large, small = target.inputs("opt"), target.inputs("min")
        call = target.candidate.call
        return measure_call(
            lambda: call(large),
            lambda: call(small),
            settings,
            engine_bytes=target.engine_bytes(),
            facts=target.facts(),
        ).model_copy(update={"problems": target.problems()})


def measure_call(
    call: Callable[[], object],
    small_call: Callable[[], object],
    settings: Settings,
    *,
    engine_bytes: dict[str, int] | None = None,
    facts: dict[str, object] | None = None,
) -> Measurement:
    """Peak of ``call`` after warm-up, and the growth over ``settings.memory.runs`` runs of ``small_call``.

    Args:
        call: one whole run of the candidate at the size it is tuned for.
        small_call: the same at its smallest size. What a run forgets to give back it forgets at every size, and
            twenty runs at full size take minutes.
        engine_bytes: bytes of what is deterministic (files, weights, workspace), by name.
    """
    for _ in range(settings.memory.warmup):
        call()
    peak = peak_resident_set(call)
    held = memory_by_run(small_call, settings.memory.runs, warmup=settings.memory.warmup)
    fixed = {
        name: Metric(value=float(size), unit="B", better="lower", deterministic=True)
        for name, size in (engine_bytes or {}).items()
    }
    return Measurement(
        metrics=fixed | peak_metrics(peak) | {"growth": growth_metric(held)}, facts=facts or {}
    )


def _can_fork() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def _context() -> BaseContext:
    """Of fresh processes: forked from the server, or started anew where the system cannot fork (Windows)."""
    if not _can_fork():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context
