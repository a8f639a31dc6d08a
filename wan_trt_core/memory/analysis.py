"""What the memory events of a run come to: the peak and its owners, growth, and what would lower the peak.

Pure functions; :mod:`~wan_trt_core.memory.advice` models the savings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from wan_trt_core.measure.memory_events import Book, Event, Failure, Held, MemoryRecord
from wan_trt_core.memory.advice import PLACES, Advice, advice_on, owners, rank

CONFIDENCE = 0.95
FEWEST = 5
"""Points that an interval needs: four are all in order by chance in one of twelve cases, more than the 5 % allowed."""

MOMENTS = 5
WORTH = 0.01
"""A saving below this share of the peak is only named."""


@dataclass(frozen=True)
class Holder:
    """Who holds how many bytes; ``known`` if it says so itself, else it is what is left of a book."""

    name: str
    size: int
    known: bool


@dataclass(frozen=True)
class Load:
    """A component that was loaded: bytes that it put on top, their share of all loading, seconds that it took."""

    name: str
    added: int
    share: float
    seconds: float


@dataclass(frozen=True)
class Growth:
    """Bytes that a book grows by, for each of what ``per`` says: the slope of Theil and Sen with its interval.

    Attributes:
        low, high: of the interval; ``None`` for too few points.
        total: the slope over all points.
    """

    per: str
    book: Book
    slope: float
    low: float | None
    high: float | None
    points: int
    total: float

    @property
    def grows(self) -> bool:
        """Whether it provably does."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Moment:
    """A stage: its peak, and how far above what was held before, bytes."""

    stage: str
    peak: int
    above: int


@dataclass(frozen=True)
class Fragmentation:
    """The most that PyTorch's allocator kept without a tensor in it, and what it had reserved then, bytes."""

    stage: str
    unused: int
    reserved: int


@dataclass(frozen=True)
class Analysis:
    """What the events of a run come to, in bytes.

    Attributes:
        book: that decides: the device's, or of the host where no device was watched.
        peak: the most in it, during ``peak_stage``; ``holders`` add up to it.
        loading: bytes that all loading put on top.
        fragmentation: ``None`` where no device was watched.
        advice: what saves most for what it costs first; what costs an unknown time after the others.
        idle: changes that save less than :data:`WORTH`.
    """

    book: Book
    peak: int
    peak_stage: str
    holders: tuple[Holder, ...]
    loading: int
    loads: tuple[Load, ...]
    growth: tuple[Growth, ...]
    fragmentation: Fragmentation | None
    moments: tuple[Moment, ...]
    advice: tuple[Advice, ...]
    idle: tuple[str, ...]
    failure: Failure | None


class NothingRecorded(ValueError):
    """A file without events: the run ended before its first stage did."""


def analyse(record: MemoryRecord) -> Analysis:
    """Analyse a run.

    Raises:
        NothingRecorded: when there are no events.
    """
    if not record.events:
        why = f": {record.failure.message}" if record.failure else ""
        raise NothingRecorded(f"the memory events hold no stage, so there is nothing to analyse{why}")
    book = record.book
    top = max(record.events, key=lambda event: event.peak.of(book))
    peak = top.peak.of(book)
    found = [advice for advice in advice_on(record) if advice.saves > 0]
    worth = [advice for advice in found if advice.saves >= WORTH * peak]
    loads = tuple(_loads(record))
    return Analysis(
        book=book,
        peak=peak,
        peak_stage=top.label,
        holders=tuple(_holders(record, top)),
        loading=sum(load.added for load in loads),
        loads=loads,
        growth=tuple(_growth(record)),
        fragmentation=_fragmentation(record),
        moments=tuple(_moments(record)),
        advice=tuple(sorted(worth, key=rank)),
        idle=tuple(advice.what for advice in found if advice not in worth),
        failure=record.failure,
    )


def _loads(record: MemoryRecord) -> Iterator[Load]:
    events = record.of("load")
    added = [event.after.of(record.book) - event.before.of(record.book) for event in events]
    total = sum(added)
    for event, size in zip(events, added, strict=True):
        yield Load(event.name, size, size / total if total else 0.0, event.end - event.start)


def _holders(record: MemoryRecord, top: Event) -> Iterator[Holder]:
    """Who holds the peak, the largest first; what no owner claims is told by what it can be."""
    held = _held_at_peak(record, top)
    known = [Holder(name, size, True) for place in PLACES[record.book] for name, size in owners(held, place)]
    if record.book == "device_used":
        inside, outside = (sum(size for _, size in owners(held, place)) for place in ("allocator", "device"))
        allocated, reserved, used = (top.peak.of(book) for book in ("allocated", "reserved", "device_used"))
        rest = {
            "tensors of no known owner (activations, latents, caches)": allocated - inside,
            "kept by PyTorch's allocator without a tensor in it": reserved - allocated,
            "not attributed (CUDA context, kernels, graphs)": used - reserved - outside,
        }
    else:
        begun = (event.before for event in record.events if event.stage in ("build", "load"))
        start = next(begun, record.events[0].before).resident_set
        claimed = sum(holder.size for holder in known)
        rest = {
            "the process before anything was loaded": start,
            "not attributed (activations, arenas, libraries)": top.peak.resident_set - start - claimed,
        }
    holders = known + [Holder(name, size, False) for name, size in rest.items()]
    yield from sorted(holders, key=lambda holder: -holder.size)


def _held_at_peak(record: MemoryRecord, top: Event) -> Held:
    """Who held memory at the peak: owners are noted at the end of a stage, which for an unloading is too late."""
    index = record.events.index(top)
    return record.events[index - 1].held if top.stage == "unload" and index else top.held


def _growth(record: MemoryRecord) -> Iterator[Growth]:
    books: tuple[Book, ...] = (
        ("allocated", "device_used") if record.book == "device_used" else ("resident_set",)
    )
    frames = [1 if event.index == 1 else 4 for event in record.of("decode")]  # the first latent frame is one
    places = {
        "denoising step": (record.of("denoise"), list(range(len(record.of("denoise"))))),
        "decoded frame": (record.of("decode"), list(accumulate(frames))),
    }
    for per, (events, at) in places.items():
        for book in books:
            if len(events) >= 2:
                yield _slope(per, book, at, [event.after.of(book) for event in events])


def _slope(per: str, book: Book, at: list[int], held: list[int]) -> Growth:
    from scipy.stats import theilslopes

    slope, _, low, high = map(float, theilslopes(held, at, CONFIDENCE))
    enough = len(held) >= FEWEST
    return Growth(
        per,
        book,
        slope,
        low if enough else None,
        high if enough else None,
        len(held),
        slope * (at[-1] - at[0]),
    )


def _fragmentation(record: MemoryRecord) -> Fragmentation | None:
    if record.book != "device_used":
        return None
    event = max(record.events, key=lambda event: event.after.of("reserved") - event.after.of("allocated"))
    reserved = event.after.of("reserved")
    return Fragmentation(event.label, reserved - event.after.of("allocated"), reserved)


def _moments(record: MemoryRecord) -> list[Moment]:
    book = record.book
    moments = [
        Moment(event.label, event.peak.of(book), event.peak.of(book) - event.before.of(book))
        for event in record.events
    ]
    return sorted(moments, key=lambda moment: -moment.above)[:MOMENTS]
