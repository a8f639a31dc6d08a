"""Imports go one way, light modules stay light, and start-up is quick."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wan_trt_core

PACKAGE = Path(wan_trt_core.__file__).parent

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "pytest_plugin", "doctor", "baseline_migration", "baseline_update"}),
    frozenset({"comparison"}),
    frozenset({"report", "baselines", "observations"}),
    frozenset({"accelerating"}),
    frozenset({"memory"}),
    frozenset({"pipeline"}),
    frozenset({"engine_cache", "measure", "backends", "export", "deciding_settings"}),
    frozenset({"models"}),
    frozenset({"gates"}),
    frozenset({"config", "cases", "records", "logs", "progress", "hashing", "distributions", "causes"}),
)
"""From the top down: a module may import from its own layer and from those below it."""

LEAVES = frozenset({"gates.verdict"})
"""May be imported from anywhere, and import nothing of the package themselves."""

HEAVY = frozenset(
    {
        "torch",
        "diffusers",
        "transformers",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "skimage",
        "pycvvdp",
        "lpips",
        "av",
    }
)

LIGHT = (
    "wan_trt_core",
    "wan_trt_core.baselines",
    "wan_trt_core.cases",
    "wan_trt_core.cli",
    "wan_trt_core.comparison",
    "wan_trt_core.comparison.context",
    "wan_trt_core.comparison.against_baseline",
    "wan_trt_core.config",
    "wan_trt_core.doctor",
    "wan_trt_core.gates",
    "wan_trt_core.logs",
    "wan_trt_core.progress",
    "wan_trt_core.records",
    "wan_trt_core.report",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``wan_trt_core``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[0] != "suites":  # the suites of an installed package are tests
            found[name] = path
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import that is executed, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The module without its ``if TYPE_CHECKING`` blocks, which are never executed."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return node.orelse
            self.generic_visit(node)
            return node

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def layer(name: str) -> int:
    top = name.split(".")[0]
    for index, names in enumerate(LAYERS):
        if top in names:
            return index
    raise AssertionError(f"{name} belongs to no layer: add it to LAYERS")


def upward_imports(name: str, source: str) -> list[str]:
    """The imports of one module that go up."""
    problems = []
    for line, target in imports(without_type_checking(ast.parse(source))):
        inner = target.removeprefix("wan_trt_core.")
        if inner == target or any(inner == leaf or inner.startswith(f"{leaf}.") for leaf in LEAVES):
            continue
        if inner.split(".")[0].startswith("__"):
            continue
        if name in LEAVES or layer(inner) < layer(name):
            problems.append(f"wan_trt_core.{name}:{line} imports wan_trt_core.{inner}")
    return problems


def test_imports_go_one_way() -> None:
    problems = [
        problem for name, path in modules().items() for problem in upward_imports(name, path.read_text())
    ]
    assert not problems, "\n".join(problems)


def test_a_wrong_way_import_is_found() -> None:
    assert upward_imports("config", "def f():\n    from wan_trt_core.cli import main\n")
    assert upward_imports("gates.verdict", "from wan_trt_core.config import Settings\n")
    assert upward_imports("measure.timing", "import wan_trt_core.comparison\n")
    assert not upward_imports("records", "from wan_trt_core.gates.verdict import Verdict\n")
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wan_trt_core.cli import main\n"
    assert not upward_imports("config", typed)


def imported_by(module: str) -> tuple[set[str], float]:
    """Top-level modules that importing ``module`` brings in, and its CPU seconds, in a new process."""
    code = (
        "import sys, time, pytest; before = set(sys.modules); started = time.process_time()\n"
        f"import {module}\n"
        "print(time.process_time() - started, *{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *names = answer.stdout.split()
    return set(names), float(seconds)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    names, _ = imported_by(module)
    assert not names & HEAVY


def test_importing_the_plugin_is_quick_and_light() -> None:
    """It is loaded in every pytest run of its environment, and must cost nothing there."""
    measured = [imported_by("wan_trt_core.pytest_plugin") for _ in range(5)]
    names = measured[0][0]
    assert not names & (HEAVY | {"pydantic", "numpy", "rich", "yaml"})
    best = min(seconds for _, seconds in measured)
    assert best < 0.050, f"importing the plugin takes {best * 1000:.0f} ms"


def cpu_seconds_of_children() -> float:
    """Of those that have ended. Unlike the clock on the wall it does not mind who else uses the machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_is_quick() -> None:
    command = [sys.executable, "-c", "from wan_trt_core.cli import main; main()", "--help"]
    times = []
    for _ in range(5):
        before = cpu_seconds_of_children()
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(cpu_seconds_of_children() - before)
        if times[-1] < 0.5:
            break
    assert "doctor" in answer.stdout
    assert min(times) < 0.5, f"wan-trt --help takes {min(times):.2f} s"
