"""Every verdict, and every way to end without one, fails the item and stays in the report."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from plugin_support import BANDED, PLUGIN_ARGS, Project, project, store_baselines

__all__ = ["project"]

CONDITIONS = [
    (),
    ("-n0",),
    ("-n2",),
    ("-p", "no:cacheprovider"),
    ("-p", "no:xdist"),
    ("-p", "no:terminal"),
]


@pytest.mark.parametrize("arguments", CONDITIONS, ids=" ".join)
def test_parity_and_memory_under_every_condition(project: Project, arguments: tuple[str, ...]) -> None:
    project.cases("good-one", "bad-one", "nan-one", "absent-one", "void-one", suites=("parity", "memory"))
    result = project.run("-m", "parity or memory", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == {
        ("parity", "good-one"): ("pass", "within_limit"),
        ("parity", "bad-one"): ("fail", "beyond_limit"),
        ("parity", "nan-one"): ("fail", "non_finite"),
        ("parity", "absent-one"): ("missing", "metric_not_computed"),
        ("parity", "void-one"): ("invalid", "fallback_to_pytorch"),
        ("memory", "good-one"): ("pass", "no_growth"),
        ("memory", "bad-one"): ("fail", "growth"),
        ("memory", "nan-one"): ("pass", "no_growth"),
        ("memory", "absent-one"): ("pass", "no_growth"),
        ("memory", "void-one"): ("pass", "no_growth"),
    }
    if "no:terminal" not in arguments:
        result.assert_outcomes(passed=5, failed=5)


def test_perf(project: Project) -> None:
    project.cases("good-one", "bad-one", "unsure-one", suites=("perf",))
    result = project.run("-m", "perf")
    result.assert_outcomes(passed=1, failed=2, deselected=2)
    assert project.verdicts() == {
        ("perf", "good-one"): ("pass", "interval_above_threshold"),
        ("perf", "bad-one"): ("fail", "interval_below_threshold"),
        ("perf", "unsure-one"): ("inconclusive", "budget_exhausted"),
    }


def test_all_pass(project: Project) -> None:
    project.cases("good-one", suites=("parity", "perf", "memory"))
    result = project.run()
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*good-one*parity*PASS*", "results.json: *", "report.md: *", "report.html: *"]
    )
    for name in ("report.md", "report.html"):
        assert "good-one" in (project.path / "outputs" / "report" / name).read_text()


def test_first_lines_carry_the_answer(project: Project) -> None:
    project.cases("bad-one")
    result = project.run("-m", "parity")
    result.stdout.fnmatch_lines(
        [
            "bad-one (parity) FAIL (beyond_limit): psnr_db 81.5* < 90*the floor*",
            "*first diverging block: blocks.3",
            "*report.md",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("case", "shown", "traceback"),
    [
        ("unavailable-one", "BackendUnavailable: no such runtime here; install wan-trt-core[[]cpu]", False),
        ("broken-one", "ZeroDivisionError: a mistake in the measuring code", True),
        ("skips-one", "nothing was judged: it was skipped while measuring (*not today*)", False),
    ],
)
def test_what_could_not_be_measured_fails_and_stays_in_the_report(
    project: Project, case: str, shown: str, traceback: bool
) -> None:
    project.cases("good-one", case)
    result = project.run("-m", "parity")
    result.assert_outcomes(passed=1, failed=1, deselected=2)
    assert project.verdicts()["parity", case] == ("invalid", "not_measured")
    result.stdout.fnmatch_lines([f"*{shown}*"])
    assert ("conftest.py:" in result.stdout.str()) is traceback


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("dies-one", ("invalid", "not_measured")),
        ("bad-killed", ("fail", "beyond_limit")),  # while the reason of its failure was looked for
    ],
)
def test_killed_run_leaves_what_it_judged(project: Project, case: str, verdict: tuple[str, str]) -> None:
    project.cases("good-one", case, "good-two")
    result = project.pytester.runpytest_subprocess(*PLUGIN_ARGS, "-p", "no:xdist", "-m", "parity")
    assert result.ret == 3  # of the process itself: nothing of pytest ran after it
    assert project.verdicts() == {
        ("parity", "good-one"): ("pass", "within_limit"),
        ("parity", case): verdict,
    }


def test_process_that_dies_leaves_its_case_in_the_report(project: Project) -> None:
    project.cases("good-one", "dies-one", "good-two")
    result = project.run("-m", "parity", "-n1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    verdicts = project.verdicts()
    assert verdicts["parity", "dies-one"] == ("invalid", "not_measured")
    assert verdicts["parity", "good-one"] == verdicts["parity", "good-two"] == ("pass", "within_limit")


def test_setup_that_crashes_stays_in_the_report(project: Project) -> None:
    project.cases("good-one")
    project.pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.fixture
        def crashes():
            raise OSError("no disk")

        @pytest.mark.parity
        def test_own(crashes, wan_case, wan_measure, wan_judge):
            wan_judge(wan_measure(wan_case, "parity"))
        """
    )
    result = project.run("test_own.py")
    result.assert_outcomes(errors=1)
    assert project.verdicts() == {("parity", "good-one"): ("invalid", "not_measured")}
    assert "no disk" in project.results()["cases"][0]["message"]


def test_a_test_that_judges_nothing_fails(project: Project) -> None:
    project.cases("good-one")
    project.pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.parity
        def test_own(wan_case):
            pass
        """
    )
    result = project.run("test_own.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing was judged: the test ended without calling wan_judge*"])
    assert project.verdicts() == {("parity", "good-one"): ("invalid", "not_measured")}


def test_no_baselines_for_this_hardware_is_reported_and_decides_only_when_required(project: Project) -> None:
    project.cases("good-one", bands=True)
    assert project.run("-m", "parity").ret == 0
    checks = project.results()["cases"][0]["checks"]
    assert [check["reason"] for check in checks if check["advisory"]] == ["no_bands_for_hardware"]
    result = project.run("-m", "parity", "--wan-require-bands")
    result.assert_outcomes(failed=1, deselected=2)
    assert project.verdicts()["parity", "good-one"] == ("missing", "no_bands_for_hardware")


@pytest.mark.parametrize(
    ("stored", "backend", "verdict"),
    [
        ({"good-one": 1e-5}, "onnxruntime", ("pass", "within_limit")),
        ({"good-one": 1e-5}, "tensorrt", ("invalid", "baseline_invalid")),
        ({"good-one": 1e-6}, "onnxruntime", ("fail", "worse_than_band")),
        ({"other": 1e-5}, "tensorrt", ("missing", "no_baseline")),
        ({"good-one": 0.0}, "onnxruntime", ("invalid", "baseline_invalid")),
    ],
)
def test_baselines(
    project: Project, stored: dict[str, float], backend: str, verdict: tuple[str, str]
) -> None:
    project.cases("good-one", bands=True)
    store_baselines(project, "parity", stored, backend=backend)
    result = project.run("-m", "parity")
    assert project.verdicts()["parity", "good-one"] == verdict
    assert (result.ret == 0) == (verdict[0] == "pass")
    explained = "first diverging block: blocks.3" in result.stdout.str()
    assert explained == (verdict[0] == "fail")  # a band alone may fail a case; that is explained as well


@pytest.mark.parametrize(
    ("arguments", "complete"),
    [
        ("-m parity", True), ("-m parity -n2", True), ("-m parity -k good", False), ("-m parity -k good -n2", False),
        ("-m parity -x", False), ("-m memory", False),
    ],
)  # fmt: skip
def test_orphaned_baselines_are_told_by_complete_runs(
    project: Project, arguments: str, complete: bool
) -> None:
    project.cases("bad-one", "good-one", suites=("parity", "memory"), bands=True)
    store_baselines(project, "parity", dict.fromkeys(("bad-one", "good-one", "renamed"), 1e-5))
    result = project.run(*arguments.split())
    orphans = ["parity renamed (tiny-wan)"] if complete else []
    assert project.results()["environment"]["orphaned_baselines"] == orphans
    text = " ".join(result.stdout.str().split())
    assert ("no case asks for the baseline parity renamed (tiny-wan)" in text) is complete
    report = (project.path / "outputs" / "report" / "report.md").read_text()
    assert ("## Orphaned baselines (advisory)" in report) is complete
    page = (project.path / "outputs" / "report" / "report.html").read_text()
    assert ("Orphaned baselines (advisory)" in page) is complete


@pytest.mark.parametrize("gating", [True, False])
def test_annotations_in_github_actions(
    project: Project, monkeypatch: pytest.MonkeyPatch, gating: bool
) -> None:
    project.cases("good-one", "bad-one", "good-two", bands=True)
    store_baselines(project, "parity", {"good-one": 1e-3, "bad-one": 1e-5, "good-two": 1e-5, "old-one": 1e-5})
    assert not [line for line in project.run("-m", "parity").stdout.lines if line.startswith("::")]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path))
    result = project.run("-m", "parity", "-n2", *(() if gating else ("--wan-no-gate",)))
    failed, gain, orphan = [line for line in result.stdout.lines if line.startswith("::")]
    file = "file=suites/cases.yaml"
    severity, title = (
        "error" if gating else "warning",
        "title=wan-trt%3A bad-one (parity) FAIL (beyond_limit)",
    )
    assert failed.startswith(f"::{severity} {file},line=11,{title}::psnr_db 81.5")
    assert failed.endswith("%0Afirst diverging block: blocks.3")
    title = "title=wan-trt%3A good-one (parity) is better than its baseline"
    assert gain.startswith(f"::warning {file},line=8,{title}::relative_l2")
    assert "-99.0%25" in gain
    assert orphan.startswith(f"::warning {file},title=wan-trt%3A orphaned baseline::no case asks for")
    assert "may belong to another case file" in orphan


@pytest.mark.parametrize(
    ("how", "verdict"), [("", "pass"), ("--wan-strict-improvements", "fail"), ("environment", "fail")]
)
def test_improvement_beyond_the_band(
    project: Project, monkeypatch: pytest.MonkeyPatch, how: str, verdict: str
) -> None:
    project.cases("good-one", bands=True)
    store_baselines(project, "parity", {"good-one": 1e-3})
    if how == "environment":
        monkeypatch.setenv("WAN_TRT_STRICT_IMPROVEMENTS", "1")
    result = project.run("-m", "parity", *([how] if how.startswith("--") else []))
    assert project.verdicts()["parity", "good-one"] == (verdict, "better_than_band")
    assert (result.ret == 0) == (verdict == "pass")
    text = " ".join(result.stdout.str().split())
    assert "keep the gain with a new baseline" in text
    assert "diverging block" not in text  # a gain needs no explanation
    assert ("improvements beyond them fail" in text) == (verdict == "fail")


@pytest.mark.parametrize("broken", [False, True])
def test_a_baseline_that_cannot_be_used_is_made_again_with_the_case_file_of_the_run(
    project: Project, broken: bool
) -> None:
    mine = project.cases("good-one", bands=True)
    mine = mine.rename(project.path / "mine.yaml")
    store_baselines(project, "parity", {"good-one": 0.0 if broken else 1e-5}, backend="tensorrt")
    project.run("-m", "parity", "--wan-cases", "mine.yaml")
    message = project.results()["cases"][0]["message"]
    made = "regenerate --suite parity --case good-one --cases mine.yaml"
    assert message.endswith(made) if broken else f"{made} --baselines OTHER (with" in message


@pytest.mark.parametrize("suite", BANDED)
@pytest.mark.parametrize(
    ("case", "weights", "verdict"),
    [
        ("good-one", "checkpoint", "pass"),
        ("good-one", "seeded random", "invalid"),
        ("random-one", "seeded random", "pass"),
        ("random-one", "checkpoint", "invalid"),
        ("random-one", "seeded random, 10 of 40 layers", "invalid"),
    ],
)
def test_a_baseline_of_other_weights_decides_nothing(
    project: Project, suite: str, case: str, weights: str, verdict: str
) -> None:
    project.cases(case, suites=[suite], bands=True)
    store_baselines(project, suite, {case: BANDED[suite][3]}, weights=weights)
    project.run("-m", suite)
    assert project.verdicts()[suite, case][0] == verdict
    if verdict == "invalid":
        message = project.results()["cases"][0]["message"]
        assert f"was made with the weights '{weights}', this run with" in message
        assert f"baselines regenerate --suite {suite} --case {case} --baselines OTHER" in message


@pytest.mark.parametrize("suite", BANDED)
@pytest.mark.parametrize(
    ("stored", "opset", "verdict"),
    [
        ({}, None, "pass"),
        ({}, "21", "invalid"),
        ({"export.opset": 21}, "21", "pass"),
        ({"export.opset": 21}, None, "invalid"),
        (None, "21", "pass"),  # of an older release, which does not say
    ],
)
def test_a_baseline_of_other_settings_decides_nothing(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    suite: str,
    stored: dict[str, Any] | None,
    opset: str | None,
    verdict: str,
) -> None:
    project.cases("good-one", suites=[suite], bands=True)
    store_baselines(project, suite, {"good-one": BANDED[suite][3]}, settings=stored)
    monkeypatch.setenv("WAN_TRT_EXPORT__CHECK", "false")  # which changes nothing that is measured
    if opset:
        monkeypatch.setenv("WAN_TRT_EXPORT__OPSET", opset)
    project.run("-m", suite)
    assert project.verdicts()[suite, "good-one"][0] == verdict
    if verdict == "invalid":
        message = project.results()["cases"][0]["message"]
        made, runs = ("20", "21") if opset else ("21", "20")
        assert f"was made with export.opset={made}, this run with export.opset={runs}" in message
        assert f"baselines regenerate --suite {suite} --case good-one --baselines OTHER" in message


def test_what_the_case_sets_for_itself_is_no_other_setting(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.cases("good-one", bands=True)
    own = "component: dit\n    tf32: true\n    settings: {pipeline.offload: true}"
    project.file(file.read_text().replace("component: dit", own))
    store_baselines(project, "parity", {"good-one": BANDED["parity"][3]}, settings={})
    monkeypatch.setenv("WAN_TRT_PERF__ALLOW_TF32", "true")
    monkeypatch.setenv("WAN_TRT_PIPELINE__OFFLOAD", "true")
    project.run("-m", "parity")
    assert project.verdicts()["parity", "good-one"] == ("pass", "within_limit")


@pytest.mark.parametrize(("profile", "verdict"), [("128p-17f", "pass"), ("128p-81f", "invalid")])
def test_a_baseline_of_another_profile_decides_nothing(project: Project, profile: str, verdict: str) -> None:
    """As ``--wan-profile`` makes of all cases."""
    project.cases("good-one", suites=["memory"], bands=True)
    store_baselines(project, "memory", {"good-one": BANDED["memory"][3]}, profile=profile)
    project.run("-m", "memory")
    assert project.verdicts()["memory", "good-one"][0] == verdict


def test_a_slow_case_says_what_its_baseline_spent(project: Project) -> None:
    """By the plugin itself, which runs nothing again."""
    project.cases("profiled-one", "bad-one", suites=["perf"], bands=True)
    before = {
        "groups_ms": {"attention": 6.6, "products": 5.0, "other": 0.0},
        "top": [["flash", 6.6, 30], ["gemm", 5.0, 30]],
        "total_ms": 11.6,
        "reference": {"groups_ms": {}, "total_ms": 25.1},
    }
    store_baselines(project, "perf", {"profiled-one": 0.1, "bad-one": 0.1}, kernels=before)
    result = project.run("-m", "perf")
    result.stdout.fnmatch_lines(
        [
            "  kernels, against those of the baseline: 4.6 ms slower (11.6 → 16.2 ms, 1.4x);"
            " most of it in products (+4.6 ms)",
            "    stock diffusers beside it, so the machine itself: 25.1 → 25.1 ms, 1x",
            "    +4.600 ms gemm (5 → 9.6 ms, 1.92x)",
            "  if the change is meant*",
        ],
        consecutive=True,
    )
    profiled, bad = project.results()["cases"]
    assert profiled["measurement"]["notes"][0].startswith(
        "kernels, against those of the baseline: 4.6 ms slower"
    )
    assert bad["measurement"]["notes"] == []  # its profiler saw nothing


def test_a_failure_that_cannot_be_explained_is_still_a_failure(project: Project) -> None:
    project.cases("bad-mute")
    result = project.run("-m", "parity")
    assert project.verdicts()["parity", "bad-mute"] == ("fail", "beyond_limit")
    result.stdout.fnmatch_lines(
        ["*why could not be found out: MemoryError: no room for every block's output"]
    )


def test_a_verdict_outlives_an_interrupt_while_its_reason_is_looked_for(project: Project) -> None:
    """Where a block's outputs need an engine of their own, that takes minutes, and a job's time may end in it."""
    project.cases("bad-stopped", "good-one")
    result = project.run("-m", "parity")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert project.verdicts() == {("parity", "bad-stopped"): ("fail", "beyond_limit")}
    result.stdout.fnmatch_lines(["*why was not found out: interrupted"])


def test_a_measurement_outlives_an_interrupt_while_its_kernels_are_looked_for(project: Project) -> None:
    """Which takes a process that loads all that was timed once more, and a job's time may end in it."""
    project.cases("interrupted-one", "good-one", suites=["perf"])
    result = project.run("-m", "perf")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert project.verdicts() == {("perf", "interrupted-one"): ("pass", "interval_above_threshold")}


def test_stop_at_first_failure(project: Project) -> None:
    project.cases("bad-one", "good-one")
    project.run("-m", "parity", "-x").assert_outcomes(failed=1, deselected=2)
    assert list(project.verdicts()) == [("parity", "bad-one")]


def test_last_failed_and_keywords(project: Project) -> None:
    project.cases("bad-one", "good-one")
    project.run("-m", "parity").assert_outcomes(failed=1, passed=1, deselected=2)
    project.run("-m", "parity", "--lf").assert_outcomes(failed=1)
    assert list(project.verdicts()) == [("parity", "bad-one")]
    project.run("-m", "parity", "-k", "good").assert_outcomes(passed=1, deselected=3)


@pytest.mark.parametrize("arguments", [(), ("-n2",)], ids=["plain", "n2"])
def test_junit_has_the_failure_and_the_numbers(project: Project, arguments: tuple[str, ...]) -> None:
    project.cases("bad-one", "unavailable-one", "broken-one", "skips-one")
    project.run("-m", "parity", "--junitxml=junit.xml", *arguments)
    assert [verdict for verdict, _ in project.verdicts().values()] == [
        "fail",
        "invalid",
        "invalid",
        "invalid",
    ]
    suite = ElementTree.parse(project.path / "junit.xml").getroot()[0]
    assert suite.attrib["failures"] == "4"
    found = {case.attrib["name"]: case for case in suite.findall("testcase")}
    bad = found["test_parity[bad-one]"]
    failure = bad.find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("Failed: bad-one (parity) FAIL (beyond_limit): psnr_db 81.5")
    properties = [(p.attrib["name"], p.attrib["value"]) for p in bad.iter("property")]
    assert len(properties) == len(dict(properties))
    assert dict(properties)["wan.verdict"] == "fail"
    assert dict(properties)["wan.metric.psnr_db"] == "81.5"
    unavailable = found["test_parity[unavailable-one]"]
    values = {p.attrib["name"]: p.attrib["value"] for p in unavailable.iter("property")}
    assert values["wan.reason"] == "not_measured"


def test_unwritable_report_is_no_success(project: Project) -> None:
    project.cases("good-one")
    project.file("a file, not a folder", "outputs/report")
    result = project.run("-m", "parity")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(
        ["ERROR: the results could not be written to */outputs/report: *--wan-report*"]
    )
