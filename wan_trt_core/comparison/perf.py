"""Performance: both arms timed in interleaved pairs until the gate's interval decides, in one process.

What a case also names (``torch.compile``, the candidate without CUDA graphs) is timed in pairs with the candidate once
that is done, and the kernels of both arms are found in another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.cases import BESIDE, Case
from wan_trt_core.comparison.conditions import equal_conditions, snapshot, synchronize
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.frames import keep_frames
from wan_trt_core.comparison.parity import compare
from wan_trt_core.comparison.profiling import profile
from wan_trt_core.comparison.targets import Arm, Outputs, Target, target_of
from wan_trt_core.config import PerfSettings
from wan_trt_core.gates.perf import (
    SpeedupRule,
    beside_interval,
    decide_speedup,
    describe,
    precision_of,
    speedup_rule,
)
from wan_trt_core.gates.statistics import SamplingPlan
from wan_trt_core.gates.verdict import Reason
from wan_trt_core.measure.clocks import ClockWatch
from wan_trt_core.measure.timing import Pair, PairedTimer, measure_pairs, time_calls
from wan_trt_core.pipeline.offload import give_back_cached
from wan_trt_core.records import Interrupted, Measurement, Metric

Clock = Callable[[], float]

SAMPLE_TIME = {"cpu": 0.1, "cuda": 0.5}
"""Seconds that one timed run covers at least, by device. A GPU at its power cap changes its clocks many times a second:
with runs of 0.5 s the interval of an H200's ratio was a third as wide as with 0.1 s, where it was 1.508x to 1.627x
over 13 pairs."""

ONCE_RUNS = 5
"""Timed runs of the work that is done once a prompt."""

BESIDE_WARMUP = 2
"""Untimed runs at least of what is timed beside the gate: the first call of a compiled module compiles it."""


def measure(case: Case, context: Context) -> Measurement:
    """Time stock diffusers against the candidate."""
    if case.perf is None:
        raise ValueError(f"case {case.id} has no perf gate")
    settings = context.settings
    with equal_conditions(settings):
        target = target_of(case, context)
        target.build()
        measurement = time_target(
            target,
            case.perf.speedup,
            _budgeted(settings.perf, case.perf.time_budget),
            required_of(case),
            also=case.beside,
            precision=precision_of(case.perf),
            keep=partial(keep_frames, context.report, f"{case.id}-perf", fps=target.fps),
        )
    told_on_cpu = case.backend == "onnxruntime"  # whose profiler knows the nodes
    if not settings.perf.kernels or (target.device == "cpu" and not told_on_cpu):
        return measurement
    give_back_cached()
    try:
        kernels = profile(case, settings)
    except KeyboardInterrupt as error:  # a job's time may end in it: it loads all that was timed once more
        raise Interrupted(_with_kernels(measurement, {"error": "interrupted"})) from error
    return _with_kernels(measurement, kernels)


def _with_kernels(measurement: Measurement, kernels: dict[str, Any]) -> Measurement:
    return measurement.model_copy(update={"facts": {**measurement.facts, "kernels": kernels}})


def _budgeted(settings: PerfSettings, of_case: float | None) -> PerfSettings:
    """The settings with the larger time budget: a case knows its calls, and a user may want more pairs of them."""
    return settings.model_copy(update={"time_budget": max(settings.time_budget, of_case or 0.0)})


def required_of(case: Case) -> frozenset[str]:
    """The quality metrics that a timed output must still reach."""
    return frozenset(case.perf.parity if case.perf else ())


def time_target(
    target: Target,
    threshold: float | None,
    settings: PerfSettings,
    required: frozenset[str],
    *,
    also: Sequence[str] = (),
    precision: float | None = None,
    keep: Callable[[Outputs, Outputs], dict[str, Any]] = lambda reference, candidate: {},
    watch: ClockWatch | None = None,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Pairs until the interval of the ratio decides against ``threshold``, where there is one, or the budget ends.

    The outputs of the last timed pair are compared, a fallback to PyTorch inside the candidate and different
    conditions of the two arms are problems that void the measurement, and so is a machine that was slowed down.

    Args:
        also: names of ``cases.BESIDE``, timed afterwards.
        precision: how well the ratio must be known as well, as ``gates.perf.precision_of`` gives it.
        keep: called with the outputs that were compared, when everything is timed; what it returns are facts.
        watch: looks at the machine while pairs are timed; made for the target's device unless given.
    """
    inputs = target.inputs()
    reference, candidate = _Run(target.reference, inputs), _Run(target.candidate, inputs)
    timer = PairedTimer(
        reference,
        candidate,
        synchronize=synchronize,
        clock=clock,
        warmup=settings.warmup,
        warmup_time=settings.warmup_time,
    )
    plan = SamplingPlan(settings.min_pairs, settings.max_pairs, confidence=settings.confidence)
    facts: dict[str, Any] = {
        "sampling_plan": {
            name: getattr(plan, name) for name in ("min_pairs", "max_pairs", "step", "confidence")
        },
        "steps": target.steps,
    }
    watch = watch or ClockWatch(target.device)
    once = {
        f"{name}_once_s": time_calls(arm.once, ONCE_RUNS, synchronize=synchronize, clock=clock)
        for name, arm in (("reference", target.reference), ("candidate", target.candidate))
        if arm.once is not None
    }

    rule: SpeedupRule = speedup_rule(threshold, once, facts, precision)

    def decided(pairs: Sequence[Pair]) -> bool:
        a, b = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
        return decide_speedup(a, b, rule) is not None

    times = measure_pairs(
        timer,
        decided,
        max_pairs=settings.max_pairs,
        noise_pairs=settings.noise_pairs,
        time_budget=settings.time_budget,
        min_sample_time=sample_time(settings, target.device),
        clock=clock,
        watch=watch,
    )
    problems = {**target.problems(), **_problems(reference, candidate)}
    facts |= target.facts()  # now that the engines hold what they need
    expected, found = timer.outputs
    metrics = times.metrics(reference_extra=rule.reference_extra, candidate_extra=rule.candidate_extra)
    metrics |= compare(expected, found, required, target.fps)
    series = times.series() | once
    for name in also:
        try:
            series |= _series_beside(name, target, candidate, times.calls, settings, watch, clock)
            metrics[BESIDE[name]] = _metric_beside(name, series, facts)
        except Exception as error:  # of whatever kind: the pairs of the gate stand, and were expensive
            why = str(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {error}"
            metrics[BESIDE[name]] = Metric(value=None, unit="x", better="higher", detail=why)
    if "torch_compile_s" in series:
        facts["compiled"] = target.compiled()
    return Measurement(
        metrics=metrics,
        series=series,
        facts={**facts, **times.facts(), "conditions": reference.conditions, "clocks": watch.facts()}
        | keep(expected, found),
        problems=problems | _slowed(watch),
    )


def _series_beside(
    name: str,
    target: Target,
    candidate: _Run,
    calls: int,
    settings: PerfSettings,
    watch: ClockWatch,
    clock: Clock,
) -> dict[str, tuple[float, ...]]:
    """The times of what ``perf.also`` names, in pairs with the candidate."""
    give_back_cached()
    with target.beside(name) as arm:
        timer = PairedTimer(
            _Run(arm, candidate.inputs),
            candidate,
            synchronize=synchronize,
            clock=clock,
            warmup=max(BESIDE_WARMUP, settings.warmup),
            calls=calls,
        )
        timer.warm_up()
        with watch:
            pairs = tuple(islice(timer.pairs(), settings.also_pairs))
    key = name.replace("-", "_")
    return {
        f"{key}_s": tuple(pair.reference for pair in pairs),
        f"{key}_candidate_s": tuple(pair.candidate for pair in pairs),
    }


def _metric_beside(name: str, series: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> Metric:
    interval, rule = beside_interval(name, series, facts)
    return Metric(value=interval.point, unit="x", better="higher", detail=describe(interval, rule))


def sample_time(settings: PerfSettings, device: str) -> float:
    """Seconds that one timed run covers at least, on a device unless the settings say."""
    return SAMPLE_TIME[device] if settings.min_sample_time is None else settings.min_sample_time


def _slowed(watch: ClockWatch) -> dict[Reason, str]:
    if watch.blind:
        return {
            Reason.NOT_MEASURED: "whether the GPU was slowed down while it was timed is not known:"
            f" {watch.facts()['error']}"
        }
    if not (slowdown := watch.slowdown()):
        return {}
    return {
        Reason.THROTTLED: f"the machine was slowed down while it was timed: {slowdown}; cool it, give it the power and"
        " the memory that it asks for, and run again"
    }


class _Run:
    """Calls an arm on fixed inputs, and keeps the conditions and fallbacks that its runs showed."""

    def __init__(self, arm: Arm, inputs: Any) -> None:
        self.arm, self.inputs = arm, inputs
        self.conditions: dict[str, Any] = {}
        self.fallbacks: tuple[str, ...] = ()

    def __call__(self) -> Outputs:
        with self.arm.watched() as called:
            outputs = self.arm.call(self.inputs)
            self.conditions = snapshot()
        self.fallbacks = tuple(dict.fromkeys((*self.fallbacks, *called)))
        return outputs


def _problems(reference: _Run, candidate: _Run) -> dict[Reason, str]:
    problems = {}
    if candidate.fallbacks:
        problems[Reason.FALLBACK_TO_PYTORCH] = (
            f"the candidate ran diffusers' own {', '.join(candidate.fallbacks)} instead of its engine"
        )
    different = [
        f"{name}: {value!r} in the reference, {candidate.conditions[name]!r} in the candidate"
        for name, value in reference.conditions.items()
        if candidate.conditions[name] != value
    ]
    if different:
        problems[Reason.SETTINGS_DIFFER] = f"the arms ran under different settings: {'; '.join(different)}"
    return problems
