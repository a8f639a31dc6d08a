"""TensorRT without a GPU: its real Python bindings over libraries that do nothing, and TensorRT-RTX's real parser.

The bindings are wheels that hold no TensorRT; they are installed once into pytest's cache, each version apart, and
imported in processes of their own. Theirs are every class, method and signature, so what the backend calls can be
held against them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).parents[2]

# What the bindings look up when they are imported. Nothing calls them.
_STUBS = """
#define ENTRY(name) void *name(void) { return 0; }
ENTRY(createInferBuilder_INTERNAL) ENTRY(createInferRuntime_INTERNAL) ENTRY(createInferRefitter_INTERNAL)
ENTRY(createNvOnnxParser_INTERNAL) ENTRY(createNvOnnxParserRefitter_INTERNAL) ENTRY(getNvOnnxParserVersion)
ENTRY(getBuilderPluginRegistry) ENTRY(getPluginRegistry) ENTRY(initLibNvInferPlugins)
"""

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def install(folder: Path, *requirements: str) -> Path:
    """Install wheels, without what they depend on, into ``folder`` unless they are there.

    Raises:
        subprocess.CalledProcessError: when the index does not answer, or has no wheel for this Python.
    """
    done = folder / "installed"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not done.is_file():
            command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
            only = ["--only-binary", ":all:", "--python", sys.executable]
            # uv trusts the certificates that the machine trusts only when told to
            trusting = {"UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true", **os.environ}
            subprocess.run(
                [*command, *only, "--target", str(folder), *requirements], check=True, env=trusting
            )
            done.touch()
    return folder


def require_compiler() -> None:
    """Skip a test for whose libraries there is no compiler; on CI, where nobody reads what was skipped, fail it."""
    if shutil.which("cc") is None:
        told = "no C compiler (cc) for the libraries that TensorRT's bindings load: apt-get install gcc libc6-dev"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)


def stub_libraries(folder: Path, major: int) -> Path:
    """Compile the libraries that the bindings of one major version load."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stubs.c"
    source.write_text(_STUBS)
    for name in _LIBRARIES:
        file = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{file}"]
        subprocess.run(["cc", *options, "-o", str(folder / file), str(source)], check=True)
    return folder


def run_script(
    script: Path, *, path: Path, libraries: Path | None = None, package: Path = REPOSITORY, given: str = ""
) -> str:
    """Run a script with the bindings in ``path`` and the backend in ``package``; returns what it printed.

    Args:
        libraries: folder of the shared libraries that the bindings load.
        given: what it reads from standard input.

    Raises:
        AssertionError: when it fails, with what it said.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(path)]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(libraries or ""), os.environ.get("LD_LIBRARY_PATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        input=given,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
