"""Memory: what the candidate holds and needs, and that repeated runs do not grow.

Measured in a process of its own: the memory of a test process depends on every test that ran in it before, and a
number that depends on the order of the tests cannot be held to a baseline. For a CPU it is forked from a server that
has imported PyTorch and diffusers and done nothing else. For a GPU it is started anew: diffusers asks for the GPU when
it is imported, and CUDA does not work in the fork of a process that did.

On a GPU the resident set is recorded as well, and three numbers of the device (see
:mod:`wan_trt_core.measure.device_memory`): ``device_peak_allocated`` by PyTorch's tensors, ``device_peak_reserved`` by
its allocator, and ``device_used`` by everything: TensorRT's weights and contexts are in this number alone.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from wan_trt_core.backends.base import EngineError
from wan_trt_core.backends.registry import device_of
from wan_trt_core.cases import PEAK_OVER_PLAN, PEAK_OVER_REFERENCE, Case
from wan_trt_core.comparison.conditions import equal_conditions, synchronize
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import Arm, ArmName, Asked, PipelineTarget, Target, target_of
from wan_trt_core.config import Settings
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.gates.memory import (
    BUDGET,
    DEVICE_GROWTH,
    DEVICE_RELEASE,
    DEVICE_STEP_GROWTH,
    GROWTH,
    KEPT,
    RELEASE,
    STEP_GROWTH,
    UNATTRIBUTED,
)
from wan_trt_core.gates.statistics import slope_interval
from wan_trt_core.measure.ballast import current_ballast
from wan_trt_core.measure.device_memory import (
    SAMPLE_SECONDS,
    DeviceMemory,
    DevicePeak,
    current_device_in_use,
    current_device_memory,
)
from wan_trt_core.measure.differences import TOTALS
from wan_trt_core.measure.memory import (
    growth_metric,
    held_memory,
    live_tensors,
    memory_by_run,
    only_new_garbage,
    peak_metrics,
    peak_resident_set,
    resident_code,
    resident_set,
    settle,
)
from wan_trt_core.measure.memory_events import events_file
from wan_trt_core.measure.memory_recorder import out_of_memory
from wan_trt_core.memory.prediction import choice_of, memory_settings, predict, workload
from wan_trt_core.models.profiles import Point
from wan_trt_core.pipeline.offload import give_back_cached
from wan_trt_core.pipeline.recording import recorded_run
from wan_trt_core.pipeline.stages import Stage, peaks_by_stage, stages
from wan_trt_core.records import OF_REFERENCE, Measurement, Metric

Metrics = dict[str, Metric]
Result = TypeVar("Result")

STEPS = 12
"""Denoising steps over which growth is looked for: with eleven ends of steps one jump, wherever it falls, is none."""

_IMPORTED = (__name__, "diffusers.pipelines.wan.pipeline_wan", "onnxruntime")
"""What the server imports, once for all cases: most of what a fresh process would spend its time on."""


def start_server() -> None:
    """Let the server for CPUs begin its imports now, beside whatever runs next; else it starts when needed."""
    if _can_fork():
        _context("cpu")
        forkserver.ensure_running()


def measure(case: Case, context: Context) -> Measurement:
    """Measure in a fresh process; the engines are built first, here, so that a build is not part of it.

    Where the case asks for it the reference's peak is measured in another one, and ``peak_over_reference`` is the
    ratio of what both use at most: of the device, or on a CPU of the host.

    Where the settings have a budget, no more of the device can be had while the candidate is measured; that it does not
    fit is then what was found out (the fact :data:`~wan_trt_core.gates.memory.BUDGET`). The reference has no budget.

    The first run of a pipeline's candidate is recorded into the report's folder, if there is one (see
    :func:`~wan_trt_core.measure.memory_events.events_file`), also where it runs out of memory.

    Raises:
        EngineError: when a process runs out of memory, or dies, which is what running out of it looks like.
        BudgetError: when the budget cannot be held here.
    """
    if case.memory is None:
        raise ValueError(f"case {case.id} has no memory gate")
    target = target_of(case, context)
    target.build()
    if target.device == "cuda":
        context.close()  # engines that earlier measurements loaded take room that the other process may need
    events = context.report / events_file(case.id) if context.report else None
    if events is not None:
        events.unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
    candidate = _within_budget(case, context.settings, events)
    if not case.memory.reference or not candidate.metrics:
        return candidate
    reference = in_fresh_process(measure_here, "reference", case, context.settings)
    return beside_reference(candidate, reference)


def measure_here(
    case: Case,
    settings: Settings,
    arm: ArmName = "candidate",
    in_use: int | None = None,
    *,
    events: Path | None = None,
) -> Measurement:
    """Measure in this process, which should have done nothing else.

    Args:
        arm: of the reference only the peak is measured.
        in_use: bytes in use on the device before this process came (see :class:`DeviceMemory`).
        events: file for the memory events of a pipeline's first run.
    """
    device = current_device_memory(in_use) if device_of(settings, case.backend) == "cuda" else None
    process = resident_set() - resident_code()
    tensors = live_tensors()
    with equal_conditions(settings):
        measurement = _measure_loaded(
            case, settings, arm, device, process, partial(_recorded, events, in_use)
        )
        if arm == "reference":
            return measurement
        released = kept_metric(live_tensors() - tensors)
        released |= measure_release(partial(_load_and_run, case, settings), device)
    return measurement.model_copy(update={"metrics": measurement.metrics | released})


def _measure_loaded(
    case: Case,
    settings: Settings,
    arm: ArmName,
    device: DeviceMemory | None,
    process: int,
    load: Callable[[Target, ArmName], Arm],
) -> Measurement:
    """All that is measured of what is loaded; it is unloaded afterwards.

    Args:
        process: bytes that the process held before, without code.
    """
    context = Context(settings)
    target = target_of(case, context)
    side = load(target, arm)
    call, inputs = side.call, inputs_of(target, "opt")
    metrics = measure_peak(partial(call, inputs), settings, device)
    metrics |= measure_stages(side, inputs, device)
    if arm == "reference":
        return Measurement(metrics=metrics)
    held, facts = target.engine_bytes(), target.facts()  # at the size that the peak was measured at
    metrics |= _engine_metrics(held)
    rest = [] if device is None else [unattributed(device, held)]
    inputs = inputs_of(target, "min")
    owners = partial(_by_component, target)
    metrics |= measure_growth(partial(call, inputs), settings, device, held=owners)
    if side.pipe is not None:
        at_stage = (
            None if device is None else lambda: rest.append(unattributed(device, target.engine_bytes()))
        )
        metrics |= measure_step_growth(side, inputs, device, at_stage, held=owners)
    if rest:
        metrics |= unattributed_metric(rest)
    if case.memory is not None and PEAK_OVER_PLAN in case.memory.limits and side.pipe is not None:
        # a forked process has the libraries' own pages only once it runs them
        metrics |= beside_plan(target, settings, process + resident_code(), metrics)
    problems = target.problems()
    context.close()
    return Measurement(metrics=metrics, facts=facts, problems=problems)


def _recorded(events: Path | None, in_use: int | None, target: Target, arm: ArmName) -> Arm:
    """An arm, loaded; of a pipeline the loading and a first video are recorded into ``events``."""
    if events is None or not isinstance(target, PipelineTarget):
        return target.arm(arm)
    case, context, inputs = target.case, target.context, inputs_of(target)
    run = {"model": case.model, "backend": case.backend, "precision": case.precision, "case": case.id}
    facts = run | asdict(inputs.generation) | {"settings": memory_settings(context.settings)}
    with recorded_run(events, target.device, facts, in_use) as recording:
        with recording.loads(target.model.checkpoint, context.engines):
            side = target.arm(arm)
        with recording.stages(side.pipe):
            side.call(inputs)
    return side


def _load_and_run(case: Case, settings: Settings) -> None:
    """Load the candidate, run it once at the smallest size, unload it."""
    context = Context(settings)
    target = target_of(case, context)
    target.candidate.call(inputs_of(target, "min"))
    context.close()


def inputs_of(target: Target, point: Point = "opt") -> Any:
    """What one call starts from; the latents of each step are not kept, for they would be no leak."""
    inputs = target.inputs(point)
    return replace(inputs, keep_latents=False) if isinstance(inputs, Asked) else inputs


def _within_budget(case: Case, settings: Settings, events: Path | None) -> Measurement:
    """The candidate's measurement while it can have the budget, if there is one, and no more."""
    budget, here = settings.memory.budget, partial(measure_here, events=events)
    if budget is None:
        return in_fresh_process(here, "candidate", case, settings)
    fact: dict[str, Any] = {"bytes": budget}
    with current_ballast(budget) as fact["free"]:
        try:
            measurement = in_fresh_process(here, "candidate", case, settings)
        except Exception as error:  # PyTorch's, TensorRT's, CUDA's: each has its own class for it
            if not out_of_memory(error):
                raise
            measurement, fact["error"] = Measurement(metrics={}), str(error)
    return measurement.model_copy(update={"facts": measurement.facts | {BUDGET: fact}})


def measure_peak(
    call: Callable[[], object], settings: Settings, device: DeviceMemory | None = None
) -> Metrics:
    """Peaks of ``call`` after warm-up: of the resident set, and of the device where there is one.

    Args:
        call: one whole run at the size that the case is tuned for.
    """
    for run in range(settings.memory.warmup):
        call()
        if device is not None and run == 0:
            device.release()  # what loading and the first run's choice of kernels took for a while
    if device is None:
        return peak_metrics(peak_resident_set(call))
    peaks: list[DevicePeak] = []
    resident = peak_resident_set(lambda: peaks.append(device.peak(call)))
    return peak_metrics(resident) | peaks[0].metrics()


def measure_stages(arm: Arm, inputs: Any, device: DeviceMemory | None = None) -> Metrics:
    """The peak of each stage of a whole run (``decode.resident_set_peak``, on a device ``decode.device_used``); of all
    denoising steps the highest. Nothing for an arm that is no pipeline."""
    if arm.pipe is None:
        return {}
    read, name = (resident_set, TOTALS[1]) if device is None else (device.used, TOTALS[0])
    call = partial(arm.call, inputs)
    peaks: dict[str, int] = {}
    for stage, _, size in peaks_by_stage(
        arm.pipe, call, read, synchronize=synchronize, seconds=SAMPLE_SECONDS
    ):
        peaks[stage] = max(peaks.get(stage, 0), size)
    return {
        f"{stage}.{name}": Metric(value=float(size), unit="B", better="lower")
        for stage, size in peaks.items()
    }


def measure_growth(
    call: Callable[[], object],
    settings: Settings,
    device: DeviceMemory | None = None,
    *,
    held: Callable[[], Mapping[str, int]] = dict,
) -> Metrics:
    """Growth over ``settings.memory.runs`` runs of ``call``.

    ``growth`` is that of the resident set, on a GPU that of PyTorch's tensors, which is exact; ``device_growth`` there
    is that of everything.

    Args:
        call: one whole run at the smallest size. What a run forgets to give back it forgets at every size, and
            twenty runs at full size take minutes.
        held: who holds how many bytes now, as far as it tells; the metrics' detail names who grew most.
    """
    read: dict[str, Callable[[], int]] = {GROWTH: resident_set}
    if device is not None:
        read = {GROWTH: device.allocated, DEVICE_GROWTH: device.used, "resident_set_growth": resident_set}
    owners = _Owners(held)
    by_run = memory_by_run(
        call,
        settings.memory.runs,
        warmup=settings.memory.warmup,
        read=read,
        progress=lambda _: owners.look(),
    )
    exact = {GROWTH} if device is not None else set()
    return {
        name: growth_metric(values, deterministic=name in exact).model_copy(
            update={"detail": owners.most(values[-1] - values[0])}
        )
        for name, values in by_run.items()
    }


def measure_step_growth(
    arm: Arm,
    asked: Asked,
    device: DeviceMemory | None = None,
    at_stage: Callable[[], object] | None = None,
    *,
    held: Callable[[], Mapping[str, int]] = dict,
) -> Metrics:
    """Growth over the denoising steps of one video, :data:`STEPS` of them whatever the case has: ``step_growth`` and
    ``device_step_growth``, of the same as in :func:`measure_growth`.

    Args:
        arm: of a pipeline.
        asked: the video, as small as for :func:`measure_growth` and for the same reason.
        at_stage: called where a stage begins, everything settled.
        held: as for :func:`measure_growth`.
    """
    read: dict[str, Callable[[], int]] = {STEP_GROWTH: resident_set}
    if device is not None:
        read = {STEP_GROWTH: device.allocated, DEVICE_STEP_GROWTH: device.used}
    by_step: dict[str, list[float]] = {name: [] for name in read}
    owners = _Owners(held)

    def begin(stage: Stage, index: int | None) -> None:
        settle()
        if at_stage is not None:
            at_stage()
        if stage == "denoise" and index != 1:  # the end of the step before
            for name, value in read.items():
                by_step[name].append(float(value()))
            owners.look()

    generation = replace(asked.generation, num_inference_steps=STEPS)
    with only_new_garbage(), stages(arm.pipe, begin):
        arm.call(replace(asked, generation=generation))
    return {
        name: Metric(
            value=slope_interval(values).point,
            unit="B",
            better="lower",
            deterministic=device is not None and name == STEP_GROWTH,
            samples=tuple(values),
            detail=owners.most(values[-1] - values[0]),
        )
        for name, values in by_step.items()
    }


class _Owners:
    """Who holds more at the last look than at the first. No look between is kept: it would itself be growth."""

    def __init__(self, held: Callable[[], Mapping[str, int]]) -> None:
        self._held = held
        self._first: Mapping[str, int] | None = None
        self._last: Mapping[str, int] = {}

    def look(self) -> None:
        """See what everyone holds now."""
        self._last = self._held()
        if self._first is None:
            self._first = self._last

    def most(self, total: float) -> str:
        """Who grew most, if that is most of ``total`` bytes; else nothing."""
        first = self._first or {}
        grown = {name: size - first.get(name, 0) for name, size in self._last.items()}
        name = max(grown, key=grown.__getitem__, default="")
        if not name or grown[name] <= 0 or 2 * grown[name] < total:
            return ""
        return f"most of it in {name}, which grew by {quantity(grown[name], 'B')}"


def _by_component(target: Target) -> dict[str, int]:
    """What each of the target's engines holds now, by its name: ``dit.engine_weights``."""
    held, components = target.engine_bytes(), target.components
    if len(components) > 1:
        return {name: size for name, size in held.items() if "." in name}
    return {f"{components[0]}.{name}": size for name, size in held.items()}


def unattributed(device: DeviceMemory, held: Mapping[str, int]) -> int:
    """Bytes that the process uses of the device and nobody there accounts for now: CUDA's context, kernels, graphs.

    All books are read at one moment: what is held at most in each need not be held at the same time.

    Args:
        held: what the engines hold, as :meth:`Target.engine_bytes` has it.
    """
    synchronize()
    return device.used() - device.reserved() - held.get("engine_weights", 0)


def unattributed_metric(found: Sequence[int]) -> Metrics:
    """The most of what :func:`unattributed` said."""
    detail = "the device's use less what PyTorch's allocator has reserved and the engines' weights, where a stage ends"
    return {UNATTRIBUTED: Metric(value=float(max(found)), unit="B", better="lower", detail=detail)}


def measure_release(cycle: Callable[[], object], device: DeviceMemory | None = None) -> Metrics:
    """What loading, running and unloading leave behind where that was done before: ``unreleased`` of what the process
    holds for itself (see :func:`~wan_trt_core.measure.memory.held_memory`), on a GPU of PyTorch's tensors, which is
    exact, and there ``device_unreleased`` of everything.

    Args:
        cycle: loads, runs and unloads; what was loaded before is no longer held.
    """
    read: dict[str, Callable[[], int]] = {RELEASE: held_memory}
    if device is not None:
        read = {RELEASE: device.allocated, DEVICE_RELEASE: device.used}

    def held() -> dict[str, int]:
        settle()
        if device is not None:
            device.release()
        return {name: value() for name, value in read.items()}

    before = held()
    cycle()
    after = held()
    return {
        name: Metric(
            value=float(max(0, after[name] - before[name])),
            unit="B",
            better="lower",
            deterministic=device is not None and name == RELEASE,
        )
        for name in read
    }


def kept_metric(size: int) -> Metrics:
    """What is left of tensors after the first unloading: they can be told from the libraries that it leaves as well."""
    detail = "tensors alive after the first unloading that were not before anything was loaded"
    return {KEPT: Metric(value=float(max(0, size)), unit="B", better="lower", detail=detail)}


def beside_reference(candidate: Measurement, reference: Measurement) -> Measurement:
    """The candidate's measurement with the reference's peaks in it, and the ratio of what both use at most."""
    name = "device_used" if "device_used" in candidate.metrics else "resident_set_peak"
    ours, theirs = candidate.metrics[name].value, reference.metrics[name].value
    if ours and theirs:
        ratio = Metric(value=ours / theirs, unit="x", better="lower", detail=f"{name} of both arms")
    else:
        why = f"{name} is {ours} in the candidate and {theirs} in the reference"
        ratio = Metric(value=None, unit="x", better="lower", detail=why)
    beside = {f"{OF_REFERENCE}{key}": metric for key, metric in reference.metrics.items()}
    return candidate.model_copy(update={"metrics": candidate.metrics | beside | {PEAK_OVER_REFERENCE: ratio}})


def beside_plan(target: Target, settings: Settings, process: int, metrics: Metrics) -> Metrics:
    """What the plan predicts for a pipeline's candidate (``planned_peak``), and the measured peak over it.

    Args:
        process: bytes of this process without anything that it loaded.
    """
    case, model = target.case, target.model
    planned = predict(
        workload(
            model,
            target.profile,
            case.backend,
            target.device,
            settings,
            text_encoder="text_encoder" in model.checkpoint.parts,
            process=process,
        ),
        choice_of(settings, case.precision),
    )
    name = "device_used" if "device_used" in metrics else "resident_set_peak"
    measured = metrics[name].value
    return {
        "planned_peak": Metric(
            value=float(planned.peak), unit="B", better="lower", detail=planned.peak_stage
        ),
        PEAK_OVER_PLAN: Metric(
            value=measured / planned.peak if measured else None,
            unit="x",
            better="lower",
            detail=f"{name} over it",
        ),
    }


def bare_process() -> int:
    """Bytes of a fresh process that has imported what a run on a CPU imports, and done nothing else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_imported).result()


def _imported() -> int:
    for name in _IMPORTED:
        importlib.import_module(name)
    return resident_set()


def _engine_metrics(held: dict[str, int]) -> Metrics:
    """What the engines hold."""
    return {
        name: Metric(value=float(size), unit="B", better="lower", deterministic=True)
        for name, size in held.items()
    }


def in_fresh_process(
    run: Callable[[Case, Settings, ArmName, int | None], Result],
    arm: ArmName,
    case: Case,
    settings: Settings,
) -> Result:
    """Run ``run`` in a process that has done nothing else; its arguments are those of :func:`measure_here`.

    Raises:
        EngineError: when that process runs out of memory, or dies, which is what running out of it looks like.
    """
    device = device_of(settings, case.backend)
    in_use = None
    if device == "cuda":
        give_back_cached()  # what this process caches: the other one may need it
        in_use = current_device_in_use()
    with ProcessPoolExecutor(max_workers=1, mp_context=_context(device)) as fresh:
        process = None
        try:
            process = fresh.submit(os.getpid).result()
            return fresh.submit(run, case, settings, arm, in_use).result()
        except torch.OutOfMemoryError as error:
            raise EngineError(f"memory of {case.id}: the {arm} does not fit: {error}") from error
        except BrokenProcessPool as error:
            raise EngineError(
                f"memory of {case.id}: the {arm}'s measuring process died; the system may have run out of memory"
            ) from error
        except (KeyboardInterrupt, SystemExit):
            if process is not None:  # or leaving would wait for minutes until it has measured
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            raise


def _can_fork() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def _context(device: Literal["cpu", "cuda"]) -> BaseContext:
    """Of fresh processes: forked from the server, or started anew for a GPU and where nothing can fork (Windows)."""
    if device == "cuda" or not _can_fork():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context
