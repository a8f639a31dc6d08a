"""What a process holds of a GPU, on a GPU that is made up."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_device import MIB, TOTAL, FakeDevice, FakeNvml

from wan_trt_core.measure import device_memory
from wan_trt_core.measure.device_memory import (
    HISTORY,
    DeviceLost,
    DeviceMemory,
    allocator_snapshot,
    current_device_in_use,
    current_device_memory,
    device_in_use,
)

HIDDEN = 2**22 + 1
"""A process number that is not this one's: as a container sees it."""


def call_of(device: FakeDevice, *, tensors: int = 0, outside: int = 0) -> None:
    """Take memory in PyTorch for a while, and past it for good."""
    device.take(tensors)
    device.outside += outside
    device.drop(tensors)


def test_peak_of_both_books() -> None:
    device = FakeDevice(others=3000 * MIB)
    memory = DeviceMemory(device, FakeNvml(device), object())
    device.take(10 * MIB)
    call_of(device, tensors=900 * MIB)
    memory.release()  # what an earlier call reached is no peak of this one
    peak = memory.peak(lambda: call_of(device, tensors=100 * MIB, outside=40 * MIB))
    assert (peak.allocated, peak.reserved) == (110 * MIB, 110 * MIB)
    assert peak.used == (500 + 40 + 110) * MIB
    assert peak.source == ""
    metrics = peak.metrics()
    assert {name: metric.value for name, metric in metrics.items()} == {
        "device_peak_allocated": 110.0 * MIB,
        "device_peak_reserved": 110.0 * MIB,
        "device_used": 650.0 * MIB,
    }
    assert {metric.unit for metric in metrics.values()} == {"B"}
    assert [name for name, metric in metrics.items() if metric.deterministic] == ["device_peak_allocated"]


def test_use_that_ends_before_the_call_does_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT takes and gives back within a call is in no counter."""
    monkeypatch.setattr(device_memory, "SAMPLE_SECONDS", 0.001)
    device, seen = FakeDevice(), threading.Event()
    nvml = FakeNvml(device)
    memory = DeviceMemory(device, nvml, object())
    read = nvml.nvmlDeviceGetComputeRunningProcesses

    def noted(handle: object) -> list[object]:
        rows = read(handle)
        if device.outside > 4000 * MIB:
            seen.set()
        return rows

    nvml.nvmlDeviceGetComputeRunningProcesses = noted  # type: ignore[method-assign]

    def call() -> None:
        device.outside += 4000 * MIB
        assert seen.wait(10)
        device.outside -= 4000 * MIB

    assert memory.peak(call).used == 4500 * MIB


@pytest.mark.parametrize("nvml_is", ["hides the process", "silent", "not there"])
def test_where_processes_are_not_told_apart_the_device_counts_less_what_was_in_use(nvml_is: str) -> None:
    device = FakeDevice(others=3000 * MIB, outside=0)
    nvml = None if nvml_is == "not there" else FakeNvml(device, pid=HIDDEN, silent=nvml_is == "silent")
    before = device_in_use(
        device, nvml, object()
    )  # as another process reads it, before this one has a context
    device.outside = 500 * MIB
    memory = DeviceMemory(device, nvml, object(), before)
    peak = memory.peak(lambda: call_of(device, tensors=100 * MIB, outside=40 * MIB))
    assert peak.used == 640 * MIB
    assert "whole device" in peak.metrics()["device_used"].detail
    assert "context" not in peak.source
    late = DeviceMemory(device, nvml, object())
    assert late.used() == 0 and "without this process's CUDA context" in late.source


def test_another_process_of_the_same_number_is_not_taken_for_this_one() -> None:
    """In a container number 57 may be someone else's outside: it cannot hold less than PyTorch has reserved here."""
    device = FakeDevice()
    nvml = FakeNvml(device)
    device.take(2 * MIB)
    device.of_process = lambda: MIB  # type: ignore[method-assign]
    assert "whole device" in DeviceMemory(device, nvml, object()).source


@pytest.mark.parametrize("goes", ["silent", "not listed"])
def test_a_gpu_that_is_lost_does_not_read_as_empty(goes: str) -> None:
    device = FakeDevice()
    nvml = FakeNvml(device)
    memory = DeviceMemory(device, nvml, object())
    assert memory.used() == 500 * MIB
    nvml.silent, nvml.pid = goes == "silent", HIDDEN
    told = {"silent": "does not answer: NVMLError: not supported", "not listed": "does not list this process"}
    with pytest.raises(DeviceLost, match=told[goes]):
        memory.used()
    with pytest.raises(DeviceLost):
        memory.peak(lambda: None)


def test_a_gpu_that_is_lost_during_a_call_and_comes_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that just ended would make a smaller peak."""
    monkeypatch.setattr(device_memory, "SAMPLE_SECONDS", 0.001)
    device, asked = FakeDevice(), threading.Event()
    nvml = FakeNvml(device)
    memory = DeviceMemory(device, nvml, object())

    def used() -> int:
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            raise DeviceLost("gone")
        return 0

    monkeypatch.setattr(memory, "used", used)
    with pytest.raises(DeviceLost, match="gone"):
        memory.peak(lambda: asked.wait(10))


class SecondDevice(FakeDevice):
    """The second GPU, current in the main thread alone: every other begins with the first, which is empty."""

    def current_device(self) -> int:
        return int(threading.current_thread() is threading.main_thread())

    def mem_get_info(self, device: int | None = None) -> tuple[int, int]:
        here = self.current_device() if device is None else device
        return super().mem_get_info() if here == 1 else (TOTAL, TOTAL)

    def memory_allocated(self, device: int | None = None) -> int:
        return self.tensors if (self.current_device() if device is None else device) == 1 else 0


def test_a_thread_that_samples_reads_the_gpu_that_is_current_here() -> None:
    device, found = SecondDevice(outside=0), list[int]()
    memory = DeviceMemory(device)
    device.take(100 * MIB)
    thread = threading.Thread(target=lambda: found.extend((memory.used(), memory.allocated())))
    thread.start()
    thread.join()
    assert found == [100 * MIB, 100 * MIB]


def test_without_a_gpu() -> None:
    if torch.cuda.is_available():
        memory = current_device_memory(current_device_in_use())
        held = memory.peak(lambda: torch.empty(64 * MIB, device="cuda"))
        assert held.allocated >= 256 * MIB and held.used >= 256 * MIB
    else:
        assert current_device_in_use() is None
        with pytest.raises(RuntimeError, match="no CUDA device"):
            current_device_memory()


@pytest.mark.parametrize("fails", [False, True])
def test_a_snapshot_is_written_whatever_it_comes_to(fails: bool, tmp_path: Path) -> None:
    calls: list[Any] = []
    memory = SimpleNamespace(
        _record_memory_history=lambda *_, **given: calls.append(given),
        _dump_snapshot=lambda path: calls.append(path),
    )
    path = tmp_path / "new" / "snapshot.pickle"
    with suppress(MemoryError), allocator_snapshot(path, memory):
        assert calls == [{"max_entries": HISTORY}] and path.parent.is_dir()
        if fails:
            raise MemoryError
    assert calls[1:] == [str(path), {"enabled": None}]
    with allocator_snapshot(None, memory):
        assert len(calls) == 3
