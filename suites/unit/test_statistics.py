"""The interval, the looks, and how often the speed-up gate errs."""

from __future__ import annotations

import numpy as np
import pytest
from fabricated import paired_times
from scipy import stats

from wan_trt_core.gates.perf import SpeedupRule, decide_speedup
from wan_trt_core.gates.statistics import (
    RESAMPLES,
    SEED,
    SamplingPlan,
    noise_floor,
    ratio_interval,
    ratio_of_medians,
)
from wan_trt_core.gates.verdict import Verdict


def test_ratio_of_medians_ignores_an_outlier() -> None:
    assert ratio_of_medians([3.0, 3.0, 300.0], [2.0, 2.0, 2.0]) == 1.5


def test_interval_holds_the_ratio_and_narrows_with_pairs() -> None:
    a, b = paired_times(1.6, pairs=30)
    few, many = ratio_interval(a[:10], b[:10], 0.005), ratio_interval(a, b, 0.005)
    for interval in (few, many):
        assert interval.low < interval.point < interval.high
        assert interval.low < 1.6 < interval.high
    assert many.high - many.low < few.high - few.low


def test_interval_is_what_its_sources_say() -> None:
    """Hesterberg's expanded percentile, and the wider of it and Student's where 2**-n exceeds the tail."""
    a, b = (np.array(times) for times in paired_times(1.6, pairs=9))
    picks = np.random.default_rng(SEED).integers(0, 9, size=(RESAMPLES, 9))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    for tail in (0.02, 0.001):
        t = stats.t.isf(tail, 8)
        tails = stats.norm.cdf(-np.sqrt(9 / 8) * t)
        low, high = np.quantile(ratios, (tails, 1 - tails))
        logs = np.log(a / b)
        half = t * logs.std(ddof=1) / 3
        student = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
        if tail < 2**-9:
            low, high = min(low, student[0]), max(high, student[1])
        found = ratio_interval(a.tolist(), b.tolist(), tail)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.point == pytest.approx(np.median(a) / np.median(b))


def test_three_pairs_are_the_fewest() -> None:
    assert ratio_interval([1.6] * 3, [1.0] * 3, 0.1).pairs == 3
    assert SamplingPlan(min_pairs=3, max_pairs=3, step=1).looks(3, final=True) == ((3, pytest.approx(0.01)),)


def test_interval_is_the_same_every_time() -> None:
    a, b = paired_times(1.6)
    assert ratio_interval(a, b, 0.01) == ratio_interval(a, b, 0.01)


def test_interval_of_few_pairs_is_wider_than_their_range() -> None:
    """Five pairs all above 1.5 come about by chance once in 32 runs: no proof at one error in a thousand."""
    a, b = [1.51, 1.52, 1.56, 1.53, 1.60], [1.0] * 5
    assert ratio_interval(a, b, 0.001).low < 1.5
    assert ratio_interval(a, b, 0.2).low > 1.5


def test_interval_cancels_what_slows_both_arms_of_a_pair() -> None:
    a, b = (np.array(times) for times in paired_times(1.6, pairs=20, noise=0.002))
    drift = np.linspace(1, 2, 20)
    shaken = ratio_interval((a * drift).tolist(), (b * drift).tolist(), 0.005)
    assert 1.55 < shaken.low < shaken.high < 1.65


@pytest.mark.parametrize(
    ("a", "b"), [([1.0, 1.0], [1.0, 1.0]), ([1.0] * 3, [1.0] * 4), ([1.0] * 3, [1.0, 1.0, 0.0])]
)
def test_interval_refuses_what_is_no_series_of_pairs(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs|positive"):
        ratio_interval(a, b, 0.01)


def test_looks_spend_no_more_than_the_error_allowed() -> None:
    plan = SamplingPlan(min_pairs=5, max_pairs=30, step=5, confidence=0.99)
    assert [count for count, _ in plan.looks(30, final=True)] == [5, 10, 15, 20, 25, 30]
    assert plan.looks(12, final=True)[:2] == plan.looks(12, final=False)
    for pairs in range(5, 31):
        assert sum(tail for _, tail in plan.looks(pairs, final=True)) == pytest.approx(0.01)
    spent = sum(tail for _, tail in plan.looks(14, final=False))
    assert spent == pytest.approx(0.01 * np.log(1 + (np.e - 1) / 3))


def test_last_look_takes_all_pairs_that_the_budget_allowed() -> None:
    plan = SamplingPlan(min_pairs=5, step=5)
    assert [count for count, _ in plan.looks(12, final=True)] == [5, 10, 12]
    assert [count for count, _ in plan.looks(10, final=True)] == [5, 10, 10]
    assert plan.looks(4, final=True) == ()


@pytest.mark.parametrize(
    "fields", [{"min_pairs": 2}, {"min_pairs": 31}, {"step": 0}, {"confidence": 1.0}, {"confidence": 0.5}]
)
def test_impossible_plan_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sampling plan"):
        SamplingPlan(**fields)  # type: ignore[arg-type]


def test_noise_floor_is_the_difference_from_itself() -> None:
    assert noise_floor([1.0, 1.0], [1.0, 1.0]) == 0
    assert noise_floor([1.1, 1.1], [1.0, 1.0]) == pytest.approx(noise_floor([1.0, 1.0], [1.1, 1.1]))
    assert noise_floor([1.1], [1.0]) == pytest.approx(0.0953, abs=1e-3)


def verdicts(ratio: float, runs: int, noise: float = 0.01) -> list[Verdict]:
    """Verdicts of many simulated runs with 3 to 30 pairs against the 1.5 gate."""
    out = []
    for seed in range(runs):
        a, b = paired_times(ratio, noise=noise, seed=seed)
        first, second = paired_times(1.0, pairs=4, noise=noise, seed=100_000 + seed)
        check = decide_speedup(a, b, SpeedupRule(1.5, noise=noise_floor(first, second)), final=True)
        assert check is not None
        out.append(check.verdict)
    return out


def test_error_rates_at_one_percent_noise() -> None:
    """A true 1.45 passes, and a true 1.6 does not, in at most 2 % of runs of at most 30 pairs."""
    assert verdicts(1.45, 500).count(Verdict.PASS) <= 10
    assert verdicts(1.60, 500).count(Verdict.PASS) >= 490


def test_error_rate_on_the_threshold_itself() -> None:
    """Many looks do not add errors up: on 1.5 itself 1 % may pass and 1 % fail (plain bootstrap: 4 %)."""
    found = verdicts(1.5, 180)
    assert found.count(Verdict.PASS) <= 5
    assert found.count(Verdict.FAIL) <= 5
