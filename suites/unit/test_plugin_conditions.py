"""Every option under every condition of pytest: the same verdicts, wherever and in whatever order cases run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from plugin_support import HARDWARE, Project, project, store_baselines

from wan_trt_core.pytest_plugin.options import SETTINGS

__all__ = ["project"]

FAIL, GAIN = ("fail", "beyond_limit"), ("pass", "better_than_band")
CASES = ("bad-one", "good-one")


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


NO_FILE = ("missing", "no_bands_for_hardware")
OPTIONS = {
    "none": Option(()),
    "cases": Option(("--wan-cases=mine.yaml",), case={"component": "text_encoder"}),
    "config": Option(("--wan-config=mine.cfg",), settings={"perf.warmup": 3}),
    "model": Option(("--wan-model=tiny-wan",), case={"model": "tiny-wan"}, settings={"model": "tiny-wan"}),
    "checkpoint": Option(("--wan-checkpoint=owner/name",), settings={"checkpoint": "owner/name"}),
    "backend": Option(("--wan-backend=torch",), ("invalid", "baseline_invalid"), case={"backend": "torch"}),
    "profile": Option(("--wan-profile=128p-17f",), settings={"profile": "128p-17f"}),
    "cache": Option(("--wan-cache=/nowhere/cache",), settings={"cache": "/nowhere/cache"}),
    "baselines": Option(("--wan-baselines=none",), ("pass", "within_limit")),
    "report": Option(("--wan-report=elsewhere",), report="elsewhere"),
    "require-bands": Option(("--wan-require-bands", "--wan-baselines=none"), NO_FILE),
    "strict-improvements": Option(("--wan-strict-improvements",), ("fail", "better_than_band")),
    "no-gate": Option(("--wan-no-gate",), gating=False),
}

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


PAIRS = [
    (name, condition)
    for name in OPTIONS
    for condition in CONDITIONS
    if condition != "n2" or name not in SETTINGS
]
"""Starting workers takes most of the time: with -n2 the settings are all given to one run."""


def test_every_option_is_here() -> None:
    assert OPTIONS.keys() == {
        *(name.replace("_", "-") for name in SETTINGS), "none", "cases", "config", "require-bands", "no-gate"
    }  # fmt: skip


def judged(condition: str, option: Option) -> tuple[str, ...]:
    """The cases that run: the first one fails, unless nothing gates."""
    if condition == "k":
        return CASES[1:]
    failing = CASES[:1] if option.good[0] == "pass" else CASES
    if condition == "lf" and option.gating:
        return failing
    return CASES[:1] if condition == "x" and option.gating else CASES


@pytest.mark.parametrize(("name", "condition"), PAIRS)
def test_option(project: Project, name: str, condition: str) -> None:
    option = OPTIONS[name]
    prepare(project)
    arguments = ("-m", "parity", *option.arguments)
    if condition == "lf":
        project.run(*arguments)
    result = project.run(*arguments, *CONDITIONS[condition])
    verdicts = {"bad-one": FAIL, "good-one": option.good}
    found = {case: verdicts[case] for case in judged(condition, option)}
    assert {case: verdict for (_, case), verdict in project.verdicts(option.report).items()} == found
    passed = not option.gating or all(verdict == "pass" for verdict, _ in found.values())
    assert result.ret == (pytest.ExitCode.OK if passed else pytest.ExitCode.TESTS_FAILED)
    check_record(project, option)


def test_all_settings_at_once_between_workers(project: Project) -> None:
    prepare(project)
    options = [OPTIONS[name.replace("_", "-")] for name in SETTINGS]
    project.run("-m", "parity", "-n2", *(argument for option in options for argument in option.arguments))
    for option in options:
        check_record(project, option, report="elsewhere")


def prepare(project: Project) -> None:
    """Two cases with baselines: one that fails its floor, one that is better than its band."""
    text = project.cases(*CASES, bands=True).read_text()
    project.file(text.replace("component: dit", "component: text_encoder"), "mine.yaml")
    project.file("perf: {warmup: 3}\n", "mine.cfg")
    store_baselines(project, "parity", {"bad-one": 1e-5, "good-one": 1e-3})


def check_record(project: Project, option: Option, report: str | None = None) -> None:
    results = project.results(report or option.report)
    assert results["hardware_key"] == HARDWARE
    assert results["environment"]["gating"] is option.gating
    assert results["settings"].items() >= option.settings.items()
    for case in results["cases"]:
        assert case.items() >= option.case.items()
