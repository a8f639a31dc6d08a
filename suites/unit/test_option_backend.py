"""``--wan-backend``: the backend of all cases, so that baselines of another decide nothing."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project

__all__ = ["project"]

OPTION = Option(("--wan-backend=torch",), ("invalid", "baseline_invalid"), case={"backend": "torch"})


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_cases_for_other_backends_wait_until_one_is_named(project: Project) -> None:
    text = project.cases("good-one", "good-gpu").read_text()
    project.file(text.replace("id: good-gpu", "id: good-gpu\n    only_backends: [tensorrt]"))
    result = project.run("-m", "parity")
    assert list(project.verdicts()) == [("parity", "good-one")]
    result.stdout.fnmatch_lines(["wan-trt: 1 case(s) only with --wan-backend tensorrt"])
    result = project.run("-m", "parity", "--wan-backend", "tensorrt")
    assert len(project.verdicts()) == 2
    result.stdout.no_fnmatch_line("*only with*")


def test_what_only_another_backend_can_do_is_no_mistake_of_a_case_that_waits_for_it(project: Project) -> None:
    text = project.cases("good-one", "good-gpu", suites=("perf",)).read_text()
    one, gpu = text.split("id: good-gpu")
    gpu = gpu.replace(
        "perf: {", "perf: {also: [no-cuda-graphs], limits: {graph_gain: {min: 0.001, reason: r}}, "
    )
    project.file(f"{one}id: good-gpu\n    backend: tensorrt\n    only_backends: [tensorrt]{gpu}")
    project.run("-m", "perf", "--wan-backend", "torch").assert_outcomes(passed=1, deselected=2)
    judged = project.run("-m", "perf", "--wan-backend", "tensorrt")  # whose numbers here know of no graphs
    judged.assert_outcomes(passed=1, failed=1, deselected=2)
    judged.stdout.fnmatch_lines(["*graph_gain is required and could not be computed*"])
