"""Result records: whole, versioned, strict, and enough to judge again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fabricated import case_record, entry, make_case, perf_measurement, run_record

from wan_trt_core.gates import judge
from wan_trt_core.records import Measurement, Metric, RecordError, RunRecord


@pytest.fixture
def record() -> RunRecord:
    return run_record(case_record(make_case(), perf_measurement(), baseline=entry()))


def test_round_trip(record: RunRecord, tmp_path: Path) -> None:
    record.write(tmp_path / "deep" / "results.json")
    assert RunRecord.read(tmp_path / "deep" / "results.json") == record


def test_non_finite_numbers_survive_as_text(tmp_path: Path) -> None:
    metrics = {"psnr_db": Metric(value=math.nan, unit="dB", better="higher"), **perf_measurement().metrics}
    metrics["psnr_db"] = Metric(value=math.nan, unit="dB", better="higher")
    path = tmp_path / "results.json"
    run_record(case_record(make_case(), perf_measurement(metrics=metrics))).write(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    value = RunRecord.read(path).cases[0].measurement.metrics["psnr_db"].value
    assert value is not None and math.isnan(value)


def test_judging_a_stored_record_again_gives_the_same_checks(record: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    record.write(path)
    stored = RunRecord.read(path).cases[0]
    again = judge(
        make_case(), "perf", stored.measurement, entry(), bands_for_hardware=True, require_bands=False
    )
    assert [(check.gate, check.metric, check.verdict, check.message) for check in again] == [
        (check.gate, check.metric, check.verdict, check.message) for check in stored.checks
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"schema_version": None}, "schema_version None"),
        ({"extra": 1}, "extra"),
        ({"cases": "none"}, "cases"),
    ],
)
def test_record_of_another_shape_is_an_error(
    change: dict[str, Any], message: str, record: RunRecord, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    record.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordError, match=message) as caught:
        RunRecord.read(path)
    assert str(path) in str(caught.value)


def test_missing_or_truncated_record_is_an_error(record: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(RecordError, match=r"results\.json"):
        RunRecord.read(path)
    record.write(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(RecordError, match="not a readable"):
        RunRecord.read(path)


def test_interrupted_write_leaves_nothing_half_written(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    record.write(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_text", _broken)
    with pytest.raises(OSError, match="disk full"):
        record.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _broken(path: Path, text: str, **_: object) -> None:
    path.write_bytes(text[:1].encode())
    raise OSError("disk full")


def test_problems_are_keyed_by_reason() -> None:
    with pytest.raises(ValueError, match="because"):
        Measurement(metrics={}, problems={"because": "x"})  # type: ignore[dict-item]


def job(case: str, started: str, report: str, **environment: Any) -> RunRecord:
    """One of the jobs that a suite is split over."""
    record = run_record(case_record(make_case(case), perf_measurement(), baseline=entry()), **environment)
    return record.model_copy(
        update={
            "started": started,
            "command": ("pytest", "-k", case),
            "settings": {**record.settings, "report": report},
        }
    )


def test_the_runs_of_several_jobs_are_one() -> None:
    late, early = job("dit", "2026-01-02", "here", throttled="hot"), job("vae", "2026-01-01", "there")
    merged = RunRecord.merged([late, early])
    assert [case.case for case in merged.cases] == ["vae", "dit"]
    assert (merged.started, merged.command) == (early.started, early.command)
    assert merged.environment["merged"] == ["pytest -k vae", "pytest -k dit"]
    assert merged.environment["throttled"] == "hot"
    assert RunRecord.merged([early]).cases == early.cases
    third = job("pipeline", "2026-01-03", "there")
    assert RunRecord.merged([third, merged]) == RunRecord.merged([late, early, third]), (
        "in two steps as in one"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware_key": "cuda-other"}, "hardware_key: .* and cuda-other"),
        ({"packages": {"torch": "2.12.0"}}, "packages: torch: 2.11.0 and 2.12.0"),
        ({"source": {"commit": "def"}}, "source: commit: abc and def"),
        ({"python": "3.12"}, "python: None and 3.12"),
    ],
)
def test_runs_of_other_things_are_not_one(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=f"the runs of 2026-01-01 and 2026-01-02 differ in {message}"):
        RunRecord.merged([job("dit", "2026-01-01", "here"), job("vae", "2026-01-02", "here", **changes)])


def test_runs_by_other_settings_are_not_one() -> None:
    other = job("vae", "2026-01-02", "there")
    other = other.model_copy(update={"settings": {"perf": {"time_budget": 5}}})
    with pytest.raises(RecordError, match="differ in settings: perf: time_budget: 60 and 5"):
        RunRecord.merged([job("dit", "2026-01-01", "here"), other])


def test_a_case_of_several_jobs_is_refused() -> None:
    with pytest.raises(RecordError, match=r"dit \(perf\) is in several runs"):
        RunRecord.merged([job("dit", "2026-01-01", "here"), job("dit", "2026-01-02", "here")])
