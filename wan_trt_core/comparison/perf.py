"""Performance: both arms timed in interleaved pairs until the gate's interval decides, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from wan_trt_core.cases import Case
from wan_trt_core.comparison.conditions import equal_conditions, snapshot, synchronize
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.parity import compare
from wan_trt_core.comparison.targets import Arm, Outputs, Target, target_of
from wan_trt_core.config import PerfSettings
from wan_trt_core.gates.perf import SpeedupRule, decide_speedup, speedup_rule
from wan_trt_core.gates.statistics import SamplingPlan
from wan_trt_core.gates.verdict import Reason
from wan_trt_core.measure.timing import Pair, PairedTimer, measure_pairs, time_calls
from wan_trt_core.records import Measurement

Clock = Callable[[], float]

ONCE_RUNS = 5
"""Timed runs of the work that is done once a prompt."""


def measure(case: Case, context: Context) -> Measurement:
    """Time stock diffusers against the candidate."""
    if case.perf is None:
        raise ValueError(f"case {case.id} has no perf gate")
    with equal_conditions(context.settings):
        return time_target(
            target_of(case, context), case.perf.speedup, context.settings.perf, required_of(case)
        )


def required_of(case: Case) -> frozenset[str]:
    """The quality metrics that a timed output must still reach."""
    return frozenset(case.perf.parity if case.perf else ())


def time_target(
    target: Target,
    threshold: float,
    settings: PerfSettings,
    required: frozenset[str],
    *,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Pairs until the interval of the ratio decides against ``threshold`` or the budget ends.

    The outputs of the last timed pair are compared, a fallback to PyTorch inside the candidate and different
    conditions of the two arms are problems that void the measurement.
    """
    inputs = target.inputs()
    reference, candidate = _Run(target.reference, inputs), _Run(target.candidate, inputs)
    timer = PairedTimer(reference, candidate, synchronize=synchronize, clock=clock, warmup=settings.warmup)
    plan = SamplingPlan(settings.min_pairs, settings.max_pairs, confidence=settings.confidence)
    facts: dict[str, Any] = {
        "sampling_plan": {
            name: getattr(plan, name) for name in ("min_pairs", "max_pairs", "step", "confidence")
        },
        "steps": target.steps,
        **target.facts(),
    }
    once = {
        f"{name}_once_s": time_calls(arm.once, ONCE_RUNS, synchronize=synchronize, clock=clock)
        for name, arm in (("reference", target.reference), ("candidate", target.candidate))
        if arm.once is not None
    }

    rule: SpeedupRule = speedup_rule(threshold, once, facts)

    def decided(pairs: Sequence[Pair]) -> bool:
        a, b = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
        return decide_speedup(a, b, rule) is not None

    times = measure_pairs(
        timer,
        decided,
        max_pairs=settings.max_pairs,
        noise_pairs=settings.noise_pairs,
        time_budget=settings.time_budget,
        min_sample_time=settings.min_sample_time,
        clock=clock,
    )
    expected, found = timer.outputs
    metrics = times.metrics(reference_extra=rule.reference_extra, candidate_extra=rule.candidate_extra)
    return Measurement(
        metrics=metrics | compare(expected, found, required, target.fps),
        series=times.series() | once,
        facts={**facts, **times.facts(), "conditions": reference.conditions},
        problems={**target.problems(), **_problems(reference, candidate)},
    )


class _Run:
    """Calls an arm on fixed inputs, and keeps the conditions and fallbacks that its runs showed."""

    def __init__(self, arm: Arm, inputs: Any) -> None:
        self.arm, self._inputs = arm, inputs
        self.conditions: dict[str, Any] = {}
        self.fallbacks: tuple[str, ...] = ()

    def __call__(self) -> Outputs:
        with self.arm.watched() as called:
            outputs = self.arm.call(self._inputs)
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
