"""What slowed the machine down while something was timed: a GPU's clocks, sampled, the counters of the CPU and of
PyTorch's allocator."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from wan_trt_core.measure.environment import (
    GPU_SLOWDOWNS,
    Device,
    clock_reasons,
    nvml_device,
    slows_down,
    throttle_counters,
)

INTERVAL = 0.2
"""Seconds between two samples. One takes some microseconds of another thread."""

THREAD = "wan-trt clocks"
"""Name of the thread that samples."""


def allocator_retries() -> int:
    """How often PyTorch found no memory on its current GPU, gave back what it kept and asked again: then it waits for
    the GPU, and TensorRT, which holds its memory outside, does not."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))


@dataclass(frozen=True)
class ClockSample:
    """A GPU at one moment; what it keeps to itself is ``None``.

    Attributes:
        sm_clock: MHz.
        temperature: degrees Celsius.
        power: watts.
        reasons: why the clock is no higher, as :func:`~wan_trt_core.measure.environment.clock_reasons` says.
    """

    sm_clock: float | None
    temperature: float | None
    power: float | None
    reasons: tuple[str, ...] | None


class ClockWatch:
    """Watches the machine while its context is entered, which may be several times.

    Args:
        device: where the timed work runs. On ``cuda`` a thread samples the GPU; on ``cpu`` nothing runs meanwhile.
        gpu: NVML and the handle of the GPU; found when needed unless given.
        counters: reads the counters that rise when the CPU is slowed down.
        retries: reads the counter that rises when PyTorch has no memory on the GPU.
        interval: seconds between two samples.
    """

    def __init__(
        self,
        device: Device,
        *,
        gpu: tuple[Any, Any] | None = None,
        counters: Callable[[], Mapping[str, int]] = throttle_counters,
        retries: Callable[[], int] = allocator_retries,
        interval: float = INTERVAL,
    ) -> None:
        self._device, self._gpu, self._counters, self._interval = device, gpu, counters, interval
        self._retries, self._retried = retries, 0
        self._samples: list[ClockSample] = []
        self._risen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before, self._retries_before = self._counters(), self._retries()
        if self._device == "cuda":
            nvml, handle = self._gpu = self._gpu or nvml_device()
            if nvml is not None:
                self._stop.clear()
                self._thread = threading.Thread(
                    target=self._sample, args=(nvml, handle), name=THREAD, daemon=True
                )
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        self._retried += self._retries() - self._retries_before
        for name, value in self._counters().items():
            if not name.startswith("GPU ") and value > self._before.get(name, 0):
                self._risen[name] += value - self._before.get(name, 0)

    def facts(self) -> dict[str, Any]:
        """Clocks (MHz), temperature (degrees Celsius), power (W), reasons by the number of samples that showed them,
        and the counters of the CPU and of PyTorch's allocator that rose."""
        facts: dict[str, Any] = {"cpu_counters": dict(self._risen)} if self._risen else {}
        if self._retried:
            facts["allocator_retries"] = self._retried
        if self._device == "cpu":
            return facts
        if not self._samples:
            return {**facts, "error": "NVML tells nothing of this GPU; pip install nvidia-ml-py"}
        clocks = [sample.sm_clock for sample in self._samples if sample.sm_clock is not None]
        return {
            **facts,
            "samples": len(self._samples),
            "sm_clock_mhz": {"min": min(clocks), "median": median(clocks), "max": max(clocks)}
            if clocks
            else None,
            "temperature_c": _most(sample.temperature for sample in self._samples),
            "power_w": _most(sample.power for sample in self._samples),
            "reasons": dict(self._reasons()),
            **({"error": "this GPU does not say why its clocks are no higher"} if self.blind else {}),
        }

    @property
    def blind(self) -> bool:
        """Whether a GPU was to be watched and did not say what slows it down: that nothing did is not known."""
        return self._device == "cuda" and all(sample.reasons is None for sample in self._samples)

    def slowdown(self) -> str:
        """What slowed down the device that was timed, for people; empty where nothing did."""
        if self._device == "cpu":
            return ", ".join(filter(slows_down, sorted(self._risen)))
        found = [
            f"{reason} in {count} of {len(self._samples)} samples"
            for reason, count in self._reasons().items()
            if reason in GPU_SLOWDOWNS
        ]
        if self._retried:
            found.append(f"PyTorch ran out of GPU memory and asked again {self._retried} times")
        return ", ".join(found)

    def _reasons(self) -> Counter[str]:
        return Counter(reason for sample in self._samples for reason in sample.reasons or ())

    def _sample(self, nvml: Any, handle: Any) -> None:
        while True:
            power = _read(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
            self._samples.append(
                ClockSample(
                    _read(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                    _read(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                    None if power is None else power / 1000,
                    clock_reasons(nvml, handle),
                )
            )
            if self._stop.wait(self._interval):
                return


def _read(nvml: Any, reading: Callable[[], float]) -> float | None:
    try:
        return reading()
    except nvml.NVMLError:  # a virtual GPU may keep some of these to itself
        return None


def _most(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)
