"""The kernels of both arms, found in a process of its own; on a CPU the nodes and operators that they run.

A process that PyTorch's profiler has once run in launches kernels more slowly ever after, so one that goes on to time
other cases must not profile; and a profiler that crashes or hangs must not take the measurement with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wan_trt_core.backends.tensorrt.runtime import TensorRtEngine
from wan_trt_core.backends.tensorrt.verification import Layer
from wan_trt_core.cases import Case
from wan_trt_core.comparison.conditions import equal_conditions
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import Graph, Target, target_of
from wan_trt_core.config import Settings
from wan_trt_core.measure.kernels import (
    Kernel,
    breakdown,
    kernels_of,
    layer_name,
    layers,
    nodes,
    together,
    typical,
)

LAYER_CALLS = 3
"""Calls whose median counts for the layers of TensorRT's engines."""

ON_CPU = range(1, 6)
"""Calls whose median counts on a CPU, which has other things to do meanwhile: up to as many as take a second."""

WARMUP = {"cpu": 1, "cuda": 2}
"""Calls before those that count: on a GPU an engine captures its second call as a CUDA graph, and replays the third."""

LOG_LEVEL, SILENT = "KINETO_LOG_LEVEL", "99"
"""Of PyTorch's profiler: above the level of every message that it has."""

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
        watch_nodes = target.device == "cpu" and target.case.backend == "onnxruntime"
        found = []
        for arm, watched in ((target.candidate, watch_nodes), (target.reference, False)):
            call = partial(arm.call, inputs)
            for _ in range(WARMUP[target.device]):
                started = time.perf_counter()
                call()
            fit = round(1 / (time.perf_counter() - started))
            count = max(ON_CPU.start, min(fit, ON_CPU.stop - 1)) if target.device == "cpu" else 1
            calls = (
                nodes_of(call, target, count)
                if watched
                else [kernels_of(call, target.device) for _ in range(count)]
            )
            kernels = typical(calls)
            if not kernels:
                raise RuntimeError(
                    "the profiler saw no kernel: nothing ran on a GPU, or the driver forbids profiling"
                )
            found.append(breakdown(kernels))
        candidate, reference = found
        return {
            **candidate,
            **_layers(target, partial(target.candidate.call, inputs)),
            "reference": reference,
        }


def _layers(target: Target, call: Callable[[], object]) -> dict[str, Any]:
    """For a record: the ``layers`` (name, ms, count) of the target's engines for TensorRT, if it has any."""
    if not (engines := target.tensorrt_engines()):
        return {}
    try:
        kernels = typical(layers_of(call, engines))
    except Exception as error:  # of whatever kind: the kernels are known without the layers
        return {"layers_error": f"{type(error).__name__}: {error}"}
    return {"layers": [[kernel.name, kernel.ms, kernel.count] for kernel in kernels]}


def layers_of(
    call: Callable[[], object], engines: Mapping[str, tuple[TensorRtEngine, Graph]]
) -> list[tuple[Kernel, ...]]:
    """The layers that each of several calls runs in engines for TensorRT, those of all engines.

    A GPU's kernels do not tell which layer they belong to, so TensorRT times the layers itself, in calls of their own.
    """
    names = {name: layer_names(engine.layers(), graph.modules()) for name, (engine, graph) in engines.items()}
    found = []
    with ExitStack() as watching:
        times = {name: watching.enter_context(engine.profiled()) for name, (engine, _) in engines.items()}
        for _ in range(WARMUP["cuda"] + LAYER_CALLS):
            for told in times.values():
                told.clear()
            call()
            found.append(together(layers(times[name], names[name]) for name in engines))
    return found[WARMUP["cuda"] :]


def layer_names(found: Iterable[Layer], modules: Mapping[str, str]) -> dict[str, str]:
    """What each layer is called in a record, by its name.

    Args:
        modules: PyTorch module by the name of an ONNX node.
    """
    return {
        layer.name: layer_name(
            (layer.tactic, layer.kind, layer.name),
            layer.dtype or next(iter(layer.taken), ""),
            filter(None, (modules.get(node, "") for node in layer.sources)),
        )
        for layer in found
    }


def nodes_of(call: Callable[[], object], target: Target, count: int) -> list[tuple[Kernel, ...]]:
    """The nodes that each of several calls runs in the target's engines for ONNX Runtime, those of all engines.

    The sessions that are watched are new ones: :data:`WARMUP` calls come before those that count.
    """
    warmup = WARMUP[target.device]
    graphs, calls = target.graphs(), warmup + count
    with tempfile.TemporaryDirectory() as folder, ExitStack() as watching:
        files = {
            name: watching.enter_context(engine.profiled(graph.runs, Path(folder, name)))
            for name, (engine, graph) in graphs.items()
        }
        for _ in range(calls):
            call()
        watching.close()  # which writes the files
        engines = [
            nodes(json.loads(path.read_text()), graph.modules(), calls)
            for name, (_, graph) in graphs.items()
            for path in files[name]
        ]
    return [together(kernels) for kernels in zip(*engines, strict=True)][warmup:]


def in_process(
    work: Callable[..., dict[str, Any]], *arguments: Any, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """What ``work`` returns in a fresh process; its ``error`` where it raises, dies or outlasts ``timeout`` (s)."""
    fresh = multiprocessing.get_context("spawn")  # a fork of a process that uses a GPU cannot use it
    receiver, sender = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_run, args=(sender, work, arguments), daemon=True)
    with _quiet_profiler():
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


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Processes started meanwhile do not tell of every start and stop of PyTorch's profiler, which reads this when it
    is loaded; a level that the user set stays."""
    before = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, SILENT)
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOG_LEVEL]


def _run(sender: Connection, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    try:
        answer = work(*arguments)
    except Exception as error:  # of whatever kind: a breakdown explains a measurement, and must not cost it
        answer = {"error": f"{type(error).__name__}: {error}"}
    sender.send(answer)
