"""What changed between two runs, or between stored baselines and new ones: one table, the worst first.

``wan-trt report compare`` and ``wan-trt baselines regenerate`` show the same rows, in the terminal and as Markdown.
A comparison is for people and no gate: the gates hold each run against its limits and its baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from wan_trt_core.baselines import ORIGIN, Change, Row
from wan_trt_core.cases import Suite
from wan_trt_core.gates.bands import BaselineMetric, Tolerance, position, usable
from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.verdict import SEVERITY, Reason, Verdict
from wan_trt_core.records import CaseRecord, CheckRecord, RunRecord
from wan_trt_core.report.summary import WHY

HEADROOM = 0.5
"""A limited metric whose distance to its limit shrinks below this share of what it was is told, though it passes."""


Cases = Mapping[tuple[Suite, str], CaseRecord]
"""By suite and case."""


class Weight(IntEnum):
    """How much a row matters to who reviews it; the worst first."""

    FAILED = 0
    WORSE = 1
    NOTABLE = 2
    UNCHANGED = 3


@dataclass(frozen=True)
class MetricChange:
    """Old and new value of one metric of one case, in ``unit``.

    Attributes:
        allowed: how far it may move, or what it is held to, for people.
        outcome: what the change means, in a few words.
        moved: the change over what is allowed; rows of one weight are sorted by it.
    """

    case: str
    suite: str
    metric: str
    unit: str
    old: float | None
    new: float | None
    allowed: str
    outcome: str
    weight: Weight
    moved: float = 0.0

    @property
    def values(self) -> tuple[str, str]:
        """Old and new as people read them, in one unit; empty where there is none."""
        if self.old is not None and self.new is not None:
            return pair(self.old, self.new, self.unit)
        old, new = (quantity(value, self.unit) if value is not None else "" for value in (self.old, self.new))
        return old, new

    @property
    def change(self) -> str:
        """The relative change, ``+1.5%``; empty unless there is one."""
        return f"{self.new / self.old - 1:+.1%}" if self.old and self.new is not None else ""


@dataclass(frozen=True)
class VerdictChange:
    """A case that is new, gone, judged otherwise than before, or still does not pass.

    Attributes:
        before: verdict and reason, empty where the case is new.
        after: the same, empty where the case is gone.
        why: what decided it now, empty where it passes.
    """

    case: str
    suite: str
    before: str
    after: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        summary: one line: how many cases got worse, better, came or went.
        notes: what a reader must know before the numbers: other hardware, other weights.
        verdicts: the worst first, without the cases that pass as before.
        metrics: the worst first.
    """

    summary: str
    notes: tuple[str, ...]
    verdicts: tuple[VerdictChange, ...]
    metrics: tuple[MetricChange, ...]


def worst_first(changes: Iterable[MetricChange]) -> tuple[MetricChange, ...]:
    """By weight, then by how far a metric moved, then by name."""
    return tuple(sorted(changes, key=lambda row: (row.weight, -row.moved, row.suite, row.case, row.metric)))


def baseline_changes(suite: str, rows: Iterable[Row]) -> tuple[MetricChange, ...]:
    """The rows of a change of baselines; what needs a reason is worse."""

    def weight(row: Row) -> Weight:
        unchanged = Weight.UNCHANGED if row.kind is Change.WITHIN_BAND else Weight.NOTABLE
        return Weight.WORSE if row.loosens else unchanged

    return tuple(
        MetricChange(
            row.case,
            suite,
            row.metric,
            row.unit,
            row.old,
            row.new,
            _tolerance(row.tolerance, row.unit),
            row.kind.value,
            weight(row),
            _moved(row.old, row.new, row.tolerance),
        )
        for row in rows
    )


def compare_runs(before: RunRecord, after: RunRecord) -> Comparison:
    """What ``after`` changes against ``before``: verdicts of all cases, and every metric that a gate holds.

    Metrics are compared only where the hardware, the backend and the weights are the same.
    """
    old, new = (_cases(before), _cases(after))
    keys = sorted(old.keys() | new.keys())
    verdicts = [change for key in keys if (change := _verdict_change(old.get(key), new.get(key))) is not None]
    notes, metrics = [], []
    same_hardware = before.hardware_key == after.hardware_key
    if not same_hardware:
        notes.append(
            f"the hardware differs ({before.hardware_key}, {after.hardware_key}): numbers are not compared"
        )
    for key in keys if same_hardware else ():
        if key not in old or key not in new:
            continue
        if other := [name for name in ORIGIN if old[key].origin[name] != new[key].origin[name]]:
            names = " and ".join(
                f"{name} ({old[key].origin[name]}, {new[key].origin[name]})" for name in other
            )
            notes.append(f"{key[1]} ({key[0]}): other {names}, so its numbers are not compared")
            continue
        metrics += _metric_changes(old[key], new[key])
    return Comparison(
        _summary(old, new),
        tuple(notes),
        tuple(verdict for _, verdict in sorted(verdicts, key=lambda found: found[0])),
        worst_first(metrics),
    )


def _cases(run: RunRecord) -> Cases:
    return {(case.suite, case.case): case for case in run.cases}


def _summary(old: Cases, new: Cases) -> str:
    def severity(case: CaseRecord) -> int:
        return SEVERITY.index(case.verdict)

    both = old.keys() & new.keys()
    counts = {
        "worse": sum(severity(new[key]) < severity(old[key]) for key in both),
        "better": sum(severity(new[key]) > severity(old[key]) for key in both),
        "new": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "with the same verdict": sum(severity(new[key]) == severity(old[key]) for key in both),
    }
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    number = len(old.keys() | new.keys())
    return f"{number} {'case' if number == 1 else 'cases'}: {found}" if found else "no case was judged"


def _verdict_change(
    old: CaseRecord | None, new: CaseRecord | None
) -> tuple[tuple[int, str, str], VerdictChange] | None:
    """The change with its place in the table; ``None`` where a case passes as it did."""
    case = new or old
    assert case is not None
    before, after = (f"{found.verdict.value} ({found.reason.value})" if found else "" for found in (old, new))
    if before == after and case.verdict is Verdict.PASS:
        return None
    # nothing judges a case that is gone: as bad as one that misses its numbers
    place = SEVERITY.index(new.verdict if new else Verdict.MISSING)
    why = "" if new is None or new.verdict is Verdict.PASS else new.message
    return (place, case.suite, case.case), VerdictChange(case.case, case.suite, before, after, why)


def _metric_changes(old: CaseRecord, new: CaseRecord) -> list[MetricChange]:
    """One row for every metric that a gate of either run holds."""
    names = {check.metric for case in (old, new) for check in case.checks}
    values = old.measurement.metrics | new.measurement.metrics
    return [_metric_change(old, new, name) for name in sorted(names & values.keys())]


def _metric_change(old: CaseRecord, new: CaseRecord, name: str) -> MetricChange:
    before, after = (case.measurement.metrics.get(name) for case in (old, new))
    metric = after or before
    assert metric is not None
    checks = [_checks(case, name) for case in (old, new)]
    held = checks[1] or checks[0]
    values = (before.value if before else None, after.value if after else None)
    tolerance = next((found for check in held if (found := _band(check)) is not None), None)
    limit = next((check.limit for check in held if check.gate != "band" and check.limit is not None), None)
    allowed = (
        [f"{'>=' if metric.better == 'higher' else '<='} {quantity(limit, metric.unit)}"]
        if limit is not None
        else []
    )
    allowed += [_tolerance(tolerance, metric.unit)] if tolerance else []
    outcome, weight = _outcome(values, metric.better, tolerance, limit, checks)
    failed = next((c for c in checks[1] if c.verdict is not Verdict.PASS and not c.advisory), None)
    if failed is not None:
        outcome, weight = WHY[failed.reason], Weight.FAILED
    if before and after and before.unit != after.unit:
        outcome, weight = Change.OTHER_UNIT.value, Weight.WORSE
    moved = _moved(*values, tolerance or Tolerance(1.0, 0.0, ""))
    return MetricChange(
        new.case, new.suite, name, metric.unit, *values, ", ".join(allowed), outcome, weight, moved
    )


def _outcome(
    values: tuple[float | None, float | None],
    better: str,
    tolerance: Tolerance | None,
    limit: float | None,
    checks: Sequence[Sequence[CheckRecord]],
) -> tuple[str, Weight]:
    """What a change means where every gate passes: against the band, the interval of a ratio, or the headroom."""
    old, new = values
    if old is None or new is None:
        gone = (Change.REMOVED.value, Weight.WORSE)
        return gone if new is None else (Change.NEW.value, Weight.NOTABLE)
    if old == new:
        return "unchanged", Weight.UNCHANGED
    improved = (new > old) == (better == "higher")
    moved = (Change.BETTER.value, Weight.NOTABLE) if improved else (Change.WORSE.value, Weight.WORSE)
    if tolerance is not None and usable(old):
        stored = BaselineMetric(old, "", "higher" if better == "higher" else "lower", tolerance)
        within = position(new, stored) is Reason.WITHIN_BAND
        return (Change.WITHIN_BAND.value, Weight.UNCHANGED) if within else moved
    intervals = [_interval(found) for found in checks]
    if intervals[0] and intervals[1]:
        apart = intervals[0][1] < intervals[1][0] or intervals[1][1] < intervals[0][0]
        return moved if apart else ("within noise", Weight.UNCHANGED)
    if limit is not None and abs(new - limit) < HEADROOM * abs(old - limit):
        return "closer to its limit", Weight.NOTABLE
    return WHY[Reason.WITHIN_LIMIT], Weight.UNCHANGED


def _checks(case: CaseRecord, metric: str) -> list[CheckRecord]:
    return [check for check in case.checks if check.metric == metric]


def _band(check: CheckRecord) -> Tolerance | None:
    """The band of a check that held a metric against its baseline."""
    found = check.evidence
    if check.gate != "band" or "rel" not in found:
        return None
    return Tolerance(found["rel"], found["abs"], "")


def _interval(checks: Iterable[CheckRecord]) -> tuple[float, float] | None:
    """The interval of a ratio: of a check that says how many pairs it is over."""
    for check in checks:
        if "pairs" in check.evidence and "low" in check.evidence:
            return float(check.evidence["low"]), float(check.evidence["high"])  # JSON has infinity as a text
    return None


def _moved(old: float | None, new: float | None, tolerance: Tolerance) -> float:
    """The change over what is allowed; without end where there is nothing to compare."""
    if old is None or new is None or not math.isfinite(new - old):
        return math.inf
    width = tolerance.width(abs(old))
    return abs(new - old) / width if width else 0.0


def _tolerance(tolerance: Tolerance, unit: str) -> str:
    parts = [f"{tolerance.rel:.3g}" if tolerance.rel < 0.0005 else f"{tolerance.rel:.1%}"]
    if tolerance.abs:
        parts.append(quantity(tolerance.abs, unit))
    return " or ".join(parts)
