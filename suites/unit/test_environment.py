"""The hardware key, the state of the sources and throttling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import typer
from repositories import committed

from wan_trt_core import baseline_update
from wan_trt_core.backends.tensorrt import api, backend
from wan_trt_core.backends.torch import TorchBackend
from wan_trt_core.cli import baselines
from wan_trt_core.config import OUTPUTS, Settings
from wan_trt_core.measure import environment
from wan_trt_core.measure.environment import (
    cpu_count,
    cpu_name,
    environment_record,
    free_memory_bytes,
    hardware_key,
    hardware_key_of,
    measured_source,
    memory_bytes,
    slug,
    source_state,
    throttle_counters,
    throttled,
)
from wan_trt_core.pytest_plugin import measuring


def machine(root: Path, **files: str) -> Path:
    """A file system of another machine: paths with ``__`` for ``/``."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_key_of_this_machine_is_a_word_and_stable() -> None:
    key = hardware_key("cpu")
    assert key == hardware_key("cpu") == slug(key)
    assert key.startswith("cpu-")
    assert f"-{cpu_count()}c-" in key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu Intel(R) Xeon(R) Platinum 8488C 2c 23gib", "cpu-intel-xeon-platinum-8488c-2c-23gib"),
        ("cuda NVIDIA H200 132sm 139gib", "cuda-nvidia-h200-132sm-139gib"),
        ("cpu AMD EPYC 7B13 64-Core Processor 8c 31gib", "cpu-amd-epyc-7b13-64-core-8c-31gib"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz 8c", "intel-core-i7-8650u-8c"),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_cpu_name_comes_from_the_kernel(tmp_path: Path) -> None:
    root = machine(tmp_path, proc__cpuinfo="processor : 0\nmodel name\t: AMD EPYC 7B13\nstepping : 1\n")
    assert cpu_name(root) == "AMD EPYC 7B13"


def test_nameless_virtual_cpu_is_told_by_family_model_and_stepping(tmp_path: Path) -> None:
    info = "cpu family : 6\nmodel : {}\nmodel name : Intel(R) Xeon(R) Processor\nstepping : 2\n"
    one = cpu_name(machine(tmp_path / "a", proc__cpuinfo=info.format(207)))
    other = cpu_name(machine(tmp_path / "b", proc__cpuinfo=info.format(143)))
    assert one != other
    assert slug(one) == "intel-xeon-6-207-2"


def test_cores_are_those_that_the_quota_leaves(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cpu_count(tmp_path) == affinity
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    quota.parent.mkdir(parents=True)
    for text, cores in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", affinity)):
        quota.write_text(text + "\n")
        assert cpu_count(tmp_path) == cores


def test_memory_is_that_of_the_cgroup_where_it_is_less(tmp_path: Path) -> None:
    path = tmp_path / "sys/fs/cgroup/memory.max"
    path.parent.mkdir(parents=True)
    path.write_text(f"{2**29}\n")
    assert memory_bytes(tmp_path) == 2**29
    path.write_text("max\n")
    assert memory_bytes(tmp_path) > 2**29


def test_what_is_free_is_what_the_cgroup_leaves(tmp_path: Path) -> None:
    everywhere = free_memory_bytes(tmp_path)
    assert 0 < everywhere < memory_bytes(tmp_path)
    limit = tmp_path / "sys/fs/cgroup/memory.max"
    limit.parent.mkdir(parents=True)
    own = psutil.Process().memory_info().rss
    limit.write_text(f"{own + 2**26}\n")
    assert abs(free_memory_bytes(tmp_path) - 2**26) < 2**25
    limit.write_text(f"{2**20}\n")
    assert free_memory_bytes(tmp_path) == 0


def test_cuda_key_without_a_device_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        assert hardware_key("cuda").startswith("cuda-")
    else:
        with pytest.raises(RuntimeError, match="no CUDA device"):
            hardware_key("cuda")


ASKED: dict[str, Callable[[], object]] = {
    "the suites": lambda: measuring.hardware_key(Settings(), "tensorrt"),
    "baselines regenerate": lambda: baseline_update._hardware("tensorrt"),
    "baselines show --hardware this": lambda: baselines._this_hardware(Settings(backend="tensorrt")),
}
"""What ends before its first case where there is no GPU."""


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("installed", [True, False])
def test_what_a_backend_needs_is_said_before_that_there_is_no_gpu(
    installed: bool, asked: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    if installed:
        monkeypatch.setattr(backend, "tensorrt", object)
    api.tensorrt.cache_clear()
    needs = "needs an NVIDIA GPU" if installed else r'pip install "wan-trt-core\[gpu,tensorrt\]"'
    with pytest.raises((RuntimeError, typer.BadParameter), match=rf"{needs}.*; no CUDA device is visible"):
        asked()


def test_a_backend_that_lacks_nothing_leaves_the_device_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(TorchBackend, "require", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"^no CUDA device is visible"):
        hardware_key_of(Settings(backend="torch", device="cuda"))


def test_record_is_json_and_holds_what_numbers_depend_on() -> None:
    record = environment_record("cpu", throttle_before=throttle_counters())
    assert json.loads(json.dumps(record)) == record
    assert record["packages"]["torch"] == metadata.version("torch")
    assert {"hardware_key", "os", "python", "cpu", "source", "throttled"} <= set(record)


def test_cpu_key_and_versions_do_not_import_torch() -> None:
    code = (
        "import sys; from wan_trt_core.measure.environment import environment_record; "
        "environment_record('cpu'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("a")
    committed(tmp_path)
    return tmp_path


def test_clean_and_dirty_tree(repository: Path) -> None:
    clean = source_state(repository)
    assert clean.commit is not None and len(clean.commit) == 40
    assert (clean.dirty, clean.changed) == (False, ())
    (repository / "a.txt").write_text("b")
    (repository / "new file.txt").write_text("n")
    assert source_state(repository).changed == ("a.txt", "new file.txt")
    assert source_state(repository).dirty is True


def test_renamed_file_counts_with_both_names(repository: Path) -> None:
    subprocess.run(["git", "-C", str(repository), "mv", "a.txt", "b.txt"], check=True)
    assert source_state(repository).changed == ("a.txt", "b.txt")


def test_what_runs_write_is_no_change_of_what_they_measure(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = repository / "wan"
    for name in ("outputs/report/parity/results.json", "out/perf/results.json", "cases.yaml", "outputs.py"):
        machine(inside, **{name: ""})
    assert Settings().report.is_relative_to(OUTPUTS)
    monkeypatch.chdir(inside)
    mine = ("wan/cases.yaml", "wan/outputs.py")
    assert measured_source(Path("out/perf")).changed == mine
    for report in (None, Path("elsewhere"), Path(), Path(".."), repository.parent):
        # a folder that the sources are in too is not left out
        assert measured_source(report).changed == ("wan/cases.yaml", "wan/out/perf/results.json", mine[1])
    for name in ("cases.yaml", "outputs.py"):
        (inside / name).unlink()
    source = measured_source(inside / "out")
    assert (source.dirty, source.changed) == (False, ())
    monkeypatch.chdir(repository.parent)
    assert measured_source(Path("out")).dirty is None, "no git there, nor a state"


def test_without_git_the_commit_is_unknown(tmp_path: Path) -> None:
    state = source_state(tmp_path)
    assert (state.commit, state.dirty) == (None, None)


def test_without_a_commit_git_is_there_all_the_same(tmp_path: Path) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init"], check=True, capture_output=True)
    state = source_state(tmp_path)
    assert (state.commit, state.dirty) == (None, True)


def test_throttling_is_a_counter_that_rose() -> None:
    before = {"cpu0 thermal throttling": 5, "cgroup quota throttling": 2}
    assert throttled(before, before) == ""
    assert throttled(before, {**before, "cpu0 thermal throttling": 6}) == "cpu0 thermal throttling"


def test_a_quota_is_no_slowdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds all the time, builds included; it is counted for who reads a record."""
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    heat = "sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count"
    quota = "sys__fs__cgroup__cpu.stat"
    machine(tmp_path, **{heat: "5\n", quota: "nr_periods 90\nnr_throttled 2\n"})
    before = throttle_counters()
    assert before == {"cpu0 thermal throttling": 5, "cgroup quota throttling": 2}
    machine(tmp_path, **{quota: "nr_periods 99\nnr_throttled 7\n"})
    assert throttled(before, throttle_counters()) == ""
    machine(tmp_path, **{heat: "6\n"})
    assert throttled(before, throttle_counters()) == "cpu0 thermal throttling"


class FakeNvml:
    """NVML of a GPU that is slowed down by heat and by its power cap, and keeps its temperature to itself."""

    NVMLError = RuntimeError
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    NVML_CLOCK_SM = 1

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return 0x20 | 0x4

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetUUID(self, handle: object) -> str:
        raise self.NVMLError("not supported")


@pytest.mark.parametrize("known", ["GPU", "MIG"])
def test_a_gpu_and_a_slice_of_one_are_found_by_pytorch_s_uuid(
    known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()

    def handle(uuid: bytes) -> str:
        if uuid != f"{known}-12-34".encode():
            raise nvml.NVMLError("not found")
        return "handle"

    monkeypatch.setattr(nvml, "nvmlInit", lambda: None, raising=False)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", handle, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid="12-34"))
    assert environment.nvml_device() == (nvml, "handle")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid="56"))
    assert environment.nvml_device() == (None, None)


def test_gpu_slowed_by_heat_is_seen_and_its_power_cap_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "nvml_device", lambda: (FakeNvml(), object()))
    assert [name for name in throttle_counters() if "GPU" in name] == ["GPU software thermal slowdown"]


def test_gpu_that_keeps_its_state_to_itself_is_recorded_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "nvml_device", lambda: (FakeNvml(), object()))
    assert environment._nvml_record() == {"nvml_error": "not supported"}


def test_a_slowed_gpu_counts_at_either_end() -> None:
    slowed = {"GPU hardware slowdown": 1}
    assert (
        throttled(slowed, {}) == throttled({}, slowed) == throttled(slowed, slowed) == "GPU hardware slowdown"
    )
