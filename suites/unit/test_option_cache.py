"""``--wan-cache``: the folder of ONNX files and engines."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-cache=/nowhere/cache",), settings={"cache": "/nowhere/cache"})


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)
