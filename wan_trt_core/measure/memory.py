"""Memory of the host that a call needs, and whether repeating a call makes anything grow. Everything in bytes.

Numbers that are never mixed: the resident set of the process, the memory of the device (see
:mod:`wan_trt_core.measure.device_memory`), and what an engine says it holds (see
:meth:`wan_trt_core.backends.base.Engine.memory`).
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from wan_trt_core.gates.statistics import slope
from wan_trt_core.records import Metric

PROCESS = Path("/proc/self")
_RESET_PEAK = b"5"  # proc(5), /proc/pid/clear_refs: reset the peak resident set to the current one
_STATUS_BYTES = 1 << 14
"""More than ``/proc/self/status`` has."""

_BOTH_LINES = 64
"""Bytes that the high-water mark and the resident set take there, in two lines one after the other, and some."""

_SAMPLE_SECONDS = 0.001


@dataclass(frozen=True)
class Peak:
    """The resident set around one call, bytes.

    Attributes:
        before: settled, before the call.
        peak: largest during the call.
        after: settled, after it.
        method: ``kernel`` (the kernel's own high-water mark, exact) or ``sampled`` (every millisecond: a
            shorter peak is missed).
    """

    before: int
    peak: int
    after: int
    method: Literal["kernel", "sampled"]


def resident_set() -> int:
    """Bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def resident_code() -> int:
    """Of :func:`resident_set`, bytes of files: libraries, as far as they ran. 0 where the system does not tell."""
    import psutil

    return int(getattr(psutil.Process().memory_info(), "shared", 0))


def held_memory(proc: Path = PROCESS) -> int:
    """Bytes that this process holds for itself: its anonymous memory (``RssAnon``, with ``VmSwap`` what is swapped out)
    and the files that it maps, by their length. How much of those is in memory does not count: their pages come and
    go with what else the machine needs. The resident set where the system does not tell.

    Args:
        proc: the process' folder in /proc.
    """
    try:
        status, maps = (proc / "status").read_bytes(), (proc / "maps").read_text()
        return _bytes_of(status, b"\nRssAnon:") + _bytes_of(status, b"\nVmSwap:") + _mapped(maps)
    except (OSError, ValueError):
        return resident_set()


def _mapped(maps: str) -> int:
    """Bytes of address space with a file behind them, by proc(5) ``start-end perms offset dev inode path``."""
    total = 0
    for line in maps.splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = addresses.split("-")
            total += int(end, 16) - int(start, 16)
    return total


def live_tensors() -> int:
    """Bytes of all tensors of PyTorch that Python knows of, on any device, each storage once; what only libraries hold
    for themselves, as cuBLAS its workspace, is not among them."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    gc.collect()
    found: dict[tuple[str, int], int] = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):  # isinstance() would wake lazy objects
            with suppress(NotImplementedError, RuntimeError):  # some kinds have no storage
                storage = each.untyped_storage()
                found[str(storage.device), storage.data_ptr()] = storage.nbytes()
    return sum(size for (_, address), size in found.items() if address)


def settle() -> None:
    """Collect garbage and give freed pages back, so that what remains is held and not merely cached."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    trim = _malloc_trim()
    if trim:
        trim(0)


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Meanwhile a collection does not walk what is there already, everything imported, again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def peak_resident_set(call: Callable[[], object], *, proc: Path = PROCESS) -> Peak:
    """Run ``call`` once and find the largest resident set meanwhile.

    Args:
        call: what to run; its result is dropped.
        proc: the process' folder in /proc; injected so that both methods can be tested.
    """
    settle()
    before = resident_set()
    with kernel_book(proc) as book:
        if book is not None:
            call()
            _, peak = book.read()
        else:
            with sampled(resident_set, _SAMPLE_SECONDS) as samples:
                call()
            peak = max(samples)
    settle()
    return Peak(before, max(peak, before), resident_set(), "sampled" if book is None else "kernel")


def memory_by_run(
    call: Callable[[], object],
    runs: int,
    *,
    warmup: int,
    read: Mapping[str, Callable[[], int]],
    settle: Callable[[], object] = settle,
    progress: Callable[[int], object] | None = None,
) -> dict[str, tuple[int, ...]]:
    """What each of ``read`` says after each of ``runs`` calls, settled each time; ``warmup`` calls go before.

    Raises:
        ValueError: for fewer than three runs, of which no growth can be told.
    """
    if runs < 3:
        raise ValueError(f"{runs} runs: growth needs at least three")
    for _ in range(warmup):
        call()
    held: dict[str, list[int]] = {name: [] for name in read}
    with only_new_garbage():
        for run in range(runs):
            call()
            settle()
            for name, value in read.items():
                held[name].append(value())
            if progress:
                progress(run + 1)
    return {name: tuple(values) for name, values in held.items()}


def growth(held: Sequence[float]) -> float:
    """Bytes a run that ``held`` grows by, over the first half of the runs and over the second: the smaller slope.

    A leak grows in both halves. An allocator that takes one more arena makes one step, wherever it falls, and is
    flat in the other half. Each slope is the median over all pairs of runs, the estimator of Theil (1950) and Sen
    (1968), which single outliers do not move; a leak of the same size in each run comes out exactly.

    Raises:
        ValueError: for fewer than three values.
    """
    n = len(held)
    if n < 3:
        raise ValueError(f"{n} values: growth needs at least three")
    middle = n // 2
    return min(slope(held[: middle + 1]), slope(held[middle:]))


def growth_metric(held: Sequence[float], *, deterministic: bool = False) -> Metric:
    """The metric ``growth`` (bytes a run) of a series by run, which becomes its samples.

    Args:
        deterministic: ``held`` is counted to the byte, so that any growth is a leak.
    """
    samples = tuple(float(value) for value in held)
    return Metric(value=growth(held), unit="B", better="lower", deterministic=deterministic, samples=samples)


def peak_metrics(peak: Peak) -> dict[str, Metric]:
    """``resident_set_peak`` of the process, and ``resident_set_added``, what the call put on top of it."""
    detail = "" if peak.method == "kernel" else "sampled every millisecond: a shorter peak is missed"
    values = {"resident_set_peak": peak.peak, "resident_set_added": peak.peak - peak.before}
    return {
        name: Metric(value=float(value), unit="B", better="lower", detail=detail)
        for name, value in values.items()
    }


@dataclass(frozen=True)
class KernelBook:
    """The kernel's book of this process' resident set and its high-water mark, from :func:`kernel_book`. It stays open:
    at a step's end, where nothing of it is in a cache, opening it takes longer than reading.

    Attributes:
        status, clear_refs: the files of that name in the process' folder in /proc.
    """

    status: FileIO
    clear_refs: FileIO

    def look(self) -> bytes:
        """What the kernel tells, for :func:`resident_sets` to read at leisure; the high-water mark begins anew.

        Raises:
            OSError: where that is not permitted.
            ValueError: where the kernel does not tell.
        """
        text = os.pread(self.status.fileno(), _STATUS_BYTES, 0)
        os.pwrite(self.clear_refs.fileno(), _RESET_PEAK, 0)
        start = text.index(b"\nVmHWM:")
        return text[start : start + _BOTH_LINES]

    def read(self) -> tuple[int, int]:
        """As :meth:`look`, in bytes: the resident set now and its high-water mark."""
        return resident_sets(self.look())


def resident_sets(told: bytes) -> tuple[int, int]:
    """The resident set then and its high-water mark, bytes, of what :meth:`KernelBook.look` gave.

    Raises:
        ValueError: where the kernel did not tell.
    """
    return _bytes_of(told, b"\nVmRSS:"), _bytes_of(told, b"\nVmHWM:")


@contextmanager
def kernel_book(proc: Path = PROCESS) -> Iterator[KernelBook | None]:
    """The kernel's book, its high-water mark set back to the present; ``None`` where it could not be."""
    usable = None
    with ExitStack() as files:
        # not Linux, not permitted, or a sandbox that does not implement it
        with suppress(OSError, ValueError):
            status = files.enter_context(open(proc / "status", "rb", buffering=0))
            book = KernelBook(status, files.enter_context(open(proc / "clear_refs", "wb", buffering=0)))
            book.look()
            now, peak = book.read()
            usable = book if peak <= now * 1.05 else None
        yield usable


def _bytes_of(text: bytes, name: bytes) -> int:
    """Of a line ``name: 123 kB``."""
    start = text.index(name) + len(name)
    return int(text[start : text.index(b"k", start)]) * 1024


@contextmanager
def sampled(read: Callable[[], int], seconds: float) -> Iterator[list[int]]:
    """What ``read`` says now, every so many seconds meanwhile, and at the end; what it raises is raised at the end."""
    samples = [read()]
    stop, failed = threading.Event(), list[Exception]()

    def sample() -> None:
        try:
            while not stop.wait(seconds):
                samples.append(read())
        except Exception as error:  # or the samples would just end
            failed.append(error)

    thread = threading.Thread(target=sample, name="memory-sampler", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    samples.append(read())


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's, where the C library has it."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function if callable(function) else None
