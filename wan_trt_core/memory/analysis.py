"""What the memory events of a run come to: the peak and its owners, growth, and what would lower the peak.

Pure functions; :mod:`~wan_trt_core.memory.advice` models the savings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from wan_trt_core.gates.statistics import SLOPE_POINTS, slope, slope_interval
from wan_trt_core.measure.memory_events import AGAIN, Amounts, Book, Event, Failure, Held, MemoryRecord
from wan_trt_core.memory.advice import PLACES, Advice, advice_on, held_at_peak, owners, rank
from wan_trt_core.memory.needed import as_needed, room_then

CONFIDENCE = 0.95

SETTLING: Mapping[Book, int] = {"resident_set": 2**20}
"""Bytes that the later half of a sound run's steps may still add: allocators' arenas of tiny-wan on a CPU added up to
0.4 MiB in 6 to 20 steps. PyTorch's book is exact."""

MOMENTS = 5
WORTH = 0.01
"""A saving below this share of the peak is only named."""

TENSORS = "tensors of no known owner (activations, latents, caches)"
KEPT = "kept by PyTorch's allocator without a tensor in it"


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
        late: bytes that the later half of the points adds, by its own slope.
        who: who grows most with it: an owner, or what nobody claims.
    """

    per: str
    book: Book
    slope: float
    low: float | None
    high: float | None
    points: int
    total: float
    late: float
    who: str

    @property
    def rose(self) -> bool:
        """Whether what was held provably did."""
        return self.low is not None and self.low > 0

    @property
    def grows(self) -> bool:
        """Whether it rose and goes on: the first steps take what later ones use again, which levels off."""
        return self.rose and self.late > SETTLING.get(self.book, 0)


@dataclass(frozen=True)
class Moment:
    """A stage: its peak, how far above what was held before, bytes, and who took most of that."""

    stage: str
    peak: int
    above: int
    who: str


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
        needed: the most that a run which ended out of memory would have held with what it asked for: savings are off
            that. None where it is no more than the peak.
        loading: bytes that all loading put on top.
        fragmentation: ``None`` where no device was watched.
        advice: what saves most for what it costs first; what costs an unknown time after the others.
        idle: changes that save less than :data:`WORTH`.
    """

    book: Book
    peak: int
    peak_stage: str
    needed: int | None
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
    """Neither a stage nor how the run ended: nothing to analyse."""


def analyse(record: MemoryRecord) -> Analysis:
    """Analyse a run. Of one that ended in its first stage all that is known is what was held then.

    Raises:
        NothingRecorded: when there are no events, and nothing ended the run.
    """
    if not record.events:
        return _at_its_end(record)
    book = record.book
    top = max(record.events, key=lambda event: event.peak.of(book))
    peak = top.peak.of(book)
    asked = as_needed(record)
    needed = max(event.peak.of(book) for event in asked.events)
    found = [advice for advice in advice_on(asked) if advice.saves > 0]
    worth = [advice for advice in found if advice.saves >= WORTH * needed]
    if needed > peak:
        worth = [replace(advice, fits=_fits(advice, needed, record)) for advice in worth]
    loads = tuple(_loads(record))
    return Analysis(
        book=book,
        peak=peak,
        peak_stage=top.label,
        needed=needed if needed > peak else None,
        holders=tuple(_holders(record, top)),
        loading=sum(load.added for load in loads),
        loads=loads,
        growth=tuple(_growth(record)),
        fragmentation=_fragmentation(record),
        moments=tuple(_moments(record)),
        advice=tuple(sorted(worth, key=rank)),
        idle=tuple(advice.what for advice in found if advice.saves < WORTH * needed),
        failure=record.failure,
    )


def _fits(advice: Advice, needed: int, record: MemoryRecord) -> bool | None:
    """See :class:`~wan_trt_core.memory.advice.Advice`."""
    room, whole = room_then(record)
    if not advice.modelled or (needed - advice.saves > room and not whole):
        return None
    return needed - advice.saves <= room


def _at_its_end(record: MemoryRecord) -> Analysis:
    """Of a run that ended before its first stage did."""
    if (failure := record.failure) is None:
        raise NothingRecorded(f"the memory events hold no stage, so there is nothing to analyse; {AGAIN}")
    book = record.book
    return Analysis(
        book=book,
        peak=failure.amounts.of(book),
        peak_stage=failure.stage or "its beginning",
        needed=None,
        holders=(),
        loading=0,
        loads=(),
        growth=(),
        fragmentation=None,
        moments=(),
        advice=(),
        idle=(),
        failure=failure,
    )


def _loads(record: MemoryRecord) -> Iterator[Load]:
    events = record.of("load")
    added = [event.after.of(record.book) - event.before.of(record.book) for event in events]
    total = sum(added)
    for event, size in zip(events, added, strict=True):
        yield Load(event.name, size, size / total if total else 0.0, event.end - event.start)


def _holders(record: MemoryRecord, top: Event) -> Iterator[Holder]:
    """Who holds the peak, the largest first."""
    sizes, known = _split(record, top.peak, held_at_peak(record, record.events.index(top)))
    holders = [Holder(name, size, name in known) for name, size in sizes.items()]
    yield from sorted(holders, key=lambda holder: -holder.size)


def _split(record: MemoryRecord, amounts: Amounts, held: Held) -> tuple[dict[str, int], set[str]]:
    """What is held in the book that decides, by owner, and which of these say so themselves; what no owner claims is
    told by what it can be."""
    known = dict(owner for place in PLACES[record.book] for owner in owners(held, place))
    if record.book == "device_used":
        inside, outside = (sum(size for _, size in owners(held, place)) for place in ("allocator", "device"))
        allocated, reserved, used = (amounts.of(book) for book in ("allocated", "reserved", "device_used"))
        rest = {
            TENSORS: allocated - inside,
            KEPT: reserved - allocated,
            "not attributed (CUDA context, kernels, graphs)": used - reserved - outside,
        }
    else:
        begun = (event.before for event in record.events if event.stage in ("build", "load"))
        start = next(begun, record.events[0].before).resident_set
        rest = {
            "the process before anything was loaded": start,
            "not attributed (activations, arenas, libraries)": amounts.resident_set
            - start
            - sum(known.values()),
        }
    return known | rest, set(known)


def _growth(record: MemoryRecord) -> Iterator[Growth]:
    books: tuple[Book, ...] = (
        ("allocated", "device_used") if record.book == "device_used" else ("resident_set",)
    )
    denoise, decode = _last_of_each(record.of("denoise")), _last_of_each(record.of("decode"))
    frames = [1 if event.index == 1 else 4 for event in decode]  # the first latent frame is one
    places = {
        "denoising step": (denoise, list(range(len(denoise)))),
        "decoded frame": (decode, list(accumulate(frames))),
    }
    for per, (events, at) in places.items():
        for book in books:
            if len(events) >= 2:
                yield _grown(record, per, book, events, at)


def _last_of_each(events: Sequence[Event]) -> list[Event]:
    """A step that something interrupts has an event before it and one after it, which tells what is held."""
    return list({event.index: event for event in events}.values())


def _grown(record: MemoryRecord, per: str, book: Book, events: Sequence[Event], at: list[int]) -> Growth:
    held = [event.after.of(book) for event in events]
    per_one, half = slope(held, at), len(held) // 2
    interval = slope_interval(held, at, CONFIDENCE) if len(held) >= SLOPE_POINTS else None
    return Growth(
        per,
        book,
        per_one,
        interval.low if interval else None,
        interval.high if interval else None,
        len(held),
        per_one * (at[-1] - at[0]),
        slope(held[half:], at[half:]) * (at[-1] - at[half]) if interval else 0.0,
        _growing(record, book, events, at),
    )


def _growing(record: MemoryRecord, book: Book, events: Sequence[Event], at: list[int]) -> str:
    """Who grows most over some stages."""
    splits = [_split(record, event.after, event.held)[0] for event in events]
    inside = {name for event in events for name, _ in owners(event.held, "allocator")} | {TENSORS}
    names = sorted({name for split in splits for name in split if book != "allocated" or name in inside})
    return max(names, key=lambda name: slope([split.get(name, 0) for split in splits], at))


def _fragmentation(record: MemoryRecord) -> Fragmentation | None:
    if record.book != "device_used":
        return None
    event = max(record.events, key=lambda event: event.after.of("reserved") - event.after.of("allocated"))
    reserved = event.after.of("reserved")
    return Fragmentation(event.label, reserved - event.after.of("allocated"), reserved)


def _moments(record: MemoryRecord) -> list[Moment]:
    book = record.book
    moments = [
        Moment(
            event.label,
            event.peak.of(book),
            event.peak.of(book) - event.before.of(book),
            _taker(record, index),
        )
        for index, event in enumerate(record.events)
    ]
    return sorted(moments, key=lambda moment: -moment.above)[:MOMENTS]


def _taker(record: MemoryRecord, index: int) -> str:
    """Who took most of what a stage held above what was held before."""
    event, earlier = record.events[index], record.events[index - 1].held if index else {}
    before = _split(record, event.before, earlier)[0]
    if before.get(TENSORS, 0) < 0:  # caches are told of a stage that ended without them
        before = _split(record, event.before, _common(earlier, event.held))[0]
    peak = _split(record, event.peak, held_at_peak(record, index))[0]
    return max(peak, key=lambda name: peak[name] - before.get(name, 0))


def _common(held: Held, later: Held) -> Held:
    """What is held by owners that hold something later too."""
    return {
        place: {name: size for name, size in own.items() if name in later.get(place, {})}
        for place, own in held.items()
    }
