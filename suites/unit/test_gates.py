"""Every gate passes what it should, and fails, voids or misses what it should."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import is_dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from fabricated import TEN_PERCENT, entry, make_case, paired_times, perf_measurement

from wan_trt_core import gates
from wan_trt_core.cases import Band, Case, Limit
from wan_trt_core.gates import decide, judge
from wan_trt_core.gates.bands import (
    BaselineEntry,
    BaselineMetric,
    Tolerance,
    judge_bands,
    position,
    regenerate_command,
)
from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.limits import judge_finite, judge_limit
from wan_trt_core.gates.memory import judge_growth
from wan_trt_core.gates.perf import SpeedupRule, beside_interval, decide_speedup, precision_of
from wan_trt_core.gates.statistics import SamplingPlan, paired_ratio, slope_interval
from wan_trt_core.gates.verdict import Check, Reason, Verdict
from wan_trt_core.measure.timing import PairedTimer, measure_pairs
from wan_trt_core.records import CaseRecord, Measurement, Metric


def verdict(
    measurement: Measurement,
    suite: str = "perf",
    *,
    baseline: BaselineEntry | None = None,
    bands_for_hardware: bool = True,
    require_bands: bool = False,
    case: Any = None,
    **options: Any,
) -> Check:
    checks = judge(
        case or make_case(),
        suite,  # type: ignore[arg-type]
        measurement,
        baseline,
        bands_for_hardware=bands_for_hardware,
        require_bands=require_bands,
        **options,
    )
    return decide(checks)


def parity_measurement(
    psnr_db: float | None = 120.0, non_finite: float = 0.0, detail: str = ""
) -> Measurement:
    return Measurement(
        metrics={
            "psnr_db": Metric(value=psnr_db, unit="dB", better="higher", detail=detail),
            "non_finite": Metric(value=non_finite, unit="", better="lower"),
        }
    )


def limited(**least: float) -> Any:
    """A case with limits on what is timed beside its gate."""
    case = make_case()
    assert case.perf is not None
    limits = {name: Limit(min=value, reason="one line of PyTorch") for name, value in least.items()}
    return case.model_copy(update={"perf": case.perf.model_copy(update={"limits": limits})})


def beside(**series: tuple[float, ...]) -> Measurement:
    """A perf measurement with a speed-up over torch.compile and these times behind it."""
    measurement = perf_measurement()
    ratio = Metric(value=1.2, unit="x", better="higher")
    return measurement.model_copy(
        update={
            "metrics": measurement.metrics | {"compile_speedup": ratio},
            "series": measurement.series | series,
        }
    )


def outcome(check: Check) -> tuple[Verdict, Reason]:
    return check.verdict, check.reason


class TestParity:
    def test_above_its_floor_passes(self) -> None:
        assert outcome(verdict(parity_measurement(), "parity")) == (Verdict.PASS, Reason.WITHIN_LIMIT)

    def test_below_its_floor_fails_and_says_both_numbers(self) -> None:
        check = verdict(parity_measurement(89.9999), "parity")
        assert outcome(check) == (Verdict.FAIL, Reason.BEYOND_LIMIT)
        assert "89.9999 dB < 90" in check.message.replace("90.0000", "90")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_metric_fails(self, value: float) -> None:
        assert outcome(verdict(parity_measurement(value), "parity")) == (Verdict.FAIL, Reason.NON_FINITE)

    def test_non_finite_output_fails_although_its_metrics_look_right(self) -> None:
        check = verdict(parity_measurement(120.0, non_finite=1.0), "parity")
        assert outcome(check) == (Verdict.FAIL, Reason.NON_FINITE)

    def test_non_finite_output_of_one_of_several_fails(self) -> None:
        metrics = {
            **parity_measurement().metrics,
            "cache_3.non_finite": Metric(value=2, unit="", better="lower"),
        }
        assert verdict(Measurement(metrics=metrics), "parity").metric == "cache_3.non_finite"

    def test_metric_that_could_not_be_computed_is_missing(self) -> None:
        check = verdict(parity_measurement(None, detail="no weights"), "parity")
        assert outcome(check) == (Verdict.MISSING, Reason.METRIC_NOT_COMPUTED)
        assert "no weights" in check.message

    def test_metric_that_is_absent_is_missing(self) -> None:
        assert verdict(Measurement(metrics={}), "parity").reason is Reason.METRIC_NOT_COMPUTED

    def test_upper_limit(self) -> None:
        limit = Limit(max=1e-5, reason="float32")
        metric = Metric(value=1e-4, unit="", better="lower")
        assert judge_limit("floor", "relative_l2", limit, metric).verdict is Verdict.FAIL
        assert (
            judge_limit("floor", "relative_l2", limit, Metric(value=1e-6, unit="", better="lower")).verdict
            is Verdict.PASS
        )


class TestLimit:
    @pytest.mark.parametrize(
        ("bounds", "value", "expected", "bound", "text"),
        [
            ({"min": 90}, 90.0, Verdict.PASS, 90, "psnr_db 90 dB >= 90 dB"),
            ({"min": 90}, 89.0, Verdict.FAIL, 90, "psnr_db 89 dB < 90 dB (no weights; limit: why)"),
            ({"max": 10}, 10.0, Verdict.PASS, 10, "psnr_db 10 dB <= 10 dB"),
            ({"max": 10}, 11.0, Verdict.FAIL, 10, "psnr_db 11 dB > 10 dB (no weights; limit: why)"),
            ({"min": 5, "max": 10}, 4.0, Verdict.FAIL, 5, "< 5 dB"),
            ({"min": 5, "max": 10}, 11.0, Verdict.FAIL, 10, "> 10 dB"),
            ({"min": 5, "max": 10}, 7.0, Verdict.PASS, 5, ">= 5 dB"),
            ({"min": 90}, None, Verdict.MISSING, 90, "no weights"),
            ({"max": 10}, None, Verdict.MISSING, 10, "no weights"),
            ({"min": 90}, math.nan, Verdict.FAIL, 90, "psnr_db is nan (no weights)"),
            ({"max": 10}, -math.inf, Verdict.FAIL, 10, "psnr_db is -inf (no weights)"),
        ],
    )
    def test_limit(
        self, bounds: dict[str, float], value: float | None, expected: Verdict, bound: float, text: str
    ) -> None:
        metric = Metric(value=value, unit="dB", better="higher", detail="no weights")
        check = judge_limit("floor", "psnr_db", Limit(**bounds, reason="why"), metric)
        assert (check.verdict, check.limit) == (expected, bound)
        assert text in check.message

    def test_limit_without_a_bound_passes_nothing(self) -> None:
        limit = Limit.model_construct(min=None, max=None, reason="why")
        metric = Metric(value=1.0, unit="", better="higher")
        assert judge_limit("floor", "psnr_db", limit, metric).verdict is Verdict.INVALID
        assert judge_growth("growth", limit, metric).verdict is Verdict.INVALID

    def test_a_metric_that_is_not_finite_is_told_alike_by_every_gate(self) -> None:
        metric = Metric(value=math.nan, unit="s", better="lower", detail="no weights")
        limit = Limit(max=1.0, reason="why")
        stored = BaselineMetric(1.0, "s", "lower", Tolerance(TEN_PERCENT.rel, TEN_PERCENT.abs, "x"))
        (band,) = judge_bands(
            "dit-fp32", "perf", {"time": TEN_PERCENT}, {"time": metric}, BaselineEntry({"time": stored}),
            bands_for_hardware=True, require_bands=True,
        )  # fmt: skip
        checks = (judge_limit("floor", "time", limit, metric), judge_growth("time", limit, metric), band)
        assert {outcome(check) for check in checks} == {(Verdict.FAIL, Reason.NON_FINITE)}
        assert {check.message for check in checks} == {"time is nan (no weights)"}
        assert [(check.gate, check.limit) for check in checks] == [
            ("floor", 1),
            ("growth", 1),
            ("band", None),
        ]

    def test_count_of_non_finite_elements(self) -> None:
        for value, detail, expected, text in (
            (0.0, "", Verdict.PASS, "every element is finite"),
            (3.0, "3 of 9 in the candidate", Verdict.FAIL, "NaN or infinite (3 of 9 in the candidate)"),
            (None, "no output", Verdict.MISSING, "no output"),
            (None, "", Verdict.MISSING, "not measured"),
        ):
            metric = Metric(value=value, unit="", better="lower", detail=detail)
            (check,) = judge_finite({"non_finite": metric, "psnr_db": metric})
            assert check.verdict is expected
            assert text in check.message


class TestSpeedup:
    RULE = SpeedupRule(1.5, noise=0.005)

    def test_clear_speedup_passes_at_the_first_look(self) -> None:
        a, b = paired_times(1.67, pairs=5, noise=0.002)
        check = decide_speedup(a, b, self.RULE)
        assert check is not None
        assert outcome(check) == (Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD)
        assert check.evidence["pairs"] == SamplingPlan().min_pairs
        assert check.evidence["low"] >= 1.5

    def test_injected_slowdown_of_the_candidate_fails(self) -> None:
        """1.6 times faster, then 10 % slower: 1.45."""
        a, b = paired_times(1.6)
        assert outcome(decide_speedup(a, b, self.RULE, final=True)) == (
            Verdict.PASS,
            Reason.INTERVAL_ABOVE_THRESHOLD,
        )  # type: ignore[arg-type]
        slowed = [1.1 * time for time in b]
        check = decide_speedup(a, slowed, self.RULE, final=True)
        assert check is not None
        assert outcome(check) == (Verdict.FAIL, Reason.INTERVAL_BELOW_THRESHOLD)

    def test_where_none_is_promised_a_speedup_only_has_to_be_known(self) -> None:
        rule = replace(self.RULE, threshold=None, reason="weights come over the bus", precision=0.03)
        a, b = paired_times(0.8, noise=0.005)
        check = decide_speedup(a, b, rule)
        assert check is not None and outcome(check) == (Verdict.PASS, Reason.NO_THRESHOLD)
        assert "no least speed-up is asked (weights come over the bus)" in check.message
        assert check.limit is None and check.evidence["low"] < 0.8 < check.evidence["high"]
        assert decide_speedup(a[:3], [0.1, 0.2, 0.1], rule) is None  # not known as well as its band asks
        assert outcome(decide_speedup(a[:2], b[:2], rule, final=True)) == (  # type: ignore[arg-type]
            Verdict.INCONCLUSIVE,
            Reason.BUDGET_EXHAUSTED,
        )

    def test_more_pairs_are_asked_for_while_the_interval_straddles(self) -> None:
        a, b = paired_times(1.5)
        assert decide_speedup(a[:4], b[:4], self.RULE) is None
        assert decide_speedup(a[:10], b[:10], self.RULE) is None

    def test_straddling_at_the_end_is_inconclusive(self) -> None:
        a, b = paired_times(1.5)
        check = decide_speedup(a, b, self.RULE)
        assert check is not None
        assert outcome(check) == (Verdict.INCONCLUSIVE, Reason.BUDGET_EXHAUSTED)
        assert "max_pairs" in check.message

    def test_time_budget_that_ends_early_is_inconclusive(self) -> None:
        a, b = paired_times(1.67, pairs=SamplingPlan().min_pairs - 1)
        check = decide_speedup(a, b, self.RULE, final=True)
        assert check is not None
        assert outcome(check) == (Verdict.INCONCLUSIVE, Reason.BUDGET_EXHAUSTED)
        assert "time_budget" in check.message

    def test_bias_as_large_as_the_margin_decides_nothing(self) -> None:
        a, b = paired_times(1.6)
        for bias, expected in ((0.04, Verdict.PASS), (0.07, Verdict.INCONCLUSIVE)):
            check = decide_speedup(a, b, SpeedupRule(1.5, bias=bias), final=True)
            assert check is not None and check.verdict is expected
        assert check.reason is Reason.NOISE_TOO_HIGH

    def test_bias_excuses_no_failure_beyond_it_either(self) -> None:
        a, b = paired_times(1.3)
        check = decide_speedup(a, b, SpeedupRule(1.5, bias=0.05), final=True)
        assert check is not None and check.verdict is Verdict.FAIL
        check = decide_speedup(a, b, SpeedupRule(1.5, bias=0.2), final=True)
        assert check is not None and check.verdict is Verdict.INCONCLUSIVE

    def test_precision_asks_for_more_pairs_although_the_threshold_is_decided(self) -> None:
        a, b = paired_times(1.67)
        loose, tight = (
            decide_speedup(a, b, SpeedupRule(1.5, precision=share), final=True) for share in (None, 0.01)
        )
        assert loose is not None and tight is not None
        assert loose.evidence["pairs"] < tight.evidence["pairs"]
        assert math.log(tight.evidence["high"] / tight.evidence["low"]) / 2 <= 0.01

    def test_precision_of_a_case_is_half_its_band(self) -> None:
        narrow, none = (make_case(bands=bands).perf for bands in ({"speedup": TEN_PERCENT}, {}))
        assert narrow is not None and none is not None
        assert (precision_of(narrow), precision_of(none)) == (0.05, None)

    def test_precision_out_of_reach_leaves_the_decision_to_the_last_look(self) -> None:
        a, b = paired_times(1.67)
        rule = SpeedupRule(1.5, precision=1e-6)
        assert decide_speedup(a[:20], b[:20], rule) is None
        for check in (decide_speedup(a, b, rule), decide_speedup(a[:20], b[:20], rule, final=True)):
            assert check is not None and check.verdict is Verdict.PASS

    def test_judging_the_record_again_gives_what_was_decided_while_measuring(self) -> None:
        for seed in range(20):
            a, b = paired_times(1.53, seed=seed)
            live = next(
                check for n in range(1, 31) if (check := decide_speedup(a[:n], b[:n], self.RULE)) is not None
            )
            stopped = int(live.evidence["pairs"])
            assert decide_speedup(a[:stopped], b[:stopped], self.RULE, final=True) == live

    def test_work_once_a_prompt_counts(self) -> None:
        """0.1 s against 0.06 s is 1.67; with 0.05 s more for both it is 1.36."""
        a, b = paired_times(0.1 / 0.06)
        rule = SpeedupRule(1.5, noise=0.0, reference_extra=0.05, candidate_extra=0.05)
        check = decide_speedup(a, b, rule, final=True)
        assert check is not None and check.verdict is Verdict.FAIL
        assert check.value == pytest.approx(0.15 / 0.11, rel=0.01)

    def test_arms_of_different_length_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="not pairs"):
            decide_speedup([1.0] * 6, [1.0] * 5, self.RULE)

    def test_stopping_live_with_a_fake_clock(self) -> None:
        """The whole path: the timer yields pairs, the gate stops it, and a slowed candidate fails."""
        for candidate, expected in ((0.060, Verdict.PASS), (0.060 * 1.2, Verdict.FAIL)):
            now = [0.0]

            def work(seconds: float, now: list[float] = now) -> Any:
                def call() -> None:
                    now[0] += seconds

                return call

            timer = PairedTimer(work(0.1), work(candidate), clock=lambda now=now: now[0])  # type: ignore[misc]
            times = measure_pairs(
                timer,
                lambda pairs: (
                    decide_speedup([p.reference for p in pairs], [p.candidate for p in pairs], self.RULE)
                    is not None
                ),
                max_pairs=30,
                noise_pairs=4,
                time_budget=60,
                clock=lambda now=now: now[0],  # type: ignore[misc]
            )
            measurement = perf_measurement(series=times.series(), facts={})
            assert len(times.pairs) == SamplingPlan().min_pairs
            assert verdict(measurement, bands_for_hardware=False).verdict is expected


class TestPerfCase:
    def test_passes(self) -> None:
        check = verdict(perf_measurement(), baseline=entry(0.1, 0.06))
        assert outcome(check) == (Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD)

    def test_injected_slowdown_of_the_reference_never_passes(self) -> None:
        """The ratio only grows when the reference slows down, so its own band has to see it."""
        slowed = perf_measurement(1.67 * 1.15, reference=0.115)
        check = verdict(slowed, baseline=entry(0.1, 0.06))
        assert outcome(check) == (Verdict.INCONCLUSIVE, Reason.REFERENCE_SLOWER)
        assert check.metric == "reference_time"

    def test_slower_candidate_that_still_makes_the_ratio_is_caught_by_its_band(self) -> None:
        check = verdict(perf_measurement(2.0), baseline=entry(0.1, 0.04))
        assert (check.metric, *outcome(check)) == ("candidate_time", Verdict.FAIL, Reason.WORSE_THAN_BAND)
        assert "find the cause, or accept it" in check.message

    @pytest.mark.parametrize(
        ("measurement", "advised"),
        [
            (perf_measurement(2.0), True),
            (perf_measurement(1.3), False),  # which its own gate fails
            (perf_measurement(2.0, problems={Reason.THROTTLED: "heat"}), False),
        ],
        ids=["its own gates pass", "its own gate fails", "void"],
    )
    @pytest.mark.parametrize(
        ("baseline", "reason", "instead"),
        [
            (entry(0.1, 0.04), Reason.WORSE_THAN_BAND, "; find the cause"),
            (entry(0.04, 0.04), Reason.REFERENCE_SLOWER, "and mend first what the case fails beside this"),
            (entry(0.1, 0.2), Reason.BETTER_THAN_BAND, "%)"),
        ],
        ids=["slower", "slower as stock diffusers is", "faster"],
    )
    def test_a_new_baseline_is_advised_only_where_one_would_be_made(
        self, baseline: BaselineEntry, reason: Reason, instead: str, measurement: Measurement, advised: bool
    ) -> None:
        checks = judge(
            make_case(),
            "perf",
            measurement,
            baseline,
            bands_for_hardware=True,
            require_bands=False,
        )
        (check,) = (check for check in checks if check.metric == "candidate_time")
        assert check.reason is reason
        assert ("wan-trt baselines regenerate" in check.message) is advised
        assert advised or check.message.endswith(instead)

    def test_slower_reference_is_not_laid_to_the_change_and_proves_nothing(self) -> None:
        slower = perf_measurement(reference=0.12)  # by far: no sample is within the band
        check = verdict(slower, baseline=entry(candidate=0.072))
        assert (check.metric, *outcome(check)) == (
            "reference_time",
            Verdict.INCONCLUSIVE,
            Reason.REFERENCE_SLOWER,
        )
        assert "ms > 110 ms is worse than its band (baseline 100 ms, +1" in check.message
        assert "no change to an engine slows stock diffusers down" in check.message
        assert "run again on a quiet machine" in check.message
        assert "--suite perf --case dit-fp32 --accept-regression REASON" in check.message
        assert "find the cause" not in check.message

    def test_what_is_slower_beside_a_slower_reference_is_not_the_engine_alone(self) -> None:
        """Three times as slow as a whole: the ratio is what it was, and both times are far beyond their bands."""
        check = verdict(perf_measurement(reference=0.3), baseline=entry())
        assert (check.metric, *outcome(check)) == (
            "candidate_time",
            Verdict.INCONCLUSIVE,
            Reason.REFERENCE_SLOWER,
        )
        assert re.search(r"stock diffusers is \+(199|200|201)\.\d% against its own baseline", check.message)
        assert "not the engine alone" in check.message and "run again on a quiet machine" in check.message

    def test_a_speedup_that_is_proven_too_low_is_told_with_the_reason_for_its_threshold(self) -> None:
        case = make_case()
        assert case.perf is not None
        stated = case.model_copy(
            update={"perf": case.perf.model_copy(update={"reason": "the product's gate"})}
        )
        for held, end in ((case, " pairs)"), (stated, " pairs; limit: the product's gate)")):
            message = verdict(perf_measurement(1.3), baseline=entry(), case=held).message
            assert "1.5x is asked" in message and message.endswith(end)

    def test_a_speedup_that_is_proven_too_low_fails_on_a_slower_machine_too(self) -> None:
        check = verdict(perf_measurement(1.3, reference=0.3), baseline=entry())
        assert outcome(check) == (Verdict.FAIL, Reason.INTERVAL_BELOW_THRESHOLD)

    def test_a_time_whose_samples_reach_into_its_band_is_noise(self) -> None:
        """All samples beyond the band fail; one within, or better than it, leaves the median unproven."""
        stored = entry(candidate=0.05)  # its band ends at 0.055
        for least, expected in (
            (0.0551, (Verdict.FAIL, Reason.WORSE_THAN_BAND)),
            (0.0549, (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH)),
            (0.04, (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH)),
        ):
            metrics = dict(perf_measurement().metrics)
            metrics["candidate_time"] = Metric(
                value=0.06, unit="s", better="lower", samples=(0.06, least, 3.2)
            )
            check = verdict(perf_measurement(metrics=metrics), baseline=stored)
            assert (check.metric, *outcome(check)) == ("candidate_time", *expected)
        assert "1 of its 3 samples is not (the least is 40 ms)" in check.message
        assert "run again on a quiet machine" in check.message

    def test_a_time_without_samples_is_held_by_its_value(self) -> None:
        metrics = dict(perf_measurement().metrics)
        metrics["candidate_time"] = Metric(value=0.06, unit="s", better="lower")
        check = verdict(perf_measurement(metrics=metrics), baseline=entry(candidate=0.05))
        assert outcome(check) == (Verdict.FAIL, Reason.WORSE_THAN_BAND)

    def test_only_times_worse_than_their_band_are_held_back(self) -> None:
        """What is better, within its band or not finite is judged as in every suite, beside a slow reference too."""
        for candidate, expected in (
            (0.2, (Verdict.FAIL, Reason.BETTER_THAN_BAND)),
            (0.06, (Verdict.INCONCLUSIVE, Reason.REFERENCE_SLOWER)),
        ):
            check = verdict(
                perf_measurement(reference=0.3, ratio=5.0),
                baseline=entry(candidate=candidate),
                strict_improvements=True,
            )
            assert outcome(check) == expected
        metrics = perf_measurement(reference=0.3).metrics
        broken = {**metrics, "candidate_time": Metric(value=math.nan, unit="s", better="lower")}
        check = verdict(perf_measurement(metrics=broken), baseline=entry())
        assert (check.metric, *outcome(check)) == ("candidate_time", Verdict.FAIL, Reason.NON_FINITE)

    def test_five_runs_of_an_unchanged_gate_on_a_noisy_machine(self) -> None:
        """What a machine with other load measured against 16 ms, rel 2.0: none of it proves anything."""
        for reference in (0.067, 1.171, 0.054):
            stored = entry(0.016, 0.016 / 1.67, rel=2.0)
            bands = dict.fromkeys(("reference_time", "candidate_time"), Band(rel=2.0, reason="a CPU"))
            check = verdict(
                perf_measurement(reference=reference), baseline=stored, case=make_case(bands=bands)
            )
            assert check.verdict is Verdict.INCONCLUSIVE

    @pytest.mark.parametrize(
        ("slower", "noise", "expected"),
        [
            (1.0, 0.01, (Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD)),
            (1.03, 0.01, (Verdict.FAIL, Reason.WORSE_THAN_BAND)),
            (1.0, 0.05, (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH)),
            (1.03, 0.05, (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH)),
            (
                1.0,
                0.025,
                (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH),
            ),  # half the interval is a little over the band
        ],
    )
    def test_band_of_the_speedup(self, slower: float, noise: float, expected: tuple[Verdict, Reason]) -> None:
        """A machine that became slower as a whole moves no ratio; one that is too noisy proves nothing."""
        band = Band(rel=0.0175, reason="between nothing and 3 %")
        a, b = paired_times(2.0 / slower, noise=noise, reference=0.12)
        ratio = Metric(value=paired_ratio(a, b), unit="x", better="higher")
        measurement = perf_measurement()
        measurement = measurement.model_copy(
            update={
                "metrics": measurement.metrics | {"speedup": ratio},
                "series": measurement.series | {"reference_s": a, "candidate_s": b},
            }
        )
        stored = BaselineMetric(2.0, "x", "higher", Tolerance(band.rel, band.abs, band.reason))
        check = verdict(
            measurement, baseline=BaselineEntry({"speedup": stored}), case=make_case(bands={"speedup": band})
        )
        assert outcome(check) == expected
        assert expected[0] is Verdict.PASS or check.metric == "speedup"

    def test_candidate_that_differs_from_itself_decides_nothing(self) -> None:
        series = dict(perf_measurement().series)
        series["noise_second_s"] = tuple(1.2 * time for time in series["noise_first_s"])
        check = verdict(perf_measurement(series=series), bands_for_hardware=False)
        assert outcome(check) == (Verdict.INCONCLUSIVE, Reason.NOISE_TOO_HIGH)

    def test_wrong_output_voids_the_time(self) -> None:
        check = verdict(perf_measurement(psnr_db=20.0), bands_for_hardware=False)
        assert outcome(check) == (Verdict.INVALID, Reason.OUTPUTS_DIFFER)

    def test_non_finite_output_fails(self) -> None:
        metrics = perf_measurement().metrics | {"non_finite": Metric(value=3.0, unit="", better="lower")}
        check = verdict(perf_measurement(metrics=metrics), bands_for_hardware=False)
        assert outcome(check) == (Verdict.FAIL, Reason.NON_FINITE)

    @pytest.mark.parametrize("reason", [Reason.FALLBACK_TO_PYTORCH, Reason.SETTINGS_DIFFER])
    def test_a_problem_voids_everything_even_a_failure(self, reason: Reason) -> None:
        slow = perf_measurement(1.2, problems={reason: "it did"})
        assert outcome(verdict(slow, bands_for_hardware=False)) == (Verdict.INVALID, reason)

    def test_not_measured_is_missing(self) -> None:
        absent = Measurement(metrics={}, problems={Reason.NOT_MEASURED: "no C++ compiler"})
        assert outcome(verdict(absent)) == (Verdict.MISSING, Reason.NOT_MEASURED)

    @pytest.mark.parametrize("series", ["reference_s", "candidate_s", "noise_first_s"])
    def test_series_that_are_absent_are_missing_or_invalid(self, series: str) -> None:
        data = dict(perf_measurement().series)
        del data[series]
        check = verdict(perf_measurement(series=data), bands_for_hardware=False)
        assert check.verdict in (Verdict.MISSING, Verdict.INVALID)

    def test_no_noise_floor_is_missing(self) -> None:
        data = {name: times for name, times in perf_measurement().series.items() if "noise" not in name}
        check = verdict(perf_measurement(series=data), bands_for_hardware=False)
        assert outcome(check) == (Verdict.MISSING, Reason.METRIC_NOT_COMPUTED)

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_impossible_times_are_invalid(self, bad: float) -> None:
        data = dict(perf_measurement().series)
        data["candidate_s"] = (bad, *data["candidate_s"][1:])
        check = verdict(perf_measurement(series=data), bands_for_hardware=False)
        assert check.verdict is Verdict.INVALID

    def test_once_a_prompt_work_without_steps_is_invalid(self) -> None:
        data = {**perf_measurement().series, "candidate_once_s": (0.5,)}
        check = verdict(perf_measurement(series=data), bands_for_hardware=False)
        assert check.verdict is Verdict.INVALID and "steps" in check.message
        facts = {"steps": 10}
        check = verdict(perf_measurement(series=data, facts=facts), bands_for_hardware=False)
        assert check.verdict is Verdict.FAIL

    def test_once_a_prompt_work_is_divided_by_the_steps(self) -> None:
        """(0.1 + 0.5 / 10) / (0.06 + 0.5 / 10)"""
        data = {**perf_measurement().series, "candidate_once_s": (0.5, 0.4, 0.6), "reference_once_s": (0.5,)}
        check = verdict(perf_measurement(series=data, facts={"steps": 10}), bands_for_hardware=False)
        assert check.value == pytest.approx(0.15 / 0.11, rel=0.02)
        facts = {"steps": 1}
        check = verdict(perf_measurement(series=data, facts=facts), bands_for_hardware=False)
        assert check.value == pytest.approx(0.6 / 0.56, rel=0.02)

    def test_noise_series_of_different_length_are_invalid(self) -> None:
        data = {**perf_measurement().series, "noise_first_s": (0.06,) * 3}
        check = verdict(perf_measurement(series=data), bands_for_hardware=False)
        assert check.verdict is Verdict.INVALID and "noise_first_s has 3 times" in check.message

    @pytest.mark.parametrize(
        ("least", "expected"),
        [
            (1.05, (Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD)),  # of the speed-up, which comes first
            (1.2, (Verdict.INCONCLUSIVE, Reason.BUDGET_EXHAUSTED)),  # although the ratio itself is over 1.2
            (1.3, (Verdict.FAIL, Reason.BEYOND_LIMIT)),  # over the upper end too
        ],
    )
    def test_a_limit_beside_the_gate_holds_the_interval(
        self, least: float, expected: tuple[Verdict, Reason]
    ) -> None:
        other, ours = paired_times(1.21, pairs=5)
        assert paired_ratio(other, ours) > 1.2
        check = verdict(
            beside(torch_compile_s=other, torch_compile_candidate_s=ours),
            case=limited(compile_speedup=least),
            bands_for_hardware=False,
        )
        assert outcome(check) == expected

    def test_a_limit_beside_the_gate_says_its_interval(self) -> None:
        other, ours = paired_times(1.21, pairs=5)
        measurement = beside(torch_compile_s=other, torch_compile_candidate_s=ours)
        check = verdict(measurement, case=limited(compile_speedup=1.3), bands_for_hardware=False)
        assert check.evidence["low"] == check.value < check.evidence["high"]
        assert "at the lower end of 1.2" in check.message and "over 5 pairs" in check.message

    def test_work_once_a_prompt_counts_beside_the_gate(self) -> None:
        """0.12 s against 0.1 s is 1.2; without graphs both do what is done once, 0.1 s a step: 1.1."""
        series = {
            "candidate_once_s": (0.4,),
            "no_cuda_graphs_s": (0.12,) * 5,
            "no_cuda_graphs_candidate_s": (0.1,) * 5,
        }
        series |= {"torch_compile_s": (0.12,) * 5, "torch_compile_candidate_s": (0.1,) * 5}
        ratios = {
            name: beside_interval(name, series, {"steps": 4})[0].point
            for name in ("torch-compile", "no-cuda-graphs")
        }
        assert ratios == {"torch-compile": pytest.approx(0.6), "no-cuda-graphs": pytest.approx(1.1)}

    def test_what_could_not_be_timed_beside_the_gate_is_missing(self) -> None:
        why = Metric(value=None, unit="x", better="higher", detail="no C++ compiler")
        measurement = perf_measurement()
        told = measurement.model_copy(update={"metrics": measurement.metrics | {"compile_speedup": why}})
        for absent in (measurement, told):
            check = verdict(absent, case=limited(compile_speedup=1.0), bands_for_hardware=False)
            assert outcome(check) == (Verdict.MISSING, Reason.METRIC_NOT_COMPUTED)
        assert "no C++ compiler" in check.message

    @pytest.mark.parametrize(
        "series", [{}, {"torch_compile_s": (1.0,) * 5}, {"torch_compile_s": (-1.0,) * 5}], ids=str
    )
    def test_a_ratio_without_its_pairs_is_invalid(self, series: dict[str, tuple[float, ...]]) -> None:
        check = verdict(beside(**series), case=limited(compile_speedup=1.0), bands_for_hardware=False)
        assert outcome(check) == (Verdict.INVALID, Reason.NOT_MEASURED)

    def test_nothing_timed_is_missing(self) -> None:
        check = verdict(perf_measurement(series={}), bands_for_hardware=False)
        assert outcome(check) == (Verdict.MISSING, Reason.METRIC_NOT_COMPUTED)
        assert "no paired times" in check.message

    def test_unknown_plan_is_invalid(self) -> None:
        check = verdict(perf_measurement(facts={"sampling_plan": {"looks": 3}}), bands_for_hardware=False)
        assert check.verdict is Verdict.INVALID

    def test_the_plan_of_the_measurement_is_used(self) -> None:
        plan = {"min_pairs": 30, "max_pairs": 40, "step": 5, "confidence": 0.9}
        check = verdict(perf_measurement(facts={"sampling_plan": plan}), bands_for_hardware=False)
        assert check.evidence["pairs"] == 30
        assert check.evidence["confidence"] == 0.9

    def test_case_without_that_gate_is_an_error(self) -> None:
        case = make_case().model_copy(update={"perf": None})
        with pytest.raises(ValueError, match="no perf gate"):
            verdict(perf_measurement(), case=case)


class TestMemory:
    def measurement(self, growth: float | None, **more: Metric) -> Measurement:
        metric = Metric(value=growth, unit="B", better="lower", samples=(1e6, 1.5e6, 2e6))
        return Measurement(metrics={"growth": metric, **more})

    def test_no_growth_passes(self) -> None:
        assert outcome(verdict(self.measurement(0.0), "memory")) == (Verdict.PASS, Reason.NO_GROWTH)
        assert verdict(self.measurement(-4096.0), "memory").verdict is Verdict.PASS

    def test_growth_fails(self) -> None:
        check = verdict(self.measurement(4096.0), "memory")
        assert outcome(check) == (Verdict.FAIL, Reason.GROWTH)
        assert "4 KiB" in check.message

    def test_growth_message_and_the_limit_itself(self) -> None:
        assert verdict(self.measurement(1024.0), "memory").verdict is Verdict.PASS
        check = verdict(self.measurement(1025.0), "memory")
        assert "more than 1 KiB" in check.message
        assert "over 3 runs, 976.6 KiB in all" in check.message
        bare = Measurement(metrics={"growth": Metric(value=0.0, unit="B", better="lower")})
        assert "runs" not in verdict(bare, "memory").message

    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    def test_growth_that_is_no_number_fails(self, value: float) -> None:
        assert outcome(verdict(self.measurement(value), "memory")) == (Verdict.FAIL, Reason.NON_FINITE)

    def test_growth_that_is_counted_to_the_byte_must_be_nil(self) -> None:
        def counted(value: float) -> Measurement:
            metric = Metric(value=value, unit="B", better="lower", deterministic=True)
            return Measurement(metrics={"growth": metric})

        assert verdict(counted(0.0), "memory").verdict is Verdict.PASS
        check = verdict(counted(512.0), "memory")  # within the 1024 that the case allows a CPU
        assert outcome(check) == (Verdict.FAIL, Reason.GROWTH)
        assert check.limit == 0.0 and "every byte" in check.message

    def test_growth_of_the_device_has_a_limit_of_its_own(self) -> None:
        def device(value: float | None) -> Measurement:
            return self.measurement(0.0, device_growth=Metric(value=value, unit="B", better="lower"))

        assert verdict(device(2.0**20), "memory").verdict is Verdict.PASS
        check = verdict(device(2.0**20 + 1), "memory")
        assert (check.verdict, check.metric) == (Verdict.FAIL, "device_growth")
        assert "pieces of 2 MiB" in check.message
        assert verdict(device(None), "memory").verdict is Verdict.MISSING

    def test_growth_over_steps_is_a_slope_that_is_proven(self) -> None:
        def held(*samples: float, exact: bool = False) -> Check:
            slope = slope_interval(samples).point
            metric = Metric(value=slope, unit="B", better="lower", samples=samples, deterministic=exact)
            return verdict(self.measurement(0.0, step_growth=metric), "memory")

        rising = [8192.0 * step for step in range(11)]
        check = held(*rising)
        assert outcome(check) == (Verdict.FAIL, Reason.GROWTH) and check.metric == "step_growth"
        assert "8 KiB a denoising step (8 KiB to 8 KiB at 99%, 11 steps), more than 4 KiB" in check.message
        for jump in range(12):  # one step makes what the others use again
            assert held(*[0.0] * jump, *[1e9] * (11 - jump), exact=True).verdict is Verdict.PASS
        noisy = [
            0.0,
            40960,
            57344,
            61440,
            57344,
            57344,
            53248,
            49152,
            61440,
            61440,
            65536,
        ]  # of tiny-wan, as recorded
        assert held(*noisy).verdict is Verdict.PASS
        assert held(*[512.0 * step for step in range(11)], exact=True).verdict is Verdict.FAIL
        assert held(*[512.0 * step for step in range(11)]).verdict is Verdict.PASS
        assert held(*reversed(rising), exact=True).verdict is Verdict.PASS
        unknown = Metric(value=None, unit="B", better="lower", detail="no steps")
        assert verdict(self.measurement(0.0, step_growth=unknown), "memory").verdict is Verdict.MISSING

    def test_growth_of_the_device_over_steps_has_a_limit_of_its_own(self) -> None:
        samples = tuple(2.0 * 2**20 * step for step in range(11))
        metric = Metric(value=2.0 * 2**20, unit="B", better="lower", samples=samples)
        check = verdict(self.measurement(0.0, device_step_growth=metric), "memory")
        assert (check.metric, check.reason) == ("device_step_growth", Reason.GROWTH)
        assert "pieces of 2 MiB" in check.message

    def test_device_memory_of_no_known_owner_is_bounded(self) -> None:
        def held(value: float | None) -> Measurement:
            return self.measurement(0.0, device_unattributed=Metric(value=value, unit="B", better="lower"))

        assert verdict(held(0.88e9), "memory").verdict is Verdict.PASS  # the most of 30 runs on an H200
        assert verdict(held(1.25 * 2**30), "memory").verdict is Verdict.PASS
        check = verdict(held(1.5 * 2**30), "memory")
        assert outcome(check) == (Verdict.FAIL, Reason.UNATTRIBUTED)
        assert "1.5 GiB on the device are held by no known owner" in check.message
        assert "more than 1.25 GiB (CUDA's context" in check.message
        assert verdict(held(None), "memory").verdict is Verdict.MISSING
        assert outcome(verdict(held(math.nan), "memory")) == (Verdict.FAIL, Reason.NON_FINITE)

    def test_growth_that_was_not_measured_is_missing(self) -> None:
        assert verdict(self.measurement(None), "memory").verdict is Verdict.MISSING
        assert verdict(Measurement(metrics={}), "memory").verdict is Verdict.MISSING


class TestBands:
    def bands(
        self, stored: dict[str, BaselineMetric] | None, measured: dict[str, float | None], **options: Any
    ) -> tuple[Check, ...]:
        metrics = {name: Metric(value=value, unit="s", better="lower") for name, value in measured.items()}
        baseline = BaselineEntry(stored) if stored is not None else None
        settings = {"bands_for_hardware": True, "require_bands": False, **options}
        return judge_bands("dit-fp32", "perf", {"time": TEN_PERCENT}, metrics, baseline, **settings)

    def stored(self, value: float, **changes: Any) -> BaselineMetric:
        fields = {"unit": "s", "better": "lower", "tolerance": Tolerance(0.10, 0.0, "x"), **changes}
        return BaselineMetric(value, **fields)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (1.0, (Verdict.PASS, Reason.WITHIN_BAND)),
            (1.099, (Verdict.PASS, Reason.WITHIN_BAND)),
            (1.101, (Verdict.FAIL, Reason.WORSE_THAN_BAND)),
            (0.899, (Verdict.PASS, Reason.BETTER_THAN_BAND)),
            (math.nan, (Verdict.FAIL, Reason.NON_FINITE)),
        ],
    )
    def test_band(self, value: float, expected: tuple[Verdict, Reason]) -> None:
        (check,) = self.bands({"time": self.stored(1.0)}, {"time": value})
        assert outcome(check) == expected
        (strict,) = self.bands({"time": self.stored(1.0)}, {"time": value}, strict_improvements=True)
        gain = expected[1] is Reason.BETTER_THAN_BAND
        assert outcome(strict) == ((Verdict.FAIL, expected[1]) if gain else expected)

    def test_an_improvement_is_the_reason_of_a_pass_and_the_last_one_of_a_failure(self) -> None:
        gain = entry(candidate=0.08)
        assert outcome(verdict(perf_measurement(), baseline=gain)) == (Verdict.PASS, Reason.BETTER_THAN_BAND)
        strict = verdict(perf_measurement(), baseline=gain, strict_improvements=True)
        assert outcome(strict) == (Verdict.FAIL, Reason.BETTER_THAN_BAND)
        ratio = BaselineMetric(2.0, "x", "higher", Tolerance(TEN_PERCENT.rel, TEN_PERCENT.abs, "x"))
        both = make_case(bands={"candidate_time": TEN_PERCENT, "speedup": TEN_PERCENT})
        stored = BaselineEntry({"candidate_time": gain.metrics["candidate_time"], "speedup": ratio})
        worse = verdict(perf_measurement(), baseline=stored, case=both, strict_improvements=True)
        assert (worse.metric, *outcome(worse)) == ("speedup", Verdict.FAIL, Reason.WORSE_THAN_BAND)

    @pytest.mark.parametrize(
        ("value", "better", "limit", "text"),
        [
            (
                1.2,
                "lower",
                1.1,
                "time 1200 ms > 1100 ms is worse than its band (baseline 1000 ms, +20.0%; at max)",
            ),
            (0.8, "lower", 0.9, "time 800 ms < 900 ms is better than its band (baseline 1000 ms, -20.0%)"),
            (
                0.8,
                "higher",
                0.9,
                "time 800 ms < 900 ms is worse than its band (baseline 1000 ms, -20.0%; at max)",
            ),
            (1.2, "higher", 1.1, "time 1200 ms > 1100 ms is better than its band (baseline 1000 ms, +20.0%)"),
            (1.0, "lower", 1.1, "time 1000 ms is within its band (baseline 1000 ms, +0.0%)"),
            (1.0, "higher", 0.9, "time 1000 ms is within its band (baseline 1000 ms, +0.0%)"),
        ],
    )
    def test_message_and_limit(self, value: float, better: Any, limit: float, text: str) -> None:
        metrics = {"time": Metric(value=value, unit="s", better=better, detail="at max")}
        (check,) = judge_bands(
            "dit-fp32",
            "perf",
            {"time": TEN_PERCENT},
            metrics,
            BaselineEntry({"time": self.stored(1.0, better=better)}),
            bands_for_hardware=True,
            require_bands=False,
        )
        assert check.limit == pytest.approx(limit)
        assert text in check.message

    def test_machine_without_baselines_still_shows_what_was_measured(self) -> None:
        (check,) = self.bands(None, {"time": 1.0}, bands_for_hardware=False)
        assert check.value == 1.0
        (check,) = self.bands(None, {}, bands_for_hardware=False)
        assert check.value is None

    def test_better_than_the_band_asks_for_a_new_baseline(self) -> None:
        (check,) = self.bands({"time": self.stored(1.0)}, {"time": 0.5})
        assert "wan-trt baselines regenerate --suite perf --case dit-fp32" in check.message

    @pytest.mark.parametrize(
        ("run", "named"),
        [
            ((), ""),
            (("pytest", "--wan-cases", "my cases.yaml", "-q"), " --cases 'my cases.yaml'"),
            (("pytest", "--wan-baselines=b", "--wan-cases=a", "--wan-cases=c"), " --cases c --baselines b"),
            (("pytest", "--wan-cases"), ""),
        ],
    )
    def test_the_command_names_the_case_file_and_the_folder_of_the_run(
        self, run: tuple[str, ...], named: str
    ) -> None:
        command = regenerate_command("perf", "dit-fp32", run)
        assert command == f"wan-trt baselines regenerate --suite perf --case dit-fp32{named}"
        (check,) = self.bands(None, {"time": 1.0}, run=run)
        assert check.message.endswith(command)

    @pytest.mark.parametrize("rel", [0.0, 0.25])
    def test_the_ends_of_a_band_are_within_it(self, rel: float) -> None:
        """A band of no width holds what repeats exactly, and then the one value is both its ends."""
        stored = BaselineMetric(4.0, "", "lower", Tolerance(rel, 0.0, ""))
        low, high = 4 * (1 - rel), 4 * (1 + rel)
        assert position(low, stored) is position(high, stored) is Reason.WITHIN_BAND
        assert position(math.nextafter(high, math.inf), stored) is Reason.WORSE_THAN_BAND
        assert position(math.nextafter(low, 0.0), stored) is Reason.BETTER_THAN_BAND

    def test_direction(self) -> None:
        higher = self.stored(40.0, better="higher")
        assert position(30.0, higher) is Reason.WORSE_THAN_BAND
        assert position(50.0, higher) is Reason.BETTER_THAN_BAND
        assert position(30.0, self.stored(40.0)) is Reason.BETTER_THAN_BAND

    def test_the_larger_of_relative_and_absolute_counts(self) -> None:
        loose = self.stored(1.0, tolerance=Tolerance(0.1, 0.5, "x"))
        assert position(1.4, loose) is Reason.WITHIN_BAND
        assert position(1.6, loose) is Reason.WORSE_THAN_BAND

    def test_machine_without_baselines_is_reported_but_does_not_decide(self) -> None:
        (check,) = self.bands(None, {"time": 1.0}, bands_for_hardware=False)
        assert (*outcome(check), check.advisory) == (Verdict.MISSING, Reason.NO_BANDS_FOR_HARDWARE, True)

    def test_machine_without_baselines_decides_when_bands_are_required(self) -> None:
        (check,) = self.bands(None, {"time": 1.0}, bands_for_hardware=False, require_bands=True)
        assert (check.verdict, check.advisory) == (Verdict.MISSING, False)

    @pytest.mark.parametrize("stored", [None, {}])
    def test_case_without_a_baseline_is_missing_with_the_command(self, stored: dict[str, Any] | None) -> None:
        (check,) = self.bands(stored, {"time": 1.0})
        assert (*outcome(check), check.advisory) == (Verdict.MISSING, Reason.NO_BASELINE, False)
        assert "wan-trt baselines regenerate --suite perf --case dit-fp32" in check.message

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_impossible_baseline_is_invalid(self, value: float) -> None:
        (check,) = self.bands({"time": self.stored(value)}, {"time": 1.0})
        assert outcome(check) == (Verdict.INVALID, Reason.BASELINE_INVALID)

    @pytest.mark.parametrize("measured", [{}, {"time": None}])
    def test_metric_that_vanished_is_missing(self, measured: dict[str, float | None]) -> None:
        (check,) = self.bands({"time": self.stored(1.0)}, measured)
        assert outcome(check) == (Verdict.MISSING, Reason.METRIC_VANISHED)

    def test_metric_too_many_in_the_baseline(self) -> None:
        stored = {"time": self.stored(1.0), "extra": self.stored(1.0)}
        assert self.bands(stored, {"time": 1.0, "extra": 1.0})[1].reason is Reason.METRIC_UNEXPECTED
        assert self.bands(stored, {"time": 1.0})[1].reason is Reason.METRIC_VANISHED
        assert all(check.verdict is not Verdict.PASS for check in self.bands(stored, {"time": 1.0})[1:])

    def test_tolerance_that_was_widened_by_hand_is_invalid(self) -> None:
        (check,) = self.bands({"time": self.stored(1.0, tolerance=Tolerance(0.05, 0.0, "x"))}, {"time": 1.0})
        assert outcome(check) == (Verdict.INVALID, Reason.BASELINE_INVALID)

    def test_other_unit_or_direction_is_invalid(self) -> None:
        for changed in (self.stored(1.0, unit="B"), self.stored(1.0, better="higher")):
            (check,) = self.bands({"time": changed}, {"time": 1.0})
            assert check.reason is Reason.BASELINE_INVALID

    def test_unreadable_baseline_makes_the_case_invalid(self) -> None:
        check = verdict(perf_measurement(), baseline_error="x.json: is no whole JSON")
        assert outcome(check) == (Verdict.INVALID, Reason.BASELINE_INVALID)
        assert "x.json" in check.message

    def test_absolute_band_only(self) -> None:
        band = Band(rel=0.0, abs=0.5, reason="half a decibel")
        metrics = {"psnr_db": Metric(value=39.4, unit="dB", better="higher")}
        stored = BaselineMetric(40.0, "dB", "higher", Tolerance(0.0, 0.5, "half a decibel"))
        (check,) = judge_bands(
            "video", "parity", {"psnr_db": band}, metrics, BaselineEntry({"psnr_db": stored}),
            bands_for_hardware=True, require_bands=True,
        )  # fmt: skip
        assert check.verdict is Verdict.FAIL


class TestFormatting:
    @pytest.mark.parametrize(
        ("value", "limit", "unit", "expected"),
        [
            (0.00100001, 0.001, "", ("0.00100001", "0.001")),
            (1.4999999, 1.5, "x", ("1.4999999x", "1.5x")),
            (0.0123, 0.0125, "s", ("12.3 ms", "12.5 ms")),
            (3 * 2**30, 2 * 2**30, "B", ("3 GiB", "2 GiB")),
            (90.0, 90.0, "dB", ("90 dB", "90 dB")),
            (math.nan, 90.0, "dB", ("nan dB", "90 dB")),
        ],
    )
    def test_pair(self, value: float, limit: float, unit: str, expected: tuple[str, str]) -> None:
        assert pair(value, limit, unit) == expected

    def test_neighbouring_floats_are_told_apart(self) -> None:
        for value in (1.5, 0.1, 123456.0, 3e9):
            for unit in ("", "s", "B", "x", "dB"):
                shown, limit = pair(value, math.nextafter(value, math.inf), unit)
                assert shown != limit

    @pytest.mark.parametrize(
        ("value", "unit", "expected"),
        [
            (None, "s", "not measured"),
            (0.01234567, "s", "12.35 ms"),
            (75.5, "s", "75.5 s"),
            (1024, "B", "1 KiB"),
            (12, "B", "12 B"),
            (1.6666, "x", "1.667x"),
            (-5 * 2**20, "B", "-5 MiB"),
            (math.inf, "s", "inf s"),
            (123456.7, "", "123457"),
            (9.9, "s", "9900 ms"),
            (10.0, "s", "10 s"),
        ],
    )
    def test_quantity(self, value: float | None, unit: str, expected: str) -> None:
        assert quantity(value, unit) == expected


WORST_FIRST = ["fail", "invalid", "missing", "inconclusive", "pass"]


def test_the_most_severe_verdict_decides_a_case() -> None:
    def check(verdict: str) -> Check:
        return Check("floor", verdict, Verdict(verdict), Reason.WITHIN_LIMIT, "")

    assert {*WORST_FIRST} == {*Verdict}
    for at, worst in enumerate(WORST_FIRST):
        for other in WORST_FIRST[at:]:
            assert decide([check(other), check(worst)]).verdict == worst
            assert decide([check(worst), check(other)]).verdict == worst


def test_a_case_that_nothing_judged_never_passes() -> None:
    with pytest.raises(ValueError, match="no-op"):
        decide([])


def test_data_is_frozen_from_the_measurement_to_the_verdict() -> None:
    modules = [import_module(f"wan_trt_core.gates.{found.name}") for found in iter_modules(gates.__path__)]
    classes = [found for module in modules for found in vars(module).values() if is_dataclass(found)]
    assert {Check, SpeedupRule, SamplingPlan, BaselineEntry} <= {*classes}
    assert all(found.__dataclass_params__.frozen for found in classes)  # type: ignore[attr-defined]
    assert all(model.model_config["frozen"] for model in (Metric, Measurement, CaseRecord, Case, Limit, Band))


def test_importing_the_gates_is_light() -> None:
    code = (
        "import sys, wan_trt_core.gates, wan_trt_core.gates.judging; "
        "sys.exit(bool({'torch', 'numpy', 'scipy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plan_default_is_that_of_the_settings() -> None:
    from wan_trt_core.config import PerfSettings

    settings, plan = PerfSettings(), SamplingPlan()
    assert (settings.min_pairs, settings.max_pairs, settings.confidence) == (
        plan.min_pairs,
        plan.max_pairs,
        plan.confidence,
    )
