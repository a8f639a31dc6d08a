"""Options and markers. Every option defaults to ``None``: the settings tree decides what was not given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wan_trt_core.cases import Suite

MARKERS: dict[Suite, str] = {
    "parity": "the candidate's outputs match the reference and the stored baseline",
    "perf": "the candidate's speed-up over stock diffusers reaches the case's threshold (xdist: a GPU a worker)",
    "memory": "the candidate stays within its memory bounds and does not grow over repeated runs",
}
"""The suites, in the order in which they are reported, and what a test of each shows."""

SETTINGS = (
    "model",
    "checkpoint",
    "backend",
    "profile",
    "cache",
    "baselines",
    "report",
    "strict_improvements",
)
"""Options that are settings of the same name."""

DEFAULT_CASES = Path("suites") / "cases.yaml"
"""The case file unless another is named, under pytest's rootdir."""


def add_options(parser: pytest.Parser) -> None:
    """Add the options ``--wan-…``."""
    group = parser.getgroup("wan-trt", "validation of Wan models (wan-trt-core)")

    def option(name: str, help: str, **kwargs: Any) -> None:
        dest = "wan_" + name.replace("-", "_")
        group.addoption(f"--wan-{name}", dest=dest, default=None, help=help, **kwargs)

    option("cases", f"Case file (default: {DEFAULT_CASES.as_posix()} under the rootdir).", metavar="FILE")
    option("config", "Settings file (default: config.yaml in the working directory).", metavar="FILE")
    option(
        "model",
        "Model of all cases: a catalogue name, a folder in diffusers format or a hub id.",
        metavar="MODEL",
    )
    option(
        "checkpoint",
        "Weights of the selected cases, or of those of one model (repeatable): a folder or hub id; without it those"
        " installed, else seeded random ones.",
        metavar="[MODEL=]FOLDER|ID",
        action="append",
    )
    option("backend", "Backend of all cases, instead of the case file's.", metavar="NAME")
    option("profile", "Shape profile of all cases, instead of the case file's.", metavar="NAME")
    option(
        "threshold",
        "Hold every case that has a limit on this metric to this value (speedup=1.6, psnr_db=65); repeatable.",
        metavar="METRIC=VALUE",
        action="append",
    )
    option("baselines", "Folder of the stored baselines.", metavar="FOLDER")
    option("cache", "Folder of the ONNX files and engines.", metavar="FOLDER")
    option(
        "report",
        "Folder that results.json, report.md, report.html and the videos compared are written to.",
        metavar="FOLDER",
    )
    option(
        "memory-budget",
        "All that memory cases can have of the GPU, as 12GB or 11.5GiB: everything beyond is taken meanwhile.",
        metavar="SIZE",
    )
    option(
        "require-bands", "Fail cases on hardware without stored baselines (for GPU CI).", action="store_true"
    )
    option(
        "strict-improvements",
        "Fail what is better than its baseline too, until it has a new one.",
        action="store_true",
    )
    option(
        "no-gate",
        "Measure and record only: a verdict fails no test (not recommended; for making baselines).",
        action="store_true",
    )


def add_markers(config: pytest.Config) -> None:
    """Register the suites' markers, so that ``--strict-markers`` knows them."""
    for name, help in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {help}")


def given(config: pytest.Config) -> dict[str, Any]:
    """What was given on the command line, by option name without the prefix."""
    names = (*SETTINGS, "cases", "config", "threshold", "memory_budget", "require_bands", "no_gate")
    values = {name: config.getoption(f"wan_{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}
