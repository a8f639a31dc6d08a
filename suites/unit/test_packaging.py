"""The wheel: what is in it, and that it works where there is nothing but it and a case file."""

from __future__ import annotations

import ast
import configparser
import email.message
import email.parser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "wan_trt_core"

CASES = """
version: 1
cases:
  - id: good
    model: tiny-wan
    component: text_encoder
    profile: 128p-17f
    precision: fp32
    backend: onnxruntime
    parity: &parity
      limits: {psnr_db: {min: 90, reason: the floor of every FP32 engine}}
    perf:
      speedup: 0.01
      reason: this test is about the wheel, not about speed
      parity: {psnr_db: {min: 90, reason: as above}}
    memory:
      growth: {max: 100000000, reason: this test is about the wheel}
  - id: out-of-reach
    model: tiny-wan
    component: text_encoder
    profile: 128p-17f
    precision: fp32
    backend: onnxruntime
    parity:
      limits: {relative_l2: {max: 1.0e-12, reason: cannot be reached in float32}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _build("wheel", folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _build(target: str, folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)


def _in_dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


class TestContent:
    def test_every_source_file_and_the_whole_checkpoint_are_in_it(self, names: set[str]) -> None:
        wanted = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected = {path.relative_to(REPOSITORY).as_posix() for path in wanted}
        assert expected <= names
        assert "wan_trt_core/py.typed" in names
        if (PACKAGE / "models" / "tiny_wan" / "model_index.json").exists():
            assert "wan_trt_core/models/tiny_wan/vae/diffusion_pytorch_model.safetensors" in names

    def test_the_suites_are_in_it_and_the_unit_tests_are_not(self, names: set[str]) -> None:
        for suite in ("parity", "perf", "memory"):
            assert f"wan_trt_core/suites/{suite}/test_{suite}.py" in names
        assert "wan_trt_core/suites/__init__.py" in names
        assert not [name for name in names if "unit" in name.split("/")]

    def test_nothing_else_is_in_it(self, names: set[str]) -> None:
        others = [name for name in names if not name.startswith(("wan_trt_core/", "wan_trt_core-"))]
        assert not others
        assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".tmp"))]

    def test_it_is_small_enough_to_ship(self, wheel: Path) -> None:
        assert wheel.stat().st_size < 30 * 2**20

    def test_entry_points(self, wheel: Path) -> None:
        points = configparser.ConfigParser()
        points.read_string(_in_dist_info(wheel, "entry_points.txt"))
        assert dict(points["console_scripts"]) == {"wan-trt": "wan_trt_core.cli:main"}
        assert dict(points["pytest11"]) == {"wan_trt": "wan_trt_core.pytest_plugin"}


class TestMetadata:
    @pytest.fixture
    def metadata(self, wheel: Path) -> email.message.Message:
        return email.parser.Parser().parsestr(_in_dist_info(wheel, "METADATA"))

    def test_python_and_licence(self, metadata: email.message.Message) -> None:
        assert metadata["Name"] == "wan-trt-core"
        assert set(metadata["Requires-Python"].split(",")) == {"<3.14", ">=3.11"}
        assert metadata["License-Expression"] == "MIT"
        assert set(metadata.get_all("License-File", [])) == {"LICENSE", "NOTICE"}
        assert {"Framework :: Pytest", "Typing :: Typed"} <= set(metadata.get_all("Classifier", []))

    def test_the_two_builds_of_onnxruntime_never_come_together(self, metadata: email.message.Message) -> None:
        requirements = [text for text in metadata.get_all("Requires-Dist", []) if "onnxruntime" in text]
        assert sorted(text.partition(">")[0] for text in requirements) == ["onnxruntime", "onnxruntime-gpu"]
        for text in requirements:
            assert ("extra == 'gpu'" in text) == text.startswith("onnxruntime-gpu")
            assert "extra ==" in text

    def test_no_requirement_names_another_index(self, metadata: email.message.Message) -> None:
        assert not [text for text in metadata.get_all("Requires-Dist", []) if "@" in text or "://" in text]


def test_the_source_distribution_has_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    _build("sdist", tmp_path)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("pyproject.toml", "README.md", "LICENSE", "suites/parity/test_parity.py", "tox.ini"):
        assert wanted in names
    assert not [name for name in names if name.startswith((".tox", ".venv", "outputs"))]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a fresh environment: the wheel, and the dependencies of the environment that tests it.

    The dependencies come by a plain path: what this environment has installed in editable form is not on it.
    """
    from uv import find_uv_bin

    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [find_uv_bin(), "pip", "install", "-q", "--offline", "--no-deps", "-p", str(python), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return folder / "bin"


def _environment(cache: Path) -> dict[str, str]:
    """That of a user: only the cache is another, and kernels are not profiled, which takes a process of its own."""
    drop = ("PYTHON", "PYTEST", "WAN_TRT_", "COV_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return kept | {"WAN_TRT_CACHE": str(cache), "WAN_TRT_PERF__KERNELS": "false"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For all that runs with nothing wrong in it."""
    return tmp_path_factory.mktemp("cache")


def test_an_empty_folder_with_a_case_file_is_enough(installed: Path, tmp_path: Path, cache: Path) -> None:
    """The documented command collects, runs and judges: the same markers, options and verdicts as here."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "cases.yaml").write_text(CASES)
    suites = ["--pyargs", "wan_trt_core.suites", "--wan-cases", "cases.yaml", "--wan-report", "out"]
    options = [*suites, "-p", "no:cacheprovider", "--strict-markers", "-v"]

    def pytest_in_folder(*more: str) -> tuple[int, str]:
        command = [installed / "python", "-m", "pytest", *options, *more]
        answer = subprocess.run(
            command, cwd=work, env=_environment(cache), capture_output=True, text=True, timeout=600
        )
        return answer.returncode, answer.stdout + answer.stderr

    code, output = pytest_in_folder()
    assert code == 1, output
    record = json.loads((work / "out" / "results.json").read_text())
    verdicts = {(case["case"], case["suite"]): case["verdict"] for case in record["cases"]}
    assert verdicts == {
        ("good", "parity"): "pass",
        ("good", "perf"): "pass",
        ("good", "memory"): "pass",
        ("out-of-reach", "parity"): "fail",
    }, output
    assert "BELOW GATE" in output
    assert "3 passed" in output
    assert "1 failed" in output

    code, output = pytest_in_folder("-m", "memory", "--collect-only", "-q")
    assert code == 0, output
    assert "test_memory[good]" in output
    assert "test_parity" not in output

    package = subprocess.run(
        [installed / "python", "-c", "import wan_trt_core; print(wan_trt_core.__file__)"],
        cwd=work,
        env=_environment(cache),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(installed.parent) in package, "the wheel was tested, not the working tree"


def test_the_console_script_runs(installed: Path, tmp_path: Path) -> None:
    command = [installed / "wan-trt", "inspect", "nowhere"]
    answer = subprocess.run(command, cwd=tmp_path, env=_environment(tmp_path), capture_output=True, text=True)
    assert answer.returncode == 3
    assert answer.stderr.startswith("error: no model 'nowhere'")


def test_the_example_gates_a_pull_request(installed: Path, tmp_path: Path, cache: Path) -> None:
    """``examples/gate_pull_request``: the base branch passes; a change that breaks an export does not, and is told."""
    gate = REPOSITORY / "examples" / "gate_pull_request" / "gate.sh"
    (tmp_path / "change.py").write_text(
        "from wan_trt_core.models.components import get_component\n"
        "component = get_component('text_encoder')\n"
        "healthy = component.graph\n"
        "def graph(*args, **kwargs):\n"
        "    broken = healthy(*args, **kwargs)\n"
        "    broken.blocks[1].wo.weight *= 1.01\n"
        "    return broken\n"
        "component.graph = graph\n"
    )

    def run(cache: Path, out: str, *base: str, **environ: str) -> tuple[int, str]:
        path = f"{installed}{os.pathsep}{os.environ['PATH']}"
        answer = subprocess.run(
            ["bash", gate, out, *base],
            cwd=tmp_path,
            env=_environment(cache) | {"PATH": path} | environ,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return answer.returncode, answer.stdout + answer.stderr

    code, output = run(cache, "base")
    assert code == 0, output
    changed = {"PYTEST_ADDOPTS": "-p change", "PYTHONPATH": str(tmp_path)}
    code, output = run(tmp_path / "cache", "mine", "base/results.json", **changed)
    assert code == 1, output
    assert "first diverging block: block.1" in output
    comment = (tmp_path / "mine" / "comment.md").read_text()
    assert "text-encoder" in comment and "fail" in comment
    code, output = run(cache, "mine", "base/results.json", PYTEST_ADDOPTS="--no-such-option")
    assert code == 4, output  # nothing was judged, so nothing of the run before may be told as this one's
    assert not [name for name in ("results.json", "comment.md") if (tmp_path / "mine" / name).exists()]
    (tmp_path / "broken.json").write_text("{")
    code, output = run(cache, "mine", "broken.json")
    assert code == 0 and "broken.json" in output  # the gate decides, not the comment


def test_every_test_file_can_be_collected_without_the_extra_dev() -> None:
    """``pytest suites -m perf`` on a GPU machine imports the unit tests too, and runs none of them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    of_dev = {_distribution(line) for line in project["optional-dependencies"]["dev"]}
    of_dev -= {_distribution(line) for line in project["dependencies"]} | {"types-psutil", "types-pyyaml"}
    packages = packages_distributions()
    for path in sorted((REPOSITORY / "suites").rglob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import):
                imported = [alias.name for alias in statement.names]
            else:
                imported = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            for name in imported:
                found = {_distribution(each) for each in packages.get(name.partition(".")[0], ())}
                assert not found & of_dev, f"{path.name} imports {name}, which only the extra dev brings"


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-").replace(".", "-")
