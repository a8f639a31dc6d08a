"""Statistics of paired timings: an interval for their ratio, and when one may look at it.

Where the method comes from (``docs/gates.md`` has the formulas, and how often the gate that is built on them errs):

* the ratio of each pair, because what slows both arms of a pair cancels in it: Kalibera and Jones, "Rigorous
  Benchmarking in Reasonable Time", ISMM 2013, for why the ratio is what has to get an interval;
* their centre is the median of the averages of any two log ratios, and its interval counts the same averages off from
  both ends as the exact distribution of the signed ranks allows: Hodges and Lehmann, Annals of Mathematical Statistics
  34 (1963); Wilcoxon, Biometrics Bulletin 1 (1945); Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods",
  section 3.3. It asks that log ratios lie symmetrically, not that they are normal;
* that interval reaches out to the odd pairs as soon as they are more than about one in ten, which under a clock with
  two states they are. The signs alone allow for one in four: an order statistic of the log ratios, counted off by the
  binomial distribution (the same book, section 3.6), is wider where all is well and narrower there. Both hold, each
  with half of the error, so their intersection does;
* ranks and signs of ``n`` pairs err at least once in ``2**n``. Where that is more than the error allowed, the interval
  is Student's of the mean log ratio, which does ask for normal noise and is too wide, not too narrow, under outliers;
* looking again after more pairs would add errors up, so the error allowed is spent over the looks as
  pairs come in: Lan and DeMets, Biometrika 70 (1983), their spending function
  ``alpha * ln(1 + (e - 1) * t)``, which favours early looks, for one half of the error and the other half for the last
  look, each look taking its own share (Bonferroni, so it holds for any dependence between looks).

The ratio of both arms' medians is not used: where a clock has two states it jumps from one to the other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations
from statistics import median
from typing import Any

LAST_LOOK = 0.5
"""Share of the allowed error that is kept for the look at all pairs: without it, that look would be left with a
fiftieth, and runs with outliers or two clocks would end undecided (``benchmarks/gate_power.py``)."""

BIAS_TAIL = 0.05
"""Chance that a difference of the candidate from itself is called proven where there is none, on each side."""

DRIFT_TAIL = 0.005
"""The same for a drift of the machine: one run in a hundred tells of one that is none."""


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a ratio, each side wrong with probability at most ``tail``."""

    low: float
    point: float
    high: float
    tail: float
    pairs: int

    @property
    def half_width(self) -> float:
        """Half the interval, on the log scale: about the share of the ratio that it may be off by."""
        return math.log(self.high / self.low) / 2


@dataclass(frozen=True)
class SamplingPlan:
    """When the pairs are looked at, and how sure a decision must be.

    Attributes:
        min_pairs: pairs before the first look.
        max_pairs: pairs at which sampling ends.
        step: pairs between looks.
        confidence: a wrong pass, and a wrong fail, each happen with probability at most ``1 - confidence``
            over all looks together.
    """

    min_pairs: int = 3
    max_pairs: int = 30
    step: int = 2
    confidence: float = 0.99

    def __post_init__(self) -> None:
        if not 3 <= self.min_pairs <= self.max_pairs:
            raise ValueError(
                f"sampling plan: min_pairs {self.min_pairs} and max_pairs {self.max_pairs}: "
                "need 3 <= min_pairs <= max_pairs"
            )
        if self.step < 1:
            raise ValueError(f"sampling plan: step {self.step}: must be at least 1")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"sampling plan: confidence {self.confidence}: must lie between 0.5 and 1")

    def looks(self, pairs: int, *, final: bool) -> tuple[tuple[int, float], ...]:
        """The looks due once ``pairs`` are there, each with the tail error it may spend.

        Args:
            pairs: how many pairs have been measured.
            final: no more will come (the time budget ended): whatever error is left goes into a last look.

        Returns:
            ``(pairs used, tail)`` in order; the tails sum to at most ``1 - confidence``.
        """
        alpha = 1 - self.confidence
        regular = [*range(self.min_pairs, self.max_pairs, self.step), self.max_pairs]
        due = [count for count in regular if count <= pairs]
        looks, before = [], 0
        for count in due:
            looks.append((count, alpha * (_spent(count / self.max_pairs) - _spent(before / self.max_pairs))))
            before = count
        if final and self.min_pairs <= pairs < self.max_pairs:
            looks.append((pairs, alpha - sum(tail for _, tail in looks)))
        return tuple(looks)


def _spent(share: float) -> float:
    """Share of the allowed error that may be spent once that share of the pairs is there."""
    return 1.0 if share >= 1 else (1 - LAST_LOOK) * math.log1p((math.e - 1) * share)


def paired_ratio(reference: Sequence[float], candidate: Sequence[float]) -> float:
    """How many times faster the candidate is: the Hodges-Lehmann centre of the ratios of the pairs."""
    import numpy as np

    return math.exp(float(np.median(_walsh_averages(_log_ratios(reference, candidate)))))


def ratio_interval(reference: Sequence[float], candidate: Sequence[float], tail: float) -> Interval:
    """Interval of :func:`paired_ratio`: of ranks and signs, or Student's for too few pairs (see the module).

    Args:
        reference: seconds of the reference in each pair.
        candidate: seconds of the candidate in the same pairs.
        tail: probability of error allowed on each side.

    Raises:
        ValueError: for fewer than three pairs, arms of different length, or times that are not positive.
    """
    import numpy as np
    from scipy.special import stdtrit

    n = len(reference)
    if n < 3:
        raise ValueError(f"need at least three pairs, got {n}")
    logs = _log_ratios(reference, candidate)
    averages = np.sort(_walsh_averages(logs))
    ranks, signs = (bisect_right(shares(n), tail / 2) for shares in (_signed_rank_shares, _sign_shares))
    if ranks and signs:
        logs = np.sort(logs)
        low = max(averages[ranks - 1], logs[signs - 1])
        high = min(averages[-ranks], logs[-signs])
    else:
        half = -float(stdtrit(n - 1, tail)) * float(logs.std(ddof=1)) / math.sqrt(n)
        low, high = logs.mean() - half, logs.mean() + half
    point = float(np.median(averages))
    # a skewed handful may have its centre outside Student's interval, which is of the mean, or of the signs
    low, high = min(float(low), point), max(float(high), point)
    return Interval(math.exp(low), math.exp(point), math.exp(high), tail, n)


def noise_floor(first: Sequence[float], second: Sequence[float]) -> float:
    """How far one arm differs from itself: ``|log|`` of the median ratio of A/A pairs.

    The plain median, for these pairs are few, and one late time among three must not speak for them.
    """
    import numpy as np

    return abs(float(np.median(_log_ratios(first, second))))


def bias(first: Sequence[float], second: Sequence[float]) -> float:
    """How far one arm provably differs from itself: the end nearer to zero of Student's interval of A/A pairs.

    Chance differences are in the interval of the speed-up already; what A/A pairs add is a difference that is always
    there, which no number of pairs would make smaller. A single pair proves all that it shows.
    """
    from scipy.special import stdtrit

    logs = _log_ratios(first, second)
    n = len(logs)
    half = -float(stdtrit(n - 1, BIAS_TAIL)) * float(logs.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return max(0.0, abs(float(logs.mean())) - half)


def drift(reference: Sequence[float], candidate: Sequence[float]) -> float:
    """Share by which both arms' times grew from the first pair to the last, negative where they shrank.

    The slope is the median of those between any two pairs, of the mean log time of each (Theil, Indagationes
    Mathematicae 12 (1950); Sen, Journal of the American Statistical Association 63 (1968)). It is 0 unless proven, by
    how many of these go the other way (Kendall, Biometrika 30 (1938)), which takes six pairs at least. In the ratio it
    cancels.
    """
    import numpy as np

    logs = (np.log(reference) + np.log(candidate)) / 2
    first, second = np.triu_indices(len(logs), 1)
    steps = logs[second] - logs[first]
    against = int(min((steps <= 0).sum(), (steps >= 0).sum()))
    if _inversion_shares(len(logs))[against] > DRIFT_TAIL:
        return 0.0
    return math.expm1(float(np.median(steps / (second - first))) * (len(logs) - 1))


SLOPE_POINTS = 5
"""Values that an interval of their slope needs: all in order by chance, four would be in one of twelve cases."""

SLOPE_CONFIDENCE = 0.99
"""Of that interval, both sides together."""


@dataclass(frozen=True)
class Slope:
    """What a series grows by from one value to the next, with its interval."""

    low: float
    point: float
    high: float
    points: int


def slope(values: Sequence[float], at: Sequence[float] | None = None) -> float:
    """The median of the slopes between any two values (Theil and Sen, as in :func:`drift`): single outliers do not move
    it.

    Args:
        at: where each value is, in ascending order; one apart unless given.
    """
    where = at or range(len(values))
    pairs = combinations(zip(where, values, strict=True), 2)
    return float(median((later - earlier) / (end - start) for (start, earlier), (end, later) in pairs))


def slope_interval(
    values: Sequence[float], at: Sequence[float] | None = None, confidence: float = SLOPE_CONFIDENCE
) -> Slope:
    """:func:`slope` and its interval.

    Single jumps do not move it: with one of any size anywhere in a flat series the interval begins at 0.

    Raises:
        ValueError: for fewer than :data:`SLOPE_POINTS` values.
    """
    from scipy.stats import theilslopes

    if len(values) < SLOPE_POINTS:
        raise ValueError(f"{len(values)} values: a slope with an interval needs {SLOPE_POINTS}")
    point, _, low, high = map(float, theilslopes(values, at or range(len(values)), confidence))
    return Slope(low, point, high, len(values))


def _log_ratios(reference: Sequence[float], candidate: Sequence[float]) -> Any:
    import numpy as np

    a, b = np.asarray(reference, dtype=float), np.asarray(candidate, dtype=float)
    if len(a) != len(b):
        raise ValueError(f"need pairs, got {len(a)} and {len(b)} times")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise ValueError("times must be finite and positive")
    return np.log(a / b)


def _walsh_averages(values: Any) -> Any:
    """Of every value with itself and each later one: n (n + 1) / 2 of them."""
    first, second = _indices(len(values))
    return (values[first] + values[second]) / 2


@lru_cache(maxsize=64)
def _indices(n: int) -> tuple[Any, Any]:
    import numpy as np

    return np.triu_indices(n)


@lru_cache(maxsize=64)
def _signed_rank_shares(n: int) -> tuple[float, ...]:
    """Probability that the signed ranks of ``n`` values around zero add up to at most 0, 1, 2 …"""
    ways = [1]
    for rank in range(1, n + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    below, shares = 0, []
    for count in ways:
        below += count
        shares.append(below / 2**n)
    return tuple(shares)


@lru_cache(maxsize=64)
def _sign_shares(n: int) -> tuple[float, ...]:
    """Probability that at most 0, 1, 2 … of ``n`` values around zero are below it."""
    below, shares = 0, []
    for count in range(n + 1):
        below += math.comb(n, count)
        shares.append(below / 2**n)
    return tuple(shares)


@lru_cache(maxsize=64)
def _inversion_shares(n: int) -> tuple[float, ...]:
    """Probability that at most 0, 1, 2 … pairs of ``n`` values in a random order stand the wrong way round."""
    below = [1]
    for size in range(2, n + 1):  # the next value goes past 0 to size - 1 of those before it
        longer = below + [below[-1]] * (size - 1)
        ways = [most - (longer[at - size] if at >= size else 0) for at, most in enumerate(longer)]
        below = list(accumulate(ways))
    return tuple(count / below[-1] for count in below)
