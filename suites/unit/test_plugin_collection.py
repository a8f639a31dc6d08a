"""What must stop a run before anything is measured."""

from __future__ import annotations

import functools

import pytest
from plugin_support import Project, project

from wan_trt_core.baseline_update import measurement_command
from wan_trt_core.models import installed

__all__ = ["project"]

MODES = pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["plain", "xdist"])


@MODES
def test_wrong_case_file_is_a_usage_error(project: Project, arguments: tuple[str, ...]) -> None:
    path = project.cases("good-one")
    path.write_text(path.read_text().replace("reason: the floor", "raison: the floor"))
    result = project.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert "cases.yaml:10: case 'good-one': key 'parity.limits.psnr_db.raison' is unknown" in text
    assert "did you mean 'reason'?; allowed: min, max, reason" in text
    assert text.count("raison' is unknown") == 1
    assert not (project.path / "outputs").exists()


def test_no_case_file(project: Project) -> None:
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cases.yaml: no such case file; name one with --wan-cases FILE"])


def test_wrong_setting(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.cases("good-one")
    monkeypatch.setenv("WAN_TRT_THREDS", "2")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*WAN_TRT_THREDS*"])


@MODES
def test_suite_without_cases_is_not_green(project: Project, arguments: tuple[str, ...]) -> None:
    project.cases("good-one", suites=("parity",))
    result = project.run("-m", "parity or memory", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1, deselected=0 if arguments else 1)
    assert project.verdicts()["memory", "no-memory-cases"] == ("missing", "not_measured")
    result.stdout.fnmatch_lines(["*has a memory gate, so the memory suite judges nothing*-m 'not memory'*"])


def test_suite_without_cases_can_be_left_out(project: Project) -> None:
    project.cases("good-one", suites=("parity",))
    assert project.run("-m", "not memory and not perf").ret == 0


def test_selecting_nothing_is_not_green(project: Project) -> None:
    project.cases("good-one")
    assert project.run("-m", "parity", "-k", "nosuchcase").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_perf_under_xdist_is_a_usage_error(project: Project) -> None:
    project.cases("good-one", suites=("parity", "perf", "memory"))
    for arguments in (("-n2",), ("-m", "perf", "-n1")):
        result = project.run(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(
            ["ERROR: performance cannot be measured under pytest-xdist*-m perf -n0'*"]
        )
        assert not (project.path / "outputs").exists()
    for how in (("-n0",), ("-p", "no:xdist"), ()):
        project.run("-m", "perf", *how).assert_outcomes(passed=1, deselected=2)


def test_device_that_is_not_there(project: Project) -> None:
    project.cases("good-one")
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace('return "fake', 'raise RuntimeError("no CUDA device") or "fake')
    )
    result = project.run("-m", "parity")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no CUDA device"])


def test_a_backend_that_another_package_brings_and_cannot_be_imported(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = project.path / "site" / "of_another-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-another\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{installed.BACKENDS}]\nlate = nowhere:BACKEND\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setattr(installed, "brought", functools.cache(installed.brought.__wrapped__))
    project.cases("good-one")
    result = project.run("-m", "parity", "--wan-backend", "late")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert (
        "ERROR: 'late' of wan_trt_core.backends, brought by of-another 1.2, cannot be imported from" in text
    )
    assert "INTERNALERROR" not in text


@MODES
def test_one_case_judged_twice(project: Project, arguments: tuple[str, ...]) -> None:
    project.cases("good-one")
    project.pytester.makepyfile(test_again=(project.path / "test_parity.py").read_text())
    result = project.run("-m", "parity", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "2 of the selected tests judge case good-one" in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("marks", ["", "@pytest.mark.parity\n@pytest.mark.memory\n"])
def test_a_test_with_wan_case_has_one_marker(project: Project, marks: str) -> None:
    project.cases("good-one")
    project.pytester.makepyfile(test_own=f"import pytest\n{marks}def test_own(wan_case): pass\n")
    result = project.run("test_own.py")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*has one of the markers parity, perf, memory, not *"])


def test_tests_of_others_are_left_alone(project: Project) -> None:
    project.pytester.makepyfile(
        test_other="""
        import pytest

        @pytest.mark.perf
        @pytest.mark.parametrize("n", [1, 2])
        def test_other(n):
            assert n
        """
    )
    result = project.run("test_other.py", "-n1")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("wan-trt: *")
    assert not (project.path / "outputs").exists()


def test_collect_only_measures_nothing(project: Project) -> None:
    project.cases("good-one", suites=("parity", "perf", "memory"))
    result = project.run("--collect-only", "-q")
    result.stdout.fnmatch_lines(["*test_memory?good-one?", "*test_parity?good-one?", "*test_perf?good-one?"])
    assert result.ret == 0
    assert not (project.path / "outputs").exists()


def test_baselines_are_measured_of_the_cases_that_are_named_and_of_no_neighbour(project: Project) -> None:
    ids = ("1.3b-17f", "1.3b-17f-offload", "low-1.3b-17f", "1.3b-17fx", "1x3b-17f")
    project.cases(*ids)
    asked = measurement_command("parity", project.path, suites=project.path, cases=ids[:2], options={})
    assert project.run("-m", "parity", *asked[asked.index("-k") :]).ret == pytest.ExitCode.OK
    assert set(project.verdicts()) == {("parity", "1.3b-17f"), ("parity", "1.3b-17f-offload")}
