"""Baseline files: strict reading, writing that touches nothing else, and what a change means."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import (
    HARDWARE,
    KERNELS,
    STORED_KERNELS,
    TEN_PERCENT,
    TIMES,
    entry,
    make_case,
    perf_measurement,
    provenance,
)

from wan_trt_core.baselines import (
    BaselineError,
    BaselineFile,
    Change,
    baseline_path,
    compare_entries,
    find_orphans,
    new_entry,
    other_origin,
    other_settings,
    read_baselines,
    write_baselines,
)
from wan_trt_core.cases import Band, Case, load_cases
from wan_trt_core.gates import decide, judge
from wan_trt_core.gates.bands import BaselineEntry, Observed, ObservedMetric, Tolerance, judge_bands
from wan_trt_core.gates.judging import gate_bands
from wan_trt_core.gates.verdict import Reason, Verdict
from wan_trt_core.observations import OF_REFERENCE
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.records import Measurement, Metric

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]


def written(root: Path, *cases: str) -> Path:
    """A baseline file of perf with these cases."""
    entries = {case: entry(kernels=STORED_KERNELS) for case in cases or ("dit-fp32",)}
    return write_baselines(root, BaselineFile(HARDWARE, "tiny-wan", "perf", entries), entries)


def read(root: Path) -> BaselineFile | None:
    return read_baselines(root, HARDWARE, "tiny-wan", "perf")


def test_path() -> None:
    path = baseline_path(Path("baselines"), HARDWARE, "tiny-wan", "perf")
    assert path == Path("baselines") / HARDWARE / "tiny-wan" / "perf.json"
    assert baseline_path(Path("b"), HARDWARE, "/models/My Wan", "perf").parent.name == "My-Wan"


@pytest.mark.parametrize("key", ["", "..", "../other", "a/b"])
def test_path_stays_in_its_folder(key: str) -> None:
    with pytest.raises(BaselineError, match="hardware key"):
        baseline_path(Path("baselines"), key, "tiny-wan", "perf")


def test_round_trip(tmp_path: Path) -> None:
    written(tmp_path)
    stored = read(tmp_path)
    assert stored is not None
    assert stored.cases == {"dit-fp32": entry(kernels=STORED_KERNELS)}


@pytest.mark.parametrize("kernels", [None, {**STORED_KERNELS, "layers": [["blocks.0.attn1", 1.5, 1]]}])
def test_round_trip_of_kernels(kernels: Any, tmp_path: Path) -> None:
    entries = {"dit-fp32": entry(kernels=kernels)}
    write_baselines(tmp_path, BaselineFile(HARDWARE, "tiny-wan", "perf", entries), entries)
    stored = read(tmp_path)
    assert stored is not None
    assert stored.cases == entries


RUN = ("pytest", "--wan-cases", "mine.yaml", "--wan-baselines=kept")


def test_a_broken_file_is_made_again_with_the_case_file_and_the_folder_of_the_run(tmp_path: Path) -> None:
    edited(tmp_path, lambda data: metric(data).update(value=0))
    made = "make it again: wan-trt baselines regenerate --suite perf --case dit-fp32"
    with pytest.raises(BaselineError, match=f"{made}$"):
        read(tmp_path)
    with pytest.raises(BaselineError, match=f"{made} --cases mine.yaml --baselines kept$"):
        read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf", RUN)


def test_baselines_of_another_backend_are_kept_apart_with_the_case_file_of_the_run() -> None:
    run = {**entry().provenance, "backend": "torch"}
    made = "wan-trt baselines regenerate --suite perf --case dit-fp32"
    told = other_origin("dit-fp32", "perf", entry(), run)
    assert told is not None and f"{made} --baselines OTHER (with" in told
    told = other_origin("dit-fp32", "perf", entry(), run, RUN)
    assert told is not None and f"{made} --cases mine.yaml --baselines OTHER (with" in told


CENTRED = {"tensorrt.self_attention": "centred"}


def under(settings: Any) -> BaselineEntry:
    """An entry that says which settings made it, and what was observed beside it."""
    seen = Observed("abc", "2026-01-01", {"speedup": ObservedMetric(1.7, "x")}, settings)
    return replace(entry(), provenance={**provenance(), "settings": settings}, observed=seen)


@pytest.mark.parametrize("settings", [{}, {**CENTRED, "tensorrt.profiles": ["range", "fixed"], "threads": 2}])
def test_round_trip_of_the_settings(settings: Any, tmp_path: Path) -> None:
    entries = {"dit-fp32": under(settings)}
    write_baselines(tmp_path, BaselineFile(HARDWARE, "tiny-wan", "perf", entries), entries)
    stored = read(tmp_path)
    assert stored is not None and stored.cases == entries
    assert stored.cases["dit-fp32"].provenance["settings"] == settings


def test_a_file_of_before_the_settings_says_none(tmp_path: Path) -> None:
    written(tmp_path)
    stored = read(tmp_path)
    assert stored is not None and "settings" not in stored.cases["dit-fp32"].provenance


def test_baselines_of_other_settings_judge_nothing() -> None:
    for stored, run, told in (
        (
            {},
            CENTRED,
            "made with tensorrt.self_attention=auto, this run with tensorrt.self_attention=centred;",
        ),
        (
            CENTRED,
            {},
            "made with tensorrt.self_attention=centred, this run with tensorrt.self_attention=auto;",
        ),
    ):
        why = other_settings("dit-fp32", "perf", under(stored), run, {}, RUN)
        made = "wan-trt baselines regenerate --suite perf --case dit-fp32 --cases mine.yaml --baselines"
        assert why is not None and told in why
        assert f"{made} OTHER, then --wan-baselines OTHER" in why
        assert f"{made} kept --accept-regression REASON" in why


def test_baselines_of_the_same_or_unknown_settings_judge() -> None:
    assert other_settings("dit-fp32", "perf", under(CENTRED), CENTRED, {}) is None
    assert other_settings("dit-fp32", "perf", under({}), {}, {}) is None
    assert other_settings("dit-fp32", "perf", entry(), CENTRED, {}) is None
    # what a run was given and the case has by now
    assert other_settings("dit-fp32", "perf", under(CENTRED), {}, CENTRED) is None
    assert other_settings("dit-fp32", "perf", under(CENTRED), {}, {"tensorrt.self_attention": "plain"})


def test_missing_file_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


def test_other_hardware_has_no_baselines_here(tmp_path: Path) -> None:
    written(tmp_path)
    assert read_baselines(tmp_path, "cpu-other-4c-8gib", "tiny-wan", "perf") is None


def edited(root: Path, edit: Edit) -> Path:
    path = written(root)
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def metric(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["cases"]["dit-fp32"]["metrics"]["reference_time"]
    return found


def kernels(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["cases"]["dit-fp32"]["kernels"]
    return found


def observed(data: dict[str, Any], whole: Any = None, seen: Any = None) -> None:
    """Store what was observed: all of it, or one number."""
    if seen is not None:
        whole = {"commit": "abc", "date": "2026-01-01", "metrics": {"speedup": seen}}
    data["cases"]["dit-fp32"]["observed"] = whole


BROKEN: dict[str, tuple[Edit, str]] = {
    "settings": (
        lambda d: d["cases"]["dit-fp32"]["provenance"].update(settings=None),
        "provenance.settings is None, not an object",
    ),
    "a setting": (
        lambda d: d["cases"]["dit-fp32"]["provenance"].update(settings={"threads": {}}),
        "provenance.settings.threads is {}, not a setting's value",
    ),
    "observed settings": (
        lambda d: observed(d, {"commit": "a", "date": "", "metrics": {}, "settings": []}),
        "observed.settings is [], not an object",
    ),
    "NaN": (lambda d: metric(d).update(value=math.nan), "NaN"),
    "infinite": (lambda d: metric(d).update(value=math.inf), "Infinity"),
    "zero": (lambda d: metric(d).update(value=0), "reference_time.value is 0, not a positive number"),
    "negative": (lambda d: metric(d).update(value=-0.1), "reference_time.value is -0.1"),
    "too large": (lambda d: metric(d).update(value=10**400), "a number too large to be measured"),
    "null": (lambda d: metric(d).update(value=None), "reference_time.value is None"),
    "text": (lambda d: metric(d).update(value="0.1"), "reference_time.value is '0.1'"),
    "unit": (lambda d: metric(d).update(unit=3), "reference_time.unit is 3, not a text"),
    "boolean": (lambda d: metric(d).update(value=True), "reference_time.value is True"),
    "direction": (lambda d: metric(d).update(better="faster"), "allowed are 'higher' and 'lower'"),
    "samples": (lambda d: metric(d).update(n=3), "does not hold the 3 values"),
    "no samples": (lambda d: metric(d).update(n=0, samples=[]), "does not hold the 0 values"),
    "sample": (lambda d: metric(d).update(samples=[0.0]), "samples is 0.0"),
    "value by hand": (
        lambda d: metric(d).update(value=0.3),
        "reference_time.value is 0.3, but its samples say 0.1",
    ),
    "spread by hand": (
        lambda d: metric(d).update(spread=0.5),
        "reference_time.spread is 0.5, but its samples say 0.0",
    ),
    "tolerance": (lambda d: metric(d)["tolerance"].update(rel=-1), "tolerance.rel is -1"),
    "tolerance key": (lambda d: metric(d)["tolerance"].pop("reason"), "key reason is absent"),
    "metric key": (lambda d: metric(d).update(median=1), "unknown key median; allowed are"),
    "metric key absent": (lambda d: metric(d).pop("unit"), "key unit is absent"),
    "provenance": (lambda d: d["cases"]["dit-fp32"]["provenance"].pop("commit"), "key commit is absent"),
    "weights": (lambda d: d["cases"]["dit-fp32"]["provenance"].pop("weights"), "key weights is absent"),
    "entry": (lambda d: d["cases"].update({"dit-fp32": 3}), "not an object"),
    "entry key": (lambda d: d["cases"]["dit-fp32"].update(x=1), "unknown key x"),
    "kernels absent": (
        lambda d: d["cases"]["dit-fp32"].pop("kernels"),
        "key kernels is absent, as in files of older releases; add it: wan-trt baselines migrate;",
    ),
    "kernels": (lambda d: d["cases"]["dit-fp32"].update(kernels=[]), "kernels is [], not an object"),
    "kernels key": (lambda d: kernels(d).update(error="x"), "kernels: unknown key error"),
    "kernels key absent": (lambda d: kernels(d).pop("top"), "kernels: key top is absent"),
    "reference": (lambda d: kernels(d).update(reference=0), "kernels.reference is 0, not an object"),
    "reference key": (lambda d: kernels(d)["reference"].update(top=[]), "reference: unknown key top"),
    "total": (lambda d: kernels(d).update(total_ms=-1), "kernels.total_ms is -1, not a number of at least 0"),
    "group": (lambda d: kernels(d)["groups_ms"].update(attention="1"), "groups_ms.attention is '1'"),
    "group of the reference": (
        lambda d: kernels(d)["reference"]["groups_ms"].update(other=True),
        "reference.groups_ms.other is True",
    ),
    "groups": (lambda d: kernels(d).update(groups_ms=None), "kernels.groups_ms is None, not an object"),
    "top": (lambda d: kernels(d).update(top={}), "kernels.top is {}, not a list"),
    "kernel": (lambda d: kernels(d).update(top=[["a", 1.0]]), "top holds ['a', 1.0], not a name, its millis"),
    "name of a kernel": (lambda d: kernels(d).update(top=[[1, 1.0, 1]]), "kernels.top is 1, not a text"),
    "time of a kernel": (lambda d: kernels(d).update(top=[["a", -1.0, 1]]), "kernels.top: a is -1.0"),
    "launches": (lambda d: kernels(d).update(top=[["a", 1.0, None]]), "kernels.top: a is None"),
    "layer": (lambda d: kernels(d).update(layers=[["a", -1.0, 1]]), "kernels.layers: a is -1.0"),
    "observed": (lambda d: observed(d, 3), "observed is 3, not an object"),
    "observed of no commit": (lambda d: observed(d, {"date": "", "metrics": {}}), "key commit is absent"),
    "half an interval": (
        lambda d: observed(d, seen={"value": 1.5, "unit": "x", "low": 1.4, "pairs": 3}),
        "observed.metrics.speedup: key high is absent",
    ),
    "observed number": (lambda d: observed(d, seen={"value": None, "unit": "x"}), "speedup.value is None"),
    "observed at a point": (
        lambda d: observed(d, seen={"value": 1.5, "unit": "x", "points": {"min": "1"}}),
        "speedup.points.min is '1'",
    ),
    "a band on what is observed": (
        lambda d: observed(d, seen={"value": 1.5, "unit": "x", "tolerance": {}}),
        "unknown key tolerance",
    ),
    "file key": (lambda d: d.update(comment="x"), "unknown key comment"),
    "schema": (lambda d: d.update(schema_version=2), "schema_version is 2, this version reads 1"),
    "schema absent": (lambda d: d.pop("schema_version"), "schema_version is None"),
    "schema of another type": (lambda d: d.update(schema_version=True), "schema_version is True"),
    "hardware": (lambda d: d.update(hardware_key="cuda-x"), "hardware_key is 'cuda-x'"),
    "model": (lambda d: d.update(model="wan2.1"), "model is 'wan2.1'"),
    "suite": (lambda d: d.update(suite="memory"), "suite is 'memory'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_an_error_that_names_it_and_the_way_out(name: str, tmp_path: Path) -> None:
    edit, message = BROKEN[name]
    path = edited(tmp_path, edit)
    with pytest.raises(BaselineError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "wan-trt baselines regenerate --suite perf" in text


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_makes_its_case_invalid(name: str, tmp_path: Path) -> None:
    edited(tmp_path, BROKEN[name][0])
    with pytest.raises(BaselineError) as caught:
        read(tmp_path)
    checks = judge(
        make_case(),
        "perf",
        perf_measurement(),
        None,
        bands_for_hardware=True,
        require_bands=False,
        baseline_error=str(caught.value),
    )
    assert (decide(checks).verdict, decide(checks).reason) == (Verdict.INVALID, Reason.BASELINE_INVALID)


@pytest.mark.parametrize("keep", [0, 1, 50, 300, -3])
def test_truncated_file_is_an_error(keep: int, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text()[:keep])
    with pytest.raises(BaselineError, match="no whole JSON"):
        read(tmp_path)


def test_other_json_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(BaselineError, match="no JSON object"):
        read(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BaselineError, match="cannot be read"):
        read(tmp_path)


def test_key_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"value"', '"unit": "s", "value"'))
    with pytest.raises(BaselineError, match="key unit is there twice"):
        read(tmp_path)


def test_file_copied_from_other_hardware_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path)
    copied = tmp_path / "cpu-other-4c-8gib" / "tiny-wan" / "perf.json"
    copied.parent.mkdir(parents=True)
    copied.write_text(path.read_text())
    with pytest.raises(BaselineError, match="hardware_key"):
        read_baselines(tmp_path, "cpu-other-4c-8gib", "tiny-wan", "perf")


def blocks(text: str) -> dict[str, str]:
    """The text of every case's entry."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith('    "') and line.endswith("{"):
            name = line.strip().split('"')[1]
        if name:
            found[name] = found.get(name, "") + line + "\n"
        if line.rstrip(",") == "    }":
            name = ""
    return {name: block.rstrip(",\n") for name, block in found.items()}


def test_untouched_entries_stay_byte_for_byte(tmp_path: Path) -> None:
    path = written(tmp_path, "a", "b", "c")
    before = path.read_text()
    stored = read(tmp_path)
    assert stored is not None
    cases = {**stored.cases, "b": entry(0.2, 0.1), "d": entry()}
    write_baselines(tmp_path, BaselineFile(HARDWARE, "tiny-wan", "perf", cases), {"b", "d"})
    old, new = blocks(before), blocks(path.read_text())
    assert set(new) == {"a", "b", "c", "d"}
    assert (new["a"], new["c"]) == (old["a"], old["c"])
    assert new["b"] != old["b"]


def test_writing_the_same_again_changes_no_byte(tmp_path: Path) -> None:
    path = written(tmp_path, "b", "a")
    before = path.read_bytes()
    stored = read(tmp_path)
    assert stored is not None
    write_baselines(tmp_path, stored, ())
    assert path.read_bytes() == before


def test_entry_that_was_not_regenerated_cannot_change(tmp_path: Path) -> None:
    path = written(tmp_path, "a", "b")
    before = path.read_bytes()
    changed = BaselineFile(HARDWARE, "tiny-wan", "perf", {"a": entry(0.3, 0.2), "b": entry()})
    with pytest.raises(BaselineError, match="case a would change"):
        write_baselines(tmp_path, changed, {"b"})
    with pytest.raises(BaselineError, match="case a would change"):
        write_baselines(tmp_path, BaselineFile(HARDWARE, "tiny-wan", "perf", {"b": entry()}), {"b"})
    assert path.read_bytes() == before


def test_file_formatted_by_something_else_is_not_rewritten(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    stored = read(tmp_path)
    assert stored is not None
    with pytest.raises(BaselineError, match="formatted by something else"):
        write_baselines(tmp_path, stored, {"dit-fp32"})


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wan_trt_core.records.os.replace", interrupted)
    stored = read(tmp_path)
    assert stored is not None
    with pytest.raises(KeyboardInterrupt):
        write_baselines(tmp_path, stored, {"dit-fp32"})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["perf.json"]


def test_orphans(tmp_path: Path) -> None:
    written(tmp_path, "a", "gone")
    stored = read(tmp_path)
    assert stored is not None
    assert find_orphans(stored, {"a", "b"}) == ("gone",)


BANDS = dict.fromkeys(TIMES, TEN_PERCENT)


def timed(reference: float, candidate: float = 0.06) -> Measurement:
    return Measurement(
        metrics={
            "reference_time": Metric(value=reference, unit="s", better="lower"),
            "candidate_time": Metric(value=candidate, unit="s", better="lower"),
            "speedup": Metric(value=reference / candidate, unit="x", better="higher"),
        }
    )


def test_new_entry_is_the_median_of_its_runs() -> None:
    runs = [timed(0.101), timed(0.1), timed(0.1070000123)]
    found = new_entry("dit-fp32", BANDS, runs, provenance())
    stored = found.metrics["reference_time"]
    assert set(found.metrics) == set(TIMES)
    assert (stored.value, stored.n, stored.samples) == (0.101, 3, (0.101, 0.1, 0.107))
    assert stored.spread == pytest.approx(0.007 / 0.101, rel=1e-4)
    assert found.provenance["runs"] == 3


def test_stored_numbers_have_six_digits() -> None:
    found = new_entry("dit-fp32", BANDS, [timed(0.123456789)], provenance())
    assert found.metrics["reference_time"].value == 0.123457


def profiled(total_ms: float, **more: Any) -> Measurement:
    facts = {"kernels": {**KERNELS, "total_ms": total_ms, **more}}
    return timed(0.1).model_copy(update={"facts": facts})


def test_new_entry_keeps_the_kernels_of_the_typical_run() -> None:
    failed = timed(0.1).model_copy(update={"facts": {"kernels": {"error": "CUPTI said no"}}})
    runs = [
        profiled(17.0),
        failed,
        timed(0.1),
        profiled(16.123456789, top=(("k", 2.00000049, 30),)),
        profiled(16.0),
    ]
    found = new_entry("dit-fp32", BANDS, runs, provenance())
    assert found.kernels == {**STORED_KERNELS, "total_ms": 16.1235, "top": [["k", 2.0, 30]]}
    assert new_entry("dit-fp32", BANDS, [failed, timed(0.1)], provenance()).kernels is None


def test_new_entry_keeps_the_layers_where_there_are_any() -> None:
    found = new_entry("dit-fp32", BANDS, [profiled(16.0, layers=[["blocks.0", 1.5, 2]])], provenance())
    assert found.kernels is not None and found.kernels["layers"] == [["blocks.0", 1.5, 2]]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, None])
def test_value_that_cannot_be_a_baseline(value: float | None) -> None:
    metrics = {**timed(0.1).metrics, "candidate_time": Metric(value=value, unit="s", better="lower")}
    with pytest.raises(BaselineError, match="candidate_time"):
        new_entry("dit-fp32", BANDS, [Measurement(metrics=metrics)], provenance())


def test_banded_metric_that_was_not_measured() -> None:
    with pytest.raises(BaselineError, match="case dit-fp32: candidate_time has a band but no value"):
        new_entry(
            "dit-fp32",
            BANDS,
            [Measurement(metrics={"reference_time": timed(1).metrics["reference_time"]})],
            {},
        )
    with pytest.raises(BaselineError, match="no run"):
        new_entry("dit-fp32", BANDS, [], {})


def test_unit_and_direction_must_agree_between_runs() -> None:
    changes: tuple[dict[str, Any], ...] = ({"unit": "B"}, {"better": "higher"})
    for change in changes:
        metrics = timed(0.1).metrics
        other = metrics["reference_time"].model_copy(update=change)
        with pytest.raises(BaselineError, match="reference_time changes its unit or direction"):
            runs = [timed(0.1), Measurement(metrics={**metrics, "reference_time": other})]
            new_entry("dit-fp32", BANDS, runs, provenance())


def test_runs_that_do_not_fit_their_own_band() -> None:
    with pytest.raises(BaselineError, match="quieter machine or widen the band"):
        new_entry("dit-fp32", BANDS, [timed(0.1), timed(0.12), timed(0.1)], provenance())


@pytest.mark.parametrize(
    ("reference", "rel", "expected"),
    [
        (0.1, 0.10, Change.WITHIN_BAND),
        (0.109, 0.10, Change.WITHIN_BAND),
        (0.111, 0.10, Change.WORSE),
        (0.089, 0.10, Change.BETTER),
        (0.1, 0.05, Change.TIGHTER),
        (0.107, 0.05, Change.WORSE),
        (0.1, 0.20, Change.LOOSER),
    ],
)
def test_what_a_change_means(reference: float, rel: float, expected: Change) -> None:
    rows = compare_entries("dit-fp32", entry(0.1, 0.06), entry(reference, 0.06, rel))
    row = next(row for row in rows if row.metric == "reference_time")
    assert row.kind is expected
    assert row.loosens == (expected in (Change.WORSE, Change.LOOSER))
    assert row.change == pytest.approx(reference / 0.1 - 1)


def test_new_and_removed_metrics_are_rows() -> None:
    bands = {**BANDS, "speedup": Band(rel=0.1, reason="x")}
    more = new_entry("dit-fp32", bands, [timed(0.1)], provenance())
    kinds = {row.metric: row.kind for row in compare_entries("dit-fp32", entry(), more)}
    assert kinds["speedup"] is Change.NEW
    rows = compare_entries("dit-fp32", more, entry())
    assert next(row for row in rows if row.metric == "speedup").loosens
    assert {row.kind for row in compare_entries("dit-fp32", None, entry())} == {Change.NEW}


def own_cases() -> dict[str, Case]:
    return {case.id: case for case in load_cases(ROOT / "suites" / "cases.yaml", allowed_names()).cases}


def test_bands_of_a_device_are_relative_and_absolute() -> None:
    """Of a small engine 5 % are less than another version of the driver takes for itself."""
    bands = [
        (case.id, name, band)
        for case in own_cases().values()
        if case.memory
        for name, band in case.memory.bands.items()
        if name.startswith("device_")
    ]
    assert len(bands) > 30
    for case, name, band in bands:
        assert 0 < band.rel <= 0.1 and 16 << 20 <= band.abs <= 64 << 20, f"{case}: {name}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "baselines").glob("*/*/*.json")), ids=lambda path: "/".join(path.parts[-3:])
)
def test_what_is_stored_here_has_the_bands_of_the_case_file(path: Path) -> None:
    """One of another width is invalid, and its case fails on the machine that it is of, which is not this one."""
    cases = own_cases()
    hardware, model, suite = path.parent.parent.name, path.parent.name, path.stem
    stored = read_baselines(ROOT / "baselines", hardware, model, suite)
    assert stored is not None and stored.cases
    for name, case in stored.cases.items():
        assert not any(map(Path.is_absolute, map(Path, shlex.split(case.provenance["command"])))), (
            "another machine's"
        )
        bands = gate_bands(cases[name].model_copy(update={"backend": case.provenance["backend"]}), suite)  # type: ignore[arg-type]
        assert {*bands} >= {*case.metrics}
        for metric, kept in case.metrics.items():
            band = bands[metric]
            assert kept.tolerance.same_width(Tolerance(band.rel, band.abs, band.reason)), f"{name}: {metric}"


OWED = {
    ("cpu-intel-xeon-6-207-2-2c-23gib", "tiny-wan-dit-fp32"),
    ("cpu-intel-xeon-6-207-2-2c-23gib", "tiny-wan-pipeline-memory"),
}
"""Cases whose stored memory has none of stock diffusers beside it although they ask for it: they were measured before
they did. ``wan-trt baselines regenerate --suite memory --case …`` on their hardware pays it."""


def test_what_asks_for_stock_diffusers_memory_has_it_beside_its_own() -> None:
    cases, without = own_cases(), set[tuple[str, str]]()
    for path in (ROOT / "baselines").glob("*/*/memory.json"):
        hardware = path.parent.parent.name
        file = read_baselines(ROOT / "baselines", hardware, path.parent.name, "memory")
        assert file is not None
        for name, stored in file.cases.items():
            gate = cases[name].memory
            total = "device_used" if hardware.startswith("cuda-") else "resident_set_peak"
            told = stored.observed.metrics if stored.observed else {}
            if gate is not None and gate.reference and f"{OF_REFERENCE}{total}" not in told:
                without.add((hardware, name))
    assert without == OWED, "what is paid leaves the list, and nothing comes to it"
    assert {"tiny-wan-dit-fp32", "tiny-wan-pipeline-memory"} <= {
        name for name, case in cases.items() if case.memory and case.memory.reference
    }


@pytest.mark.parametrize("case", ["tiny-wan-dit-fp32", "tiny-wan-pipeline-memory"])
@pytest.mark.parametrize(
    ("hardware", "grown", "held"),
    [("cpu", 1.0, True), ("cpu", 1.05, False), ("cuda", 1.05, True), ("cuda", 1.3, False)],
)
def test_engines_that_repeat_to_the_byte_are_held_tightly(
    case: str, hardware: str, grown: float, held: bool
) -> None:
    """By the bands as they are stored; a builder that chooses among kernels has a wider one."""
    expected = (Verdict.PASS, Reason.WITHIN_BAND) if held else (Verdict.FAIL, Reason.WORSE_THAN_BAND)
    folders = [*(ROOT / "baselines").glob(f"{hardware}-*")]
    assert folders
    for folder in folders:
        file = read_baselines(ROOT / "baselines", folder.name, "tiny-wan", "memory")
        assert file is not None
        stored = file.cases[case]
        own = own_cases()[case].model_copy(update={"backend": stored.provenance["backend"]})
        values = {name: kept.value for name, kept in stored.metrics.items()}
        values["engine_weights"] *= grown
        (check,) = (
            check
            for check in judge_bands(
                case,
                "memory",
                gate_bands(own, "memory"),
                {name: Metric(value=value, unit="B", better="lower") for name, value in values.items()},
                stored,
                bands_for_hardware=True,
                require_bands=True,
            )
            if check.metric == "engine_weights"
        )
        assert (check.verdict, check.reason) == expected
