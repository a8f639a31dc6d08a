"""``--wan-model``: the model of all cases."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-model=tiny-wan",), case={"model": "tiny-wan"}, settings={"model": "tiny-wan"})


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)
