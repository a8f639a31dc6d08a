"""What slowed the machine down while something was timed, with made-up NVML and counters."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from wan_trt_core.measure import clocks
from wan_trt_core.measure.clocks import THREAD, ClockWatch

POWER_CAP, HARDWARE, SOFTWARE, THERMAL, BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80


class Gpu:
    """NVML of a GPU that shows one mask after the other, and the last one ever after."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    nvmlClocksThrottleReasonSwPowerCap = POWER_CAP
    nvmlClocksThrottleReasonHwSlowdown = HARDWARE
    nvmlClocksThrottleReasonHwThermalSlowdown = THERMAL
    nvmlClocksThrottleReasonSwThermalSlowdown = SOFTWARE
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = BRAKE

    def __init__(self, *masks: int) -> None:
        self.masks = list(masks)
        self.seen = 0
        self.all_seen = threading.Event()

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        mask = self.masks[min(self.seen, len(self.masks) - 1)]
        self.seen += 1
        if self.seen >= len(self.masks):
            self.all_seen.set()
        return mask

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        return 1980 - 10 * self.seen

    def nvmlDeviceGetTemperature(self, handle: object, kind: int) -> int:
        return 60 + self.seen

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        raise self.NVMLError("not supported")


def watched(gpu: Any) -> ClockWatch:
    """A watch that has seen every mask of ``gpu``."""
    watch = ClockWatch("cuda", gpu=(gpu, object()), counters=dict, interval=0.001)
    with watch:
        assert gpu.all_seen.wait(10)
    return watch


def test_clocks_are_sampled_while_it_is_entered() -> None:
    gpu = Gpu(0, POWER_CAP, 0)
    watch = watched(gpu)
    facts = watch.facts()
    assert facts["samples"] == gpu.seen >= 3
    assert facts["sm_clock_mhz"]["max"] == 1980
    assert facts["sm_clock_mhz"]["min"] <= facts["sm_clock_mhz"]["median"] <= 1970
    assert facts["temperature_c"] >= 62
    assert facts["power_w"] is None  # this GPU keeps it to itself
    assert facts["reasons"] == {"power cap": 1}
    assert THREAD not in [thread.name for thread in threading.enumerate()]


def test_the_power_cap_is_no_slowdown() -> None:
    assert watched(Gpu(POWER_CAP, POWER_CAP)).slowdown() == ""


def test_a_slowdown_in_a_single_sample_counts() -> None:
    watch = watched(Gpu(POWER_CAP, HARDWARE | THERMAL, 0))
    total = watch.facts()["samples"]
    assert watch.slowdown() == (
        f"hardware slowdown in 1 of {total} samples, hardware thermal slowdown in 1 of {total} samples"
    )


@pytest.mark.parametrize("slowed", [HARDWARE, THERMAL, SOFTWARE, BRAKE])
def test_whatever_slows_a_gpu_down_counts(slowed: int) -> None:
    assert watched(Gpu(slowed)).slowdown()


def test_entering_again_adds_to_what_was_seen() -> None:
    gpu = Gpu(THERMAL, 0)
    watch = watched(gpu)
    before = watch.facts()["samples"]
    with watch:
        pass
    assert watch.facts()["samples"] > before
    assert "hardware thermal slowdown in 1 of" in watch.slowdown()


def test_without_nvml_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "nvml_device", lambda: (None, None))
    watch = ClockWatch("cuda", counters=dict)
    with watch:
        pass
    assert "nvidia-ml-py" in watch.facts()["error"]
    assert watch.slowdown() == ""
    assert watch.blind


def test_a_gpu_that_tells_its_clocks_and_not_their_reasons_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(0)
    assert not watched(gpu).blind

    def refused(handle: object) -> int:
        gpu.all_seen.set()
        raise gpu.NVMLError("not supported")

    monkeypatch.setattr(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons", refused)
    watch = watched(gpu)
    assert watch.blind
    assert "why its clocks are no higher" in watch.facts()["error"]
    assert watch.facts()["sm_clock_mhz"]


def counters(*readings: Mapping[str, int]) -> Any:
    left = iter(readings)
    return lambda: next(left)


def test_a_cpu_slowed_by_heat_counts_and_a_quota_is_only_noted() -> None:
    before = {"cpu0 thermal throttling": 3, "cgroup quota throttling": 5}
    quota = {**before, "cgroup quota throttling": 9}
    heat = {**quota, "cpu0 thermal throttling": 4}
    watch = ClockWatch("cpu", counters=counters(before, quota, quota, heat))
    with watch:
        pass
    assert watch.facts() == {"cpu_counters": {"cgroup quota throttling": 4}}
    assert watch.slowdown() == ""
    with watch:
        pass
    assert watch.slowdown() == "cpu0 thermal throttling"


def test_a_gpu_without_memory_for_pytorch_is_slowed_down() -> None:
    """Else the reference, whose memory PyTorch holds, would wait while the engine runs on."""
    risen = iter([5, 5, 5, 7])
    watch = ClockWatch("cuda", gpu=(Gpu(0), object()), counters=dict, retries=lambda: next(risen))
    with watch:
        pass
    assert (watch.slowdown(), "allocator_retries" in watch.facts()) == ("", False)
    with watch:
        pass
    assert watch.slowdown() == "PyTorch ran out of GPU memory and asked again 2 times"
    assert watch.facts()["allocator_retries"] == 2


def test_what_pytorch_tells_of_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clocks.allocator_retries() == 0  # of no GPU
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.memory_stats", lambda: {"num_alloc_retries": 3, "num_ooms": 0})
    assert clocks.allocator_retries() == 3


def test_a_cpu_that_is_hot_does_not_void_what_a_gpu_did() -> None:
    watch = ClockWatch(
        "cuda",
        gpu=(Gpu(0), object()),
        counters=counters({"cpu0 thermal throttling": 3}, {"cpu0 thermal throttling": 4}),
    )
    with watch:
        pass
    assert watch.slowdown() == ""
    assert watch.facts()["cpu_counters"] == {"cpu0 thermal throttling": 1}
