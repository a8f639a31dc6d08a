"""The report on the memory events of a run, as Markdown and as one HTML file: the same page, set twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.memory_events import Event, Failure, MemoryRecord
from wan_trt_core.memory.advice import Advice
from wan_trt_core.memory.analysis import WORTH, Analysis, Growth, analyse
from wan_trt_core.records import write_text
from wan_trt_core.report.charts import BOOKS, Chart, memory_timeline
from wan_trt_core.report.markdown import escape, markdown_table
from wan_trt_core.report.tables import Table, flat
from wan_trt_core.report.templating import templates

ALIKE = 0.01
"""Steps in a row whose peaks differ by less than this part are one row of the timeline."""

_BAR = 20  # characters of the highest


@dataclass(frozen=True)
class MemoryPage:
    """What the report says.

    Attributes:
        notes: lines for a person, the gravest first.
        chart: ``None`` where no stage came to its end.
        tables: without those that would be empty.
    """

    headline: str
    subject: str
    notes: tuple[str, ...]
    chart: Chart | None
    tables: tuple[Table, ...]


def memory_page(record: MemoryRecord) -> MemoryPage:
    """The page of a run's memory events.

    Raises:
        NothingRecorded: when there are no events, and nothing ended the run.
    """
    found = analyse(record)
    tables = (
        _failure(record.failure) if record.failure else None,
        _peak(found),
        _loading(found),
        _growth(found),
        _moments(found),
        _advice(found),
        _timeline(record),
        Table("Run", ("what", "value"), flat(record.run | {"command": " ".join(record.command)})),
    )
    return MemoryPage(
        headline=_headline(record, found),
        subject=f"{record.run.get('model', 'a model')}, {record.run.get('backend', 'an unknown backend')},"
        f" hardware {record.hardware_key}, started {record.started}",
        notes=tuple(_notes(record, found)),
        chart=memory_timeline(record) if record.events else None,
        tables=tuple(table for table in tables if table and table.rows),
    )


def memory_markdown(record: MemoryRecord) -> str:
    """The page as Markdown.

    Raises:
        NothingRecorded: when there are no events, and nothing ended the run.
    """
    page = memory_page(record)
    parts = [
        "# Memory of a run",
        f"**{page.headline}.** {escape(page.subject)}.",
        "\n".join(f"- {escape(note)}" for note in page.notes),
        *(f"## {table.title}\n\n{markdown_table(table.header, table.rows)}" for table in page.tables),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def memory_html(record: MemoryRecord) -> str:
    """The page as HTML that needs nothing else, with the timeline drawn.

    Raises:
        NothingRecorded: when there are no events, and nothing ended the run.
    """
    return templates().get_template("memory.html").render(page=memory_page(record))


def write_memory_report(record: MemoryRecord, path: Path) -> None:
    """Write the page to ``path``: HTML if it ends in ``.html``, else Markdown. Its folder is made."""
    write_text(path, (memory_html if path.suffix.lower() == ".html" else memory_markdown)(record))


def _headline(record: MemoryRecord, found: Analysis) -> str:
    if not record.events:
        where = (
            f"in {record.failure.stage}" if record.failure and record.failure.stage else "at its beginning"
        )
        return f"Ended {where}, with {_bytes(found.peak)} {BOOKS[found.book]}"
    needed = f", and {_bytes(found.needed)} were needed" if found.needed is not None else ""
    return f"Peak {_bytes(found.peak)} {BOOKS[found.book]}, in {found.peak_stage}{needed}"


def _bytes(size: float) -> str:
    return quantity(size, "B")


def _share(size: float, whole: float) -> str:
    return f"{size / whole:.1%}" if whole else ""


def _notes(record: MemoryRecord, found: Analysis) -> Iterator[str]:
    if record.failure:
        yield _ended(record.failure)
    growing = [growth for growth in found.growth if growth.grows and growth.total >= WORTH * found.peak]
    for growth in growing:
        own = f"; {_video(record)}" if growth.per == "decoded frame" else ""
        grown = f"Grows by {_bytes(growth.slope)} a {growth.per} {BOOKS[growth.book]}"
        yield f"{grown}, most of it {growth.who}{own}"
    if found.fragmentation and found.fragmentation.reserved:
        unused, reserved = found.fragmentation.unused, found.fragmentation.reserved
        yield (
            f"Fragmentation: after {found.fragmentation.stage} PyTorch's allocator kept {_bytes(unused)} of its"
            f" {_bytes(reserved)} ({_share(unused, reserved)}) without a tensor in it"
        )
    for book, method in record.methods.items():
        yield f"{book}: {method}"
    if found.idle:
        yield f"Would lower the peak by less than a hundredth: {'; '.join(found.idle)}"


def _video(record: MemoryRecord) -> str:
    """What a frame of the video comes to, which a decode has to hold."""
    height, width = record.run.get("height"), record.run.get("width")
    if not (isinstance(height, int) and isinstance(width, int)):
        return "a frame of the video itself is part of it"
    return f"a frame of the video itself is {_bytes(3 * height * width * 4)} of it, in float32"


def _ended(failure: Failure) -> str:
    asked = f", which asked for {_bytes(failure.asked)}" if failure.asked is not None else ""
    where = f" in {failure.stage}" if failure.stage else ""
    return (
        f"The run did not come to its end: {failure.kind.replace('_', ' ')}{where}{asked}: {failure.message}"
    )


def _failure(failure: Failure) -> Table:
    books = [(BOOKS[book], size) for book, size in failure.amounts if size is not None and book in BOOKS]
    owners = [(name, size) for held in failure.held.values() for name, size in held.items()]
    rows = [
        *((f"all {name}", _bytes(size)) for name, size in books),
        *((name, _bytes(size)) for name, size in sorted(owners, key=lambda owner: -owner[1])),
    ]
    return Table("Held when it ended", ("owner", "held"), tuple(rows))


def _peak(found: Analysis) -> Table:
    rows = [
        (
            holder.name,
            _bytes(holder.size),
            _share(holder.size, found.peak),
            "itself" if holder.known else "what is left",
        )
        for holder in found.holders
    ]
    return Table(
        f"Owners of the peak ({found.peak_stage})", ("owner", "held", "share", "known by"), tuple(rows)
    )


def _loading(found: Analysis) -> Table:
    rows = [
        (
            load.name,
            _bytes(load.added),
            f"{load.share:.1%}",
            _share(load.added, found.peak),
            f"{load.seconds:.3g} s",
        )
        for load in found.loads
    ]
    header = ("component", "added", "share of loading", "share of the peak", "took")
    total = ("all loading", _bytes(found.loading), "", _share(found.loading, found.peak), "")
    return Table("Loading", header, (*rows, total) if rows else ())


def _growth(found: Analysis) -> Table:
    rows = [
        (
            f"a {growth.per}, {BOOKS[growth.book]}",
            _bytes(growth.slope),
            _interval(growth),
            str(growth.points),
            "yes" if growth.grows else "levels off" if growth.rose else "not shown",
        )
        for growth in found.growth
    ]
    header = ("growth", "slope", "95 % interval", "points", "grows")
    return Table("Growth of what is held", header, tuple(rows))


def _interval(growth: Growth) -> str:
    if growth.low is None or growth.high is None:
        return "too few points"
    return f"{_bytes(growth.low)} to {_bytes(growth.high)}"


def _moments(found: Analysis) -> Table:
    rows = [(moment.stage, _bytes(moment.peak), _bytes(moment.above), moment.who) for moment in found.moments]
    header = ("stage", "peak", "above what was held before", "most of it")
    return Table("Biggest moments", header, tuple(rows))


def _advice(found: Analysis) -> Table:
    """What would lower the peak; of a run that ended out of memory, whether there was room with it."""
    ended = found.needed is not None
    room = {True: "yes", False: "no", None: "not shown"}
    rows = [
        (
            f"{number}. {advice.what}",
            _saves(advice),
            *([room[advice.fits]] if ended else []),
            advice.costs,
            advice.derived,
        )
        for number, advice in enumerate(found.advice, 1)
    ]
    told = ("room for what was asked",) if ended else ()
    header = ("what would lower the peak", "saves (modelled)", *told, "costs", "derived from")
    return Table("Recommendations", header, tuple(rows))


def _saves(advice: Advice) -> str:
    if advice.measured is None:
        return _bytes(advice.saves)
    saved = _bytes(advice.measured) if advice.measured else "nothing"
    return f"not modelled: {saved} on an H200, of {_bytes(advice.saves)} at stake here"


def _timeline(record: MemoryRecord) -> Table:
    most = max((event.peak.of(record.book) for event in record.events), default=0)
    rows = []
    for group in _groups(record):
        first, last = group[0], group[-1]
        name = first.label if first is last else f"{first.label} to {last.index}"
        peak = max(event.peak.of(record.book) for event in group)
        sizes = (first.before.of(record.book), peak, last.after.of(record.book))
        bar = "█" * round(_BAR * peak / most) if most else ""
        rows.append((name, f"{first.start:.3f}", f"{last.end - first.start:.3f}", *map(_bytes, sizes), bar))
    header = ("stage", "at (s)", "took (s)", "before", "peak", "after", "of the peak")
    return Table(f"Timeline {BOOKS[record.book]}", header, tuple(rows))


def _groups(record: MemoryRecord) -> list[list[Event]]:
    """The events; steps of one kind in a row with like peaks together."""
    groups: list[list[Event]] = []
    for event in record.events:
        first = groups[-1][0] if groups else None
        if first and event.index and event.index > 1 and event.stage == first.stage:
            peak, before = event.peak.of(record.book), first.peak.of(record.book)
            if abs(peak - before) <= ALIKE * before:
                groups[-1].append(event)
                continue
        groups.append([event])
    return groups
