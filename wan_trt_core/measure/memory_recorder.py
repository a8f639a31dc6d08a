"""Recording memory events while a run goes on: cheap enough to leave on (``benchmarks/memory_events.py``)."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from wan_trt_core.measure.device_memory import DeviceMemory
from wan_trt_core.measure.memory import PROCESS, KernelBook, kernel_book, resident_set, resident_sets
from wan_trt_core.measure.memory_events import (
    Amounts,
    Event,
    Failure,
    Held,
    MemoryRecord,
    Place,
    Stage,
    label,
)

SAMPLE_SECONDS = 0.1
"""Between two looks at a book that keeps no high-water mark of its own."""

MOMENT = 0.05
"""Seconds between two stages that are counted to the later one; a longer time is an event of its own."""

_UNITS = {"": 1, "bytes": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_ASKED = re.compile(
    r"(?:tried to allocate|unable to allocate|buffer of size|requested amount(?: of GPU memory)?"
    r"|out of memory: [\w ]+ of)\W*([\d.]+) ?(bytes|[KMGT]iB|B)?",
    re.IGNORECASE,
)
"""As PyTorch (CUDA and CPU), NumPy, ONNX Runtime, TensorRT and this package's engines tell what they could not get."""

_FREE = re.compile(r"of which ([\d.]+) ([KMGT]iB) is free|([\d.]+) of [\d.]+ (GiB) are free")
"""As PyTorch and this package's engines tell what was free of a GPU."""

_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|not enough memory|failed to allocate|alloc_failed", re.IGNORECASE
)

_OF_DEVICE = "allocated", "reserved", "device_used"

Look = tuple[bytes | tuple[int, int], tuple[int, ...], tuple[int, ...]]
"""What the books told at one look, as they told it: every step ends with one, so that :func:`amounts` makes sense of it
only when the file is written. Of the resident set what :func:`resident_sets` reads, or bytes now and the most since the
look before; of the device bytes allocated, reserved and used now, and the most of each, empty where none is watched."""

Holdings = tuple[Held, Mapping[str, int]]
"""Bytes by place and owner, and how many CUDA graphs each engine holds, by its name."""

Told = Callable[[], Holdings]
"""Tells at leisure what was held when it was made."""


def amounts(look: Look) -> tuple[Amounts, Amounts]:
    """What was held at a look, and the most since the one before."""
    host, *device = look
    resident = resident_sets(host) if isinstance(host, bytes) else host
    now, peak = (
        Amounts(resident_set=size, **dict(zip(_OF_DEVICE, sizes, strict=False)))
        for size, sizes in zip(resident, device, strict=True)
    )
    return now, peak


class Meter:
    """All books of this process, and the most in each since the last look.

    Exact where a book keeps a high-water mark: PyTorch's does, and the kernel's of the resident set. A thread samples
    the others every :data:`SAMPLE_SECONDS`: the driver's book, and the resident set where the kernel's mark cannot be
    set back.

    Args:
        device: watched as well.
        proc: the process' folder in /proc; injected so that both methods can be tested.

    Attributes:
        lost: why the driver did not tell when it was asked last: what it told before stands. Empty where it did.
    """

    def __init__(self, device: DeviceMemory | None = None, proc: Path = PROCESS) -> None:
        self._device, self._proc = device, proc
        self._opened = ExitStack()
        self._book: KernelBook | None = None
        self._lock = threading.Lock()  # a sample that was begun before a look must not count after it
        self._used = self._resident = 0
        self._sampled: int | None = None  # what the driver told last
        self.lost = ""
        self._reserved = -1  # what PyTorch had reserved when a look asked it
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def methods(self) -> dict[str, str]:
        """How the books are read, where that limits what they tell."""
        sampled = f"peaks sampled every {SAMPLE_SECONDS * 1e3:g} ms: a shorter one is missed"
        found = {} if self._book is not None else {"resident_set": sampled}
        if self._device is not None:
            found["device_used"] = "; ".join(filter(None, (sampled, self._device.source)))
        return found

    def __enter__(self) -> Meter:
        with ExitStack() as opened:
            self._book = opened.enter_context(kernel_book(self._proc))
            self.look()
            self._opened = opened.pop_all()
        if self._device is not None or self._book is None:
            self._thread = threading.Thread(target=self._sample, name="memory-sampler", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._opened.close()

    def look(self, *, step: bool = False) -> Look:
        """What is held now, and the most since the last look.

        Args:
            step: another step of the same stage begins. The driver is then not asked, which takes as long as all else,
                unless PyTorch reserves more or less than it did, or did meanwhile: its last sample stands.
        """
        host = self._book.look() if self._book is not None else self._sampled_host()
        if self._device is None:
            return host, (), ()
        with self._lock:
            allocated, reserved, most_allocated, most_reserved = self._device.books()
            if not step or {reserved, most_reserved} != {self._reserved}:
                self._ask(self._device)
                self._reserved = reserved
            used = self._sampled or 0
            most, self._used = max(self._used, used), 0
            self._device.reset_peaks()
        return host, (allocated, reserved, used), (most_allocated, most_reserved, most)

    def _sampled_host(self) -> tuple[int, int]:
        with self._lock:
            now = resident_set()
            peak, self._resident = max(self._resident, now), 0
        return now, peak

    def _ask(self, device: DeviceMemory) -> None:
        """Ask the driver. A device that vanishes ends neither the recording nor, by that, the run."""
        try:
            self._sampled, self.lost = device.used(), ""
        except Exception as error:
            if self._sampled is None:
                raise
            self.lost = f"{type(error).__name__}: {error}"

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            with self._lock:
                if self._book is None:
                    self._resident = max(self._resident, resident_set())
                if self._device is not None:
                    self._ask(self._device)
                    self._used = max(self._used, self._sampled or 0)


_Named = tuple[Stage, str, int | None]
_Moment = tuple[float, Look]
"""By the recorder's clock."""

_Note = tuple[_Named, _Moment, _Moment, tuple[Told, ...], str]
"""What is noted when a stage ends, as it is: which, from when to when, who holds what at its end and at moments before,
and why the driver did not tell. An event is made of it when the file is written. Plain tuples: at a step's end, where
nothing is in a cache, a class of its own takes some 5 us more."""


class MemoryRecorder:
    """Takes the events of one run, stage after stage, and writes them.

    The file is there from the beginning, as that of a run that was cut short, and is written again whenever another
    kind of stage begins, when something fails and at the end: a process that the system kills leaves what it had.

    Args:
        path: of the file; its folder is made.
        run: what runs, for the file.
        clock: seconds; injected so that times can be tested.
    """

    def __init__(
        self,
        path: Path,
        meter: Meter,
        *,
        hardware_key: str,
        run: Mapping[str, Any],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.path, self._meter, self._clock = path, meter, clock
        self._facts: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": (Path(sys.argv[0]).name, *sys.argv[1:]),
            "hardware_key": hardware_key,
            "run": dict(run),
        }
        self._began = clock()
        self._notes: list[_Note] = []
        self._ask: Callable[[], Told] = lambda: _nobody
        self._precisions: dict[str, str] = {}
        self._open: _Named | None = None  # since the last moment
        self._midway: list[Told] = []
        self._last: _Moment = self._began, ((0, 0), (), ())
        self._failure: Failure | None = None
        self._failing = self._done = False

    def __enter__(self) -> MemoryRecorder:
        with ExitStack() as failed:
            failed.enter_context(self._meter)
            self._last = self._clock(), self._meter.look()
            self._save(self._cut_short(""))
            failed.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.fail(error)
            self.end()
            self._between()
            self._save(self._failure)
        finally:
            self._done = True
            self._meter.__exit__(kind, error, where)

    def own(self, ask: Callable[[], Told]) -> None:
        """Know who owns memory: ``ask`` notes at the end of every stage what is held, which must be quick, and what it
        gives tells of it when the file is written."""
        self._ask = ask

    def note(self) -> None:
        """Note who holds what in the middle of a stage, for what is gone at its end: the most of each owner counts."""
        if self._open is not None:
            self._midway.append(self._ask())

    def precise(self, precisions: Mapping[str, str]) -> None:
        """Note the precision of weights, by the names of their owners."""
        self._precisions.update(precisions)

    def begin(self, stage: Stage, name: str = "", index: int | None = None) -> None:
        """Begin a stage where the last one ended: one that is open ends with the same look at the books."""
        if self._open is not None:
            self.end(step=self._open[0] == stage)
        else:
            self._between()
        if not self._notes or self._notes[-1][0][0] != stage:
            self._save(self._cut_short(label(stage, name, index)))
        self._open = stage, name, index

    def end(self, *, step: bool = False) -> None:
        """End the open stage, if there is one; with ``step`` the next one is of the same kind."""
        if self._open is None:
            return
        began = self._last
        try:
            look = self._meter.look(step=step)
        except Exception:
            if not self._failing:
                raise
            look = _again(began[1])  # the device may be gone, but the error that ended the run matters more
        self._last = self._clock(), look
        told = (self._ask(), *self._midway)
        self._notes.append((self._open, began, self._last, told, self._meter.lost))
        self._open, self._midway = None, []

    @contextmanager
    def stage(self, stage: Stage, name: str = "") -> Iterator[None]:
        """A stage for the length of a block. Within another it is part of that one, and after the recording none."""
        if self._open is not None or self._done:
            yield
            return
        self.begin(stage, name)
        with self.ending():
            yield

    @contextmanager
    def interrupting(self, stage: Stage, name: str = "") -> Iterator[None]:
        """A stage for the length of a block, also within another: that one goes on afterwards, with an event more if it
        had run for longer than a moment. After the recording none."""
        if self._done:
            yield
            return
        waiting = self._open
        if waiting is not None and self._clock() - self._last[0] < MOMENT:
            self._open = None  # what it did so far is counted to the stage that begins
        self.begin(stage, name)
        with self.ending():
            yield
        if waiting is not None:
            self.begin(*waiting)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """What is open at the end of a block ends with it, or fails with what ended the block."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise
        self.end()

    def fail(self, error: BaseException) -> None:
        """End the open stage with what ended it: the first failure counts, later ones follow from it."""
        if self._failing:
            return
        stage = label(*self._open) if self._open else ""
        self._failing = True
        self.end()
        # what was noted in the stage lives on in the error's frames
        held, _ = _most(self._notes[-1][3] if stage else (self._ask(),))
        self._between()
        message = f"{type(error).__name__}: {error}".strip(": ")
        asked = bytes_asked(message)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            kind = "interrupted"
        else:
            kind = "out_of_memory" if out_of_memory(error) else "failed"
        facts = {"message": message, "asked": asked, "amounts": amounts(self._last[1])[0], "held": held}
        self._failure = Failure.model_validate({"kind": kind, "stage": stage, **facts})
        self._save(self._failure)

    def _between(self) -> None:
        """What ran since the last stage is an event too, unless that was a moment ago."""
        if self._clock() - self._last[0] >= MOMENT:
            self._open = "other", "", None
            self.end()

    def _cut_short(self, stage: str) -> Failure:
        message = (
            "the process was gone before it wrote more: it was killed, as the system does when memory is out"
        )
        now, _ = amounts(self._last[1])
        held, _ = _most((self._ask(),))
        return Failure(kind="cut_short", stage=stage, message=message, amounts=now, held=held)

    def _save(self, failure: Failure | None) -> None:
        events = tuple(_event(note, self._began) for note in self._notes)
        methods = self._meter.methods
        if lost := [event for event in events if event.lost]:
            methods["device_used"] += (
                f"; what was told last stands for {len(lost)} of the stages, from {lost[0].label} on: {lost[0].lost}"
            )
        known = {**self._facts, "methods": methods, "precisions": self._precisions}
        MemoryRecord(**known, events=events, failure=failure).write(self.path)


def _again(look: Look) -> Look:
    """Another at which nothing had changed."""
    now, device = amounts(look)[0].resident_set, look[1]
    return (now, now), device, device


def _event(note: _Note, began: float) -> Event:
    (stage, name, index), (start, first), (end, last), told, lost = note
    (before, _), (after, peak) = amounts(first), amounts(last)
    held, graphs = _most(told)
    return Event(
        stage=stage,
        name=name,
        index=index,
        start=round(start - began, 6),
        end=round(end - began, 6),
        before=before,
        peak=peak.most(before).most(after),
        after=after,
        held=held,
        graphs=graphs,
        lost=lost,
    )


def _most(told: Iterable[Told]) -> Holdings:
    """The most of each owner, and the graphs that were held last; without those who hold nothing."""
    together: dict[Place, dict[str, int]] = {}
    last, *others = (tell() for tell in told)
    for held, _ in (last, *others):
        for place, owners in held.items():
            most = together.setdefault(place, {})
            for name, size in owners.items():
                if size:
                    most[name] = max(most.get(name, 0), size)
    return together, {name: count for name, count in last[1].items() if count}


def _nobody() -> Holdings:
    return {}, {}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, of the host or of a device."""
    message = str(error)
    told = bytes_asked(message) is not None or _OUT_OF_MEMORY.search(message) is not None
    return isinstance(error, MemoryError) or told


def bytes_asked(message: str) -> int | None:
    """The bytes that an error says could not be had; ``None`` if it does not say."""
    found = _ASKED.search(message)
    return _bytes(found[1], found[2]) if found else None


def bytes_free(message: str) -> int | None:
    """The bytes that an error says were free of a GPU; ``None`` if it does not say."""
    found = _FREE.search(message)
    return _bytes(found[1] or found[3], found[2] or found[4]) if found else None


def _bytes(number: str, unit: str | None) -> int:
    return round(float(number.rstrip(".")) * _UNITS[(unit or "").lower()])
