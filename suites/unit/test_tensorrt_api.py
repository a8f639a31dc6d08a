"""Every call that the TensorRT backend makes exists, with that signature, in TensorRT 10.3, 10.6 and 11.4.

10.3 is the oldest that is taken. For 11.x this is the only proof that there is: no machine with it was at hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from tensorrt_wheels import install, require_compiler, run_script, stub_libraries

CONTRACT = Path(__file__).parent / "tensorrt_contract.py"
SOURCES = Path(__file__).parents[2] / "wan_trt_core" / "backends" / "tensorrt"

BINDINGS = {
    "10.3": ("tensorrt-cu12-bindings==10.3.0", 10, (3, 12)),
    "10.6": ("tensorrt-cu12-bindings==10.6.0", 10, (3, 12)),
    "11.4": ("tensorrt-cu13-bindings==11.4.0.106", 11, (3, 14)),
}
"""By version: the wheel, the libraries' major version, and the last Python that has a wheel. 11.4 has one for every
Python that is supported."""


EXERCISED = {
    *("Builder.__init__", "OnnxParser.__init__", "Runtime.__init__", "Builder.build_serialized_network"),
    *("ITimingCache.combine", "IExecutionContext.get_tensor_shape", "IExecutionContext.execute_async_v3"),
    *("IProgressMonitor.phase_start", "IProgressMonitor.step_complete", "IProgressMonitor.phase_finish"),
    *("ILogger.log", "IProfiler.report_layer_time"),
}
"""Of what must be among the calls that were checked: what only seldom happens, or is for TensorRT to call."""

BROKEN = {
    "a flag of TensorRT 8": (
        "builder.py",
        "    chosen = settings.tensorrt\n",
        "    chosen = settings.tensorrt\n    config.max_workspace_size = 1\n",
        "IBuilderConfig has no max_workspace_size",
    ),
    "an argument short": (
        "builder.py",
        "    chosen = settings.tensorrt\n",
        "    chosen = settings.tensorrt\n    config.set_memory_pool_limit(1)\n",
        "IBuilderConfig.set_memory_pool_limit",
    ),
    "timings joined": ("builder.py", ".combine(others", ".join(others", "ITimingCache has no join"),
    "a shape asked for": (
        "runtime.py", "get_tensor_shape", "get_output_shape", "IExecutionContext has no get_output_shape",
    ),
    "the builder": ("builder.py", "trt.Builder(log)", "trt.Builder()", "Builder.__init__"),
    "the builder, of no logger": ("builder.py", "trt.Builder(log)", "trt.Builder(print)", "Builder.__init__"),
    "the parser": ("builder.py", "trt.OnnxParser(network, log)", "trt.OnnxParser(log)", "OnnxParser.__init__"),
    "the runtime": ("backend.py", ".Runtime(log)", ".Runtime(log, 1)", "Runtime.__init__"),
    "a callback": ("progress.py", "def step_complete(", "def step_done(", "IProgressMonitor has"),
    "a callback's arguments": (
        "progress.py", "def phase_finish(self, name: str)", "def phase_finish(self)", "IProgressMonitor.phase_finish",
    ),
    "a log": ("api.py", "def log(", "def write(", "ILogger has"),
    "a profiler": ("api.py", "def report_layer_time(", "def tell_layer_time(", "IProfiler has"),
}  # fmt: skip
"""File of the backend, what stands there, what is put in its place, and what is said of it."""


@pytest.fixture(params=list(BINDINGS))
def bindings(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A version, the folder of its Python bindings, and that of its libraries."""
    wheel, major, last = BINDINGS[request.param]
    if sys.version_info[:2] > last:
        pytest.skip(f"{wheel} has no wheel for Python {sys.version_info.major}.{sys.version_info.minor}")
    require_compiler()
    folder = install(Path(request.config.cache.mkdir(f"tensorrt-{request.param}")), wheel)
    return request.param, folder, stub_libraries(tmp_path / "lib", major)


def test_every_call_exists_with_its_signature(bindings: tuple[str, Path, Path]) -> None:
    version, path, libraries = bindings
    told, *used = run_script(CONTRACT, path=path, libraries=libraries).split()
    assert told.startswith(version)
    assert set(used) >= EXERCISED, sorted(EXERCISED - set(used))


@pytest.mark.parametrize("bindings", ["10.6", "11.4"], indirect=True)  # 10.3's are written as 10.6's
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_call_that_tensorrt_does_not_have_is_found(
    broken: tuple[str, str, str, str], bindings: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """The check itself: the same script, on a backend with a mistake."""
    name, right, wrong, message = broken
    _, path, libraries = bindings
    package = tmp_path / "package"
    shutil.copytree(SOURCES.parents[1], package / "wan_trt_core", ignore=shutil.ignore_patterns("tiny_wan"))
    script = tmp_path / "suites" / "unit" / CONTRACT.name
    script.parent.mkdir(parents=True)
    shutil.copy(CONTRACT, script)
    source = package / "wan_trt_core" / "backends" / "tensorrt" / name
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong, 1))
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_script(script, path=path, libraries=libraries, package=package)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_on_ci_a_compiler_may_not_be_missing(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the one proof for TensorRT 11 would go with a base image, and nobody see it."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install gcc"):
        require_compiler()
