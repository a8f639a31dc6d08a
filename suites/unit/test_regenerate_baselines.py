"""Baselines change only through the tool, and the tool refuses what would make them worthless."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fabricated import (
    HARDWARE,
    KERNELS,
    STORED_KERNELS,
    TEN_PERCENT,
    TIMES,
    case_record,
    make_case,
    perf_measurement,
    run_record,
)
from repositories import committed
from rich.console import Console
from scripts import load_script
from typer.testing import CliRunner

from wan_trt_core import baseline_update as update
from wan_trt_core.baselines import BaselineError, baseline_path, read_baselines, write_baselines
from wan_trt_core.cases import Band, Case, MemoryGate
from wan_trt_core.cli import regenerate
from wan_trt_core.cli.app import app
from wan_trt_core.config import Settings, of_suites, with_values
from wan_trt_core.gates.bands import Observed, ObservedMetric, Tolerance
from wan_trt_core.gates.verdict import Reason, Verdict
from wan_trt_core.measure import environment
from wan_trt_core.measure.environment import SourceState
from wan_trt_core.records import CheckRecord, Measurement, Metric, RunRecord
from wan_trt_core.report.terminal import changes_table

PROVENANCE = update.Provenance("abc", "2026-01-01T00:00:00Z", ("tool",))
CASES = (make_case("dit-fp32"), make_case("vae-fp32"), make_case("unbanded", bands={}))
CLEAN = SourceState("abcdef", False)


def record(
    *,
    reference: float = 0.1,
    ratio: float = 1.67,
    cases: tuple[Case, ...] = CASES,
    random_weights: str | None = None,
    kernels: dict[str, Any] | None = None,
    **options: Any,
) -> RunRecord:
    measurement = perf_measurement(ratio, reference=reference)
    if kernels:
        facts = {**measurement.facts, "kernels": kernels}
        measurement = measurement.model_copy(update={"facts": facts})
    if random_weights:
        facts = {**measurement.facts, "random_weights": random_weights}
        measurement = measurement.model_copy(update={"facts": facts})
    return run_record(*(case_record(case, measurement) for case in cases), **options)


def plan(root: Path, *records: RunRecord, cases: tuple[Case, ...] = CASES, **options: Any) -> update.Plan:
    (found,) = update.plan_update(root, "perf", cases, records, PROVENANCE, **options)
    return found


def refusals(root: Path, *records: RunRecord, **options: Any) -> str:
    """Why the cases are refused, all of which change nothing."""
    found = plan(root, *records, **options)
    assert not found.touched & set(found.refused)
    return "\n".join(found.refused.values())


def stored(root: Path) -> Path:
    """Baselines of both cases, at 0.1 s and 0.06 s."""
    update.apply(root, [plan(root, record())])
    return baseline_path(root, HARDWARE, "tiny-wan", "perf")


class TestPlan:
    def test_first_baselines_hold_the_banded_metrics_of_the_banded_cases(self, tmp_path: Path) -> None:
        stored(tmp_path)
        file = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
        assert file is not None
        assert set(file.cases) == {"dit-fp32", "vae-fp32"}
        assert set(file.cases["dit-fp32"].metrics) == set(TIMES)
        assert file.cases["dit-fp32"].provenance["versions"] == {"torch": "2.11.0"}

    def test_the_version_of_a_runtime_that_is_no_package_is_kept(self, tmp_path: Path) -> None:
        made = record()
        facts = {"facts": {**made.cases[0].measurement.facts, "backend_versions": {"tensorrt": "10.6.0"}}}
        first = made.cases[0].model_copy(
            update={"measurement": made.cases[0].measurement.model_copy(update=facts)}
        )
        update.apply(tmp_path, [plan(tmp_path, made.model_copy(update={"cases": (first, *made.cases[1:])}))])
        file = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
        assert file is not None
        assert file.cases[first.case].provenance["versions"] == {"torch": "2.11.0", "tensorrt": "10.6.0"}

    def test_nothing_is_written_while_all_is_within_the_bands(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        before = path.read_bytes()
        found = plan(tmp_path, record(reference=0.103))
        assert found.touched == frozenset()
        assert update.apply(tmp_path, [found]) == ()
        assert path.read_bytes() == before

    def test_an_entry_without_kernels_is_replaced_whole_by_a_run_that_has_them(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        found = plan(tmp_path, record(reference=0.103, kernels=KERNELS))
        assert found.touched == {"dit-fp32", "vae-fp32"}
        assert not found.loosened
        assert found.kernels == {"dit-fp32": "new", "vae-fp32": "new"}
        assert "- `dit-fp32`: kernel profile: new\n" in update.plan_markdown([found])
        update.apply(tmp_path, [found])
        entry = json.loads(path.read_text())["cases"]["dit-fp32"]
        assert entry["kernels"] == STORED_KERNELS
        assert entry["metrics"]["reference_time"]["value"] == pytest.approx(0.103, rel=0.01)

    @pytest.mark.parametrize("kernels", [{**KERNELS, "total_ms": 99.0}, {"error": "CUPTI said no"}, None])
    def test_kernels_alone_never_touch_an_entry_that_has_some(self, kernels: Any, tmp_path: Path) -> None:
        update.apply(tmp_path, [plan(tmp_path, record(kernels=KERNELS))])
        path = baseline_path(tmp_path, HARDWARE, "tiny-wan", "perf")
        before = path.read_bytes()
        found = plan(tmp_path, record(reference=0.103, kernels=kernels))
        assert (found.touched, found.kernels) == (frozenset(), {})
        assert update.apply(tmp_path, [found]) == ()
        assert path.read_bytes() == before

    def test_a_profiler_that_failed_touches_nothing(self, tmp_path: Path) -> None:
        stored(tmp_path)
        assert plan(tmp_path, record(kernels={"error": "CUPTI said no"})).touched == frozenset()

    @pytest.mark.parametrize(
        ("kernels", "told"),
        [
            ({**KERNELS, "total_ms": 20.0}, "3.8 ms slower (16.2 → 20 ms, 1.23x)"),
            (None, "gone, this run has none"),
        ],
    )
    def test_a_changed_entry_says_what_its_kernels_did(self, kernels: Any, told: str, tmp_path: Path) -> None:
        update.apply(tmp_path, [plan(tmp_path, record(kernels=KERNELS))])
        found = plan(tmp_path, record(reference=0.05, kernels=kernels))
        assert found.kernels["dit-fp32"] == told

    def test_only_the_selected_case_is_touched(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        before = json.loads(path.read_text())["cases"]
        found = plan(tmp_path, record(reference=0.05), selected=["dit-fp32"])
        assert found.touched == {"dit-fp32"}
        update.apply(tmp_path, [found])
        after = json.loads(path.read_text())["cases"]
        assert after["vae-fp32"] == before["vae-fp32"]
        assert after["dit-fp32"]["metrics"]["reference_time"]["value"] == pytest.approx(0.05, rel=0.02)

    def test_several_runs_are_one_baseline(self, tmp_path: Path) -> None:
        found = plan(tmp_path, record(reference=0.1), record(reference=0.104), record(reference=0.102))
        metric = found.after.cases["dit-fp32"].metrics["reference_time"]
        assert (metric.n, len(metric.samples)) == (3, 3)
        assert metric.value == sorted(metric.samples)[1]

    def test_worse_beyond_the_band_needs_a_reason(self, tmp_path: Path) -> None:
        stored(tmp_path)
        found = plan(tmp_path, record(reference=0.13, ratio=2.0))
        assert {row.kind.value for row in found.loosened} == {"worse"}
        for reason in (None, "", "  "):
            with pytest.raises(update.Refused, match="--accept-regression REASON"):
                update.require_reason([found], reason)
        update.require_reason([found], "the reference now pads")

    def test_wider_tolerance_needs_a_reason(self, tmp_path: Path) -> None:
        stored(tmp_path)
        wider = dict.fromkeys(TIMES, Band(rel=0.2, reason="twenty"))
        cases = (make_case("dit-fp32", bands=wider), make_case("vae-fp32"))
        found = plan(tmp_path, record(cases=cases), cases=cases)
        with pytest.raises(update.Refused, match="looser tolerance"):
            update.require_reason([found], None)

    def test_tighter_tolerance_and_gains_need_none(self, tmp_path: Path) -> None:
        stored(tmp_path)
        tighter = dict.fromkeys(TIMES, Band(rel=0.05, reason="five"))
        cases = (make_case("dit-fp32", bands=tighter), make_case("vae-fp32"))
        found = plan(tmp_path, record(cases=cases), cases=cases)
        assert found.touched == {"dit-fp32"}
        update.require_reason([found], None)
        update.require_reason([plan(tmp_path, record(reference=0.05))], None)

    def test_metric_that_loses_its_band_needs_a_reason(self, tmp_path: Path) -> None:
        stored(tmp_path)
        cases = (make_case("dit-fp32", bands={"reference_time": TEN_PERCENT}), make_case("vae-fp32"))
        found = plan(tmp_path, record(cases=cases), cases=cases)
        with pytest.raises(update.Refused, match="candidate_time: removed"):
            update.require_reason([found], None)

    def test_the_reason_is_stored_where_it_applies(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        slow = run_record(
            case_record(CASES[0], perf_measurement(2.0, reference=0.13)),
            case_record(CASES[1], perf_measurement(1.67, reference=0.05)),
        )
        provenance = update.Provenance("abc", "2026-01-02T00:00:00Z", ("tool",), "the reference now pads")
        plans = update.plan_update(tmp_path, "perf", CASES, [slow], provenance)
        update.apply(tmp_path, plans)
        cases = json.loads(path.read_text())["cases"]
        assert cases["dit-fp32"]["provenance"]["accepted_regression"] == "the reference now pads"
        assert cases["vae-fp32"]["provenance"]["accepted_regression"] is None

    def test_orphans_go_only_in_a_complete_run(self, tmp_path: Path) -> None:
        stored(tmp_path)
        left = (CASES[0],)
        part = plan(tmp_path, record(), cases=left, selected=["dit-fp32"])
        assert (part.orphans, part.touched) == (("vae-fp32",), frozenset())
        assert part.dropped == ()
        update.require_reason([part], None)
        whole = plan(tmp_path, record(), cases=left)
        assert (whole.touched, whole.dropped) == ({"vae-fp32"}, ("vae-fp32",))
        update.apply(tmp_path, [whole])
        file = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
        assert file is not None and set(file.cases) == {"dit-fp32"}

    def test_dropping_an_orphan_needs_a_reason(self, tmp_path: Path) -> None:
        stored(tmp_path)
        whole = plan(tmp_path, record(), cases=CASES[:1])
        for reason in (None, "", "  "):
            with pytest.raises(update.Refused, match=r"tiny-wan vae-fp32.*another case file.*--accept-reg"):
                update.require_reason([whole], reason)
        update.require_reason([whole], "the VAE went")

    def test_all_that_needs_a_reason_is_named_at_once(self, tmp_path: Path) -> None:
        stored(tmp_path)
        slow = plan(tmp_path, record(reference=0.13, ratio=2.0), cases=CASES[:1])
        with pytest.raises(update.Refused, match=r"dit-fp32 reference_time: worse.*tiny-wan vae-fp32"):
            update.require_reason([slow], None)

    def test_markdown_says_what_becomes_of_orphans(self, tmp_path: Path) -> None:
        stored(tmp_path)
        for selected, outcome in ((None, "dropped"), (["dit-fp32"], "kept")):
            found = plan(tmp_path, record(), cases=CASES[:1], selected=selected)
            line = f"- `vae-fp32`: no case of this case file is called so; its baseline is {outcome}"
            assert line in update.plan_markdown([found])

    def test_damaged_file_is_not_overwritten(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        path.write_text(path.read_text()[:100])
        with pytest.raises(BaselineError, match="no whole JSON"):
            plan(tmp_path, record())

    def test_unknown_case_is_refused_with_the_choices(self, tmp_path: Path) -> None:
        for name in ("dit-fp23", "unbanded"):
            with pytest.raises(update.Refused, match="dit-fp32, vae-fp32"):
                plan(tmp_path, record(), selected=[name])

    def test_suite_without_bands_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(update.Refused, match="nothing to store"):
            plan(tmp_path, record(), cases=(CASES[2],))

    def test_case_that_was_not_measured_is_refused(self, tmp_path: Path) -> None:
        found = plan(tmp_path, record(cases=CASES[:1]))
        why = "case vae-fp32: the run did not measure it in suite perf; see its output above"
        assert (found.touched, found.refused) == ({"dit-fp32"}, {"vae-fp32": why})

    def test_cases_of_other_backends_only_are_not_waited_for(self, tmp_path: Path) -> None:
        gpu = CASES[1].model_copy(update={"only_backends": ("tensorrt",)})
        assert plan(tmp_path, record(cases=CASES[:1]), cases=(CASES[0], gpu)).touched == {"dit-fp32"}
        assert "vae-fp32: the run did not measure it" in refusals(
            tmp_path, record(cases=CASES[:1]), cases=(CASES[0], gpu), selected=["vae-fp32"]
        )
        on_gpu = tuple(case.model_copy(update={"backend": "tensorrt"}) for case in (CASES[0], gpu))
        assert plan(tmp_path, record(cases=on_gpu), cases=on_gpu).touched == {"dit-fp32", "vae-fp32"}
        assert "vae-fp32: the run did not measure it" in refusals(
            tmp_path, record(cases=on_gpu[:1]), cases=on_gpu
        )

    def test_another_backend_writes_over_nothing(self, tmp_path: Path) -> None:
        before = stored(tmp_path).read_bytes()
        other = tuple(case.model_copy(update={"backend": "tensorrt"}) for case in CASES)
        told = refusals(tmp_path, record(cases=other), cases=other)
        assert re.search(r"the backend 'onnxruntime', this run with 'tensorrt'.*--baselines", told)
        told = refusals(tmp_path / "new", record(), record(cases=other))
        assert "differ in backend (onnxruntime, tensorrt)" in told
        assert baseline_path(tmp_path, HARDWARE, "tiny-wan", "perf").read_bytes() == before

    def test_other_weights_write_over_nothing(self, tmp_path: Path) -> None:
        before = stored(tmp_path).read_bytes()
        untrained = record(random_weights="seeded random")
        assert "the weights 'checkpoint', this run with 'seeded random'" in refusals(tmp_path, untrained)
        told = refusals(tmp_path / "new", record(), untrained)
        assert "differ in weights (checkpoint, seeded random)" in told
        assert baseline_path(tmp_path, HARDWARE, "tiny-wan", "perf").read_bytes() == before
        new = plan(tmp_path / "new", untrained).after.cases["dit-fp32"]
        assert new.provenance["weights"] == "seeded random"

    def test_void_measurement_is_refused(self, tmp_path: Path) -> None:
        void = perf_measurement(problems={Reason.FALLBACK_TO_PYTORCH: "it ran in PyTorch"})
        made = run_record(case_record(CASES[0], void))
        assert "it ran in PyTorch" in refusals(tmp_path, made, selected=["dit-fp32"])

    @pytest.mark.parametrize("measured", [perf_measurement(1.2), perf_measurement(psnr_db=10.0)])
    def test_case_that_fails_its_own_gates_is_refused(self, measured: Any, tmp_path: Path) -> None:
        made = run_record(case_record(CASES[0], measured))
        assert "does not pass its own gates" in refusals(tmp_path, made, selected=["dit-fp32"])

    @pytest.mark.parametrize(("then", "now"), [(1.5, 1.1), (1.1, 1.5)])
    def test_gates_are_those_of_the_case_file_now(self, then: float, now: float, tmp_path: Path) -> None:
        """Not those that the record was judged by: they may be stricter by now, or less strict."""
        made = run_record(case_record(make_case(speedup=then), perf_measurement(1.3)))
        found = plan(tmp_path, made, cases=(make_case(speedup=now),))
        assert (found.touched, bool(found.refused)) == ({"dit-fp32"} if now == 1.1 else set(), now == 1.5)

    def test_refused_cases_keep_no_other_back_and_stay_as_they_are(self, tmp_path: Path) -> None:
        cases = (*CASES[:2], make_case("fast"), make_case("void"), make_case("odd"), make_case("broken"))
        update.apply(tmp_path, [plan(tmp_path, record(cases=cases), cases=cases)])
        path = baseline_path(tmp_path, HARDWARE, "tiny-wan", "perf")
        before = json.loads(path.read_text())["cases"]
        good = perf_measurement(1.67, reference=0.05)
        crashed = CheckRecord(
            gate="validity", metric="", verdict=Verdict.INVALID, reason=Reason.NOT_MEASURED, message="no room"
        )
        no_time = {**good.metrics, "candidate_time": Metric(value=0.0, unit="s", better="lower")}
        measured = {
            "dit-fp32": good,
            "vae-fp32": perf_measurement(1.2),
            "void": perf_measurement(problems={Reason.FALLBACK_TO_PYTORCH: "it ran in PyTorch"}),
            "odd": perf_measurement(metrics=no_time),
        }
        found_cases = [case_record(case, measured[case.id]) for case in cases if case.id in measured]
        broken = case_record(cases[-1], good).model_copy(update={"checks": (crashed,)})
        made = run_record(*found_cases, broken)
        found = plan(tmp_path, made, cases=cases)
        assert found.touched == {"dit-fp32"}
        whys = ("not be measured: no room", "did not measure", "candidate_time", "own gates", "in PyTorch")
        assert list(found.refused) == ["broken", "fast", "odd", "vae-fp32", "void"]
        assert all(why in told for why, told in zip(whys, found.refused.values(), strict=True))
        shown = update.plan_markdown([found])
        assert all(f"- {told}\n" in shown for told in found.refused.values())
        update.apply(tmp_path, [found])
        after = json.loads(path.read_text())["cases"]
        assert after.pop("dit-fp32") != before.pop("dit-fp32")
        assert after == before

    def test_a_case_is_refused_for_any_of_its_runs(self, tmp_path: Path) -> None:
        slow = run_record(*map(case_record, CASES[:2], (perf_measurement(), perf_measurement(1.2))))
        found = plan(tmp_path, record(), slow)
        assert (found.touched, set(found.refused)) == ({"dit-fp32"}, {"vae-fp32"})

    def test_speedup_that_is_not_known_to_its_band_is_refused(self, tmp_path: Path) -> None:
        # one pair in three at 4x, as on a machine that others use: the threshold is decided, the value is not known
        a = tuple(0.4 if index % 3 == 0 else 0.2 for index in range(30))
        b = (0.1,) * 30
        speedup = Metric(value=2.0, unit="x", better="higher")
        quiet = perf_measurement()
        noisy = quiet.model_copy(
            update={
                "metrics": {**quiet.metrics, "speedup": speedup},
                "series": {**quiet.series, "reference_s": a, "candidate_s": b},
            }
        )
        case = make_case("dit-fp32", bands={"speedup": Band(rel=0.1, reason="ten percent")})
        wide = make_case("dit-fp32", bands={"speedup": Band(rel=0.9, reason="anything goes")})
        made = record(cases=(case,))
        assert plan(tmp_path, made, cases=(case,)).touched == {"dit-fp32"}
        told = refusals(tmp_path, made, run_record(case_record(case, noisy)), cases=(case,))
        assert re.search(r"case dit-fp32: .* known to .*x only, .*quieter machine", told)
        assert plan(tmp_path, run_record(case_record(wide, noisy)), cases=(wide,)).touched == {"dit-fp32"}

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_impossible_values_are_refused(self, value: float, tmp_path: Path) -> None:
        good = perf_measurement()
        metrics = {**good.metrics, "candidate_time": Metric(value=value, unit="s", better="lower")}
        bad = run_record(case_record(CASES[0], perf_measurement(metrics=metrics)))
        assert "candidate_time" in refusals(tmp_path, bad, selected=["dit-fp32"])


class TestForesight:
    """What the case file alone changes is known before anything is measured."""

    @staticmethod
    def foresee(root: Path, *cases: Case, **options: Any) -> tuple[update.Plan, ...]:
        return update.foresee(root, HARDWARE, "perf", cases, **options)

    def test_nothing_is_foreseen_of_what_is_stored_or_of_nothing(self, tmp_path: Path) -> None:
        assert not self.foresee(tmp_path, *CASES)[0].rows
        update.apply(tmp_path, [plan(tmp_path, record(kernels=KERNELS))])
        (found,) = self.foresee(tmp_path, *CASES)
        assert {row.kind.value for row in found.rows} == {"within band"}
        assert (found.touched, found.orphans) == (frozenset(), ())

    def test_looser_tolerance(self, tmp_path: Path) -> None:
        stored(tmp_path)
        wider = dict.fromkeys(TIMES, Band(rel=0.2, reason="twenty"))
        found = self.foresee(tmp_path, make_case("dit-fp32", bands=wider), CASES[1])
        with pytest.raises(update.Refused, match="dit-fp32 candidate_time: looser tolerance"):
            update.require_reason(found, None)
        update.require_reason(found, "the clocks wander")
        tighter = dict.fromkeys(TIMES, Band(rel=0.05, reason="five"))
        update.require_reason(self.foresee(tmp_path, make_case("dit-fp32", bands=tighter), CASES[1]), None)

    def test_removed_metric_and_new_one(self, tmp_path: Path) -> None:
        stored(tmp_path)
        bands = {"reference_time": TEN_PERCENT, "speedup": TEN_PERCENT}
        found = self.foresee(tmp_path, make_case("dit-fp32", bands=bands), CASES[1])
        assert [(row.metric, row.kind.value) for row in found[0].loosened] == [("candidate_time", "removed")]

    def test_only_a_complete_run_drops_cases(self, tmp_path: Path) -> None:
        stored(tmp_path)
        assert self.foresee(tmp_path, CASES[0])[0].dropped == ("vae-fp32",)
        assert self.foresee(tmp_path, CASES[0], selected=["dit-fp32"])[0].dropped == ()

    def test_only_what_will_be_measured_counts(self, tmp_path: Path) -> None:
        stored(tmp_path)
        wider = dict.fromkeys(TIMES, Band(rel=0.2, reason="twenty"))
        loose = make_case("vae-fp32", bands=wider)
        assert not self.foresee(tmp_path, CASES[0], loose, selected=["dit-fp32"])[0].loosened
        gpu = loose.model_copy(update={"only_backends": ("onnxruntime",)})
        assert not self.foresee(tmp_path, CASES[0], gpu)[0].loosened
        assert self.foresee(tmp_path, CASES[0], gpu, backend="onnxruntime")[0].loosened

    def test_what_no_measurement_could_mend_is_refused(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        for field, other in (("backend", "tensorrt"), ("profile", "480p-17f")):
            with pytest.raises(update.Refused, match=f"made with the {field} .* this run with '{other}'"):
                self.foresee(tmp_path, CASES[0].model_copy(update={field: other}), CASES[1])
        with pytest.raises(update.Refused, match="dit-fp32, vae-fp32"):
            self.foresee(tmp_path, *CASES, selected=["dit-fp23"])
        path.write_text(path.read_text()[:100])
        with pytest.raises(BaselineError, match="no whole JSON"):
            self.foresee(tmp_path, *CASES)

    def test_cases_are_as_the_measurement_will_have_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WAN_TRT_BACKEND", "tensorrt")
        monkeypatch.setenv("WAN_TRT_PROFILE", "480p-17f")
        monkeypatch.delenv("WAN_TRT_MODEL", raising=False)
        given = {"backend": None, "model": None, "profile": "128p-17f", "suite": "perf"}
        assert update.overrides(given) == {"backend": "tensorrt", "model": None, "profile": "128p-17f"}

    def test_hardware_is_asked_in_another_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WAN_TRT_DEVICE", raising=False)
        key = environment.hardware_key("cpu")
        monkeypatch.setattr(environment, "hardware_key", lambda *_: "asked in this process")
        assert update.this_hardware("onnxruntime") == key
        monkeypatch.setenv("WAN_TRT_DEVICE", "gpu")
        with pytest.raises(update.Refused, match="WAN_TRT_DEVICE"):
            update.this_hardware("onnxruntime")

    @pytest.mark.parametrize(
        ("given", "backend"),
        [
            ({"case": ["on-gpu"]}, "tensorrt"),
            ({"case": ["dit-fp32"]}, "onnxruntime"),
            ({}, None),
            ({"backend": "onnxruntime-cuda"}, "onnxruntime-cuda"),
        ],
    )
    def test_hardware_is_that_of_the_cases_own_backend(
        self, given: dict[str, Any], backend: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("DEVICE", "BACKEND"):
            monkeypatch.delenv(f"WAN_TRT_{name}", raising=False)
        waits = make_case("waits").model_copy(update={"backend": "tensorrt", "only_backends": ("tensorrt",)})
        cases = (make_case("dit-fp32"), make_case("on-gpu").model_copy(update={"backend": "tensorrt"}), waits)
        fields = dict.fromkeys(("backend", "model", "profile", "case"))
        options = argparse.Namespace(**{**fields, "suite": "perf", **given})
        assert regenerate._backend(options, cases) == backend


class TestObserved:
    """What a run showed beside the judged numbers is stored for who reads it; nothing is held against it."""

    LATER = update.Provenance("fedcba9876", "2026-02-02T00:00:00Z", ("tool",))

    def observed(self, root: Path, run: RunRecord, **options: Any) -> update.Plan:
        """What another run, of a later commit, does to the stored entries."""
        (found,) = update.plan_update(root, "perf", CASES, [run], self.LATER, **options)
        return found

    def test_a_run_within_the_bands_leaves_the_judged_numbers_and_names_its_own_commit(
        self, tmp_path: Path
    ) -> None:
        path = stored(tmp_path)
        data = json.loads(path.read_text())
        for case in data["cases"].values():
            case.pop("observed")  # a file of an older release, which stays valid
        path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
        run = record(reference=0.103)
        found = self.observed(tmp_path, run)
        assert found.touched == found.observed == {"dit-fp32", "vae-fp32"}
        update.require_reason([found], None)
        update.apply(tmp_path, [found])
        after = json.loads(path.read_text())["cases"]["dit-fp32"]
        observed = after.pop("observed")
        assert after == data["cases"]["dit-fp32"], "the judged numbers, and where they come from"
        assert (observed["commit"], observed["date"]) == ("fedcba9876", run.started)
        assert set(observed["metrics"]) == {"speedup", "psnr_db", *TIMES}
        times = run.cases[0].measurement.metrics
        for name in TIMES:  # of the run that had the speed-up, not of the one that set the bands
            assert observed["metrics"][name]["value"] == pytest.approx(times[name].value, rel=1e-5)
            assert observed["metrics"][name]["value"] != after["metrics"][name]["value"]
        assert "observed at fedcba9, judged by nothing: speedup 1." in update.plan_markdown([found])

    def test_it_is_that_of_the_first_run_unless_another_is_asked_for(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        before = path.read_bytes()
        assert not self.observed(tmp_path, record(reference=0.103)).touched
        found = self.observed(tmp_path, record(reference=0.103, kernels=KERNELS), observe=True)
        assert found.touched == found.observed == {"dit-fp32", "vae-fp32"}
        update.apply(tmp_path, [found])
        after, old = json.loads(path.read_text())["cases"], json.loads(before)["cases"]
        assert after["dit-fp32"]["observed"] != old["dit-fp32"]["observed"]
        for key in ("metrics", "provenance", "kernels"):
            assert after["dit-fp32"][key] == old["dit-fp32"][key]

    def test_an_entry_that_changes_takes_all_of_the_new_run(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        update.apply(tmp_path, [self.observed(tmp_path, record(reference=0.103), observe=True)])
        found = self.observed(tmp_path, record(reference=0.05))
        assert (found.touched, found.observed) == ({"dit-fp32", "vae-fp32"}, frozenset())
        update.apply(tmp_path, [found])
        entry = json.loads(path.read_text())["cases"]["dit-fp32"]
        assert entry["observed"]["commit"] == entry["provenance"]["commit"] == "fedcba9876"
        assert not set(TIMES) & set(entry["observed"]["metrics"]), "its own metrics say them"

    def test_the_interval_is_the_one_that_the_gate_took(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        (check,) = (check for check in record().cases[0].checks if check.gate == "speedup")
        told = json.loads(path.read_text())["cases"]["dit-fp32"]["observed"]["metrics"]["speedup"]
        assert told["pairs"] == check.evidence["pairs"]
        assert told["low"] == pytest.approx(check.evidence["low"], rel=1e-5)
        assert told["low"] < told["value"] < told["high"]

    def test_it_is_no_drift(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        data = json.loads(path.read_text())
        for case in data["cases"].values():
            case.pop("observed")
        path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
        console = Console(file=io.StringIO())
        assert regenerate._checked([self.observed(tmp_path, record(reference=0.103))], console) == 0
        assert regenerate._checked([self.observed(tmp_path, record(reference=0.05))], console) == 1


CENTRED = {"tensorrt.self_attention": "centred"}
ON_TENSORRT = tuple(case.model_copy(update={"backend": "tensorrt"}) for case in CASES[:2])


class TestSettings:
    """Numbers of other settings are taken with a reason only, and an entry says which settings made it."""

    @staticmethod
    def run(settings: dict[str, Any] | None = None, **options: Any) -> RunRecord:
        """A run of TensorRT whose record has all settings, these others than the defaults."""
        given = of_suites(with_values(Settings(), settings or {})).flat()
        return record(**{"cases": ON_TENSORRT, **options}).model_copy(update={"settings": given})

    def plan(self, root: Path, *runs: RunRecord, **options: Any) -> update.Plan:
        return plan(root, *runs, **{"cases": ON_TENSORRT, **options})

    def stored(self, root: Path, settings: dict[str, Any] | None = None, *, told: bool = True) -> Path:
        """Baselines made with these settings; unless ``told``, as files of older releases are."""
        update.apply(root, [self.plan(root, self.run(settings))])
        path = baseline_path(root, HARDWARE, "tiny-wan", "perf")
        if not told:
            data = json.loads(path.read_text())
            for case in data["cases"].values():
                del case["provenance"]["settings"], case["observed"]["settings"]
            path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
        return path

    def test_an_entry_says_what_made_it(self, tmp_path: Path) -> None:
        for settings in ({}, CENTRED):
            path = self.stored(tmp_path / str(len(settings)), {**settings, "export.check": False})
            made = json.loads(path.read_text())["cases"]["dit-fp32"]
            assert made["provenance"]["settings"] == made["observed"]["settings"] == settings

    def test_what_made_a_new_entry_is_told(self, tmp_path: Path) -> None:
        found = self.plan(tmp_path, self.run(CENTRED))
        update.require_reason([found], None)
        told = "measured with tensorrt.self_attention=centred"
        assert update.told_settings(found) == {"dit-fp32": told, "vae-fp32": told}
        shown = update.plan_markdown([found])
        assert f"- `dit-fp32`: {told}\n" in shown
        assert (
            "- `dit-fp32`: observed at abc with tensorrt.self_attention=centred, judged by nothing" in shown
        )
        assert "measured with" not in update.plan_markdown([self.plan(tmp_path, self.run())])

    @pytest.mark.parametrize(
        ("before", "after", "what"),
        [
            ({}, CENTRED, "auto → centred"),
            (CENTRED, {}, "centred → auto"),
            (None, CENTRED, "auto → centred (the stored do not say theirs)"),
        ],
    )
    def test_other_settings_need_a_reason_within_the_bands_too(
        self, before: dict[str, Any] | None, after: dict[str, Any], what: str, tmp_path: Path
    ) -> None:
        path = self.stored(tmp_path, before, told=before is not None)
        found = self.plan(tmp_path, self.run(after, reference=0.103), selected=["dit-fp32"])
        assert found.touched == {"dit-fp32"} and not found.loosened and not found.observed
        told = f"numbers of other settings (dit-fp32: tensorrt.self_attention: {what})"
        for reason in (None, "", "  "):
            with pytest.raises(update.Refused, match=f"{re.escape(told)}.*--accept-regression REASON"):
                update.require_reason([found], reason)
        assert (
            f"- `dit-fp32`: measured with other settings than the stored numbers: tensorrt.self_attention: {what}"
            in (update.plan_markdown([found]))
        )
        accepted = replace(PROVENANCE, accepted_regression="centred is the default from now on")
        plans = update.plan_update(
            tmp_path, "perf", ON_TENSORRT, [self.run(after, reference=0.103)], accepted, selected=["dit-fp32"]
        )
        update.require_reason(plans, accepted.accepted_regression)
        old = json.loads(path.read_text())["cases"]
        update.apply(tmp_path, plans)
        new = json.loads(path.read_text())["cases"]
        assert new["vae-fp32"] == old["vae-fp32"]
        assert new["dit-fp32"]["provenance"]["settings"] == after
        assert new["dit-fp32"]["provenance"]["accepted_regression"] == "centred is the default from now on"
        assert new["dit-fp32"]["metrics"]["reference_time"]["value"] == pytest.approx(0.103, rel=0.01)

    def test_other_settings_are_not_observed_beside_the_stored_numbers(self, tmp_path: Path) -> None:
        self.stored(tmp_path, told=False)
        found = self.plan(tmp_path, self.run(CENTRED, reference=0.103), observe=True)
        with pytest.raises(update.Refused, match="other settings"):
            update.require_reason([found], None)

    @pytest.mark.parametrize("told", [True, False])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"export.check": False, "perf.warmup": 2, "cache": "/elsewhere", "memory.budget": 12 * 2**30},
            {"torch_compile.mode": "max-autotune", "onnxruntime.cuda_graph": True},  # of other backends
        ],
    )
    def test_settings_that_decide_nothing_change_nothing(
        self, settings: dict[str, Any], told: bool, tmp_path: Path
    ) -> None:
        path = self.stored(tmp_path, told=told)
        before = path.read_bytes()
        found = self.plan(tmp_path, self.run(settings, reference=0.103))
        assert found.touched == frozenset() and update.told_settings(found) == {}
        assert update.apply(tmp_path, [found]) == () and path.read_bytes() == before

    def test_what_the_case_sets_is_the_case(self, tmp_path: Path) -> None:
        self.stored(tmp_path, told=False)
        own = tuple(case.model_copy(update={"settings": CENTRED, "tf32": True}) for case in ON_TENSORRT)
        run = self.run({**CENTRED, "perf.allow_tf32": True}, reference=0.103, cases=own)
        assert not self.plan(tmp_path, run, cases=own).touched

    def test_the_backend_is_that_of_the_record(self, tmp_path: Path) -> None:
        found = self.plan(tmp_path, self.run(CENTRED), cases=CASES)
        assert found.after.cases["dit-fp32"].provenance["settings"] == CENTRED

    def test_torch_compile_is_said_where_it_was_timed_beside(self, tmp_path: Path) -> None:
        compiled = {"torch_compile.mode": "max-autotune"}
        assert ON_TENSORRT[0].perf
        perf = ON_TENSORRT[0].perf.model_copy(update={"also": ("torch-compile",)})
        cases = (ON_TENSORRT[0].model_copy(update={"perf": perf}),)
        made = self.plan(tmp_path, self.run(compiled, cases=cases), cases=cases).after.cases["dit-fp32"]
        assert made.observed is not None and made.observed.settings == compiled
        assert made.provenance["settings"] == {}, "no band is on it"

    def test_torch_compile_is_of_the_perf_suite_alone(self, tmp_path: Path) -> None:
        case = TestReference().case()
        assert case.perf
        case = case.model_copy(update={"perf": case.perf.model_copy(update={"also": ("torch-compile",)})})
        measured = TestReference().measured(device_used=2e9, reference_device_used=4e9)
        run = measured.model_copy(update={"settings": {"torch_compile.mode": "max-autotune"}})
        (found,) = update.plan_update(tmp_path, "memory", [case], [run], PROVENANCE)
        seen = found.after.cases["dit-fp32"].observed
        assert seen is not None and seen.settings == {}

    def test_runs_of_different_settings_are_no_baseline(self, tmp_path: Path) -> None:
        found = self.plan(tmp_path, self.run(), self.run(CENTRED))
        differ = "case dit-fp32: the records differ in tensorrt.self_attention: auto → centred"
        assert found.refused["dit-fp32"] == differ

    def test_it_is_a_drift(self, tmp_path: Path) -> None:
        self.stored(tmp_path)
        console = Console(file=io.StringIO())
        assert regenerate._checked([self.plan(tmp_path, self.run(reference=0.103))], console) == 0
        assert regenerate._checked([self.plan(tmp_path, self.run(CENTRED, reference=0.103))], console) == 1

    def test_bands_alone_leave_the_settings(self, tmp_path: Path) -> None:
        path = self.stored(tmp_path, CENTRED)
        wider = dict.fromkeys(TIMES, Band(rel=0.2, reason="twenty"))
        (found,) = update.plan_bands(tmp_path, HARDWARE, "perf", [make_case("dit-fp32", bands=wider)], "why")
        assert update.told_settings(found) == {}
        update.apply(tmp_path, [found])
        made = json.loads(path.read_text())["cases"]["dit-fp32"]["provenance"]
        assert made["settings"] == CENTRED and made["accepted_regression"] == "why"

    def test_it_is_foreseen(self, tmp_path: Path) -> None:
        self.stored(tmp_path, told=False)
        for settings, refused in (({}, False), ({"perf.warmup": 2}, False), (CENTRED, True)):
            given = of_suites(with_values(Settings(), settings)).flat()
            found = update.foresee(tmp_path, HARDWARE, "perf", ON_TENSORRT, settings=given)
            if refused:
                with pytest.raises(update.Refused, match="other settings"):
                    update.require_reason(found, None)
            else:
                update.require_reason(found, None)


class TestReference:
    """What stock diffusers needed of memory is observed too."""

    def case(self) -> Case:
        gate = {
            "growth": {"max": 1024, "reason": "r"},
            "reference": True,
            "bands": {"device_used": {"rel": 0.1, "reason": "r"}},
        }
        return make_case("dit-fp32").model_copy(update={"memory": MemoryGate.model_validate(gate)})

    def measured(self, **sizes: float) -> RunRecord:
        metrics = {
            name: Metric(value=size, unit="B", better="lower")
            for name, size in {"growth": 0.0, **sizes}.items()
        }
        ratio = Metric(value=0.5, unit="x", better="lower")
        by_stage = {"reference_decode.device_used": Metric(value=1e9, unit="B", better="lower")}
        (case, *_) = (run := record()).cases
        measurement = Measurement(metrics={**metrics, **by_stage, "peak_over_reference": ratio})
        update = {"suite": "memory", "checks": (), "measurement": measurement}
        return run.model_copy(update={"cases": (case.model_copy(update=update),)})

    def plan(self, root: Path, *records: RunRecord) -> update.Plan:
        (found,) = update.plan_update(root, "memory", [self.case()], records, PROVENANCE)
        return found

    def test_it_is_stored_and_told(self, tmp_path: Path) -> None:
        runs = [self.measured(device_used=2e9, reference_device_used=size) for size in (4e9, 4.2e9, 5e9)]
        found = self.plan(tmp_path, *runs)
        (path,) = update.apply(tmp_path, [found])
        told = json.loads(path.read_text())["cases"]["dit-fp32"]["observed"]["metrics"]
        assert told == {"reference_device_used": {"value": 4.2e9, "unit": "B"}}
        read = read_baselines(tmp_path, HARDWARE, "tiny-wan", "memory")
        assert read is not None and read.cases["dit-fp32"].observed == found.after.cases["dit-fp32"].observed
        assert "judged by nothing: reference_device_used 3.912 GiB" in update.plan_markdown([found])

    def test_an_entry_without_one_gets_it_once(self, tmp_path: Path) -> None:
        update.apply(tmp_path, [self.plan(tmp_path, self.measured(device_used=2e9))])
        path = next(tmp_path.glob("*/*/memory.json"))
        assert "observed" not in json.loads(path.read_text())["cases"]["dit-fp32"]
        with_one = self.measured(device_used=2.01e9, reference_device_used=4e9)
        update.apply(tmp_path, [found := self.plan(tmp_path, with_one)])
        assert found.touched == {"dit-fp32"}
        assert not self.plan(tmp_path, self.measured(device_used=2e9, reference_device_used=5e9)).touched

    def test_one_that_is_no_size_is_refused(self, tmp_path: Path) -> None:
        update.apply(
            tmp_path, [self.plan(tmp_path, self.measured(device_used=2e9, reference_device_used=4e9))]
        )
        path = next(tmp_path.glob("*/*/memory.json"))
        path.write_text(path.read_text().replace("4000000000.0", "-1.0"))
        with pytest.raises(
            BaselineError, match=r"observed\.metrics\.reference_device_used\.value is -1\.0, not a number"
        ):
            read_baselines(tmp_path, HARDWARE, "tiny-wan", "memory")


def test_bands_are_those_of_the_backend_that_ran(tmp_path: Path) -> None:
    """Not of the case file's, where the run named another: measured, and when bands alone are made anew."""
    stock = TestReference()
    band = {"rel": 0.01, "reason": "r", "by_backend": {"tensorrt": {"rel": 0.2, "reason": "anew each time"}}}
    gate = MemoryGate.model_validate({"growth": {"max": 1024, "reason": "r"}, "bands": {"device_used": band}})
    case = stock.case().model_copy(update={"memory": gate})
    run = stock.measured(device_used=2e9)
    on_tensorrt = tuple(each.model_copy(update={"backend": "tensorrt"}) for each in run.cases)
    run = run.model_copy(update={"cases": on_tensorrt})
    assert case.backend != "tensorrt"
    (found,) = update.plan_update(tmp_path, "memory", [case], [run], PROVENANCE)
    update.apply(tmp_path, [found])

    def tolerance(plan: update.Plan) -> Tolerance:
        return plan.after.cases["dit-fp32"].metrics["device_used"].tolerance

    assert tolerance(found) == Tolerance(0.2, 0.0, "anew each time")
    (again,) = update.plan_bands(tmp_path, HARDWARE, "memory", [case], None)
    assert tolerance(again) == tolerance(found) and not again.touched


class TestBandsOnly:
    def plans(
        self, root: Path, *cases: Case, why: str | None = None, **options: Any
    ) -> tuple[update.Plan, ...]:
        return update.plan_bands(root, HARDWARE, "perf", cases, why, **options)

    def test_stored_values_get_the_bands_of_the_case_file_and_a_reason(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        before = json.loads(path.read_text())["cases"]
        wider = dict.fromkeys(TIMES, Band(rel=0.1, abs=0.5, reason="half a second"))
        case = make_case("dit-fp32", bands=wider).model_copy(
            update={"backend": "tensorrt"}
        )  # stays what made it
        found = self.plans(tmp_path, case)
        with pytest.raises(update.Refused, match="dit-fp32 candidate_time: looser tolerance"):
            update.require_reason(found, None)
        update.apply(tmp_path, self.plans(tmp_path, case, why="timers are coarse"))
        after = json.loads(path.read_text())["cases"]
        assert after["vae-fp32"] == before["vae-fp32"], "what no case asks for is not touched"
        for name, metric in after["dit-fp32"]["metrics"].items():
            old = before["dit-fp32"]["metrics"][name]
            assert metric.pop("tolerance") == {"rel": 0.1, "abs": 0.5, "reason": "half a second"}
            assert metric == {key: value for key, value in old.items() if key != "tolerance"}
        assert after["dit-fp32"]["provenance"] == {
            **before["dit-fp32"]["provenance"],
            "accepted_regression": "timers are coarse",
        }
        assert not any(plan.touched for plan in self.plans(tmp_path, case, why="again"))

    def test_what_was_accepted_before_is_kept(self, tmp_path: Path) -> None:
        """The values are still those that it explains, also where the bands are narrower now."""

        def accepted(width: float, why: str | None) -> str:
            case = make_case("dit-fp32", bands=dict.fromkeys(TIMES, Band(rel=width, reason="timers")))
            case = case.model_copy(update={"backend": "tensorrt"})
            update.apply(tmp_path, self.plans(tmp_path, case, why=why))
            return json.loads(path.read_text())["cases"]["dit-fp32"]["provenance"]["accepted_regression"]

        path = stored(tmp_path)
        assert accepted(0.3, "first") == "first"
        assert accepted(0.2, None) == "first"
        assert accepted(0.15, "explains nothing: nothing is looser") == "first"
        assert accepted(0.4, "second") == "first; second"

    @pytest.mark.parametrize("commit", ["abc", "def"])
    def test_what_was_observed_is_judged_where_it_has_a_band_now(self, commit: str, tmp_path: Path) -> None:
        """As if it had been measured with the band; another run's number says which run's it is."""
        path = stored(tmp_path)
        told = {
            "caches": ObservedMetric(7.5e9, "B"),
            "psnr_db": ObservedMetric(0.0, "dB"),
            "speedup": ObservedMetric(1.67, "x", 1.6, 1.7, 5),
            "cosine": ObservedMetric(0.99, ""),
        }
        file = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
        assert file is not None
        seen = replace(file.cases["dit-fp32"], observed=Observed(commit, "", told))
        write_baselines(tmp_path, replace(file, cases={**file.cases, "dit-fp32": seen}), {"dit-fp32"})
        before = json.loads(path.read_text())["cases"]["dit-fp32"]
        exact = Band(rel=1e-5, reason="counted from the shapes")
        asked = {**dict.fromkeys(TIMES, TEN_PERCENT), **dict.fromkeys((*told, "unseen"), exact)}
        (found,) = self.plans(tmp_path, make_case("dit-fp32", bands=asked))
        update.require_reason([found], None)
        assert {row.metric: row.kind.value for row in found.rows if row.metric not in TIMES} == {
            "caches": "new", "cosine": "new"
        }, "no baseline is 0, and whether a ratio is known to its band its interval says"  # fmt: skip
        update.apply(tmp_path, [found])
        after = json.loads(path.read_text())["cases"]["dit-fp32"]
        caches, cosine = (after["metrics"].pop(name) for name in ("caches", "cosine"))
        assert caches == {
            "value": 7.5e9, "unit": "B", "better": "lower", "n": 1, "spread": 0, "samples": [7.5e9],
            "tolerance": {"rel": 1e-5, "abs": 0, "reason": "counted from the shapes"},
        }  # fmt: skip
        assert cosine["better"] == "higher"
        kept = set(after.pop("observed")["metrics"])
        assert kept == (set(told) if commit != PROVENANCE.commit else {"psnr_db", "speedup"})
        assert after == {key: value for key, value in before.items() if key != "observed"}
        assert not self.plans(tmp_path, make_case("dit-fp32", bands=asked))[0].touched

    def test_a_case_that_has_none(self, tmp_path: Path) -> None:
        assert self.plans(tmp_path, *CASES) == ()
        stored(tmp_path)
        assert not self.plans(tmp_path, *CASES)[0].touched
        with pytest.raises(update.Refused, match="is called dit-fp23; there are dit-fp32, vae-fp32"):
            self.plans(tmp_path, *CASES, selected=["dit-fp23"])


def test_table_shows_old_new_and_tolerance_with_what_loosens_first(tmp_path: Path) -> None:
    stored(tmp_path)
    bands = {
        "candidate_time": Band(rel=0.2, abs=0.001, reason="x"),
        "reference_time": TEN_PERCENT,
        "speedup": Band(rel=0.1, reason="x"),
    }
    cases = (make_case("dit-fp32", bands=bands), make_case("vae-fp32", bands={"candidate_time": TEN_PERCENT}))
    stream = io.StringIO()
    found = plan(tmp_path, record(reference=0.05, cases=cases), cases=cases)
    Console(file=stream, width=120).print(changes_table(update.plan_changes([found])))
    lines = [re.sub(r"\s+", " ", line).strip() for line in stream.getvalue().splitlines()[2:]]
    assert (lines[0], lines[2]) == ("vae-fp32", "dit-fp32")
    assert re.fullmatch(r"reference_time 99.+ ms 10.0% removed", lines[1])
    assert re.fullmatch(r"candidate_time 60.+ ms 30.* ms -50.*% 20.0% or 1 ms looser tolerance", lines[3])
    assert any(re.fullmatch(r"speedup 1\.6.+x 10.0% new", line) for line in lines)


class TestRefusals:
    @pytest.mark.parametrize(
        "environ",
        [
            {"PYTEST_XDIST_WORKER": "gw0"},
            {"PYTEST_ADDOPTS": "-n2"},
            {"PYTEST_ADDOPTS": "-q -n auto"},
            {"PYTEST_ADDOPTS": "--numprocesses=4"},
            {"PYTEST_ADDOPTS": "--dist loadgroup"},
        ],
    )
    def test_xdist(self, environ: dict[str, str]) -> None:
        with pytest.raises(update.Refused):
            update.refuse_xdist(environ)

    @pytest.mark.parametrize("options", ["", "-q", "-n0", "-n 0", "--dist no", "--no-header", "-p no:xdist"])
    def test_no_xdist(self, options: str) -> None:
        update.refuse_xdist({"PYTEST_ADDOPTS": options})

    @pytest.mark.parametrize("command", [("pytest", "-n2"), ("pytest", "-n", "2"), ("pytest", "-n=auto")])
    def test_record_of_parallel_workers(self, command: tuple[str, ...]) -> None:
        with pytest.raises(update.Refused, match="other workers"):
            update.check_record(record().model_copy(update={"command": command}), HARDWARE)

    def test_other_hardware(self) -> None:
        update.check_record(record(), HARDWARE)
        with pytest.raises(update.Refused, match=f"comes from {HARDWARE}, not from cuda-x"):
            update.check_record(record(), "cuda-x")

    def test_throttled(self) -> None:
        with pytest.raises(update.Refused, match="GPU hardware slowdown"):
            update.check_record(record(throttled="GPU hardware slowdown"), HARDWARE)

    def test_dirty_tree(self) -> None:
        assert update.usable_commit(CLEAN, ("baselines",)) == "abcdef"
        dirty = SourceState("abcdef", True, ("wan_trt_core/config.py",))
        with pytest.raises(update.Refused, match=r"wan_trt_core/config\.py"):
            update.usable_commit(dirty, ("baselines",))
        with pytest.raises(update.Refused, match="dirty"):
            update.usable_commit(SourceState("abcdef", True), ("baselines",))

    def test_only_the_baselines_may_be_dirty(self) -> None:
        written = ("baselines", "outputs", "review/change.md")
        own = SourceState(
            "abcdef", True, ("baselines/cpu/tiny-wan/perf.json", "outputs/a", "review/change.md")
        )
        assert update.usable_commit(own, written) == "abcdef"
        for path in ("baselines_old/perf.json", "review/change.md.py", "review/a.py"):
            with pytest.raises(update.Refused, match=rf"dirty: {path};"):
                update.usable_commit(SourceState("abcdef", True, (*own.changed, path)), written)

    def test_without_git_commit_and_state_are_given(self) -> None:
        unknown = SourceState(None, None)
        for given in ({}, {"commit": "abc"}, {"tree_state": "clean"}):
            with pytest.raises(update.Refused, match="--commit SHA --tree-state"):
                update.usable_commit(unknown, ("baselines",), **given)
        assert update.usable_commit(unknown, ("baselines",), "abc", "clean") == "abc"
        with pytest.raises(update.Refused, match="dirty"):
            update.usable_commit(unknown, ("baselines",), "abc", "dirty")

    def test_git_without_a_commit_is_not_called_no_git(self) -> None:
        with pytest.raises(update.Refused, match="there is no git here; say what was measured"):
            update.usable_commit(SourceState(None, None), ("baselines",))
        new = SourceState(None, True)
        with pytest.raises(
            update.Refused, match="git has no commit here yet; commit, or say what was measured"
        ):
            update.usable_commit(new, ("baselines",))
        assert update.usable_commit(new, ("baselines",), "abc", "clean") == "abc"

    def test_given_commit_must_be_that_of_git(self) -> None:
        assert update.usable_commit(CLEAN, ("baselines",), "abc", "clean") == "abcdef"
        with pytest.raises(update.Refused, match="git says abcdef"):
            update.usable_commit(CLEAN, ("baselines",), "123", "clean")


class TestMeasuring:
    def test_command(self, tmp_path: Path) -> None:
        command = update.measurement_command(
            "perf", tmp_path, suites=Path("suites"), cases=["b", "a"], options={"cases": "c.yaml"}
        )
        assert command[:3] == [sys.executable, "-m", "pytest"]
        assert {"--wan-no-gate", "no:xdist", f"--wan-report={tmp_path}", "--wan-cases=c.yaml"} <= set(command)
        assert command[-2:] == ["-k", "[a] or [b]"]

    def test_each_model_s_checkpoint_is_named(self, tmp_path: Path) -> None:
        given = {"checkpoint": ["tiny-wan=a", "wan2.1-t2v-1.3b=b"]}
        command = update.measurement_command("perf", tmp_path, suites=tmp_path, cases=None, options=given)
        assert [f"--wan-checkpoint={each}" for each in given["checkpoint"]] == command[-2:]

    def test_only_the_suite_itself_is_collected(self, tmp_path: Path) -> None:
        (tmp_path / "perf").mkdir()
        for suite, folder in (("perf", tmp_path / "perf"), ("memory", tmp_path)):
            command = update.measurement_command(suite, tmp_path, suites=tmp_path, cases=None, options={})
            assert str(folder) in command
            assert "-k" not in command

    def test_run_that_breaks_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(update.Refused, match="code 5"):
            update.measure([sys.executable, "-c", "raise SystemExit(5)"], tmp_path)

    def test_run_in_which_a_case_could_not_be_measured_leaves_its_record(self, tmp_path: Path) -> None:
        failed = [sys.executable, "-c", "raise SystemExit(1)"]
        with pytest.raises(update.Refused, match="code 1"):
            update.measure(failed, tmp_path)
        record().write(tmp_path / "results.json")
        assert update.measure(failed, tmp_path) == record()

    def test_run_leaves_a_record(self, tmp_path: Path) -> None:
        record().write(tmp_path / "made.json")
        copy = (
            f"import shutil; shutil.copy({str(tmp_path / 'made.json')!r}, {str(tmp_path / 'results.json')!r})"
        )
        assert update.measure([sys.executable, "-c", copy], tmp_path) == record()


class TestKeptRecords:
    @pytest.mark.parametrize("error", [update.Refused("no"), BaselineError("no"), KeyboardInterrupt()])
    def test_what_was_measured_outlives_a_refusal(self, error: BaseException, tmp_path: Path) -> None:
        with pytest.raises(type(error)) as caught, update.records_kept(tmp_path / "kept", "perf") as measured:
            measured += [record(), record(reference=0.2)]
            raise error
        (note,) = caught.value.__notes__
        files = [Path(name) for name in note.partition("--from-record ")[2].split()]
        assert [RunRecord.read(file) for file in files] == measured
        assert {file.parent.parent for file in files} == {tmp_path / "kept"}

    def test_nothing_is_kept_of_nothing_or_of_what_went_well(self, tmp_path: Path) -> None:
        with pytest.raises(update.Refused) as caught, update.records_kept(tmp_path / "kept", "perf"):
            raise update.Refused("no")
        assert not hasattr(caught.value, "__notes__")
        with update.records_kept(tmp_path / "kept", "perf") as measured:
            measured.append(record())
        assert not (tmp_path / "kept").exists()

    def test_a_folder_that_cannot_be_written_hides_no_refusal(self, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("a file")
        with (
            pytest.raises(update.Refused, match="no") as caught,
            update.records_kept(tmp_path / "kept", "perf") as measured,
        ):
            measured.append(record())
            raise update.Refused("no")
        assert "could not be kept" in caught.value.__notes__[0]

    def test_runs_before_the_one_that_breaks_are_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And what the broken one had measured by then."""
        runs = iter([record(), record(reference=0.2), record(reference=0.3)])

        def measured_in_part(command: list[str], report: Path) -> RunRecord:
            made = next(runs)
            made.write(report / "results.json")
            if made == record(reference=0.2):
                raise update.Refused("code 1")
            return made

        monkeypatch.setattr(update, "measure", measured_in_part)
        measured: list[RunRecord] = []
        with pytest.raises(update.Refused, match="code 1"):
            update.measure_runs("perf", 3, measured, suites=tmp_path, cases=None, options={})
        assert measured == [record(), record(reference=0.2)]


@pytest.fixture
def tool() -> ModuleType:
    return importlib.import_module("wan_trt_core.cli.regenerate")


CASE_FILE = """
version: 1
defaults: {model: tiny-wan, profile: 128p-17f, precision: fp32, backend: onnxruntime}
cases:
  - id: dit-fp32
    component: dit
    perf:
      parity: {psnr_db: {min: 60, reason: what was timed is right}}
      bands:
        reference_time: {rel: 0.1, reason: ten percent}
        candidate_time: {rel: 0.1, reason: ten percent}
"""

Run = Callable[..., int]
Measure = Callable[..., tuple[int, int]]


def squeezed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, as one line."""
    return " ".join(capsys.readouterr().out.split())


class TestTool:
    @pytest.fixture
    def run(self, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        """The tool in an empty folder without git, on a record of the made-up hardware."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        for name in ("BACKEND", "MODEL", "PROFILE"):
            monkeypatch.delenv(f"WAN_TRT_{name}", raising=False)
        (tmp_path / "cases.yaml").write_text(CASE_FILE)

        def call(*options: str, made: RunRecord | None = None, hardware: str = HARDWARE) -> int:
            (made or record(cases=CASES[:1])).write(tmp_path / "results.json")
            given = ["--suite", "perf", "--cases", "cases.yaml", "--from-record", "results.json"]
            code: int = tool.main([*given, *(["--hardware", hardware] if hardware else []), *options])
            return code

        return call

    def test_writes_then_finds_nothing_to_do(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        before = path.read_bytes()
        assert "wrote" in capsys.readouterr().out
        assert run() == 0
        assert "nothing to write" in capsys.readouterr().out
        assert path.read_bytes() == before

    def test_another_case_file_is_named_with_its_own_option(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--cases", "none.yaml") == 1
        told = capsys.readouterr().out.strip()
        assert told == "refused: none.yaml: no such case file; name one with --cases FILE"

    def test_dry_run_shows_and_writes_nothing(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--dry-run") == 0
        shown = capsys.readouterr().out
        assert "reference_time" in shown and "new" in shown and "dry run" in shown
        assert not (tmp_path / "baselines").exists()

    def test_what_is_printed_is_written_for_review(self, run: Run, tmp_path: Path) -> None:
        assert run() == 0
        slow = record(reference=0.13, ratio=2.0, cases=CASES[:1])
        assert run("--diff", "review/change.md", made=slow) == 1  # refused, and there for who has to judge
        lines = (tmp_path / "review" / "change.md").read_text().splitlines()
        assert lines[0] == f"## Baselines of {HARDWARE} / tiny-wan / perf"
        first = next(line for line in lines if line.startswith("| `dit-fp32`"))
        assert "reference_time" in first and "10.0%" in first and first.endswith("| **worse** |")

    def test_other_settings_are_told_and_refused(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 0
        made = record(cases=CASES[:1]).model_copy(update={"settings": {"threads": 1}})
        assert run("--dry-run", made=made) == 1
        told = squeezed(capsys)
        assert (
            "dit-fp32: measured with other settings than the stored numbers: threads: null → 1 for review"
            in told
        )
        assert "refused: this would replace numbers of other settings (dit-fp32: threads: null → 1)" in told
        assert run("--accept-regression", "one thread from now on", made=made) == 0
        assert run(made=made) == 0
        assert "nothing to write" in squeezed(capsys)

    def test_first_kernels_are_told(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 0
        assert "kernel profile" not in capsys.readouterr().out
        assert run(made=record(cases=CASES[:1], kernels=KERNELS)) == 0
        assert "dit-fp32: kernel profile: new\n" in capsys.readouterr().out
        assert run(made=record(cases=CASES[:1], kernels=KERNELS)) == 0
        assert "nothing to write" in capsys.readouterr().out

    def test_what_nothing_judges_is_taken_where_it_is_asked_for(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        before = json.loads(path.read_text())["cases"]["dit-fp32"]
        later = record(reference=0.103, cases=CASES[:1])
        assert run("--observed", "--check", made=later) == 0
        assert json.loads(path.read_text())["cases"]["dit-fp32"] == before
        assert run("--observed", made=later) == 0
        assert (
            "dit-fp32: every metric is within its band and stays; what nothing judges is that of this run"
            in (squeezed(capsys))
        )
        after = json.loads(path.read_text())["cases"]["dit-fp32"]
        assert after.pop("observed") != before.pop("observed")
        assert after == before

    def test_check(self, run: Run, tmp_path: Path) -> None:
        assert run("--check") == 1
        assert not (tmp_path / "baselines").exists()
        assert run() == 0
        assert run("--check") == 0
        assert run("--check", made=record(reference=0.05, cases=CASES[:1])) == 1

    def test_check_of_one_case_beside_those_of_another_case_file(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stored(tmp_path / "baselines")
        before = record(cases=CASES[:1])
        assert run("--check", "--case", "dit-fp32", made=before) == 0
        assert "is kept" in capsys.readouterr().out
        assert run("--check", made=before) == 1, "all cases of this file, of which vae-fp32 is none"
        assert "would change: vae-fp32" in capsys.readouterr().out

    def test_one_refused_case_keeps_no_other_back(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        second = CASE_FILE.partition("  - id: ")[2].replace("dit-fp32", "vae-fp32")
        (tmp_path / "cases.yaml").write_text(f"{CASE_FILE}  - id: {second}")
        made = run_record(*map(case_record, CASES[:2], (perf_measurement(), perf_measurement(1.2))))
        why = "refused: case vae-fp32: it does not pass its own gates, so it cannot be a baseline:"
        for mode in ("--check", "--dry-run"):
            assert run(mode, made=made) == 1
            assert why in squeezed(capsys)
            assert not (tmp_path / "baselines").exists()
        assert run(made=made) == 1
        assert why in squeezed(capsys)
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        assert set(json.loads(path.read_text())["cases"]) == {"dit-fp32"}
        assert run(made=made) == 1
        told = squeezed(capsys)
        assert why in told and "every metric is within its band" not in told
        assert run("--check", made=made) == 1
        told = squeezed(capsys)
        assert why in told and "the baselines hold" not in told

    def test_the_record_of_a_subset_changes_the_cases_that_it_holds(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one = CASE_FILE.partition("  - id: ")[2]
        others = ("gone", *(f"vae-{number}" for number in range(1, 6)))
        more = "".join(f"  - id: {one.replace('dit-fp32', name)}" for name in others)
        (tmp_path / "cases.yaml").write_text(CASE_FILE + more)
        whole = (CASES[0], *map(make_case, others))
        assert run(made=record(cases=whole)) == 0
        assert "record holds" not in squeezed(capsys)
        (tmp_path / "cases.yaml").write_text(CASE_FILE + more.replace("id: gone", "id: vae-0"))
        fast = record(reference=0.05, cases=CASES[:1])
        told = (
            "the record holds 1 of the 7 cases of suite perf; what is stored of the others stays as it is: "
            "vae-0, vae-1, vae-2 and 3 more"
        )
        assert run("--check", made=fast) == 1
        shown = squeezed(capsys)
        assert told in shown and shown.endswith("would change: dit-fp32")
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        before = json.loads(path.read_text())["cases"]
        assert run(made=fast) == 0
        shown = squeezed(capsys)
        assert told in shown and "refused" not in shown
        assert "is called gone; its baseline is kept" in shown, "only a run of all cases drops it"
        after = json.loads(path.read_text())["cases"]
        assert after.pop("dit-fp32") != before.pop("dit-fp32")
        assert after == before
        assert run("--case", "vae-1", made=fast) == 1
        assert "refused: case vae-1: the run did not measure it" in squeezed(capsys)
        assert run(made=record(cases=(make_case("foreign"),))) == 1
        assert "refused: the record holds none of the 7 cases of suite perf: dit-fp32, vae-0" in squeezed(
            capsys
        )

    def test_a_case_that_one_of_two_records_lacks_is_refused(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        second = CASE_FILE.partition("  - id: ")[2].replace("dit-fp32", "vae-fp32")
        (tmp_path / "cases.yaml").write_text(f"{CASE_FILE}  - id: {second}")
        record(cases=CASES[:2]).write(tmp_path / "first.json")
        assert run("--from-record", "first.json", "results.json") == 1
        shown = squeezed(capsys)
        assert "refused: case vae-fp32: the run did not measure it" in shown and "records hold" not in shown

    @pytest.mark.parametrize("hardware", ["", "cuda-nvidia-h200-132sm-139gib"])
    def test_the_hardware_is_that_of_the_record(
        self,
        hardware: str,
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Of a machine with a GPU, on one without."""

        def no_gpu() -> object:
            raise RuntimeError("no CUDA device is visible to PyTorch")

        monkeypatch.setattr(environment, "_cuda_properties", no_gpu)
        gpu = "cuda-nvidia-h200-132sm-139gib"
        assert run(made=record(cases=CASES[:1], hardware_key=gpu), hardware=hardware) == 0
        assert baseline_path(tmp_path / "baselines", gpu, "tiny-wan", "perf").is_file()
        record(cases=CASES[:1]).write(tmp_path / "cpu.json")
        both = ("--from-record", "cpu.json", "results.json")
        assert run(*both, made=record(cases=CASES[:1], hardware_key=gpu), hardware=hardware) == 1
        assert "not from" in capsys.readouterr().out

    def test_bands_of_another_machine_are_asked_for_by_its_hardware(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_gpu(_: str | None) -> str:
            raise update.Refused("no CUDA device is visible to PyTorch")

        monkeypatch.setattr(update, "this_hardware", no_gpu)
        assert run("--bands-only", hardware="") == 1
        told = squeezed(capsys)
        assert told.endswith("no CUDA device is visible to PyTorch; of another machine: --hardware KEY")

    def test_check_of_a_damaged_file(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        path.write_text(path.read_text().replace('"value": 0.', '"value": -0.'))
        assert run("--check") == 1
        assert "not a positive number" in capsys.readouterr().out

    @pytest.mark.parametrize("mode", ["measure", "--from-record", "--bands-only"])
    def test_what_it_advises_names_the_case_file_and_the_folder_that_were_given(
        self, mode: str, run: Run, measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def regenerate(*options: str) -> str:
            code = measure(*options)[0] if mode == "measure" else run(*options, *bands_only)
            assert code == 1
            return squeezed(capsys)

        bands_only = ["--bands-only"] if mode == "--bands-only" else []
        file = "dit-fp32.yaml" if mode == "measure" else "cases.yaml"
        made = "wan-trt baselines regenerate --suite perf"
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        whole = path.read_text()
        path.write_text(whole.replace('"onnxruntime"', '"tensorrt"'))
        if not bands_only:  # which keeps the origin of what it measures nothing of
            assert f"{made} --case dit-fp32 --cases {file} --baselines OTHER (with" in regenerate()
        path.write_text(whole[:-20])
        assert f"{made} --cases {file}\n" in f"{regenerate()}\n"
        assert f"{made} --cases {file} --baselines baselines" in regenerate("--baselines", "baselines")

    def test_what_it_advises_names_nothing_that_was_not_given(
        self, tool: ModuleType, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        path.write_text(path.read_text()[:-20])
        (tmp_path / "suites").mkdir()
        (tmp_path / "cases.yaml").rename(tmp_path / "suites" / "cases.yaml")
        assert tool.main(["--suite", "perf", "--from-record", "results.json", "--hardware", HARDWARE]) == 1
        assert squeezed(capsys).endswith("make it again: wan-trt baselines regenerate --suite perf")

    def test_regression(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        slow = record(reference=0.13, ratio=2.0, cases=CASES[:1])
        assert run() == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        before = path.read_bytes()
        assert run(made=slow) == 1
        assert "--accept-regression REASON" in capsys.readouterr().out
        assert path.read_bytes() == before
        assert run("--accept-regression", "pads now", made=slow) == 0
        entry = json.loads(path.read_text())["cases"]["dit-fp32"]
        assert entry["provenance"]["accepted_regression"] == "pads now"
        assert entry["provenance"]["command"].startswith("wan-trt baselines regenerate --suite perf ")
        assert "--accept-regression 'pads now'" in entry["provenance"]["command"]

    def test_it_is_a_command_and_a_script_of_a_checkout(
        self, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert load_script("tools/regenerate_baselines.py").main is tool.main
        given: list[str] = []
        monkeypatch.setattr(tool, "main", lambda arguments: (given.extend(arguments), 7)[1])
        asked = ["--suite", "perf", "--case", "a", "--from-record", "b.json", "c.json", "--help"]
        result = CliRunner().invoke(app, ["baselines", "regenerate", *asked])
        assert (result.exit_code, given) == (7, asked)

    def test_the_folder_of_the_baselines_is_that_of_the_settings(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WAN_TRT_BASELINES", "elsewhere")
        assert run() == 0
        assert baseline_path(tmp_path / "elsewhere", HARDWARE, "tiny-wan", "perf").is_file()
        assert run("--baselines", "given") == 0
        assert baseline_path(tmp_path / "given", HARDWARE, "tiny-wan", "perf").is_file()

    def test_a_wrong_setting_is_refused(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WAN_TRT_BASELINE", "misspelt")
        assert run() == 1

    def test_interrupted_measurement_writes_nothing(
        self, run: Run, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(tool, "_records", interrupted)
        assert run() == 130
        assert not (tmp_path / "baselines").exists()

    def test_refusals_write_nothing(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dirty = record(
            cases=CASES[:1], source={"commit": "abc", "dirty": True, "changed": ["x.py"], "given": False}
        )
        assert run(made=dirty) == 1
        assert run(made=record(cases=CASES[:1], throttled="GPU hardware slowdown")) == 1
        assert run(hardware="cuda-x") == 1
        assert (
            run(
                made=record(
                    cases=CASES[:1], source={"commit": None, "dirty": None, "changed": [], "given": False}
                )
            )
            == 1
        )
        monkeypatch.setenv("PYTEST_ADDOPTS", "-n2")
        assert run() == 1
        assert not (tmp_path / "baselines").exists()

    @pytest.fixture
    def measure(self, run: Run, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
        """The tool on a case file of one case, without a record: its exit code, and how often it measured."""

        def call(*options: str, case: str = "dit-fp32", band: float = 0.1, **values: Any) -> tuple[int, int]:
            text = CASE_FILE.replace("dit-fp32", case).replace("rel: 0.1", f"rel: {band}")
            (tmp_path / f"{case}.yaml").write_text(text)
            commands: list[object] = []

            def measured(command: object, _: Path) -> RunRecord:
                commands.append(command)
                return record(cases=(make_case(case),), **values)

            monkeypatch.setattr(update, "measure", measured)
            monkeypatch.setattr(update, "this_hardware", lambda _: HARDWARE)
            given = ["--suite", "perf", "--cases", f"{case}.yaml"]
            if not (tmp_path / ".git").exists():
                given += ["--commit", "abc", "--tree-state", "clean"]
            code: int = tool.main([*given, *options])
            return code, len(commands)

        return call

    def test_records_differ_not_by_what_the_tool_writes(self, run: Run, tmp_path: Path) -> None:
        def changed(*names: str) -> RunRecord:
            source = {"commit": "abc", "dirty": bool(names), "changed": list(names), "given": False}
            return record(cases=CASES[:1], source=source)

        changed("outputs/report/perf/results.json", "review/change.md").write(tmp_path / "first.json")
        both = ("--from-record", "first.json", "results.json", "--diff", "review/change.md")
        assert run(*both, made=changed()) == 0
        assert run(*both, made=changed("a.py")) == 1

    def test_what_the_tool_writes_makes_no_tree_dirty(self, measure: Measure, tmp_path: Path) -> None:
        (tmp_path / "dit-fp32.yaml").write_text(CASE_FILE)
        committed(tmp_path)
        for options in ([], ["--dry-run"], ["--diff", "review/change.md", "--dry-run"]):
            assert measure(*options) == (0, 1)
            assert measure(*options) == (0, 1)
        assert measure() == (1, 0), "what another --diff names may be anything"

    def test_looser_case_file_is_refused_before_it_is_measured(
        self, measure: Measure, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert measure() == (0, 1)
        assert measure(band=0.3) == (1, 0)
        assert "dit-fp32 candidate_time: looser tolerance" in squeezed(capsys)
        assert measure("--check", band=0.3) == (1, 1)  # which changes nothing, and shall say what did
        assert measure("--accept-regression", "the clocks", band=0.3) == (0, 1)

    def test_the_environment_counts_before_measuring(
        self, measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert measure() == (0, 1)
        monkeypatch.setenv("WAN_TRT_BACKEND", "tensorrt")
        assert measure() == (1, 0)
        assert "this run with 'tensorrt'" in squeezed(capsys)
        assert measure("--backend", "onnxruntime") == (0, 1)

    def test_other_settings_are_refused_before_they_are_measured(
        self, measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert measure() == (0, 1)
        monkeypatch.setenv("WAN_TRT_EXPORT__OPSET", "21")
        assert measure() == (1, 0)
        assert "other settings (dit-fp32: export.opset: 20 → 21)" in squeezed(capsys)
        assert measure("--accept-regression", "21 is the opset from now on") == (0, 1)

    def test_another_case_file_drops_nothing_without_a_reason(
        self, measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert measure() == (0, 1)
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        before = path.read_bytes()
        assert measure(case="vae-fp32") == (1, 0)
        assert path.read_bytes() == before
        text = squeezed(capsys)
        assert "tiny-wan dit-fp32" in text and "may belong to another case file" in text
        assert measure("--case", "vae-fp32", case="vae-fp32") == (0, 1)
        assert set(json.loads(path.read_text())["cases"]) == {"dit-fp32", "vae-fp32"}
        assert measure("--accept-regression", "it went", case="vae-fp32") == (0, 1)
        assert set(json.loads(path.read_text())["cases"]) == {"vae-fp32"}

    def test_what_was_measured_is_kept_for_the_reason(
        self, measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert measure() == (0, 1)
        assert not (tmp_path / "outputs" / "records").exists()
        slow = {"reference": 0.13, "ratio": 2.0}
        assert measure("--runs", "2", **slow) == (1, 2)
        kept = sorted((tmp_path / "outputs" / "records").glob("perf-*/*.json"))
        assert len(kept) == 2
        names = [str(path.relative_to(tmp_path)) for path in kept]
        assert f"--from-record {' '.join(names)}" in squeezed(capsys)
        accepted = measure("--from-record", *names, "--accept-regression", "pads now")
        assert accepted == (0, 0)
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        assert json.loads(path.read_text())["cases"]["dit-fp32"]["provenance"]["runs"] == 2

    @pytest.mark.parametrize("mode", ["--check", "--dry-run"])
    def test_what_was_measured_and_not_stored_is_kept(
        self, mode: str, measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measure(mode)
        (kept,) = (tmp_path / "outputs" / "records").glob("perf-*/1.json")
        assert f"--from-record {kept.relative_to(tmp_path)}" in squeezed(capsys)

    def test_without_git_the_commit_is_given(self, run: Run, tmp_path: Path) -> None:
        unknown = record(
            cases=CASES[:1], source={"commit": None, "dirty": None, "changed": [], "given": False}
        )
        assert run("--commit", "f00d", "--tree-state", "clean", made=unknown) == 0
        path = baseline_path(tmp_path / "baselines", HARDWARE, "tiny-wan", "perf")
        assert json.loads(path.read_text())["cases"]["dit-fp32"]["provenance"]["commit"] == "f00d"

    def test_wrong_case_file_or_record(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--from-record", "nowhere.json") == 1
        assert "nowhere.json" in capsys.readouterr().out
        (tmp_path / "cases.yaml").write_text(CASE_FILE.replace("component: dit", "component: dti"))
        assert run() == 1
        assert "cases.yaml" in capsys.readouterr().out


def test_what_is_committed_names_no_path_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, elsewhere = tmp_path / "outputs" / "a.json", tmp_path.parent / "b.json"
    given = ["--suite", "perf", str(here), str(elsewhere), f"--cache={here}", "outputs/c.json"]
    kept = ["--suite", "perf", "outputs/a.json", "b.json", "--cache=outputs/a.json", "outputs/c.json"]
    assert [*map(regenerate._anywhere, given)] == kept
