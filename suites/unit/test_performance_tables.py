"""``benchmarks/performance_tables.py``: the tables of docs/performance.md are those of the stored baselines."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import entry, make_case
from scripts import REPOSITORY, load_script

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import PEAK_OVER_REFERENCE, load_cases
from wan_trt_core.gates.bands import Observed, ObservedMetric
from wan_trt_core.pytest_plugin.session import allowed_names

HARDWARE = "cuda-nvidia-h200-132sm-139gib"
BASELINES = REPOSITORY / "baselines" / HARDWARE
CASES = REPOSITORY / "suites" / "cases.yaml"
PAGE = (REPOSITORY / "docs" / "performance.md").read_text()

script = load_script("benchmarks/performance_tables.py")


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    found: dict[str, str] = script.tables(BASELINES, CASES)
    return found


@pytest.mark.parametrize(
    "title",
    [
        "What was aimed at",
        "Speed",
        "Parity",
        "Memory, GB",
        "Kernels, ms, stock diffusers → TensorRT",
        "Costliest layers of the engines",
    ],
)
def test_the_page_has_the_table_whole(title: str, tables: dict[str, str]) -> None:
    assert len(tables) == 6
    assert f"\n\n{tables[title]}\n" in PAGE


def test_the_page_has_the_table_of_the_card_s_limits_whole(capsys: pytest.CaptureFixture[str]) -> None:
    load_script("benchmarks/kernel_limits.py").main([str(BASELINES), "--cases", str(CASES)])
    assert f"\n\n{capsys.readouterr().out.strip()}\n\n" in PAGE


def test_a_row_of_the_page_with_a_case_and_a_commit_is_of_a_table(tables: dict[str, str]) -> None:
    """So none was written by hand, or left behind by a case that went."""
    rows = set("\n".join(tables.values()).splitlines())
    row = r"\| ([^|]+ \| )?(tiny-)?wan-\S+ \|.*\| [0-9a-f]{7} \|"
    told = [line for line in PAGE.splitlines() if re.fullmatch(row, line)]
    assert len(told) > 60
    assert set(told) <= rows


@pytest.mark.parametrize(
    ("model", "suite", "case", "edit", "titles"),
    [
        ("wan2.1-t2v-1.3b", "perf", "wan-1.3b-dit-17f", ("observed", "metrics", "speedup", "low"),
         {"What was aimed at", "Speed"}),
        ("wan2.1-t2v-1.3b", "perf", "wan-1.3b-dit-17f", ("observed", "metrics", "candidate_time"), {"Speed"}),
        ("wan2.1-t2v-1.3b", "parity", "wan-1.3b-dit-17f-parity", ("observed", "metrics", "psnr_db", "points", "opt"),
         {"Parity"}),
        ("wan2.2-ti2v-5b", "memory", "wan-2.2-5b-dit-121f", ("metrics", "device_used"), {"Memory, GB"}),
        ("wan2.2-ti2v-5b", "perf", "wan-2.2-5b-dit-121f", ("kernels", "groups_ms", "attention"),
         {"Kernels, ms, stock diffusers → TensorRT"}),
    ],
)  # fmt: skip
def test_a_baseline_that_changes_is_another_table(
    model: str,
    suite: str,
    case: str,
    edit: tuple[str, ...],
    titles: set[str],
    tables: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copytree(BASELINES, tmp_path / HARDWARE)
    path = tmp_path / HARDWARE / model / f"{suite}.json"
    data = json.loads(path.read_text())
    *way, last = ("cases", case, *edit)
    place = data
    for key in way:
        place = place[key]
    if isinstance(place[last], dict):
        place, last = place[last], "value"
    place[last] = float(f"{1.1 * place[last]:.6g}")
    if "samples" in place:  # of a judged metric, which say its value
        place["samples"] = [place[last]]
    path.write_text(json.dumps(data))
    found = script.tables(tmp_path / HARDWARE, CASES)
    assert {name for name in found if found[name] != tables[name]} == titles


def test_a_commit_that_changes_is_another_table(tables: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(BASELINES, tmp_path / HARDWARE)
    for path in (tmp_path / HARDWARE).glob("*/*.json"):
        path.write_text(re.sub(r'("commit": ")[0-9a-f]{7}', r"\g<1>0000000", path.read_text()))
    found = script.tables(tmp_path / HARDWARE, CASES)
    assert all(found[name] != tables[name] for name in tables)


def test_every_entry_of_an_engine_has_its_row(tables: dict[str, str]) -> None:
    for case in load_cases(CASES, allowed_names()).cases:
        for suite, title in (("perf", "Speed"), ("parity", "Parity")):
            file = read_baselines(BASELINES.parent, HARDWARE, case.model, suite)
            stored = file.cases.get(case.id) if file else None
            if stored is None or stored.provenance["backend"] != "tensorrt":
                assert f"| {case.id} |" not in tables[title]
            elif suite == "perf" or stored.observed:
                assert f"| {case.id} |" in tables[title]


def test_what_was_not_observed_is_empty_and_all_else_of_the_run_that_set_the_bands() -> None:
    (row,) = script.verdicts([(make_case(), entry())])
    assert row == ("dit-fp32", "100 ms", "60 ms", "", "1.5x", "", "", "", "abc")
    assert not [*script.parity([(make_case(), entry())]), *script.memory([(make_case(), entry())])]


def test_a_suite_asks_for_what_was_required_and_for_more_than_torch_compile() -> None:
    cases = {case.id: case for case in load_cases(CASES, allowed_names()).cases}
    for aim in script.AIMS:
        perf, memory = cases[aim.case].perf, cases[aim.case].memory
        assert perf is not None and perf.speedup == (aim.required or perf.speedup)
        assert perf.limits["compile_speedup"].min == 1
        if aim.within_memory:
            assert memory is not None and memory.limits[PEAK_OVER_REFERENCE].max == 1


@pytest.mark.parametrize(
    ("low", "peak", "outcome"),
    [
        (1.62, 0.93, "met by 0.120x"),
        (1.5, 1.0, "met by 0.000x"),
        (1.48, 0.93, "missed by 0.020x ([ideas](#here))"),
        (1.62, 1.01, "missed: more memory ([ideas](#here))"),
        (1.62, None, "speed met by 0.120x, memory not stored"),
        (None, 0.93, "not measured"),
    ],
)
def test_the_lower_end_decides_and_then_the_memory(
    low: float | None, peak: float | None, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aim = script.Aim("the name", "dit-fp32", 1.4, 1.5, "[ideas](#here)", within_memory=True)
    monkeypatch.setattr(script, "AIMS", [aim])
    timed = {"speedup": ObservedMetric(1.7, "x", low, 1.8, 5)} if low else {}
    weighed = {PEAK_OVER_REFERENCE: ObservedMetric(peak, "x")} if peak else {}
    perf, memory = ([(make_case(), replace(entry(), observed=Observed("5b54114", "today", found)))]
                    for found in (timed, weighed))  # fmt: skip
    (row,) = script.targets(perf, memory)
    assert row == (
        "the name", "dit-fp32", "1.4x", "1.5x", f"1.700x ({low:.3f}x)" if low else "–", outcome, "–",
        f"{peak:.3f}x (5b54114)" if peak else "–", "5b54114",
    )  # fmt: skip


def test_an_aim_whose_case_was_never_measured_keeps_its_row() -> None:
    rows = [*script.targets([], [])]
    assert len(rows) == len(script.AIMS) == 8
    assert {row[5] for row in rows} == {"not measured"} and {row[-1] for row in rows} == {"–"}


def test_a_folder_of_no_hardware_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
