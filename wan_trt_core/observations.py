"""What a baseline keeps of a run although nothing judges it: the numbers that the judged ones are to be seen beside.

For perf the speed-up over each reference and the gain of CUDA graphs, each with its interval; for every suite the
metrics that a limit of the case file holds without a band; for memory what the run took of a GPU, what the caches and
stock diffusers did, what is nobody's, and the budget that held it, where one did. A run that is within the bands leaves
the judged numbers as they are, so that noise does not creep into them; what is observed therefore names its own commit
and date.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wan_trt_core.deciding_settings import in_words
from wan_trt_core.gates.bands import BaselineEntry, Observed, ObservedMetric
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.gates.memory import BUDGET, UNATTRIBUTED
from wan_trt_core.gates.perf import SPEEDUP, beside_interval
from wan_trt_core.models.profiles import POINTS
from wan_trt_core.records import OF_REFERENCE

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.records import CaseRecord, Measurement, Metric

CACHES = "engine_caches"
OF_DEVICE = ("device_used", "device_peak_allocated")
"""What a GPU's cases have bands on; a case for every machine has none, and takes of a GPU all the same."""


def observed(
    case: Case,
    suite: Suite,
    runs: Sequence[CaseRecord],
    commit: str,
    date: str,
    settings: Mapping[str, Any] | None = None,
) -> Observed | None:
    """What independent runs of one case showed; ``None`` where none has a number that the baseline does not hold.

    Args:
        case: as the case file has it.
        suite: whose baseline it is.
        runs: of one commit; each number is that of the run whose value is the median (of an even count the lesser).
        commit: that they measured.
        date: of the first of them.
        settings: under which they ran, as :class:`~wan_trt_core.gates.bands.Observed` has them.
    """
    found = [dict(_shown(case, suite, run)) for run in runs]
    metrics = {}
    for name in dict.fromkeys(name for each in found for name in each):
        ranked = sorted((each[name] for each in found if name in each), key=lambda metric: metric.value)
        metrics[name] = ranked[(len(ranked) - 1) // 2]
    return Observed(commit, date, metrics, settings) if metrics else None


def beside(entry: BaselineEntry, run: BaselineEntry) -> BaselineEntry:
    """A stored entry that keeps its judged numbers, with what another run within its bands showed.

    Where that run's own value of a judged metric is another one, it is observed too: what is observed is of one run.
    """
    if run.observed is None:
        return entry
    own = {
        name: ObservedMetric(metric.value, metric.unit)
        for name, metric in run.metrics.items()
        if name not in run.observed.metrics and metric.value != entry.metrics[name].value
    }
    return replace(entry, observed=replace(run.observed, metrics={**run.observed.metrics, **own}))


def seen(entry: BaselineEntry, name: str) -> ObservedMetric | None:
    """One number of the run that was observed, or, where none was, of the run that set the bands."""
    if entry.observed and (found := entry.observed.metrics.get(name)):
        return found
    judged = entry.metrics.get(name)
    return ObservedMetric(judged.value, judged.unit) if judged else None


def extent(metric: ObservedMetric) -> str:
    """The interval of a number, or the number at each point, for people; empty where there is neither."""
    if metric.points:
        told = ((point, metric.points[point]) for point in POINTS if point in metric.points)
        return ", ".join(f"{point} {quantity(value, metric.unit)}" for point, value in told)
    if metric.low is None or metric.high is None:
        return ""
    return (
        f"{quantity(metric.low, metric.unit)} to {quantity(metric.high, metric.unit)}, {metric.pairs} pairs"
    )


def origin_of(observed: Observed) -> str:
    """Where it was observed and with which settings, for people: ``observed at 86e5753 with threads=2``."""
    told = in_words(observed.settings or {})
    return f"observed at {observed.commit[:7]}{f' with {told}' if told else ''}"


def commit_of(entry: BaselineEntry) -> str:
    """The commit that :func:`seen` tells of."""
    return entry.observed.commit if entry.observed else str(entry.provenance["commit"])


def _shown(case: Case, suite: Suite, run: CaseRecord) -> Iterator[tuple[str, ObservedMetric]]:
    for name in _names(case, suite, run.measurement):
        metric = run.measurement.metrics.get(name)
        if metric is None or metric.value is None or not math.isfinite(metric.value) or metric.value < 0:
            continue
        plain = ObservedMetric(metric.value, metric.unit)
        if suite == "perf":
            yield name, _with_interval(name, plain, run)
        else:
            yield name, replace(plain, points=_points(case, suite, metric))
    if suite == "memory" and (budget := run.measurement.facts.get(BUDGET)):
        yield BUDGET, ObservedMetric(float(budget["bytes"]), "B")


def _names(case: Case, suite: Suite, measurement: Measurement) -> dict[str, None]:
    """Of the metrics that are observed, in order."""
    from wan_trt_core.cases import BESIDE
    from wan_trt_core.gates.judging import gate_bands

    if suite == "perf" and case.perf:
        names = [SPEEDUP, *BESIDE.values(), *case.perf.parity]
        return dict.fromkeys(names)  # a band on the speed-up has no interval, so it is not left out
    if suite == "parity" and case.parity:
        names = [*case.parity.limits]
    elif case.memory:
        names = [*OF_DEVICE, CACHES, UNATTRIBUTED, *case.memory.limits]
        names += [
            name
            for name, metric in measurement.metrics.items()
            if name.startswith(OF_REFERENCE) and "." not in name and metric.unit == "B"
        ]
    bands = gate_bands(case, suite)
    return dict.fromkeys(name for name in names if name not in bands)


def _with_interval(name: str, plain: ObservedMetric, run: CaseRecord) -> ObservedMetric:
    """As the gate took it when it decided: the look at which it did depends on the threshold of then."""
    from wan_trt_core.cases import BESIDE

    if name == SPEEDUP:
        for check in run.checks:
            told = check.evidence
            if check.gate == SPEEDUP and check.value is not None and "low" in told:
                return ObservedMetric(check.value, plain.unit, told["low"], told["high"], told["pairs"])
    for asked, metric in BESIDE.items():
        if metric == name:
            interval, _ = beside_interval(asked, run.measurement.series, run.measurement.facts)
            return replace(plain, low=interval.low, high=interval.high, pairs=interval.pairs)
    return plain


def _points(case: Case, suite: Suite, metric: Metric) -> Mapping[str, float]:
    """A component is compared at every point of its profile, and a parity metric's samples are of these."""
    whole = case.component != "pipeline" and suite == "parity" and len(metric.samples) == len(POINTS)
    return dict(zip(POINTS, metric.samples, strict=True)) if whole else {}
