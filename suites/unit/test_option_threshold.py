"""``--wan-threshold``: a bound in place of the case file's, for every case that has one on that metric."""

from __future__ import annotations

import pytest
from plugin_conditions import CONDITIONS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-threshold=psnr_db=95.5",), good=("fail", "beyond_limit"))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_the_record_and_the_failure_say_where_it_came_from(project: Project) -> None:
    """Also where it loosens: a case under the product's gate is marked, whoever put it there."""
    project.cases("good-one", suites=("parity", "perf"))
    result = project.run("--wan-threshold", "speedup=1.2", "--wan-threshold", "psnr_db=96", "-p", "no:xdist")
    result.stdout.fnmatch_lines(["*BELOW GATE*"])
    record = project.results()
    checks = {
        check["metric"]: check
        for case in record["cases"]
        for check in case["checks"]
        if case["suite"] == "parity"
    }
    assert checks["psnr_db"]["limit"] == 96 and "--wan-threshold" in checks["psnr_db"]["message"]


def test_a_speedup_that_misses_it_says_where_it_came_from(project: Project) -> None:
    project.cases("good-one", suites=("perf",))
    project.run("--wan-threshold", "speedup=9", "-p", "no:xdist")
    (case,) = (case for case in project.results()["cases"] if case["suite"] == "perf")
    assert case["verdict"] == "fail"
    assert "9x is asked" in case["checks"][0]["message"]
    assert case["checks"][0]["message"].endswith("; limit: --wan-threshold)")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("speedup", "'speedup' is no METRIC=VALUE"),
        ("speedup=fast", "'speedup=fast' is no METRIC=VALUE"),
        ("psnr_db=-1", "psnr_db: Input should be greater than 0"),
        ("psnr=60", "no case of * has a limit on psnr"),
        ("psnr_db=nan", "psnr_db: Input should be a finite number"),
    ],
)
def test_what_is_no_threshold_is_a_usage_error(project: Project, given: str, said: str) -> None:
    project.cases("good-one")
    result = project.run("--wan-threshold", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--wan-threshold: {said}*"])
