"""``--wan-cases``: the case file, instead of ``suites/cases.yaml``."""

from __future__ import annotations

import pytest
from plugin_conditions import CONDITIONS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-cases=mine.yaml",), case={"component": "text_encoder"})


@pytest.mark.parametrize("condition", CONDITIONS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_cases(project: Project) -> None:
    path = project.cases("good-one")
    path.rename(project.path / "mine.yaml")
    project.run("-m", "parity", "--wan-cases", "mine.yaml").assert_outcomes(passed=1, deselected=2)
