"""Every call that the TensorRT backend makes exists, with that signature, in TensorRT 10.6 and in 11.4.

For 11.x this is the only proof that there is: no machine with it was at hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from tensorrt_wheels import install, run_script, stub_libraries

CONTRACT = Path(__file__).parent / "tensorrt_contract.py"
SOURCES = Path(__file__).parents[2] / "wan_trt_core" / "backends" / "tensorrt"

BINDINGS = {
    "10.6": ("tensorrt-cu12-bindings==10.6.0", 10, (3, 12)),
    "11.4": ("tensorrt-cu13-bindings==11.4.0.106", 11, (3, 14)),
}
"""By version: the wheel, the libraries' major version, and the last Python that has a wheel."""


@pytest.fixture(params=list(BINDINGS))
def bindings(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A version, the folder of its Python bindings, and that of its libraries."""
    wheel, major, last = BINDINGS[request.param]
    if sys.version_info[:2] > last:
        pytest.skip(f"{wheel} has no wheel for Python {sys.version_info.major}.{sys.version_info.minor}")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make the libraries that TensorRT's bindings load")
    folder = install(Path(request.config.cache.mkdir(f"tensorrt-{request.param}")), wheel)
    return request.param, folder, stub_libraries(tmp_path / "lib", major)


def test_every_call_exists_with_its_signature(bindings: tuple[str, Path, Path]) -> None:
    version, path, libraries = bindings
    told, *used = run_script(CONTRACT, path=path, libraries=libraries).split()
    assert told.startswith(version)
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= set(used)


def test_a_call_that_tensorrt_does_not_have_is_found(
    bindings: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """The check itself: the same script, on a backend that sets a flag as TensorRT 8 did, and one argument short."""
    _, path, libraries = bindings
    package = tmp_path / "package"
    shutil.copytree(SOURCES.parents[1], package / "wan_trt_core", ignore=shutil.ignore_patterns("tiny_wan"))
    script = tmp_path / "suites" / "unit" / CONTRACT.name
    builder = package / "wan_trt_core" / "backends" / "tensorrt" / "builder.py"
    original = builder.read_text()
    script.parent.mkdir(parents=True)
    shutil.copy(CONTRACT, script)
    for broken, message in (
        ("config.max_workspace_size = 1", "IBuilderConfig has no max_workspace_size"),
        ("config.set_memory_pool_limit(1)", "IBuilderConfig.set_memory_pool_limit"),
    ):
        builder.write_text(
            original.replace(
                "    chosen = settings.tensorrt\n", f"    chosen = settings.tensorrt\n    {broken}\n", 1
            )
        )
        with pytest.raises(AssertionError, match=re.escape(message)):
            run_script(script, path=path, libraries=libraries, package=package)
