"""``action.yml``: valid by the published schema, and its steps do what they say when a shell runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_support import PLUGIN_ARGS, Project, project

from wan_trt_core.models.checkpoint import EMBEDDED

__all__ = ["project"]

REPOSITORY = Path(__file__).resolve().parents[2]
ACTION = REPOSITORY / "action.yml"
EXPRESSION = re.compile(r"\$\{\{\s*inputs\.([\w-]+)\s*\}\}")


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return data


def test_the_published_schema_holds(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="it brings the schema; it is in the extra dev")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions"]
    subprocess.run([*command, str(ACTION)], check=True)
    broken = tmp_path / "action.yml"
    broken.write_text(ACTION.read_text().replace("shell: bash\n", "", 1))
    assert subprocess.run([*command, str(broken)], capture_output=True, check=False).returncode == 1


def test_inputs_and_steps_name_each_other(action: dict[str, Any]) -> None:
    assert {"model", "checkpoint", "suites", "thresholds", "backend", "baselines", "pytest-args"} <= action[
        "inputs"
    ].keys()
    assert action["outputs"].keys() == {"verdict", "report"}
    steps = action["runs"]["steps"]
    text = yaml.safe_dump(steps)
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == action["inputs"].keys()
    for step in steps:
        script = step.get("run", "")
        assert "${{" not in script  # an input in the text of a script could be a script itself
        upper = set(re.findall(r"\$\{?\"?([A-Z][A-Z_]+)", script)) - {"GITHUB_OUTPUT", "GITHUB_ACTION_PATH"}
        assert upper == step.get("env", {}).keys()


class Runner:
    """Runs a step of the action as GitHub's runner does."""

    def __init__(self, action: dict[str, Any], folder: Path) -> None:
        self.action = action
        self.folder = folder

    def step(self, name: str, environ: dict[str, str], **inputs: str) -> tuple[int, dict[str, str], str]:
        """Exit code, outputs and what it printed."""
        (step,) = (step for step in self.action["runs"]["steps"] if step.get("id") == name)
        values = {key: given.get("default", "") for key, given in self.action["inputs"].items()} | inputs
        env = {key: EXPRESSION.sub(lambda m: values[m[1]], text) for key, text in step["env"].items()}
        outputs = self.folder / "github_output"
        outputs.write_text("")
        script = self.folder / "step.sh"
        script.write_text(step["run"])
        result = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env={
                **os.environ,
                **environ,
                **env,
                "GITHUB_OUTPUT": str(outputs),
                "GITHUB_ACTION_PATH": "/the/action",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
        return result.returncode, found, result.stdout + result.stderr


@pytest.fixture
def runner(action: dict[str, Any], project: Project) -> Runner:
    return Runner(action, project.path)


def gate(runner: Runner, **inputs: str) -> tuple[int, dict[str, str], str]:
    """The step that judges, on the project's own tests."""
    given = {"cases": "suites/cases.yaml", "tests": ".", "python": sys.executable, "require_bands": "false"}
    given = {key.replace("_", "-"): value for key, value in (given | inputs).items()}
    environ = {"PYTEST_ADDOPTS": " ".join(PLUGIN_ARGS), "PYTHONPATH": str(REPOSITORY)}
    return runner.step("gate", environ, **given)


@pytest.mark.parametrize(
    ("cases", "inputs", "code", "verdict"),
    [
        (("good-one",), {}, 0, "pass"),
        (("good-one", "bad-one"), {}, 1, "fail"),
        (("good-one", "bad-one"), {"pytest_args": "-k 'good and one' -q"}, 0, "pass"),
        (("good-one",), {"thresholds": "psnr_db=94 speedup=1.9"}, 0, "pass"),
        (("good-one",), {"thresholds": "speedup=1.9 psnr_db=96"}, 1, "fail"),
        (("good-one",), {"backend": "no-such"}, 4, "invalid"),
        (("good-one",), {"suites": ""}, 1, None),
    ],
)
def test_the_gate(
    project: Project,
    runner: Runner,
    cases: tuple[str, ...],
    inputs: dict[str, str],
    code: int,
    verdict: str | None,
) -> None:
    project.cases(*cases, suites=("parity", "memory", "perf"))
    got, outputs, text = gate(runner, **inputs)
    assert got == code, text
    assert outputs == ({"verdict": verdict, "report": "outputs/report/report.md"} if verdict else {})


def test_every_input_reaches_pytest(project: Project, runner: Runner) -> None:
    project.cases("good-one", bands=True)
    (project.path / "some where").symlink_to(EMBEDDED)
    inputs = {
        "suites": "parity",
        "model": "wan2.1-t2v-1.3b",
        "checkpoint": "wan2.1-t2v-1.3b=some where",
        "backend": "torch",
        "baselines": "of these",
        "report": "out put",
        "require_bands": "true",
        "strict_improvements": "true",
        "pytest_args": "--wan-profile 480p-81f",
    }
    code, outputs, text = gate(runner, **inputs)
    # this hardware has no bands, and they are required
    assert (code, outputs["verdict"]) == (1, "missing"), text
    results = project.results("out put")
    assert results["cases"][0]["model"] == "wan2.1-t2v-1.3b"
    assert results["settings"]["checkpoint"] == {"wan2.1-t2v-1.3b": str(project.path / "some where")}
    assert results["settings"]["backend"] == "torch"
    assert results["settings"]["baselines"] == str(project.path / "of these")
    assert results["settings"]["strict_improvements"] is True
    assert {case["suite"] for case in results["cases"]} == {"parity"}


def test_checkpoints_are_given_by_model_a_line_each(project: Project, runner: Runner) -> None:
    project.cases("good-one")
    code, _, text = gate(
        runner, suites="parity", checkpoint=f"tiny-wan={EMBEDDED}\nwan2.1-t2v-1.3b=owner/name\n"
    )
    assert code != 0 and "has the model 'wan2.1-t2v-1.3b'" in text, "both were given"


def test_a_run_that_fails_for_another_reason_does_not_pass(project: Project, runner: Runner) -> None:
    project.cases("good-one")
    other = "import pytest\n@pytest.mark.parity\ndef test_of_others():\n    assert 0\n"
    project.pytester.makepyfile(test_own=other)
    code, outputs, text = gate(runner, suites="parity")
    assert (code, outputs["verdict"]) == (1, "invalid"), text
    assert gate(runner, suites="parity", pytest_args="--collect-only")[1]["verdict"] == "invalid"


def test_an_earlier_report_is_not_taken_for_this_runs(project: Project, runner: Runner) -> None:
    project.cases("good-one")
    assert gate(runner, suites="parity")[1]["verdict"] == "pass"
    assert gate(runner, suites="parity", backend="no-such")[1]["verdict"] == "invalid"


def test_installing(runner: Runner, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    code, _, text = runner.step("install", {}, python=str(fake), extras="cpu")
    assert (code, text.split()) == (0, ["-m", "pip", "install", "/the/action[cpu]"])
    code, _, text = runner.step("install", {}, python=str(fake), extras="cpu", constraints="of these.txt")
    assert (code, text.splitlines()) == (
        0,
        ["-m", "pip", "install", "-c", "of these.txt", "/the/action[cpu]"],
    )
