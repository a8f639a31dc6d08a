"""``--wan-backend``: the backend of all cases, so that baselines of another decide nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from plugin_conditions import WITHOUT_WORKERS, Option, run_under
from plugin_support import CONFTEST, HARDWARE, PLUGIN_ARGS, Project, project

from wan_trt_core.measure import environment

__all__ = ["project"]

OPTION = Option(("--wan-backend=torch",), ("invalid", "baseline_invalid"), case={"backend": "torch"})


@pytest.mark.parametrize("condition", WITHOUT_WORKERS)
def test_under_every_condition(project: Project, condition: str) -> None:
    run_under(project, OPTION, condition)


def test_cases_for_other_backends_wait_until_one_is_named(project: Project) -> None:
    text = project.cases("good-one", "good-gpu").read_text()
    project.file(text.replace("id: good-gpu", "id: good-gpu\n    only_backends: [tensorrt]"))
    result = project.run("-m", "parity")
    assert list(project.verdicts()) == [("parity", "good-one")]
    result.stdout.fnmatch_lines(["wan-trt: 1 case(s) only with --wan-backend tensorrt"])
    result = project.run("-m", "parity", "--wan-backend", "tensorrt")
    assert len(project.verdicts()) == 2
    result.stdout.no_fnmatch_line("*only with*")


def test_what_only_another_backend_can_do_is_no_mistake_of_a_case_that_waits_for_it(project: Project) -> None:
    text = project.cases("good-one", "good-gpu", suites=("perf",)).read_text()
    one, gpu = text.split("id: good-gpu")
    gpu = gpu.replace(
        "perf: {", "perf: {also: [no-cuda-graphs], limits: {graph_gain: {min: 0.001, reason: r}}, "
    )
    project.file(f"{one}id: good-gpu\n    backend: tensorrt\n    only_backends: [tensorrt]{gpu}")
    project.run("-m", "perf", "--wan-backend", "torch").assert_outcomes(passed=1, deselected=2)
    judged = project.run("-m", "perf", "--wan-backend", "tensorrt")  # whose numbers here know of no graphs
    judged.assert_outcomes(passed=1, failed=1, deselected=2)
    judged.stdout.fnmatch_lines(["*graph_gain is required and could not be computed*"])


def name_hardware(project: Project, answer: str) -> None:
    """Let the project's ``conftest.py``, which workers have too, answer so when asked for the hardware key."""
    text = CONFTEST.replace(f'return "{HARDWARE}"', answer)
    assert text != CONFTEST
    project.pytester.makeconftest(text)


@pytest.fixture
def devices(project: Project, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a GPU too, whose every hardware key names its device; the devices that records are of."""
    monkeypatch.delenv("WAN_TRT_DEVICE")
    own = "__import__('wan_trt_core.backends.registry').backends.registry.device_of"
    name_hardware(project, f"return 'fake-' + {own}(session.settings, session.backend)")
    asked: list[str] = []

    def record(device: str, **more: Any) -> dict[str, Any]:
        asked.append(device)
        return {"source": {}}

    monkeypatch.setattr(environment, "environment_record", record)
    return asked


def write_cases(project: Project, **backends: str) -> None:
    """A case of each name with a backend of its own."""
    text = project.cases(*backends).read_text()
    for name, backend in backends.items():
        text = text.replace(f"id: {name}", f"id: {name}\n    backend: {backend}")
    project.file(text)


@pytest.mark.parametrize(("backend", "device"), [("tensorrt", "cuda"), ("onnxruntime", "cpu")])
def test_results_are_filed_under_the_device_of_the_case_s_own_backend(
    backend: str, device: str, project: Project, devices: list[str]
) -> None:
    write_cases(project, good=backend)
    result = project.run("-m", "parity")
    result.stdout.fnmatch_lines([f"wan-trt: hardware fake-{device}, *"])
    assert project.results()["hardware_key"] == f"fake-{device}"
    assert set(devices) == {device}


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "worker"])
def test_the_cases_that_are_selected_say_the_device(
    workers: tuple[str, ...], project: Project, devices: list[str]
) -> None:
    write_cases(project, good="onnxruntime", bad="tensorrt")
    project.run("-m", "parity", "-k", "bad", *workers)
    assert project.results()["hardware_key"] == "fake-cuda"
    assert devices[-1] == "cuda"


def test_a_run_on_two_devices_is_refused(project: Project, devices: list[str]) -> None:
    write_cases(project, good="onnxruntime", bad="tensorrt")
    refused = project.run("-m", "parity")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(
        [
            "ERROR: the selected cases run on two devices, good on cpu (onnxruntime) and bad on cuda (tensorrt), *"
        ]
    )


def test_a_case_file_for_a_gpu_is_refused_where_there_is_none(
    project: Project, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(settings: Any) -> str:
        assert settings.backend == "tensorrt"
        raise RuntimeError("no CUDA device is visible")

    name_hardware(project, "return None")  # this package's own
    monkeypatch.setattr(environment, "hardware_key_of", no_gpu)
    write_cases(project, good="tensorrt")
    refused = project.run("-m", "parity")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: no CUDA device is visible"])


def test_the_top_of_a_run_of_other_tests_asks_no_torch(project: Project, devices: list[str]) -> None:
    write_cases(project, good="torch")
    project.pytester.makepyfile(test_other="def test_it(): pass")
    code = (
        f"import sys, pytest; code = pytest.main({[*PLUGIN_ARGS, 'test_other.py']!r});"
        " assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = project.pytester.run(sys.executable, "-c", code)
    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(["wan-trt: hardware *"])
