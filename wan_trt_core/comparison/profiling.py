"""The kernels of both arms, found in a process of its own.

A process that PyTorch's profiler has once run in launches kernels more slowly ever after, so one that goes on to time
other cases must not profile; and a profiler that crashes or hangs must not take the measurement with it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from wan_trt_core.cases import Case
from wan_trt_core.comparison.conditions import equal_conditions
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import target_of
from wan_trt_core.config import Settings
from wan_trt_core.measure.kernels import breakdown, kernels_of

WARMUP = 2
"""Calls before the one that counts: an engine captures its second call as a CUDA graph, and replays the third."""

TIMEOUT = 600.0
"""Seconds after which the process counts as hanging."""


def profile(case: Case, settings: Settings) -> dict[str, Any]:
    """The breakdown of the candidate, with that of the ``reference`` in it; ``error`` where there is none."""
    return in_process(profile_here, case, settings)


def profile_here(case: Case, settings: Settings) -> dict[str, Any]:
    """As :func:`profile`, in this process, which must time nothing afterwards."""
    with equal_conditions(settings):
        target = target_of(case, Context(settings))
        inputs = target.inputs()
        found = []
        for arm in (target.candidate, target.reference):
            call = partial(arm.call, inputs)
            for _ in range(WARMUP):
                call()
            kernels = kernels_of(call, target.device)
            if not kernels:
                raise RuntimeError(
                    "the profiler saw no kernel: nothing ran on a GPU, or the driver forbids profiling"
                )
            found.append(breakdown(kernels))
    candidate, reference = found
    return {**candidate, "reference": reference}


def in_process(
    work: Callable[..., dict[str, Any]], *arguments: Any, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """What ``work`` returns in a fresh process; its ``error`` where it raises, dies or outlasts ``timeout`` (s)."""
    fresh = multiprocessing.get_context("spawn")  # a fork of a process that uses a GPU cannot use it
    receiver, sender = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_run, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return {"error": f"no answer within {timeout:g} s"}
        answer: dict[str, Any] = receiver.recv()
        return answer
    except EOFError:
        process.join()
        return {"error": f"the process died with exit code {process.exitcode}"}
    finally:
        process.kill()  # it has answered or never will; what it still has to tear down is of no interest
        process.join()
        receiver.close()


def _run(sender: Connection, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    try:
        answer = work(*arguments)
    except Exception as error:  # of whatever kind: a breakdown explains a measurement, and must not cost it
        answer = {"error": f"{type(error).__name__}: {error}"}
    sender.send(answer)
