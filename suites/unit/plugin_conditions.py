"""What an option does to a project's two cases, and the conditions of pytest that it has to do that under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from plugin_support import HARDWARE, Project, store_baselines

FAIL, GAIN = ("fail", "beyond_limit"), ("pass", "better_than_band")
CASES = ("bad-one", "good-one")

CONDITIONS = {
    "strict": ("--strict-markers", "--strict-config"),
    "n0": ("-n0",),
    "n2": ("-n2",),
    "no-cacheprovider": ("-p", "no:cacheprovider"),
    "no-xdist": ("-p", "no:xdist"),
    "x": ("-x",),
    "lf": ("--lf",),
    "k": ("-k", "good"),
}

WITHOUT_WORKERS = [condition for condition in CONDITIONS if condition != "n2"]
"""Starting workers takes most of the time: options that are settings are given to one run between them, all at once."""


@dataclass(frozen=True)
class Option:
    """What an option does to the project's two cases.

    Attributes:
        good: verdict and reason of the case that passes without options (``better_than_band``).
        settings: what the record says of the settings.
        case: what the record says of each case.
    """

    arguments: tuple[str, ...]
    good: tuple[str, str] = GAIN
    gating: bool = True
    report: str = "outputs/report"
    settings: dict[str, Any] = field(default_factory=dict)
    case: dict[str, str] = field(default_factory=dict)


def run_under(project: Project, option: Option, condition: str) -> None:
    """Run the cases, and check verdicts, exit code and record."""
    prepare(project)
    arguments = ("-m", "parity", *option.arguments)
    if condition == "lf":
        project.run(*arguments)
    result = project.run(*arguments, *CONDITIONS[condition])
    verdicts = {"bad-one": FAIL, "good-one": option.good}
    found = {case: verdicts[case] for case in _judged(condition, option)}
    assert {case: verdict for (_, case), verdict in project.verdicts(option.report).items()} == found
    passed = not option.gating or all(verdict == "pass" for verdict, _ in found.values())
    assert result.ret == (pytest.ExitCode.OK if passed else pytest.ExitCode.TESTS_FAILED)
    check_record(project, option)


def prepare(project: Project) -> None:
    """Two cases with baselines: one that fails its floor, one that is better than its band."""
    text = project.cases(*CASES, bands=True).read_text()
    project.file(text.replace("component: dit", "component: text_encoder"), "mine.yaml")
    project.file("perf: {warmup: 3}\n", "mine.cfg")
    store_baselines(project, "parity", {"bad-one": 1e-5, "good-one": 1e-3})


def check_record(project: Project, option: Option, report: str | None = None) -> None:
    """What the record says of the run is what the option asks for."""
    results = project.results(report or option.report)
    assert results["hardware_key"] == HARDWARE
    assert results["environment"]["gating"] is option.gating
    assert results["settings"].items() >= option.settings.items()
    for case in results["cases"]:
        assert case.items() >= option.case.items()


def _judged(condition: str, option: Option) -> tuple[str, ...]:
    """The cases that run: the first one fails, unless nothing gates."""
    if condition == "k":
        return CASES[1:]
    failing = CASES[:1] if option.good[0] == "pass" else CASES
    if condition == "lf" and option.gating:
        return failing
    return CASES[:1] if condition == "x" and option.gating else CASES
