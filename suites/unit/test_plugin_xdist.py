"""Performance under pytest-xdist: only where each worker owns a GPU; two of them are simulated by the environment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from plugin_support import HARDWARE, Project, project

from wan_trt_core.measure import environment
from wan_trt_core.measure.gpus import visible_gpus

__all__ = ["project"]

RECORDED = 'facts = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "worker": os.environ["PYTEST_XDIST_WORKER"]}'


class NvmlError(Exception):
    pass


def nvml(*uuids: str) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: uuids[handle].encode(),
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ("GPU-aa", "GPU-bb", "GPU-cc")),
        ("1, 0", ("GPU-bb", "GPU-aa")),
        ("GPU-c,GPU-bb", ("GPU-cc", "GPU-bb")),
        ("0,GPU-aa,0", ("GPU-aa",)),  # one GPU by three names
        ("0,-1,1", ("GPU-aa",)),
        ("0,7,1", ("GPU-aa",)),
        ("MIG-1,MIG-2", ()),
        ("", ()),
    ],
)
def test_visible_gpus(visible: str | None, expected: tuple[str, ...]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(environ, nvml("GPU-aa", "GPU-bb", "GPU-cc")) == expected


def test_visible_gpus_without_nvml_are_those_that_are_named() -> None:
    def broken() -> None:
        raise NvmlError

    silent = SimpleNamespace(NVMLError=NvmlError, nvmlInit=broken)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,0,1"}, silent) == ("1", "0")
    assert visible_gpus({}, silent) == ()


@pytest.fixture
def gpus(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project on a machine with two GPUs, whose measurements say which one they were made on."""
    monkeypatch.setenv("WAN_TRT_DEVICE", "cuda")
    monkeypatch.setenv("WAN_TRT_CACHE", str(project.path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(environment, "hardware_key", lambda device="cpu": HARDWARE)
    monkeypatch.setattr(environment, "_device_record", lambda device: {"type": device})
    edit(project, 'facts = {"random_weights": "seeded random"} if kind == "random" else {}', RECORDED)
    return project


def edit(project: Project, old: str, new: str) -> None:
    path = project.path / "conftest.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_each_worker_has_a_gpu_of_its_own(gpus: Project) -> None:
    gpus.cases("good-one", "bad-one", "good-two", "good-three", suites=("parity", "perf"))
    result = gpus.run("-m", "perf or parity", "-n2")
    result.assert_outcomes(passed=6, failed=2)
    assert gpus.verdicts()["perf", "bad-one"] == ("fail", "interval_below_threshold")
    used = {
        (case["measurement"]["facts"]["worker"], case["measurement"]["facts"]["gpu"])
        for case in gpus.results()["cases"]
    }
    assert used == {("gw0", "GPU-a"), ("gw1", "GPU-b")}


def test_the_successor_of_a_worker_that_died_has_its_gpu(gpus: Project) -> None:
    gpus.cases("dies-one", "good-one", "good-two", suites=("perf",))
    result = gpus.run("-m", "perf", "-n2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert gpus.verdicts() == {
        ("perf", "dies-one"): ("invalid", "not_measured"),
        ("perf", "good-one"): ("pass", "interval_above_threshold"),
        ("perf", "good-two"): ("pass", "interval_above_threshold"),
    }


REFUSED = "*performance cannot be measured under pytest-xdist*unless each has a GPU of its own*-m perf -n0*"


@pytest.mark.parametrize(
    ("visible", "device", "workers", "message"),
    [
        ("GPU-a,GPU-b", "cuda", "-n3", REFUSED),
        ("GPU-a,GPU-a", "cuda", "-n2", REFUSED),
        ("MIG-a,MIG-b", "cuda", "-n2", REFUSED),
        ("GPU-a,GPU-b", "cpu", "-n2", REFUSED),
        ("GPU-a,GPU-b", "cuda", "-n1", None),
    ],
)
def test_a_usage_error_elsewhere(
    gpus: Project,
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    device: str,
    workers: str,
    message: str | None,
) -> None:
    gpus.cases("good-one", suites=("perf",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("WAN_TRT_DEVICE", device)
    result = gpus.run("-m", "perf", workers)
    assert result.ret == (pytest.ExitCode.USAGE_ERROR if message else pytest.ExitCode.OK)
    assert (gpus.path / "outputs").exists() == (message is None)
    if message:
        result.stdout.fnmatch_lines([f"ERROR: {message}"])


def test_a_gpu_that_another_run_holds(gpus: Project) -> None:
    gpus.cases("good-one", suites=("perf",))
    lock = Path(gpus.path, "cache", "locks", "gpu-b.lock")
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        result = gpus.run("-m", "perf", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [f"ERROR: another run measures performance on the GPU GPU-b (it holds {lock})*"]
    )


def test_gpus_of_two_kinds(gpus: Project) -> None:
    gpus.cases("good-one", suites=("perf",))
    edit(gpus, f'return "{HARDWARE}"', 'return os.environ["CUDA_VISIBLE_DEVICES"]')
    result = gpus.run("-m", "perf", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: the GPUs differ (GPU-?, GPU-a,GPU-b)*"])


def test_cuda_in_use_before_the_worker_has_its_gpu(gpus: Project) -> None:
    gpus.cases("good-one", suites=("perf",))
    early = """
import sys
from types import SimpleNamespace as Fake
if "PYTEST_XDIST_WORKER" in os.environ:
    properties = lambda index: Fake(uuid="of-another")
    sys.modules["torch"] = Fake(cuda=Fake(is_available=lambda: True, get_device_properties=properties))
"""
    edit(gpus, "import math, os\n", f"import math, os\n{early}")
    result = gpus.run("-m", "perf", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        ["ERROR: this worker is to use GPU-?, but something used CUDA*holds GPU-of-another"]
    )
