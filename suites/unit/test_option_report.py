"""``--wan-report``: the folder that the report is written to."""

from __future__ import annotations

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import Project, project
from repositories import committed

__all__ = ["project"]

OPTION = Option(("--wan-report=elsewhere",), report="elsewhere")


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_the_record_of_a_clean_tree_says_so(project: Project) -> None:
    """In every report of a job, though git knows nothing of the folders that they are written to."""
    project.cases("good-one")
    project.file("__pycache__/", ".gitignore")
    committed(project.path)
    for folder in ("outputs/report/first", "elsewhere", "elsewhere"):
        project.run("-m", "parity", "-p", "no:cacheprovider", "--wan-report", folder)
        source = project.results(folder)["environment"]["source"]
        assert (source["dirty"], source["changed"]) == (False, [])
    project.file("", "new.py")
    project.run("-m", "parity", "-p", "no:cacheprovider", "--wan-report", "elsewhere")
    assert project.results("elsewhere")["environment"]["source"]["changed"] == ["new.py"]


def test_report(project: Project) -> None:
    project.cases("good-one")
    project.run("-m", "parity", "--wan-report", "elsewhere")
    assert list(project.verdicts("elsewhere")) == [("parity", "good-one")]
    assert not (project.path / "outputs").exists()
