"""The same verdicts under every condition of pytest, and each option has a test file of its own for that."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from plugin_conditions import CONDITIONS, Option, check_record, prepare, run_under
from plugin_support import Project, project

__all__ = ["project"]

FILES = {
    path.stem.removeprefix("test_option_").replace("_", "-"): path.stem
    for path in Path(__file__).parent.glob("test_option_*.py")
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_without_an_option(project: Project, condition: str) -> None:
    run_under(project, Option(()), condition)


def test_every_option_has_a_file(project: Project) -> None:
    text = project.run("--help").stdout.str()
    assert set(re.findall(r"^  --wan-([\w-]+)", text, re.MULTILINE)) == FILES.keys()


def test_all_settings_at_once_between_workers(project: Project) -> None:
    prepare(project)
    files = (import_module(name) for name in FILES.values())
    options = [file.OPTION for file in files if hasattr(file, "WITHOUT_WORKERS")]
    assert len(options) == 9
    project.run("-m", "parity", "-n2", *(argument for option in options for argument in option.arguments))
    for option in options:
        check_record(project, option, report="elsewhere")
