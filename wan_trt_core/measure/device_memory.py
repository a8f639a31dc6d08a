"""Memory of a CUDA device that a call needs and holds. Everything in bytes.

Two books that are never mixed. PyTorch's allocator knows to the byte what its tensors take (``allocated``) and what it
has taken from the driver for them (``reserved``). TensorRT's weights and contexts, CUDA graphs, kernels and the CUDA
context itself are in neither: only the driver's own book (``used``) covers everything, in pieces of 2 MiB.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_trt_core.measure.environment import nvml_device
from wan_trt_core.measure.memory import sampled
from wan_trt_core.records import Metric

SAMPLE_SECONDS = 0.005
"""Between two looks at the driver's book while a call runs; one more is taken when it ends."""


@dataclass(frozen=True)
class DevicePeak:
    """The most during one call, bytes.

    Attributes:
        allocated, reserved: by PyTorch's allocator, exact.
        used: by the driver's book, sampled.
        source: whose use that is, where it is not surely this process's alone.
    """

    allocated: int
    reserved: int
    used: int
    source: str

    def metrics(self) -> dict[str, Metric]:
        """``device_peak_allocated`` (repeats exactly), ``device_peak_reserved`` and ``device_used``."""
        return {
            "device_peak_allocated": _bytes(self.allocated, deterministic=True),
            "device_peak_reserved": _bytes(self.reserved),
            "device_used": _bytes(self.used, detail=self.source),
        }


class DeviceLost(RuntimeError):
    """The driver tells no longer what this process uses of a GPU: the GPU may be gone."""


class DeviceMemory:
    """What this process holds of one GPU.

    The driver tells processes apart unless a container or virtual machine hides their numbers. There the use of the
    whole device counts, less what was in use before.

    Args:
        cuda: ``torch.cuda``.
        nvml: ``pynvml``, and its ``handle`` of the device; without it PyTorch is asked for the use of the device.
        before: in use on the whole device before this process came, from :func:`device_in_use` in the process that
            started this one. Unless given it is read now, so that this process's CUDA context is not counted.
    """

    def __init__(self, cuda: Any, nvml: Any = None, handle: Any = None, before: int | None = None) -> None:
        self._cuda, self._nvml, self._handle = cuda, nvml, handle
        self._index = cuda.current_device()  # in a thread that samples the first GPU is the current one
        try:
            own = self._of_process()
        except DeviceLost:  # it never tells
            own = None
        self._told_apart = own is not None and own >= cuda.memory_reserved()
        self._before = device_in_use(cuda, nvml, handle) if before is None else before
        self.source = (
            ""
            if self._told_apart
            else "of the whole device less what was in use before: others on it would count"
            + ("" if before is not None else "; without this process's CUDA context")
        )

    def used(self) -> int:
        """By the driver's book, now.

        Raises:
            DeviceLost: when the driver, which told before, does not any more.
            RuntimeError: likewise, from PyTorch, which is asked where the driver does not tell processes apart.
        """
        if self._told_apart:
            own = self._of_process()
            if own is None:
                raise DeviceLost("the driver does not list this process any more")
            return own
        return max(0, device_in_use(self._cuda, self._nvml, self._handle, self._index) - self._before)

    def allocated(self) -> int:
        """By PyTorch's tensors, now."""
        return int(self._cuda.memory_allocated(self._index))

    def reserved(self) -> int:
        """By PyTorch's allocator, for tensors or none, now."""
        return int(self._cuda.memory_reserved(self._index))

    def books(self) -> tuple[int, int, int, int]:
        """PyTorch's own book from one look: allocated and reserved now, and the most of each since
        :meth:`reset_peaks`. Nothing waits for the device: memory is counted when it is asked for."""
        # memory_stats() makes a sorted list of it, which takes longer
        stats = self._cuda.memory_stats_as_nested_dict()
        found = (
            int(stats.get(f"{book}_bytes", {}).get("all", {}).get(when, 0))
            for when in ("current", "peak")
            for book in ("allocated", "reserved")
        )
        return next(found), next(found), next(found), next(found)

    def reset_peaks(self) -> None:
        """Begin the most of PyTorch's book anew."""
        self._cuda.reset_peak_memory_stats()

    def release(self) -> None:
        """Give what PyTorch's allocator only caches back to the driver."""
        gc.collect()
        self._cuda.synchronize()
        self._cuda.empty_cache()

    def peak(self, call: Callable[[], object]) -> DevicePeak:
        """Run ``call`` once; the most that was held meanwhile, what was held before included."""
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        with sampled(self.used, SAMPLE_SECONDS) as used:
            call()
            self._cuda.synchronize()
        allocated, reserved = self._cuda.max_memory_allocated(), self._cuda.max_memory_reserved()
        return DevicePeak(int(allocated), int(reserved), max(used), self.source)

    def _of_process(self) -> int | None:
        """This process's use, where the driver tells it.

        Raises:
            DeviceLost: when the driver does not answer.
        """
        if self._nvml is None:
            return None
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            raise DeviceLost(f"the driver does not answer: {type(error).__name__}: {error}") from error
        own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        return int(own[0]) if own and own[0] is not None else None


HISTORY = 200_000
"""Events of PyTorch's allocator that a snapshot keeps, the last so many; each has its stack."""


@contextmanager
def allocator_snapshot(path: Path | None, memory: Any = None) -> Iterator[None]:
    """Meanwhile PyTorch notes who allocates what on the GPU; at the end, whatever it comes to, that is in ``path``, for
    https://pytorch.org/memory_viz. It costs time at every allocation. Without a path nothing is noted.

    Args:
        memory: ``torch.cuda.memory``.
    """
    if path is None:
        yield
        return
    if memory is None:
        from torch.cuda import memory
    path.parent.mkdir(parents=True, exist_ok=True)
    memory._record_memory_history(max_entries=HISTORY)
    try:
        yield
    finally:
        memory._dump_snapshot(str(path))
        memory._record_memory_history(enabled=None)


def current_device_memory(before: int | None = None) -> DeviceMemory:
    """Of PyTorch's current device; starts CUDA in this process.

    Raises:
        RuntimeError: when there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "memory of a GPU cannot be measured: PyTorch sees no CUDA device; check nvidia-smi"
        )
    torch.zeros(1, device="cuda")  # the driver lists a process once it has a context
    nvml, handle = nvml_device()
    return DeviceMemory(torch.cuda, nvml, handle, before)


def current_device_in_use() -> int | None:
    """In use on PyTorch's current device by all processes; ``None`` where there is no CUDA device."""
    import torch

    return device_in_use(torch.cuda, *nvml_device()) if torch.cuda.is_available() else None


def device_in_use(cuda: Any, nvml: Any, handle: Any, index: int | None = None) -> int:
    """In use on the whole device, by all processes; the arguments are those of :class:`DeviceMemory`, and PyTorch's
    number of the device, the current one unless given."""
    if nvml is not None:
        try:
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        except nvml.NVMLError:
            pass  # a virtual GPU may keep it to itself; the runtime tells the same, only not without a context
    free, total = cuda.mem_get_info(index)
    return int(total - free)


def _bytes(value: int, **more: Any) -> Metric:
    return Metric(value=float(value), unit="B", better="lower", **more)
