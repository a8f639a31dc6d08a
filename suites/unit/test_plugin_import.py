"""The plugin is loaded in every pytest run of its environment: it must cost nothing there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wan_trt_core

CODE = """
import json, sys, time
import pytest
before = set(sys.modules)
start = time.process_time()  # a busy machine adds to the wall clock only
import wan_trt_core.pytest_plugin
seconds = time.process_time() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy", "pydantic", "yaml", "rich"}


def test_import_is_light() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(wan_trt_core.__file__).parents[1])}
    runs = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
        ).stdout
        seconds, modules = json.loads(out)
        assert not HEAVY & {name.partition(".")[0] for name in modules}
        runs.append(seconds)
    assert min(runs) < 0.050


@pytest.mark.parametrize("installed", [False, True], ids=["source tree", "installed"])
def test_registered_once(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    root = Path(wan_trt_core.__file__).parents[1]
    pytester.makeconftest((Path(__file__).parents[2] / "conftest.py").read_text())
    site = pytester.mkdir("site")
    if installed:
        information = site / "wan_trt_core-0.1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: wan-trt-core\nVersion: 0.1.0\n")
        (information / "entry_points.txt").write_text("[pytest11]\nwan_trt = wan_trt_core.pytest_plugin\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(root)]))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    result = pytester.runpytest_subprocess("--trace-config", "--collect-only", "-p", "no:cacheprovider")
    result.stderr.no_fnmatch_line("*already registered*")
    lines = [line for line in result.outlines if re.search(r": /.*pytest_plugin/__init__\.py$", line)]
    assert len(lines) == 1, result.stdout.str()
