"""The image and the compose file: linted, held against their specification, and in agreement with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import load_script

from wan_trt_core.config import KEYS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: Any = yaml.safe_load((ROOT / "compose.yaml").read_text())
GATE = COMPOSE["services"]["gate"]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", "Dockerfile"),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"),
    ],
    ids=lambda command: command[0],
)
def test_linted(command: tuple[str, ...]) -> None:
    answer = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_linter_sees_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("--no-cache-dir", ""))
    answer = subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert answer.returncode != 0 and "DL3042" in answer.stdout


def test_nobody_is_root_when_it_runs() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M)[-1] == "${USER_ID}"
    assert set(GATE["build"]["args"]) <= set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.M))


def test_what_shall_last_lies_in_the_volume() -> None:
    assert "VOLUME /cache" in DOCKERFILE
    assert "cache:/cache" in GATE["volumes"] and "cache" in COMPOSE["volumes"]
    kept = re.search(r"^ENV (WAN_TRT_CACHE=(?:.*\\\n)*.*)", DOCKERFILE, re.M)
    assert kept is not None
    assert all(value.startswith("/cache/") for value in re.findall(r"\w+=(\S+)", kept[1]))


def test_the_settings_in_it_are_settings() -> None:
    names = {*GATE["environment"], *re.findall(r"\b(WAN_TRT_\w+)=", DOCKERFILE)}
    assert {name.removeprefix("WAN_TRT_").lower().replace("__", ".") for name in names} <= set(KEYS)


def test_the_tool_without_docker_reads_every_step() -> None:
    tool = load_script("tools/dockerfile_in_chroot.py")
    steps = tool.instructions(DOCKERFILE)
    words = [word for word, _ in steps]
    assert set(words) == {"ARG", "FROM", "RUN", "USER", "ENV", "COPY", "VOLUME", "WORKDIR", "CMD"}
    assert words.index("USER") < words.index("COPY"), "the package is installed by its user"
    (install,) = (rest for word, rest in steps if word == "RUN" and "pyproject.toml" in rest)
    assert install.endswith("${EXTRAS}") and "\\" not in install


def test_bytecode_is_part_of_the_image() -> None:
    steps = load_script("tools/dockerfile_in_chroot.py").instructions(DOCKERFILE)
    asked = [
        index for index, (word, rest) in enumerate(steps) if word == "ENV" and "UV_COMPILE_BYTECODE=1" in rest
    ]
    installs = [
        index for index, (word, rest) in enumerate(steps) if word == "RUN" and "uv pip install" in rest
    ]
    assert len(installs) == 2 and asked and asked[0] < installs[0], "uv makes none by itself"


def test_what_the_package_is_built_from_reaches_the_image() -> None:
    """What `.dockerignore` lets through is enough for the wheel, and nothing of it is missing."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    project = (ROOT / "pyproject.toml").read_text()
    forced = re.findall(r'^"([\w./]+)" = "wan_trt_core/', project, re.M)
    licences = re.findall(r'"(\w+)"', re.findall(r"^license-files = \[(.*)\]", project, re.M)[0])
    assert {"pyproject.toml", "README.md", "wan_trt_core", *forced, *licences} == set(kept)
    assert all((ROOT / name).exists() for name in kept)
