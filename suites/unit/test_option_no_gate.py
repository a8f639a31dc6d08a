"""``--wan-no-gate``: verdicts are recorded and fail no test."""

from __future__ import annotations

import pytest
from plugin_conditions import CONDITIONS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-no-gate",), gating=False)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


@pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["plain", "xdist"])
def test_no_gate_records_and_says_so(project: Project, arguments: tuple[str, ...]) -> None:
    project.cases("bad-one", "unavailable-one")
    result = project.run("-m", "parity", "--wan-no-gate", "-rA", *arguments)
    result.assert_outcomes(passed=1, failed=1, deselected=0 if arguments else 2)
    result.stdout.fnmatch_lines(["wan-trt: NOT GATING*", "*bad-one (parity) FAIL*", "NOT GATING*"])
    assert project.verdicts()["parity", "bad-one"] == ("fail", "beyond_limit")
    assert project.results()["environment"]["gating"] is False
