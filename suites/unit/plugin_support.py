"""A project with made-up measurements to run the plugin in: no torch, no engine, a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_svg  # noqa: F401
import numpy  # noqa: F401
import pytest
import rich.console  # noqa: F401
import safetensors  # noqa: F401
import scipy.special  # noqa: F401

# pytester forgets what a run imported; what cannot be imported twice (numpy) or is slow is loaded here
import wan_trt_core.baselines
import wan_trt_core.config
import wan_trt_core.gates.judging
import wan_trt_core.measure.environment
import wan_trt_core.models.catalogue
import wan_trt_core.report.drawing
import wan_trt_core.report.github
import wan_trt_core.report.html
import wan_trt_core.report.junit
import wan_trt_core.report.markdown
import wan_trt_core.report.terminal  # noqa: F401

HARDWARE = "fake-cpu-4c-16gib"

PLUGIN = "wan_trt_core.pytest_plugin"
_INSTALLED = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
PLUGIN_ARGS: tuple[str, ...] = () if _INSTALLED else ("-p", PLUGIN)

SUITES = Path(__file__).parents[1]

KERNELS: dict[str, Any] = {
    "groups_ms": {"attention": 6.6, "products": 9.6, "other": 0.0},
    "top": [["gemm", 9.6, 30], ["flash", 6.6, 30]],
    "total_ms": 16.2,
    "reference": {
        "groups_ms": {"attention": 8.1, "products": 10.0, "other": 7.0},
        "top": [["sgemm", 10.0, 60]],
        "total_ms": 25.1,
    },
}
"""What the profiler says of the case ``profiled``."""

# What a case measures is said by the first word of its id.
CONFTEST = f'''
import math, os
import pytest
from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.gates.verdict import Reason
from wan_trt_core.records import Interrupted, Measurement, Metric

def pytest_wan_hardware_key(session):
    return "{HARDWARE}"

def pytest_wan_measure(case, suite, session):
    kind = case.id.split("-")[0]
    if kind == "unavailable":
        raise BackendUnavailable("no such runtime here; install wan-trt-core[cpu]")
    if kind == "broken":
        raise ZeroDivisionError("a mistake in the measuring code")
    if kind == "skips":
        pytest.skip("not today")
    if kind == "dies":
        os._exit(3)
    measurement = {{"parity": parity, "perf": perf, "memory": memory}}[suite](kind)
    facts = {{"random_weights": "seeded random"}} if kind == "random" else {{}}
    if suite == "perf" and kind == "profiled":
        facts = {{"kernels": {KERNELS!r}}}
    measurement = measurement.model_copy(update={{"facts": facts}})
    if kind == "interrupted":
        raise Interrupted(measurement)
    return measurement

def pytest_wan_explain(case, suite, session):
    if case.id.startswith("bad-mute"):
        raise MemoryError("no room for every block's output")
    if case.id.startswith("bad-stopped"):
        raise KeyboardInterrupt
    if case.id.startswith("bad-killed"):
        os._exit(3)
    return ("first diverging block: blocks.3",) if suite == "parity" else None

def metric(value, unit="dB", better="higher", **more):
    return Metric(value=value, unit=unit, better=better, **more)

def parity(kind):
    value = {{"bad": 81.5, "nan": math.nan, "absent": None}}.get(kind, 95.0)
    problems = {{Reason.FALLBACK_TO_PYTORCH: "the candidate ran diffusers'"}} if kind == "void" else {{}}
    metrics = {{"psnr_db": metric(value), "relative_l2": metric(1e-5, "", "lower")}}
    return Measurement(metrics=metrics, problems=problems)

def perf(kind):
    ratio = {{"bad": 1.2, "profiled": 1.2, "unsure": 1.5}}.get(kind, 2.0)
    wobble = 0.02 if kind == "unsure" else 0.001
    candidate = [0.1 * (1 + wobble * (-1) ** i) for i in range(30)]
    reference = [0.1 * ratio] * 30
    series = dict(reference_s=reference, candidate_s=candidate)
    series |= dict(noise_first_s=candidate[:4], noise_second_s=candidate[:4])
    times = dict(reference_time=metric(0.1 * ratio, "s", "lower"), candidate_time=metric(0.1, "s", "lower"))
    return Measurement(metrics=dict(psnr_db=metric(95.0), speedup=metric(ratio, "x"), **times), series=series)

def memory(kind):
    growth = 1e6 if kind == "bad" else 0.0
    return Measurement(metrics=dict(growth=metric(growth, "B", "lower"), peak=metric(1e9, "B", "lower")))
'''

GATES = {
    "parity": "{limits: {psnr_db: {min: 90, reason: the floor}}%s}",
    "perf": "{parity: {psnr_db: {min: 90, reason: the floor}}%s}",
    "memory": "{growth: {max: 65536, reason: allocator noise}%s}",
}
BANDS = {
    "parity": ", bands: {relative_l2: {rel: 0.5, reason: rounding}}",
    "perf": ", bands: {candidate_time: {rel: 0.1, reason: noise}}",
    "memory": ", bands: {peak: {rel: 0.1, reason: arenas}}",
}


class Project:
    """A folder with a case file, the product's suites, and measurements that are made up."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        for variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("WAN_TRT_CONFIG", "")
        monkeypatch.setenv("WAN_TRT_DEVICE", "cpu")  # nobody has to ask torch, which cannot be imported twice
        pytester.makeconftest(CONFTEST)
        for suite in GATES:
            source = (SUITES / suite / f"test_{suite}.py").read_text()
            pytester.makepyfile(**{f"test_{suite}": source})

    @property
    def path(self) -> Path:
        return self.pytester.path

    def cases(self, *ids: str, suites: Sequence[str] = ("parity",), bands: bool = False) -> Path:
        """Write the case file: each id with the gates of the suites."""
        fields = {
            "model": "tiny-wan", "profile": "128p-17f", "precision": "fp32", "backend": "onnxruntime"
        }  # fmt: skip
        lines = ["version: 1", "defaults:", *(f"  {key}: {value}" for key, value in fields.items()), "cases:"]
        for name in ids:
            lines += [f"  - id: {name}", "    component: dit"]
            lines += [f"    {suite}: {GATES[suite] % (BANDS[suite] if bands else '')}" for suite in suites]
        return self.file("\n".join(lines) + "\n")

    def file(self, text: str, name: str = "suites/cases.yaml") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*PLUGIN_ARGS, "--strict-markers", *arguments)

    def results(self, folder: str = "outputs/report") -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.path / folder / "results.json").read_text())
        return data

    def verdicts(self, folder: str = "outputs/report") -> dict[tuple[str, str], tuple[str, str]]:
        """Verdict and reason by suite and case."""
        cases = self.results(folder)["cases"]
        return {(case["suite"], case["case"]): (case["verdict"], case["reason"]) for case in cases}


BANDED = {
    "parity": ("relative_l2", "", 0.5, 1e-5),
    "perf": ("candidate_time", "s", 0.1, 0.1),
    "memory": ("peak", "B", 0.1, 1e9),
}
"""Metric, unit, relative band and what the made-up cases measure."""


def store_baselines(
    project: Project,
    suite: str,
    values: dict[str, float],
    backend: str = "onnxruntime",
    weights: str = "checkpoint",
    profile: str = "128p-17f",
    kernels: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write the baselines of a suite: the value of its banded metric by case; without ``settings`` they do not say."""
    metric, unit, rel, _ = BANDED[suite]
    entry = {
        "unit": unit, "better": "lower", "n": 1, "spread": 0.0,
        "tolerance": {"rel": rel, "abs": 0.0, "reason": "rounding"},
    }  # fmt: skip
    keys = ("commit", "dirty", "date", "command", "versions", "runs", "accepted_regression")
    provenance = {**dict.fromkeys(keys), "backend": backend, "weights": weights, "profile": profile}
    told = {} if settings is None else {"settings": settings}
    shared = {"provenance": {**provenance, **told}, "kernels": kernels}
    cases = {
        case: {"metrics": {metric: {**entry, "value": value, "samples": [value]}}, **shared}
        for case, value in values.items()
    }
    head = {"schema_version": 1, "hardware_key": HARDWARE, "model": "tiny-wan", "suite": suite}
    project.file(json.dumps({**head, "cases": cases}), f"baselines/{HARDWARE}/tiny-wan/{suite}.json")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose measurements are made up, to run the plugin in."""
    return Project(pytester, monkeypatch)
