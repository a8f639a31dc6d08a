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
