"""The plugin is loaded in every pytest run of its environment, once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import wan_trt_core


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
