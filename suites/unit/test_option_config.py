"""``--wan-config``: the settings file."""

from __future__ import annotations

import logging

import pytest
from plugin_conditions import CONDITIONS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-config=mine.cfg",), settings={"perf.warmup": 3})


@pytest.mark.parametrize("condition", CONDITIONS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_a_log_file_when_the_settings_name_one(project: Project) -> None:
    project.file("log: {file: logs/suite.log, level: debug}\n", "config.yaml")
    logged = "import logging; logging.getLogger('wan_trt_core.test').debug('from a test')"
    project.file(f"def test(wan_settings):\n    {logged}\n", "test_logging.py")
    project.run("test_logging.py", "--wan-config", "config.yaml").assert_outcomes(passed=1)
    assert "DEBUG wan_trt_core.test: from a test" in (project.path / "logs" / "suite.log").read_text()
    assert not logging.getLogger("wan_trt_core").handlers
