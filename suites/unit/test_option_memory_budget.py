"""``--wan-memory-budget``: all that memory cases can have of a GPU, of no effect on others."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-memory-budget=12GB",), settings={"memory.budget": 12 * 2**30})


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_a_memory_budget_is_of_a_gpu(project: Project) -> None:
    """On a CPU nothing would hold it, and what passed would mean nothing."""
    project.cases("good-one", suites=("memory", "parity"))
    result = project.run("-m", "memory", "--wan-memory-budget", "12GB")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--wan-memory-budget: a memory budget is of a GPU*good-one*onnxruntime*"])
    project.run("-m", "parity", "--wan-memory-budget", "12GB").assert_outcomes(passed=1, deselected=2)
    result = project.run("-m", "memory", "--wan-memory-budget", "12")
    result.stderr.fnmatch_lines(
        ["*--wan-memory-budget: memory.budget: '12' is not allowed: '12' is no size*"]
    )
