"""``--wan-report``: the folder that the report is written to."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-report=elsewhere",), report="elsewhere")


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_report(project: Project) -> None:
    project.cases("good-one")
    project.run("-m", "parity", "--wan-report", "elsewhere")
    assert list(project.verdicts("elsewhere")) == [("parity", "good-one")]
    assert not (project.path / "outputs").exists()
