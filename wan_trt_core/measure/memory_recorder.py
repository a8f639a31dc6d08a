"""Recording memory events while a run goes on: cheap enough to leave on (``benchmarks/memory_events.py``)."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from wan_trt_core.measure.device_memory import DeviceMemory
from wan_trt_core.measure.memory import PROCESS, KernelBook, kernel_book, resident_set
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


class Books(NamedTuple):
    """Bytes in every book, as noted at a stage's end: :class:`Amounts` are made of it when the file is written."""

    resident_set: int
    allocated: int | None = None
    reserved: int | None = None
    device_used: int | None = None

    def amounts(self) -> Amounts:
        return Amounts(**self._asdict())


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

    def look(self, *, step: bool = False) -> tuple[Books, Books]:
        """What is held now, and the most since the last look.

        Args:
            step: another step of the same stage begins. The driver is then not asked, which takes as long as all else,
                unless PyTorch reserves more or less than it did, or did meanwhile: its last sample stands.
        """
        with self._lock:
            if self._book is not None:
                now, peak = self._book.read()
                self._book.clear()
            else:
                now = resident_set()
                peak, self._resident = max(self._resident, now), 0
            if self._device is None:
                return Books(now), Books(peak)
            allocated, reserved, most_allocated, most_reserved = self._device.books()
            if not step or {reserved, most_reserved} != {self._reserved}:
                self._ask(self._device)
                self._reserved = reserved
            used = self._sampled or 0
            most, self._used = max(self._used, used), 0
            self._device.reset_peaks()
        return (
            Books(now, allocated, reserved, used),
            Books(peak, most_allocated, most_reserved, most),
        )

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


class _Taken(NamedTuple):
    """What is noted between two stages, as it is: an :class:`Event` is made of it when the file is written."""

    stage: Stage
    name: str
    number: int | None
    start: float
    end: float
    before: Books
    peak: Books
    after: Books
    held: Held
    graphs: Mapping[str, int]
    lost: str

    def event(self) -> Event:
        before, peak, after = (books.amounts() for books in (self.before, self.peak, self.after))
        return Event(
            stage=self.stage,
            name=self.name,
            index=self.number,
            start=round(self.start, 6),
            end=round(self.end, 6),
            before=before,
            peak=peak.most(before).most(after),
            after=after,
            held=self.held,
            graphs=self.graphs,
            lost=self.lost,
        )


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
        self._taken: list[_Taken] = []
        self._owners: list[Callable[[], Held]] = []
        self._engines: list[Callable[[], Mapping[str, int]]] = []
        self._precisions: dict[str, str] = {}
        self._open: tuple[Stage, str, int | None, float, Books] | None = None
        self._noted: list[Held] = []
        self._last = 0.0, Books(0)
        self._failure: Failure | None = None
        self._failing = self._done = False

    def __enter__(self) -> MemoryRecorder:
        with ExitStack() as failed:
            failed.enter_context(self._meter)
            now, _ = self._meter.look()
            self._last = self._now(), now
            self._save(self._cut_short("", now))
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

    def own(self, held: Callable[[], Held]) -> None:
        """Know owners: ``held`` is asked at the end of every stage and must be quick."""
        self._owners.append(held)

    def count(self, graphs: Callable[[], Mapping[str, int]]) -> None:
        """Know engines: ``graphs`` tells of each, by its name, how many CUDA graphs it holds, as quickly."""
        self._engines.append(graphs)

    def note(self) -> None:
        """Note who holds what in the middle of a stage, for what is gone at its end: the most of each owner counts."""
        if self._open is not None:
            self._noted.append(self._held())

    def precise(self, precisions: Mapping[str, str]) -> None:
        """Note the precision of weights, by the names of their owners."""
        self._precisions.update(precisions)

    def begin(self, stage: Stage, name: str = "", index: int | None = None) -> None:
        """Begin a stage where the last one ended: one that is open ends with the same look at the books."""
        if self._open is not None:
            self.end(step=self._open[0] == stage)
        else:
            self._between()
        start, before = self._last
        if not self._taken or self._taken[-1].stage != stage:
            self._save(self._cut_short(label(stage, name, index), before))
        self._open = stage, name, index, start, before

    def end(self, *, step: bool = False) -> None:
        """End the open stage, if there is one; with ``step`` the next one is of the same kind."""
        if self._open is not None:
            self._close(*self._look(step=step))

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
        if waiting is not None and self._now() - self._last[0] < MOMENT:
            self._open = None  # what it did so far is counted to the stage that begins
        self.begin(stage, name)
        with self.ending():
            yield
        if waiting is not None:
            self.begin(*waiting[:3])

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
        stage = label(*self._open[:3]) if self._open else ""
        self._failing = True
        self.end()
        # what was noted in the stage lives on in the error's frames
        held = self._taken[-1].held if stage else self._held()
        self._between()
        message = f"{type(error).__name__}: {error}".strip(": ")
        asked = bytes_asked(message)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            kind = "interrupted"
        else:
            kind = "out_of_memory" if out_of_memory(error) else "failed"
        facts = {"message": message, "asked": asked, "amounts": self._last[1].amounts(), "held": held}
        self._failure = Failure.model_validate({"kind": kind, "stage": stage, **facts})
        self._save(self._failure)

    def _between(self) -> None:
        """What ran since the last stage is an event too, unless that was a moment ago."""
        if self._now() - self._last[0] >= MOMENT:
            self._open = "other", "", None, *self._last
            self._close(*self._look())

    def _look(self, *, step: bool = False) -> tuple[Books, Books]:
        try:
            return self._meter.look(step=step)
        except Exception:
            if not self._failing:
                raise
            # the device may be gone, but the error that ended the run matters more
            return self._last[1], self._last[1]

    def _close(self, now: Books, peak: Books) -> None:
        if self._open is None:
            return
        stage, name, index, start, before = self._open
        self._open, self._last = None, (self._now(), now)
        held = self._held()
        if self._noted:
            held = _most(held, *self._noted)
            self._noted.clear()
        graphs = {name: count for told in self._engines for name, count in told().items() if count}
        end, lost = self._last[0], self._meter.lost
        self._taken.append(_Taken(stage, name, index, start, end, before, peak, now, held, graphs, lost))

    def _held(self) -> Held:
        together: dict[Place, dict[str, int]] = {}
        for owner in self._owners:
            for place, held in owner().items():
                together.setdefault(place, {}).update({name: size for name, size in held.items() if size})
        return together

    def _now(self) -> float:
        return self._clock() - self._began

    def _cut_short(self, stage: str, now: Books) -> Failure:
        message = (
            "the process was gone before it wrote more: it was killed, as the system does when memory is out"
        )
        return Failure(
            kind="cut_short", stage=stage, message=message, amounts=now.amounts(), held=self._held()
        )

    def _save(self, failure: Failure | None) -> None:
        events = tuple(taken.event() for taken in self._taken)
        methods = self._meter.methods
        if lost := [event for event in events if event.lost]:
            methods["device_used"] += (
                f"; what was told last stands for {len(lost)} of the stages, from {lost[0].label} on: {lost[0].lost}"
            )
        known = {**self._facts, "methods": methods, "precisions": self._precisions}
        MemoryRecord(**known, events=events, failure=failure).write(self.path)


def _most(*times: Held) -> Held:
    """The most of each owner."""
    together: dict[Place, dict[str, int]] = {}
    for held in times:
        for place, owners in held.items():
            most = together.setdefault(place, {})
            for name, size in owners.items():
                most[name] = max(most.get(name, 0), size)
    return together


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
