"""A GPU's memory without a GPU: what is taken from it shows in PyTorch's books, the driver's, or both."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

MIB = 2**20
GRANULE = 2 * MIB
TOTAL = 1 << 34


class FakeDevice:
    """As ``torch.cuda`` where memory is concerned.

    Attributes:
        others: bytes that other processes use.
        outside: bytes that this process takes past PyTorch's allocator (its CUDA context from the start).
    """

    def __init__(self, *, others: int = 0, outside: int = 500 * MIB) -> None:
        self.others, self.outside = others, outside
        self.tensors = self.cached = self.most_tensors = self.most_reserved = 0
        self.log: list[str] = []

    def take(self, size: int) -> None:
        """Allocate a tensor; cached memory is used first."""
        self.cached = max(0, self.cached - size)
        self.tensors += size
        self._note()

    def drop(self, size: int) -> None:
        """Free one: its memory stays cached."""
        self.tensors -= size
        self.cached += size

    def _note(self) -> None:
        self.most_tensors = max(self.most_tensors, self.tensors)
        self.most_reserved = max(self.most_reserved, self.memory_reserved())

    def of_process(self) -> int:
        """What the driver would tell of this process."""
        return -(-(self.outside + self.memory_reserved()) // GRANULE) * GRANULE

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def empty_cache(self) -> None:
        self.log.append("empty_cache")
        self.cached = 0

    def reset_peak_memory_stats(self) -> None:
        self.most_tensors = self.most_reserved = 0
        self._note()

    def current_device(self) -> int:
        return 0

    def memory_allocated(self, device: int | None = None) -> int:
        return self.tensors

    def memory_reserved(self, device: int | None = None) -> int:
        return self.tensors + self.cached

    def max_memory_allocated(self) -> int:
        return self.most_tensors

    def max_memory_reserved(self) -> int:
        return self.most_reserved

    def memory_stats_as_nested_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        return {
            "allocated_bytes": {"all": {"current": self.tensors, "peak": self.most_tensors}},
            "reserved_bytes": {"all": {"current": self.memory_reserved(), "peak": self.most_reserved}},
        }

    def mem_get_info(self, device: int | None = None) -> tuple[int, int]:
        return TOTAL - self.others - self.of_process(), TOTAL


class FakeNvml:
    """As ``pynvml``: a driver that tells this process apart, hides its number, or keeps everything to itself."""

    class NVMLError(Exception):
        pass

    def __init__(self, device: FakeDevice, *, pid: int | None = None, silent: bool = False) -> None:
        self.device, self.silent = device, silent
        self.pid = os.getpid() if pid is None else pid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        if self.silent:
            raise self.NVMLError("not supported")
        return [
            SimpleNamespace(pid=1, usedGpuMemory=self.device.others),
            SimpleNamespace(pid=self.pid, usedGpuMemory=self.device.of_process()),
        ]

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:
        if self.silent:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=self.device.others + self.device.of_process())
