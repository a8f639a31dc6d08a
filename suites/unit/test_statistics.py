"""The interval, the looks, and how often the speed-up gate errs."""

from __future__ import annotations

import numpy as np
import pytest
from fabricated import paired_times
from scipy import stats

from wan_trt_core.gates.perf import SpeedupRule, decide_speedup
from wan_trt_core.gates.statistics import (
    LAST_LOOK,
    SamplingPlan,
    bias,
    drift,
    noise_floor,
    paired_ratio,
    ratio_interval,
)
from wan_trt_core.gates.verdict import Verdict


def test_paired_ratio_ignores_an_outlier() -> None:
    assert paired_ratio([3.0, 3.0, 3.0, 300.0], [2.0] * 4) == pytest.approx(1.5)


def test_paired_ratio_is_no_ratio_of_medians() -> None:
    """Two clocks: both arms ran at the slow one in half of the pairs, and one of them one time more."""
    a, b = [1.5] * 5 + [1.7] * 5, [1.0] * 6 + [1.7 / 1.5] * 4
    assert paired_ratio(a, b) == pytest.approx(1.5)
    assert np.median(a) / np.median(b) == pytest.approx(1.6)


def test_interval_holds_the_ratio_and_narrows_with_pairs() -> None:
    a, b = paired_times(1.6, pairs=30)
    few, many = ratio_interval(a[:10], b[:10], 0.005), ratio_interval(a, b, 0.005)
    for interval in (few, many):
        assert interval.low < interval.point < interval.high
        assert interval.low < 1.6 < interval.high
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("pairs", "tail"), [(13, 0.001), (20, 0.01), (30, 0.007)])
@pytest.mark.parametrize("odd", [0, 4], ids=["normal", "with odd pairs"])
def test_interval_of_many_pairs_is_what_neither_ranks_nor_signs_reject(
    pairs: int, tail: float, odd: int
) -> None:
    a, b = (np.array(times) for times in paired_times(1.6, pairs=pairs))
    a[:odd] *= 0.92
    found = ratio_interval(a.tolist(), b.tolist(), tail)
    logs = np.log(a / b)

    def rejected(ratio: float, side: str) -> bool:
        ranks = stats.wilcoxon(logs - np.log(ratio), alternative=side, method="exact").pvalue
        signs = stats.binomtest(int((logs > np.log(ratio)).sum()), pairs, alternative=side).pvalue
        return bool(min(ranks, signs) <= tail / 2)

    nudge = 1 + 1e-9
    assert rejected(found.low / nudge, "greater") and not rejected(found.low * nudge, "greater")
    assert rejected(found.high * nudge, "less") and not rejected(found.high / nudge, "less")


def test_interval_of_few_pairs_is_students() -> None:
    a, b = paired_times(1.6, pairs=9)
    found = ratio_interval(a, b, 0.001)
    logs = np.log(np.array(a) / np.array(b))
    expected = stats.t.interval(0.998, 8, loc=logs.mean(), scale=stats.sem(logs))
    assert (found.low, found.high) == pytest.approx(np.exp(expected))


def test_interval_holds_its_own_centre() -> None:
    """Skewed pairs: the interval of the signs is around their median, which is not their centre."""
    a = np.exp(np.linspace(0, 1, 20) ** 6).tolist()
    found = ratio_interval(a, [1.0] * 20, 0.45)
    assert found.low <= found.point <= found.high


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
    slower = np.linspace(1, 2, 20)
    shaken = ratio_interval((a * slower).tolist(), (b * slower).tolist(), 0.005)
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
    assert spent == pytest.approx(0.01 * (1 - LAST_LOOK) * np.log(1 + (np.e - 1) / 3))
    assert plan.looks(30, final=True)[-1][1] > 0.01 * LAST_LOOK


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


def test_noise_floor_of_three_is_not_that_of_one_late_time() -> None:
    assert noise_floor([1.0, 1.4, 1.0], [1.0, 1.0, 1.0]) == 0


def test_bias_is_what_of_a_difference_is_proven() -> None:
    assert bias([1.1] * 3, [1.0] * 3) == pytest.approx(np.log(1.1))
    assert bias([1.0] * 3, [1.1] * 3) == pytest.approx(np.log(1.1))
    assert bias([1.1, 1.0, 1.1], [1.0] * 3) == 0
    assert bias([1.1], [1.0]) == pytest.approx(np.log(1.1))
    first, second = [1.04, 1.05, 1.06], [1.0] * 3
    logs = np.log(first)
    low, _ = stats.t.interval(0.9, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert bias(first, second) == pytest.approx(low)


@pytest.mark.parametrize("slower", [0.05, -0.05])
def test_drift_is_found_with_its_size(slower: float) -> None:
    runs = (np.array(paired_times(1.6, seed=seed)) for seed in range(100))
    found = [drift(*(times * np.geomspace(1, 1 + slower, 30)).tolist()) for times in runs]
    assert sum(each == 0 for each in found) <= 1
    assert np.median(found) == pytest.approx(slower, abs=0.003)


def test_drift_is_not_found_where_there_is_none() -> None:
    """One run in a hundred may tell of one (95 % bound of 1000 runs), and one state of two is none."""
    found = [drift(*paired_times(1.6, pairs=12, seed=seed)) for seed in range(1000)]
    assert 0 < sum(each != 0 for each in found) <= 16
    assert drift([1.0] * 9, [2.0] * 9) == 0
    assert drift([1.0, 1.0, 1.4, 1.4, 1.0, 1.0, 1.4], [1.0] * 7) == 0
    assert drift([1.0, 1.1, 1.2, 1.3, 1.4], [1.0] * 5) == 0, "five in order come about once in sixty"
    assert drift([1.0], [1.0]) == 0


def verdicts(ratio: float, runs: int, noise: float = 0.01) -> list[Verdict]:
    """Verdicts of many simulated runs with 3 to 30 pairs against the 1.5 gate."""
    out = []
    for seed in range(runs):
        a, b = paired_times(ratio, noise=noise, seed=seed)
        check = decide_speedup(a, b, SpeedupRule(1.5), final=True)
        assert check is not None
        out.append(check.verdict)
    return out


def test_error_rates_at_one_percent_noise() -> None:
    """A true 1.45x passes, and a true 1.55x does not, in at most 1 % of runs of at most 30 pairs."""
    assert verdicts(1.45, 1000).count(Verdict.PASS) <= 10
    assert verdicts(1.55, 1000).count(Verdict.PASS) >= 990


def test_error_rate_on_the_threshold_itself() -> None:
    """Many looks do not add errors up: on 1.5 itself 1 % may pass and 1 % fail (95 % bounds of both, 1000 runs)."""
    found = verdicts(1.5, 1000)
    assert found.count(Verdict.PASS) <= 16
    assert found.count(Verdict.FAIL) <= 16
