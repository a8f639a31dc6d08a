"""The pages that tell someone what to do, followed step by step in a copy of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


def commands(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """The commands of a console block, each with the lines of output that stand below it."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, *shown = part.splitlines()
        yield shlex.split(command), shown


def comparable(text: str) -> str:
    """Output without what another machine prints differently: the spaces of a table, what was measured."""
    return re.sub(r"[\d.]+(e[-+]\d+| dB)", "#", re.sub(r"[ \t]+", " ", text))


@pytest.mark.parametrize(
    ("page", "codes"),
    [
        # a copy, a suite that passes, a fault, a suite that fails
        pytest.param("adding-a-component", [0, 0, 0, 1], marks=pytest.mark.slow),
        # a fault, a suite that fails, the fault mended, a suite that passes
        pytest.param("tutorial", [0, 1, 0, 0], marks=pytest.mark.slow),
    ],
)
def test_a_page_does_what_it_says(page: str, codes: list[int], tmp_path: Path) -> None:
    for name in ("wan_trt_core", "suites", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "unit"))
    shutil.copy(ROOT / "conftest.py", tmp_path)
    drop = ("PYTEST", "WAN_TRT_", "GITHUB_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    environ |= {"PYTHONPATH": str(tmp_path), "WAN_TRT_CACHE": str(tmp_path / "cache"), "COLUMNS": "80"}
    ended = []
    for block in BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text()):
        if block["kind"] == "yaml":
            with (tmp_path / "suites" / "cases.yaml").open("a") as cases:
                cases.write("\n" + block["text"])
        if block["kind"] != "console":
            continue
        for command, shown in commands(block["text"]):
            if command[0] == "pytest":
                command[:1] = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
            answer = subprocess.run(
                command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
            )
            ended.append(answer.returncode)
            for line in shown:
                assert comparable(line) in comparable(answer.stdout), answer.stdout + answer.stderr
    assert ended == codes
