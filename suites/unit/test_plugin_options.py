"""Each option does what its help says."""

from __future__ import annotations

import pytest
from plugin_support import HARDWARE, Project, project

from wan_trt_core.models.checkpoint import EMBEDDED
from wan_trt_core.pytest_plugin.options import SETTINGS

__all__ = ["project"]


def test_backend_model_and_profile_override_every_case(project: Project) -> None:
    project.cases("good-one", "good-two")
    given = {"model": "wan2.1-t2v-1.3b", "backend": "torch", "profile": "480p-81f"}
    result = project.run("-m", "parity", *(f"--wan-{name}={value}" for name, value in given.items()))
    assert result.ret == 0
    for case in project.results()["cases"]:
        assert {name: case[name] for name in given} == given
    result.stdout.fnmatch_lines(
        ["wan-trt: model wan2.1-t2v-1.3b (--wan-model), backend torch (--wan-backend), profile 480p-81f (*"]
    )


def test_environment_overrides_too_but_the_settings_file_does_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.cases("good-one")
    project.file("backend: torch-compile\n", "config.yaml")
    project.run("-m", "parity", "--wan-config", "config.yaml")
    assert project.results()["cases"][0]["backend"] == "onnxruntime"
    monkeypatch.setenv("WAN_TRT_BACKEND", "torch")
    project.run("-m", "parity")
    assert project.results()["cases"][0]["backend"] == "torch"


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--wan-backend", "onnxruntim", "did you mean 'onnxruntime'?"),
        ("--wan-model", "tiny-wam", "did you mean 'tiny-wan'?"),
        ("--wan-profile", "720p-81f", "allowed: 128p-17f"),
    ],
)
def test_misspelt_override(project: Project, option: str, value: str, hint: str) -> None:
    project.cases("good-one")
    result = project.run("-m", "parity", option, value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option} does not fit case 'good-one'*{value}*{hint}*"])


def test_settings_options_reach_the_settings(project: Project) -> None:
    project.cases("good-one")
    folders = {"baselines": "b", "cache": "c", "checkpoint": "w", "report": "r"}
    (project.path / "w").symlink_to(EMBEDDED)
    project.run("-m", "parity", *(f"--wan-{name}={folder}" for name, folder in folders.items()))
    settings = project.results("r")["settings"]
    assert {name: settings[name] for name in folders} == {
        name: str(project.path / folder) for name, folder in folders.items()
    }
    assert settings["perf.allow_tf32"] is False, "in no suite unless it is given, whatever PyTorch's default"


def test_header(project: Project) -> None:
    project.cases("good-one")
    project.run("-m", "parity", "--wan-require-bands").stdout.fnmatch_lines(
        [
            "wan-trt: model by case, backend by case, profile by case",
            f"wan-trt: hardware {HARDWARE}, cases *cases.yaml",
            "wan-trt: baselines *baselines, bands required (no case has any)",
            "wan-trt: gating: everything but pass fails its test",
        ]
    )


def test_help_and_fixtures_read_well(project: Project) -> None:
    project.cases("good-one")
    text = project.run("--help").stdout.str()
    for name in (
        *(name.replace("_", "-") for name in SETTINGS),
        "cases",
        "config",
        "memory-budget",
        "require-bands",
        "no-gate",
    ):
        assert f"--wan-{name}" in text
    listed = project.run("--fixtures").stdout.str()
    for name in ("settings", "case", "model", "engines", "baselines", "measure", "judge"):
        entry = listed[listed.index(f"\nwan_{name}") + 1 :].split("\n\n")[0]
        assert "no docstring" not in entry
        assert len(entry.splitlines()) == 2
    project.run("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.parity: *", "@pytest.mark.perf: *", "@pytest.mark.memory: *"]
    )


def test_run_record_says_what_was_run(project: Project) -> None:
    project.cases("good-two", "good-one", suites=("memory", "parity"))
    project.run("-m", "not perf", "-n2")
    results = project.results()
    assert results["hardware_key"] == HARDWARE
    assert "-n2" in results["command"]
    order = [(case["suite"], case["case"]) for case in results["cases"]]
    assert order == [(suite, f"good-{n}") for suite in ("parity", "memory") for n in ("two", "one")]
