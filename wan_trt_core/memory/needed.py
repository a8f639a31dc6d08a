"""What a run that ended out of memory would have needed: what it held then, and on top what it asked for."""

from __future__ import annotations

import re

from wan_trt_core.measure.memory_events import Amounts, Event, Failure, MemoryRecord, Place
from wan_trt_core.measure.memory_recorder import bytes_free
from wan_trt_core.memory.advice import SHARED

_OF_HOST = re.compile(r"DefaultCPUAllocator|unable to allocate|\bMemoryError\b", re.IGNORECASE)
"""As PyTorch on a CPU, NumPy and Python say it."""

_OF_PYTORCH = re.compile(r"CUDA out of memory|was asked for", re.IGNORECASE)
"""As PyTorch on a GPU says it, and engines, of what they ask of PyTorch."""

_OF_SCRATCH = "scratch memory of"
"""As an engine says what it wanted: in place of what the engines before it shared, which is let go of first."""


def as_needed(record: MemoryRecord) -> MemoryRecord:
    """The events of a run as if it had got what it asked for last: the stage that it ended in, or a moment after the
    others, peaks by so much higher. Of any other run, or where nobody tells how much it was, the events as they are."""
    failure = record.failure
    if failure is None or failure.kind != "out_of_memory" or not failure.asked or not record.events:
        return record
    peak = _with(failure.amounts, _place(failure), failure.asked)
    events, last = list(record.events), record.events[-1]
    ended = next((event for event in reversed(events) if event.label == failure.stage), None)
    if ended is None:
        amounts = {"before": failure.amounts, "peak": peak, "after": failure.amounts}
        events.append(Event(stage="other", start=last.end, end=last.end, **amounts, held=failure.held))
    else:
        held = ended.held
        if _OF_SCRATCH in failure.message and _shares(record):
            held = {**held, "allocator": {**held.get("allocator", {}), SHARED: failure.asked}}
        higher = {"peak": ended.peak.most(peak), "held": held}
        events[events.index(ended)] = ended.model_copy(update=higher)
    return record.model_copy(update={"events": tuple(events)})


def room_then(record: MemoryRecord) -> tuple[int, bool]:
    """Bytes of the book that decides which the run could have when it ended, and whether that is all it could: where
    nobody tells what was free, it is what it had reached."""
    failure, book = record.failure, record.book
    had = failure.amounts.of(book) if failure else 0
    free = bytes_free(failure.message) if failure and book == "device_used" else None
    if free is not None:
        return had + free, True
    return max(had, *(event.peak.of(book) for event in record.events)), False


def _place(failure: Failure) -> Place:
    """Where there was no room."""
    if not failure.amounts.device or _OF_HOST.search(failure.message):
        return "host"
    return "allocator" if _OF_PYTORCH.search(failure.message) else "device"


def _with(amounts: Amounts, place: Place, size: int) -> Amounts:
    """Amounts of which so much more is held in a place."""
    books = {
        "host": ("resident_set",),
        "allocator": ("allocated", "reserved", "device_used"),
        "device": ("device_used",),
    }[place]
    return amounts.model_copy(update={book: getattr(amounts, book) + size for book in books})


def _shares(record: MemoryRecord) -> bool:
    """Whether engines share their scratch memory."""
    return (record.run.get("settings") or {}).get("tensorrt.share_scratch") is not False
