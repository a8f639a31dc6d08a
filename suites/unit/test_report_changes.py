"""Two runs compared: what got worse comes first, and what cannot be compared is said, not shown."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from fabricated import TIMES, case_record, entry, make_case, perf_measurement, run_record
from rich.console import Console

from wan_trt_core.cases import Band
from wan_trt_core.records import CaseRecord, Measurement, Metric
from wan_trt_core.report.changes import Comparison, MetricChange, Weight, compare_runs
from wan_trt_core.report.markdown import comparison_markdown
from wan_trt_core.report.terminal import changes_table


def perf(case: str = "dit-fp32", ratio: float = 1.67, **options: Any) -> CaseRecord:
    bands = dict.fromkeys(TIMES, Band(rel=0.5, reason="ten percent"))
    return case_record(
        make_case(case, bands=bands), perf_measurement(ratio, **options), baseline=entry(rel=0.5)
    )


def parity(psnr_db: float | None, case: str = "dit-fp32") -> CaseRecord:
    metrics = {
        "psnr_db": Metric(value=psnr_db, unit="dB", better="higher"),
        "non_finite": Metric(value=0.0, unit="", better="lower"),
        "cosine": Metric(value=0.5, unit="", better="higher"),
    }
    return case_record(make_case(case), Measurement(metrics=metrics), suite="parity")


def compared(before: CaseRecord, after: CaseRecord) -> Comparison:
    return compare_runs(run_record(before), run_record(after))


def change(found: Comparison, metric: str) -> MetricChange:
    return next(row for row in found.metrics if row.metric == metric)


def test_the_same_run_twice_changes_nothing() -> None:
    found = compared(perf(), perf())
    assert found.summary == "1 case: 1 with the same verdict"
    assert not found.verdicts and not found.notes
    assert {row.metric for row in found.metrics} >= {"speedup", "psnr_db", "candidate_time"}
    assert {row.weight for row in found.metrics} == {Weight.UNCHANGED}


def test_new_removed_changed_and_still_failing_cases_the_worst_first() -> None:
    before = run_record(perf("gone"), perf("same"), perf("bad", 1.2), perf("slower"))
    after = run_record(perf("same"), perf("bad", 1.2), perf("slower", 1.1), perf("added"))
    found = compare_runs(before, after)
    assert found.summary == "5 cases: 1 worse, 1 new, 1 removed, 2 with the same verdict"
    assert [row.case for row in found.verdicts] == ["bad", "slower", "gone", "added"]
    slower = found.verdicts[1]
    assert slower.before == "pass (interval_above_threshold)"
    assert slower.after == "fail (interval_below_threshold)"
    assert "1.5x" in slower.why
    assert (found.verdicts[2].after, found.verdicts[3].before) == ("", "")


def test_a_metric_is_held_to_the_width_of_its_band_and_a_ratio_to_its_intervals() -> None:
    slower = compared(perf(reference=0.1), perf(reference=0.16))
    assert change(slower, "reference_time").outcome == "stock diffusers slower"
    assert change(slower, "reference_time").weight is Weight.FAILED
    assert change(slower, "reference_time").allowed == "50.0%"
    assert change(slower, "speedup").outcome == "unchanged"
    faster = compared(perf(reference=0.13), perf(reference=0.06))
    assert change(faster, "reference_time").outcome == "better"
    assert change(faster, "reference_time").weight is Weight.NOTABLE
    assert change(compared(perf(seed=1), perf(seed=2)), "candidate_time").outcome == "within band"
    assert change(compared(perf(seed=1), perf(seed=2)), "speedup").outcome == "within noise"
    lost = compared(perf(ratio=2.5), perf(ratio=1.7))  # passes still, and is told
    assert lost.metrics[0] == change(lost, "speedup")
    assert (lost.metrics[0].outcome, lost.metrics[0].weight) == ("worse", Weight.WORSE)


@pytest.mark.parametrize(
    ("old", "new", "outcome", "weight"),
    [
        (140.0, 139.0, "within limit", Weight.UNCHANGED),
        (140.0, 91.0, "closer to its limit", Weight.NOTABLE),
        (140.0, 89.0, "beyond limit", Weight.FAILED),
        (140.0, None, "not computed", Weight.FAILED),
        (140.0, math.inf, "NaN or infinite", Weight.FAILED),
        (math.nan, 140.0, "within limit", Weight.UNCHANGED),
        (None, 140.0, "new", Weight.NOTABLE),
    ],
)
def test_a_limited_metric(old: float | None, new: float | None, outcome: str, weight: Weight) -> None:
    row = change(compared(parity(old), parity(new)), "psnr_db")
    assert (row.outcome, row.weight, row.allowed) == (outcome, weight, ">= 90 dB")


def test_what_no_gate_holds_is_left_out() -> None:
    assert "cosine" not in {row.metric for row in compared(parity(100.0), parity(99.0)).metrics}


def test_numbers_of_other_hardware_or_weights_are_not_compared() -> None:
    other = compare_runs(run_record(perf()), run_record(perf(), hardware_key="cuda-x"))
    assert "hardware differs" in other.notes[0] and not other.metrics
    random = perf(facts={"random_weights": "seeded random"})
    found = compared(perf(), random)
    assert found.notes == (
        "dit-fp32 (perf): other weights (checkpoint, seeded random), so its numbers are not compared",
    )
    assert not found.metrics


def test_markdown_folds_what_did_not_change() -> None:
    text = comparison_markdown(run_record(perf(ratio=2.5)), run_record(perf(ratio=1.2)))
    assert text.startswith("## wan-trt: 1 case: 1 worse\n")
    shown, folded = text.split("<details>")
    assert "| `dit-fp32` | perf | pass (" in shown
    assert "| speedup | 2.488x | 1.194x | -52.0% | >= 1.5x |" in shown and "**too slow**" in shown
    assert "psnr_db" not in shown and "psnr_db" in folded
    assert "| before | abc |" in folded
    assert "| `dit-fp32` | perf | new | pass" in comparison_markdown(run_record(), run_record(perf()))


def test_markdown_notes_cannot_break_out() -> None:
    case = case_record(make_case(), perf_measurement())
    text = comparison_markdown(run_record(case), run_record(case, hardware_key="<img src=x>"))
    assert "the hardware differs" in text and "<img" not in text


def test_a_long_case_takes_no_width_from_what_is_told_of_it() -> None:
    """In the 80 columns of a CI's log."""
    size, told = 3.2e10, io.StringIO()
    row = MetricChange(
        "wan-1.3b-pipeline-17f-encoder-offload-memory", "memory", "device_used", "B", size, size,
        "5.0% or 64 MiB", "unchanged", Weight.UNCHANGED,
    )  # fmt: skip
    Console(file=told, width=80).print(changes_table([row]))
    (line,) = (line for line in told.getvalue().splitlines() if "device_used" in line)
    assert re.search(r" 5\.0% or 64 MiB +unchanged$", line.rstrip())
