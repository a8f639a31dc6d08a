"""``--wan-require-bands``: hardware without baselines fails."""

from __future__ import annotations

import pytest
from plugin_conditions import CONDITIONS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-require-bands", "--wan-baselines=none"), ("missing", "no_bands_for_hardware"))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


@pytest.mark.parametrize("bands", [True, False])
def test_that_no_case_has_bands_is_told(project: Project, bands: bool) -> None:
    project.cases("good", bands=bands)
    header = project.run("-m", "parity", "--wan-require-bands").stdout
    header.fnmatch_lines([f"wan-trt: baselines *, bands required{'' if bands else ' (no case has any)'}"])
