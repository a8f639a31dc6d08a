"""Verdicts, their reason codes, and how the checks of one case add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar


class Verdict(StrEnum):
    """Outcome of a gate. Only ``PASS`` lets a merge through."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    MISSING = "missing"


SEVERITY = (Verdict.FAIL, Verdict.INVALID, Verdict.MISSING, Verdict.INCONCLUSIVE, Verdict.PASS)
"""Most severe first: the verdict of a case is that of its most severe check."""


class Reason(StrEnum):
    """Stable machine-readable reason codes. A code is never renamed, only added."""

    WITHIN_LIMIT = "within_limit"
    BEYOND_LIMIT = "beyond_limit"
    WITHIN_BAND = "within_band"
    WORSE_THAN_BAND = "worse_than_band"
    BETTER_THAN_BAND = "better_than_band"
    NO_BANDS_FOR_HARDWARE = "no_bands_for_hardware"
    NO_BASELINE = "no_baseline"
    BASELINE_INVALID = "baseline_invalid"
    METRIC_VANISHED = "metric_vanished"
    METRIC_UNEXPECTED = "metric_unexpected"
    METRIC_NOT_COMPUTED = "metric_not_computed"
    NON_FINITE = "non_finite"
    INTERVAL_ABOVE_THRESHOLD = "interval_above_threshold"
    INTERVAL_BELOW_THRESHOLD = "interval_below_threshold"
    NO_THRESHOLD = "no_threshold"
    BUDGET_EXHAUSTED = "budget_exhausted"
    NOISE_TOO_HIGH = "noise_too_high"
    REFERENCE_SLOWER = "reference_slower"
    OUTPUTS_DIFFER = "outputs_differ"
    SETTINGS_DIFFER = "settings_differ"
    FALLBACK_TO_PYTORCH = "fallback_to_pytorch"
    ENGINE_NOT_AS_PLANNED = "engine_not_as_planned"
    THROTTLED = "throttled"
    NOT_MEASURED = "not_measured"
    GROWTH = "growth"
    NO_GROWTH = "no_growth"
    UNATTRIBUTED = "unattributed"
    WITHIN_BUDGET = "within_budget"
    OVER_BUDGET = "over_budget"


@dataclass(frozen=True)
class Check:
    """What one gate decided about one quantity.

    Attributes:
        gate: which rule spoke (``floor``, ``band``, ``speedup``, ``noise_floor``, ``growth`` …).
        metric: the measured quantity's name.
        message: one sentence for a person, with the numbers and, unless it passed, what to do next.
        value: the measured number in the metric's unit, if there is one.
        limit: what it was held against.
        advisory: reported, but does not decide (bands on hardware that has none, unless required).
    """

    gate: str
    metric: str
    verdict: Verdict
    reason: Reason
    message: str
    value: float | None = None
    limit: float | None = None
    advisory: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)


class Decided(Protocol):
    """What :func:`deciding` looks at: a :class:`Check`, or one as stored."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def advisory(self) -> bool: ...


AnyCheck = TypeVar("AnyCheck", bound=Decided)


def deciding(checks: Iterable[AnyCheck]) -> AnyCheck | None:
    """The most severe check that is not advisory; ``None`` where there is none.

    Of those that passed the first that is better than its baseline decides, so that the case's reason asks for a new
    one; of those that failed such a check decides last, for the others are worse news.
    """
    return min(
        (check for check in checks if not check.advisory),
        key=lambda check: (
            SEVERITY.index(check.verdict),
            (check.reason is Reason.BETTER_THAN_BAND) != (check.verdict is Verdict.PASS),
        ),
        default=None,
    )


def decide(checks: Iterable[Check]) -> Check:
    """The check that decides a case, see :func:`deciding`.

    Raises:
        ValueError: when no check decides; a case that nothing judged must never count as passed.
    """
    if (decisive := deciding(checks)) is None:
        raise ValueError("no check decides this case: a gate must never be a no-op")
    return decisive
