"""What a baseline keeps of a run although nothing judges it: which numbers, of which run, and how they are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fabricated import case_record, entry, make_case, paired_times, perf_measurement

from wan_trt_core.baselines import new_entry
from wan_trt_core.cases import Band, Case, Limit, MemoryBand, MemoryGate
from wan_trt_core.gates.bands import Observed, ObservedMetric
from wan_trt_core.gates.perf import beside_interval
from wan_trt_core.observations import beside, commit_of, extent, observed, seen
from wan_trt_core.records import CaseRecord, Measurement, Metric

CASE = make_case()


def shown(case: Case, suite: Any, *runs: CaseRecord) -> dict[str, ObservedMetric]:
    found = observed(case, suite, runs, "abc", "2026-01-01T00:00:00+00:00")
    assert found is not None and (found.commit, found.date) == ("abc", "2026-01-01T00:00:00+00:00")
    return dict(found.metrics)


def measured(**metrics: Metric) -> CaseRecord:
    record = case_record(CASE, perf_measurement())
    return record.model_copy(update={"measurement": Measurement(metrics=metrics)})


def size(value: float) -> Metric:
    return Metric(value=value, unit="B", better="lower")


def test_of_perf_every_ratio_has_the_interval_of_its_own_pairs() -> None:
    """That of the speed-up is the one at which the gate stopped, fewer pairs than there are."""
    other, ours = paired_times(1.2, pairs=5, seed=7)
    measurement = perf_measurement(3.0)
    ratio = Metric(value=1.2, unit="x", better="higher")
    measurement = measurement.model_copy(
        update={
            "metrics": {**measurement.metrics, "compile_speedup": ratio},
            "series": {
                **measurement.series,
                "torch_compile_s": other,
                "torch_compile_candidate_s": ours,
            },
        }
    )
    run = case_record(CASE, measurement)
    found = shown(CASE, "perf", run)
    assert set(found) == {"speedup", "compile_speedup", "psnr_db"}, "no gain of CUDA graphs was measured"
    gate = next(check for check in run.checks if check.gate == "speedup")
    assert (found["speedup"].low, found["speedup"].pairs) == (gate.evidence["low"], gate.evidence["pairs"])
    assert gate.evidence["pairs"] < 30
    interval, _ = beside_interval("torch-compile", measurement.series, measurement.facts)
    told = found["compile_speedup"]
    assert (told.low, told.high, told.pairs) == (interval.low, interval.high, 5)
    assert found["psnr_db"] == ObservedMetric(120.0, "dB")


def test_of_parity_what_has_a_limit_and_no_band_at_every_point_of_the_profile() -> None:
    assert CASE.parity is not None
    limits = {name: Limit(max=9, reason="r") for name in ("psnr_db", "relative_l2", "cosine")}
    gate = CASE.parity.model_copy(
        update={"limits": limits, "bands": {"relative_l2": Band(rel=0.5, reason="r")}}
    )
    case = CASE.model_copy(update={"parity": gate})
    at_points = Metric(value=62.0, unit="dB", better="higher", samples=(62.0, 64.0, 63.0))
    run = measured(
        psnr_db=at_points,
        relative_l2=Metric(value=1e-3, unit="", better="lower"),
        cosine=Metric(value=None, unit="", better="higher"),
    )
    points = {"min": 62.0, "opt": 64.0, "max": 63.0}
    assert shown(case, "parity", run) == {"psnr_db": ObservedMetric(62.0, "dB", points=points)}
    video = case.model_copy(update={"component": "pipeline"})  # whose samples are no points
    assert shown(video, "parity", run) == {"psnr_db": ObservedMetric(62.0, "dB")}


def test_of_memory_the_budget_that_held_it() -> None:
    """That a run fitted is known of a baseline, too."""
    case = CASE.model_copy(update={"memory": MemoryGate(growth=Limit(max=1, reason="r"))})
    run = measured(device_used=size(9e9))
    held = run.measurement.model_copy(update={"facts": {"memory_budget": {"bytes": 12884901888, "free": 1}}})
    assert set(shown(case, "memory", run)) == {"device_used"}
    found = shown(case, "memory", run.model_copy(update={"measurement": held}))
    assert found["memory_budget"] == ObservedMetric(12884901888.0, "B")


def test_of_memory_the_caches_what_is_nobodys_and_stock_diffusers() -> None:
    gate = MemoryGate(
        growth=Limit(max=1, reason="r"), bands={"device_unattributed": MemoryBand(rel=0.1, reason="r")}
    )
    run = measured(
        engine_caches=size(7e9),
        device_unattributed=size(8e8),
        engine_buffers=size(1e6),
        reference_device_used=size(4e9),
        **{"reference_decode.device_used": size(4e9)},
        peak_over_reference=Metric(value=0.5, unit="x", better="lower"),
    )
    case = CASE.model_copy(update={"memory": gate})
    assert set(shown(case, "memory", run)) == {"engine_caches", "reference_device_used"}


def test_a_case_without_a_band_on_the_device_keeps_what_it_and_stock_diffusers_took_of_it() -> None:
    took = {"device_used": size(9e8), "device_peak_allocated": size(2e8), "reference_device_used": size(4e9)}
    bands = {"resident_set_peak": MemoryBand(rel=0.1, reason="r")}
    gate = MemoryGate(growth=Limit(max=1, reason="r"), reference=True, bands=bands)
    case, run = CASE.model_copy(update={"memory": gate}), measured(resident_set_peak=size(1e9), **took)
    assert shown(case, "memory", run) == {
        name: ObservedMetric(metric.value or 0, "B") for name, metric in took.items()
    }
    bands = dict.fromkeys(("device_used", "device_peak_allocated"), bands["resident_set_peak"])
    banded = case.model_copy(update={"memory": gate.model_copy(update={"bands": bands})})
    assert set(shown(banded, "memory", run)) == {"reference_device_used"}


def test_of_several_runs_each_number_is_that_of_the_median_one() -> None:
    runs = [case_record(CASE, perf_measurement(ratio)) for ratio in (1.9, 1.7, 1.8, 1.75)]
    found = shown(CASE, "perf", *runs)["speedup"]
    assert found == shown(CASE, "perf", runs[3])["speedup"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1.0])
def test_what_is_no_number_is_not_observed(value: float | None) -> None:
    run = measured(psnr_db=Metric(value=value, unit="dB", better="higher"))
    assert observed(CASE, "parity", [run], "abc", "") is None


def test_what_is_seen_is_of_one_run() -> None:
    """A judged number of another run is told as that run had it; one that is the same is not stored twice."""
    judged = entry(reference=0.1, candidate=0.06)
    assert commit_of(judged) == judged.provenance["commit"]
    assert seen(judged, "reference_time") == ObservedMetric(0.1, "s")
    assert seen(judged, "speedup") is None
    later = Observed("def", "", {"speedup": ObservedMetric(1.7, "x")})
    both = beside(judged, replace(entry(reference=0.103, candidate=0.06), observed=later))
    assert both.metrics == judged.metrics and both.provenance == judged.provenance
    assert both.observed is not None and set(both.observed.metrics) == {"speedup", "reference_time"}
    assert commit_of(both) == "def"
    assert seen(both, "reference_time") == ObservedMetric(0.103, "s")
    assert seen(both, "candidate_time") == ObservedMetric(0.06, "s")
    assert beside(judged, entry(reference=0.103)) == judged, "nothing was observed"


def test_stored_digits_are_those_of_all_else() -> None:
    told = ObservedMetric(1.23456789, "x", 1.11111111, 1.33333333, 9, {"min": 1.23456789})
    assert CASE.perf is not None
    made = new_entry(
        "dit", CASE.perf.bands, [perf_measurement()], entry().provenance, Observed("abc", "", {"a": told})
    )
    assert made.observed is not None
    assert made.observed.metrics["a"] == ObservedMetric(1.23457, "x", 1.11111, 1.33333, 9, {"min": 1.23457})


def test_an_extent_is_told_in_words() -> None:
    assert extent(ObservedMetric(1.6, "x", 1.52, 1.75, 9)) == "1.52x to 1.75x, 9 pairs"
    points = {"max": 64.2, "min": 62.1, "opt": 64.3}  # as a file has them, in the order of the alphabet
    assert extent(ObservedMetric(62.1, "dB", points=points)) == "min 62.1 dB, opt 64.3 dB, max 64.2 dB"
    assert extent(ObservedMetric(1.0, "B")) == ""
