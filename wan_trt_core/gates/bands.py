"""The one band rule: a metric must stay near its baseline, in both directions.

Worse than the band fails. Better than the band passes but asks for a new baseline, because a stale one would
let the next slow-down of the same size through unseen; under strict improvements it fails, so that the change which
brings a gain brings its baseline too. What a worse time proves :func:`wan_trt_core.gates.perf.hold_times` decides.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.limits import not_finite
from wan_trt_core.gates.verdict import Check, Reason, Verdict

if TYPE_CHECKING:
    from wan_trt_core.cases import Band
    from wan_trt_core.records import Metric

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Tolerance:
    """How far a metric may be from its baseline: the larger of ``rel`` (a fraction) and ``abs``."""

    rel: float
    abs: float
    reason: str

    def width(self, value: float) -> float:
        """Half the band around ``value``, in the metric's unit."""
        return max(self.rel * value, self.abs)

    def looser_than(self, other: Tolerance) -> bool:
        """Some metric near its baseline passes here that did not pass there."""
        return self.rel > other.rel or self.abs > other.abs

    def same_width(self, other: Tolerance) -> bool:
        """Equal but for the reason given."""
        return (self.rel, self.abs) == (other.rel, other.abs)


@dataclass(frozen=True)
class BaselineMetric:
    """One stored quantity.

    Attributes:
        value: median over ``n`` independent runs, in ``unit`` (seconds, bytes …).
        spread: (largest - smallest) / median over those runs; 0 for a single run.
        samples: the value of each run.
        tolerance: the band it was accepted with.
    """

    value: float
    unit: str
    better: Better
    tolerance: Tolerance
    n: int = 1
    spread: float = 0.0
    samples: tuple[float, ...] = ()


@dataclass(frozen=True)
class ObservedMetric:
    """A number that a run showed and that nothing judges.

    Attributes:
        value: in ``unit`` (seconds, bytes, x …).
        low: lower end of the interval of a ratio, as its gate took it, over ``pairs`` pairs; ``None`` without one.
        high: upper end.
        points: the value at each point of the profile (``min``, ``opt``, ``max``), of which ``value`` is the worst;
            empty where there is only one.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    pairs: int | None = None
    points: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What a run showed beside the judged metrics.

    Attributes:
        commit: that was measured: the run need not be the one that set the bands.
        date: when, as the run's record has it.
        metrics: by name. Where the run is another one than that of the entry, also its own value of every banded
            metric that differs, so that all of these numbers are of one run.
        settings: that decide these numbers and were not the defaults, see :mod:`wan_trt_core.deciding_settings`; of
            torch.compile too where it was timed beside. ``None`` where files of older releases do not say.
    """

    commit: str
    date: str
    metrics: Mapping[str, ObservedMetric]
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BaselineEntry:
    """What is stored for one case of one suite: metrics by name, and where they come from.

    Attributes:
        kernels: the candidate's :func:`~wan_trt_core.measure.kernels.breakdown` of a perf run, with group times and
            total of the ``reference``; ``None`` where no run had one. It judges nothing: it explains a failure.
        observed: the speed-ups, stock diffusers' memory and whatever else the numbers are to be seen beside. It judges
            nothing either; ``None`` where no run left any.
    """

    metrics: Mapping[str, BaselineMetric]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    kernels: Mapping[str, Any] | None = None
    observed: Observed | None = None


def band_limits(baseline: BaselineMetric, tolerance: Tolerance | None = None) -> tuple[float, float]:
    """Lower and upper end of the band, in the metric's unit."""
    width = (tolerance or baseline.tolerance).width(baseline.value)
    return baseline.value - width, baseline.value + width


def position(value: float, baseline: BaselineMetric, tolerance: Tolerance | None = None) -> Reason:
    """Where ``value`` lies: ``WITHIN_BAND``, ``WORSE_THAN_BAND`` or ``BETTER_THAN_BAND``."""
    low, high = band_limits(baseline, tolerance)
    if low <= value <= high:
        return Reason.WITHIN_BAND
    better = value > high if baseline.better == "higher" else value < low
    return Reason.BETTER_THAN_BAND if better else Reason.WORSE_THAN_BAND


def usable(value: float) -> bool:
    """A baseline value is finite and positive: zero would make a relative band empty or the gate a no-op."""
    return math.isfinite(value) and value > 0


def regenerate_command(suite: str, case: str | None = None, run: Sequence[str] = ()) -> str:
    """The command that makes the baseline of one case, or of the whole suite.

    Args:
        run: the command line of the run that asks for it, whose case file and folder of baselines it names too.
    """
    command = ["wan-trt", "baselines", "regenerate", "--suite", suite]
    if case:
        command += ["--case", case]
    for name in ("--wan-cases", "--wan-baselines"):
        joined = f"{name}="
        values = [given.removeprefix(joined) for given in run if given.startswith(joined)]
        values += [value for given, value in pairwise(run) if given == name]
        if values:
            command += [name.replace("wan-", ""), values[-1]]
    return shlex.join(command)


def judge_bands(
    case: str,
    suite: str,
    bands: Mapping[str, Band],
    metrics: Mapping[str, Metric],
    baseline: BaselineEntry | None,
    *,
    bands_for_hardware: bool,
    require_bands: bool,
    strict_improvements: bool = False,
    acceptable: bool = True,
    run: Sequence[str] = (),
) -> tuple[Check, ...]:
    """Hold the banded metrics of a case against its baseline.

    Args:
        bands: which metrics are banded and how wide, as the case file says.
        baseline: the stored entry; ``None`` when this hardware's file has none.
        bands_for_hardware: whether this hardware has a baseline file for the model and suite at all.
        require_bands: a machine without baselines fails too (GPU CI), else it is only reported.
        strict_improvements: a metric that is better than its band fails until it has a new baseline.
        acceptable: a baseline may be made of the measurement; where not, no message advises it for what is worse
            or better.
        run: see :func:`regenerate_command`.
    """
    command = regenerate_command(suite, case, run)
    accept = f", or accept it with: {command} --accept-regression REASON" if acceptable else ""
    if not bands_for_hardware:
        return tuple(
            Check(
                "band",
                name,
                Verdict.MISSING,
                Reason.NO_BANDS_FOR_HARDWARE,
                f"this hardware has no {suite} baselines, so {name} is held to no band; "
                f"make them with: {command}",
                value=_value(metrics, name),
                advisory=not require_bands,
            )
            for name in sorted(bands)
        )
    stored = baseline.metrics if baseline else {}
    checks = [
        _one(name, bands[name], metrics.get(name), stored.get(name), command, accept, strict_improvements)
        for name in sorted(bands)
    ]
    for name in sorted(set(stored) - set(bands)):
        if name in metrics:
            message = f"the baseline holds {name}, which the case has no band for"
            checks.append(
                _check(name, Verdict.INVALID, Reason.METRIC_UNEXPECTED, f"{message}; {_remake(command)}")
            )
        else:
            message = f"the baseline holds {name}, which was not measured and has no band"
            checks.append(
                _check(name, Verdict.MISSING, Reason.METRIC_VANISHED, f"{message}; {_remake(command)}")
            )
    return tuple(checks)


def _one(
    name: str,
    band: Band,
    metric: Metric | None,
    stored: BaselineMetric | None,
    command: str,
    accept: str,
    strict: bool,
) -> Check:
    value = metric.value if metric else None
    if stored is None:
        message = f"no baseline for {name}; make it with: {command}"
        return _check(name, Verdict.MISSING, Reason.NO_BASELINE, message, value)
    if not usable(stored.value):
        message = f"the baseline of {name} is {stored.value!r}, not a positive number; {_remake(command)}"
        return _check(name, Verdict.INVALID, Reason.BASELINE_INVALID, message, value)
    if metric is None or value is None:
        why = f" ({metric.detail})" if metric and metric.detail else ""
        message = f"the baseline holds {name}, which was not measured{why}; mend that, or {_remake(command)}"
        return _check(name, Verdict.MISSING, Reason.METRIC_VANISHED, message)
    if (metric.unit, metric.better) != (stored.unit, stored.better):
        message = (
            f"the baseline of {name} is in {stored.unit or 'no unit'} ({stored.better} is better), "
            f"measured was {metric.unit or 'no unit'} ({metric.better}); {_remake(command)}"
        )
        return _check(name, Verdict.INVALID, Reason.BASELINE_INVALID, message, value)
    tolerance = Tolerance(band.rel, band.abs, band.reason)
    if not tolerance.same_width(stored.tolerance):
        message = (
            f"the case file allows {name} {_width(tolerance)}, its baseline was accepted with "
            f"{_width(stored.tolerance)}; {_remake(command)}"
        )
        return _check(name, Verdict.INVALID, Reason.BASELINE_INVALID, message, value)
    if not math.isfinite(value):
        return not_finite("band", name, metric)
    return _compare(name, value, stored, command, accept, strict, metric.detail)


def _compare(
    name: str, value: float, stored: BaselineMetric, command: str, accept: str, strict: bool, detail: str
) -> Check:
    reason = position(value, stored)
    low, high = band_limits(stored)
    limit = low if value < stored.value else high
    change = value / stored.value - 1
    shown, bound = pair(value, limit, stored.unit)
    base = quantity(stored.value, stored.unit)
    evidence = {
        "baseline": stored.value,
        "rel": stored.tolerance.rel,
        "abs": stored.tolerance.abs,
        "low": low,
        "high": high,
        "change": change,
    }
    if reason is Reason.WITHIN_BAND:
        worse = low if stored.better == "higher" else high
        message = f"{name} {shown} is within its band (baseline {base}, {change:+.1%})"
        return Check("band", name, Verdict.PASS, reason, message, value, worse, evidence=evidence)
    sign = "<" if value < limit else ">"
    if reason is Reason.BETTER_THAN_BAND:
        keep = f"; keep the gain with a new baseline: {command}" if accept else ""
        message = (
            f"{name} {shown} {sign} {bound} is better than its band (baseline {base}, {change:+.1%}){keep}"
        )
        verdict = Verdict.FAIL if strict else Verdict.PASS
        return Check("band", name, verdict, reason, message, value, limit, evidence=evidence)
    told = "; ".join(filter(None, (f"baseline {base}, {change:+.1%}", detail)))
    message = f"{name} {shown} {sign} {bound} is worse than its band ({told}); find the cause{accept}"
    return Check("band", name, Verdict.FAIL, reason, message, value, limit, evidence=evidence)


def _check(name: str, verdict: Verdict, reason: Reason, message: str, value: float | None = None) -> Check:
    return Check("band", name, verdict, reason, message, value)


def _value(metrics: Mapping[str, Metric], name: str) -> float | None:
    metric = metrics.get(name)
    return metric.value if metric else None


def _remake(command: str) -> str:
    return f"make the baseline again: {command}"


def _width(tolerance: Tolerance) -> str:
    return f"rel {tolerance.rel:g}, abs {tolerance.abs:g}"
