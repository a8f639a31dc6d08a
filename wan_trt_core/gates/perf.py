"""The performance gate: the same outputs, a low enough noise floor, and a proven speed-up.

What it reads from a :class:`~wan_trt_core.records.Measurement` (``measure.timing`` writes it):

``series``
    ``reference_s`` and ``candidate_s``: the pairs in the order measured, seconds;
    ``noise_first_s`` and ``noise_second_s``: the A/A pairs, candidate against itself;
    ``reference_once_s`` and ``candidate_once_s`` (may be absent): work done once a prompt, timed apart. Its
    median, divided by ``facts["steps"]``, is added to every time of its arm;
    ``torch_compile_s`` with ``torch_compile_candidate_s``, ``no_cuda_graphs_s`` with
    ``no_cuda_graphs_candidate_s`` (may be absent): the pairs of what ``perf.also`` names, see
    :func:`beside_interval`.
``facts``
    ``sampling_plan``: the fields of :class:`~wan_trt_core.gates.statistics.SamplingPlan` that the pairs were
    sampled by (absent: the default plan); ``steps``: denoising steps of the case.
"""

from __future__ import annotations

import math
import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.limits import judge_finite, judge_limit, judge_limits
from wan_trt_core.gates.statistics import Interval, SamplingPlan, bias, noise_floor, ratio_interval
from wan_trt_core.gates.verdict import Check, Reason, Verdict

if TYPE_CHECKING:
    from wan_trt_core.cases import Limit, PerfGate
    from wan_trt_core.records import Measurement, Metric

SPEEDUP = "speedup"
REFERENCE, CANDIDATE = "reference_time", "candidate_time"


@dataclass(frozen=True)
class SpeedupRule:
    """What a speed-up is held to.

    Attributes:
        threshold: the least ratio of reference time to candidate time; ``None`` where none is asked, and the ratio only
            has to be known.
        plan: when the pairs are looked at and how sure the decision must be.
        noise: how far the candidate differed from itself, as :func:`statistics.noise_floor` gives it;
            ``None`` when it was not measured; shown, not judged by.
        bias: how much of that is proven, as :func:`statistics.bias` gives it.
        reference_extra: seconds added to every reference time (work done once a prompt, by its steps).
        candidate_extra: the same for the candidate.
        precision: no look but the last decides while half the interval is wider than this share of the ratio, as
            :func:`precision_of` gives it; ``None`` when the threshold alone decides.
        reason: for the threshold, told where it is missed or there is none.
    """

    threshold: float | None
    plan: SamplingPlan = field(default_factory=SamplingPlan)
    noise: float | None = None
    bias: float = 0.0
    reference_extra: float = 0.0
    candidate_extra: float = 0.0
    precision: float | None = None
    reason: str | None = None


def decide_speedup(
    reference: Sequence[float], candidate: Sequence[float], rule: SpeedupRule, *, final: bool = False
) -> Check | None:
    """Decide from the pairs so far, or ask for more.

    Every look that was due is taken in order and the first that decides stands, so that judging a stored
    record gives what was decided while measuring.

    Args:
        reference: seconds of the reference arm, one each pair, in the order measured.
        candidate: seconds of the candidate in the same pairs.
        final: no more pairs will come (the time budget ended, or the record is complete).

    Returns:
        The check, or ``None`` when more pairs are needed (never with ``final`` or at ``plan.max_pairs``).

    Raises:
        ValueError: when the arms differ in length or a time is not a positive number.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} reference times but {len(candidate)} candidate times: not pairs")
    a = [time + rule.reference_extra for time in reference]
    b = [time + rule.candidate_extra for time in candidate]
    interval: Interval | None = None
    looks = rule.plan.looks(len(a), final=final)
    for index, (count, tail) in enumerate(looks):
        interval = ratio_interval(a[:count], b[:count], tail)
        last = count == rule.plan.max_pairs or (final and index == len(looks) - 1)
        if rule.precision is not None and interval.half_width > rule.precision and not last:
            continue
        if rule.threshold is None:
            return _known(interval, rule)
        if interval.low >= rule.threshold:
            return _noise_too_high(interval, rule, rule.threshold) or _passed(interval, rule, rule.threshold)
        if interval.high < rule.threshold:
            return _noise_too_high(interval, rule, rule.threshold) or _failed(interval, rule, rule.threshold)
    if final or len(a) >= rule.plan.max_pairs:
        return _exhausted(interval, len(a), rule)
    return None


def precision_of(gate: PerfGate) -> float | None:
    """How well the speed-up must be known to be held to its band: half of the band, ``None`` without one.

    Half, so that the error of the ratio stays a small part of the band even where neighbouring pairs err alike and the
    interval is too narrow for that.
    """
    band = gate.bands.get(SPEEDUP)
    return band.rel / 2 if band else None


def judge_perf(gate: PerfGate, measurement: Measurement) -> tuple[Check, ...]:
    """The checks of a performance case that need no baseline."""
    from wan_trt_core.cases import BESIDE

    outputs = judge_finite(measurement.metrics) + judge_limits("outputs", gate.parity, measurement.metrics)
    beside = tuple(
        _judge_beside(name, metric, gate.limits[metric], measurement)
        for name, metric in BESIDE.items()
        if metric in gate.limits
    )
    return (_speedup_of(gate, measurement), *beside, *(_void_if_wrong(check) for check in outputs))


def hold_unresolved(checks: Sequence[Check], speedup: Check) -> tuple[Check, ...]:
    """The band checks, that of the speed-up undecided where its interval is wider than the band.

    Args:
        checks: of the bands.
        speedup: what :func:`judge_perf` said first, with its interval.
    """
    return tuple(_hold_unresolved(check, speedup) if check.metric == SPEEDUP else check for check in checks)


def _hold_unresolved(check: Check, speedup: Check) -> Check:
    band = check.evidence
    if "low" not in band or not (message := unresolved(speedup.evidence, (band["high"] - band["low"]) / 2)):
        return check
    return replace(check, verdict=Verdict.INCONCLUSIVE, reason=Reason.NOISE_TOO_HIGH, message=message)


def hold_times(
    checks: Sequence[Check], metrics: Mapping[str, Metric], command: str | None
) -> tuple[Check, ...]:
    """The band checks, those of times worse than their band undecided unless the engine is proven to be the cause.

    No change to an engine slows stock diffusers down, so where that is beyond its band the machine (or PyTorch) is not
    the one that the baseline knows, which says nothing of the candidate's time either: a ``reference_slower``. Else a
    candidate some of whose samples are not beyond the band is noise.

    Args:
        checks: of the bands.
        metrics: of the measurement; the samples of the times are looked at.
        command: that makes a new baseline, see :func:`~wan_trt_core.gates.bands.regenerate_command`; ``None`` where
            none can be made of the measurement, which no message advises then.
    """
    worse = {check.metric: check for check in checks if check.reason is Reason.WORSE_THAN_BAND}
    held: dict[str, Check] = {}
    if (reference := worse.get(REFERENCE)) is not None:
        held[REFERENCE] = _undecided(
            reference,
            Reason.REFERENCE_SLOWER,
            f"no change to an engine slows stock diffusers down; {_other_machine(command)}",
        )
    if (candidate := worse.get(CANDIDATE)) is not None:
        if reference is not None:
            why = (
                f"but stock diffusers is {reference.evidence['change']:+.1%} against its own baseline in the same run, "
                "so the machine is not the one that the baseline knows, and what is slow is not the engine alone; "
            )
            held[CANDIDATE] = _undecided(candidate, Reason.REFERENCE_SLOWER, why + _other_machine(command))
        elif why := _reaches_into(candidate.evidence["high"], metrics[CANDIDATE].samples):
            held[CANDIDATE] = _undecided(candidate, Reason.NOISE_TOO_HIGH, why)
    return tuple(held.get(check.metric, check) if check.gate == "band" else check for check in checks)


def _undecided(worse: Check, reason: Reason, why: str) -> Check:
    """A time that is worse than its band and fails nothing; ``why`` says that and what to do."""
    assert worse.value is not None and worse.limit is not None  # it was compared
    shown, bound = pair(worse.value, worse.limit, "s")
    told = f"baseline {quantity(worse.evidence['baseline'], 's')}, {worse.evidence['change']:+.1%}"
    message = f"{worse.metric} {shown} > {bound} is worse than its band ({told}); {why}"
    return replace(worse, verdict=Verdict.INCONCLUSIVE, reason=reason, message=message)


def _other_machine(command: str | None) -> str:
    quiet = "look for other load and for clocks and run again on a quiet machine"
    if command is None:
        return f"{quiet}, and mend first what the case fails beside this"
    return (
        f"{quiet}, or, where the machine, its driver or PyTorch changed for good, make a new baseline: "
        f"{command} --accept-regression REASON"
    )


def _reaches_into(high: float, samples: Sequence[float]) -> str:
    """Why a time whose median is over its band's end ``high`` (seconds) may be noise; empty where no sample says so."""
    within = [sample for sample in samples if sample <= high]
    if not within:
        return ""
    verb = "is" if len(within) == 1 else "are"
    return (
        f"but {len(within)} of its {len(samples)} samples {verb} not (the least is {quantity(min(within), 's')}), so "
        "noise is not ruled out; run again on a quiet machine, and find the cause if it stays"
    )


def unresolved(interval: Mapping[str, Any], width: float) -> str:
    """Why a speed-up says nothing about a band of ``width`` on each side; empty where its interval is as narrow.

    Args:
        interval: the evidence of the check of the speed-up; without ``low`` there is none to be too wide.
        width: as a ratio, like the interval.
    """
    if "low" not in interval or (off := (interval["high"] - interval["low"]) / 2) <= width:
        return ""
    return (
        f"the speed-up is known to {off:.3f}x only, its band is {width:.3f}x wide on each side; raise "
        "perf.time_budget or perf.max_pairs, or run on a quieter machine"
    )


def beside_interval(
    name: str, series: Mapping[str, Sequence[float]], facts: Mapping[str, Any]
) -> tuple[Interval, SpeedupRule]:
    """How many times faster the candidate is than what ``perf.also`` names, looked at once.

    The number of pairs was fixed beforehand, so the one look may spend all the error that the plan allows. Work that
    is done once a prompt counts as in the gate.

    Args:
        name: ``torch-compile`` or ``no-cuda-graphs``.
        series: of the measurement.
        facts: of the measurement.

    Raises:
        ValueError: when the series are not there, are no pairs, or hold impossible times.
    """
    rule = speedup_rule(1.0, series, facts)
    times, ours = (f"{name.replace('-', '_')}_{end}" for end in ("s", "candidate_s"))
    other, candidate = series.get(times, ()), series.get(ours, ())
    _require_times(**{times: other, ours: candidate})
    extra = rule.reference_extra if name == "torch-compile" else rule.candidate_extra
    interval = ratio_interval(
        [time + extra for time in other],
        [time + rule.candidate_extra for time in candidate],
        1 - rule.plan.confidence,
    )
    return interval, rule


def describe(interval: Interval, rule: SpeedupRule) -> str:
    """A ratio with its interval, for people."""
    return (
        f"{interval.point:.3f}x, {rule.plan.confidence:.0%} interval {interval.low:.3f}x to "
        f"{interval.high:.3f}x over {interval.pairs} pairs"
    )


def speedup_rule(
    threshold: float | None,
    measurement_series: Mapping[str, Sequence[float]],
    facts: Mapping[str, Any],
    precision: float | None = None,
) -> SpeedupRule:
    """The rule for a measurement's own plan, noise floor and once-a-prompt work.

    Raises:
        ValueError: when the series or facts are not what the module describes; the message names which.
    """
    plan = facts.get("sampling_plan", {})
    try:
        sampling = SamplingPlan(**plan)
    except TypeError as error:
        raise ValueError(f"facts['sampling_plan'] is {plan!r}: {error}") from error
    first = measurement_series.get("noise_first_s", ())
    second = measurement_series.get("noise_second_s", ())
    if len(first) != len(second):
        raise ValueError(f"noise_first_s has {len(first)} times, noise_second_s {len(second)}: not pairs")
    _require_times(noise_first_s=first, noise_second_s=second)
    return SpeedupRule(
        threshold,
        sampling,
        noise_floor(first, second) if first else None,
        bias(first, second) if first else 0.0,
        _extra(measurement_series, facts, "reference_once_s"),
        _extra(measurement_series, facts, "candidate_once_s"),
        precision,
    )


def _speedup_of(gate: PerfGate, measurement: Measurement) -> Check:
    reference = measurement.series.get("reference_s", ())
    candidate = measurement.series.get("candidate_s", ())
    if not reference or not candidate:
        return _missing(gate.speedup, "no paired times were measured")
    try:
        _require_times(reference_s=reference, candidate_s=candidate)
        rule = speedup_rule(gate.speedup, measurement.series, measurement.facts, precision_of(gate))
        rule = replace(rule, reason=gate.reason)
        if rule.noise is None:
            return _missing(gate.speedup, "the A/A noise floor was not measured")
        check = decide_speedup(reference, candidate, rule, final=True)
    except ValueError as error:
        message = f"the paired times cannot be judged: {error}"
        return Check("speedup", SPEEDUP, Verdict.INVALID, Reason.NOT_MEASURED, message, limit=gate.speedup)
    assert check is not None  # final always decides
    return check


def _judge_beside(name: str, metric: str, limit: Limit, measurement: Measurement) -> Check:
    """Hold the interval against a limit, which is a floor: a fail is as sure as a pass."""
    found = measurement.metrics.get(metric)
    if found is None or found.value is None:
        return judge_limit("beside", metric, limit, found)
    try:
        interval, rule = beside_interval(name, measurement.series, measurement.facts)
    except ValueError as error:
        message = f"the paired times of {name} cannot be judged: {error}"
        return Check("beside", metric, Verdict.INVALID, Reason.NOT_MEASURED, message, limit=limit.min)
    check = judge_limit(
        "beside", metric, limit, found.model_copy(update={"value": interval.low, "detail": ""})
    )
    message = f"{check.message}, at the lower end of {describe(interval, rule)}"
    if check.verdict is Verdict.FAIL and limit.min is not None and interval.high >= limit.min:
        check = replace(check, verdict=Verdict.INCONCLUSIVE, reason=Reason.BUDGET_EXHAUSTED)
        message += "; not decided: raise perf.also_pairs, or run on a quieter machine"
    return replace(check, message=message, evidence=_evidence(interval, rule))


def _missing(threshold: float | None, message: str) -> Check:
    return Check("speedup", SPEEDUP, Verdict.MISSING, Reason.METRIC_NOT_COMPUTED, message, limit=threshold)


def _require_times(**series: Sequence[float]) -> None:
    for name, times in series.items():
        bad = [time for time in times if not (math.isfinite(time) and time > 0)]
        if bad:
            raise ValueError(f"{name} holds {bad[0]!r}, not a positive number of seconds")


def _extra(series: Mapping[str, Sequence[float]], facts: Mapping[str, Any], name: str) -> float:
    times = series.get(name, ())
    if not times:
        return 0.0
    steps = facts.get("steps")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{name} was timed, but facts['steps'] is {steps!r}, not a positive whole number")
    _require_times(**{name: times})
    return stdlib_statistics.median(times) / steps


def _void_if_wrong(check: Check) -> Check:
    """What was timed is not the reference's output, so its speed means nothing."""
    if check.verdict is not Verdict.FAIL:
        return check
    reason = Reason.OUTPUTS_DIFFER if check.reason is Reason.BEYOND_LIMIT else check.reason
    verdict = Verdict.INVALID if reason is Reason.OUTPUTS_DIFFER else Verdict.FAIL
    message = f"the timed output is wrong, so its time means nothing: {check.message}"
    return Check(check.gate, check.metric, verdict, reason, message, check.value, check.limit)


def _evidence(interval: Interval, rule: SpeedupRule) -> dict[str, Any]:
    return {
        "low": interval.low,
        "high": interval.high,
        "pairs": interval.pairs,
        "confidence": rule.plan.confidence,
        "noise_floor": rule.noise,
    }


def _known(interval: Interval, rule: SpeedupRule) -> Check:
    told = f" ({rule.reason})" if rule.reason else ""
    message = f"{describe(interval, rule)}; no least speed-up is asked{told}"
    return _speedup(Verdict.PASS, Reason.NO_THRESHOLD, message, interval, rule)


def _passed(interval: Interval, rule: SpeedupRule, threshold: float) -> Check:
    low, bound = pair(interval.low, threshold, "x")
    message = f"at least {low}, {bound} is asked ({describe(interval, rule)})"
    return _speedup(Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD, message, interval, rule)


def _failed(interval: Interval, rule: SpeedupRule, threshold: float) -> Check:
    high, bound = pair(interval.high, threshold, "x")
    told = f"; limit: {rule.reason}" if rule.reason else ""
    message = f"at most {high}, {bound} is asked ({describe(interval, rule)}{told})"
    return _speedup(Verdict.FAIL, Reason.INTERVAL_BELOW_THRESHOLD, message, interval, rule)


def _noise_too_high(interval: Interval, rule: SpeedupRule, threshold: float) -> Check | None:
    margin = abs(math.log(interval.point / threshold))
    if rule.bias < margin:
        return None
    message = (
        f"the candidate differs from itself by {rule.bias:.1%} at least, no less than the {margin:.1%} between "
        f"{interval.point:.3f}x and the {threshold:g}x asked; run on a quieter machine"
    )
    return _speedup(Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH, message, interval, rule)


def _exhausted(interval: Interval | None, pairs: int, rule: SpeedupRule) -> Check:
    if interval is None:
        message = (
            f"the time budget ended after {pairs} of the {rule.plan.min_pairs} pairs that the first decision needs; "
            "raise perf.time_budget"
        )
        evidence = {"pairs": pairs, "noise_floor": rule.noise}
        return Check(
            "speedup",
            SPEEDUP,
            Verdict.INCONCLUSIVE,
            Reason.BUDGET_EXHAUSTED,
            message,
            limit=rule.threshold,
            evidence=evidence,
        )
    remedy = "raise perf.max_pairs" if pairs >= rule.plan.max_pairs else "raise perf.time_budget"
    message = (
        f"not decided: {describe(interval, rule)} straddles the {rule.threshold:g}x asked; {remedy}, "
        "or run on a quieter machine"
    )
    return _speedup(Verdict.INCONCLUSIVE, Reason.BUDGET_EXHAUSTED, message, interval, rule)


def _speedup(verdict: Verdict, reason: Reason, message: str, interval: Interval, rule: SpeedupRule) -> Check:
    evidence = _evidence(interval, rule)
    return Check(
        "speedup", SPEEDUP, verdict, reason, message, interval.point, rule.threshold, evidence=evidence
    )
