"""The full report as one HTML file that needs nothing else: no network, no script, no other file.

Only stills and videos that are too large for the page stay where the run wrote them, and are linked.

A run's record becomes a :class:`Page`, plain data, which a template turns into HTML and whose charts
:mod:`~wan_trt_core.report.drawing` draws.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.measure.memory_events import MemoryRecord, events_file
from wan_trt_core.memory.analysis import NothingRecorded
from wan_trt_core.records import CaseRecord, CheckRecord, RecordError, RunRecord, write_text
from wan_trt_core.report.charts import Chart, case_charts
from wan_trt_core.report.frames import Album, Frames
from wan_trt_core.report.memory_report import MemoryPage, memory_page
from wan_trt_core.report.summary import (
    WHY,
    Headline,
    advisory_checks,
    headline,
    marks,
    missing_bands,
    orphaned_baselines,
    passed,
    stale_baselines,
    totals,
    worst_first,
)
from wan_trt_core.report.tables import Table, case_notes, case_subject, case_tables, facts_table, run_tables
from wan_trt_core.report.templating import templates


@dataclass(frozen=True)
class CaseView:
    """What the page says of one case.

    Attributes:
        anchor: the id of its section, the same in every report that has the case.
        memory: what the memory events of its run come to, if they were recorded.
        opened: its tables are open when the page is.
    """

    anchor: str
    name: str
    suite: str
    verdict: str
    marks: tuple[str, ...]
    head: Headline
    why: str
    subject: str
    message: str
    notes: tuple[str, ...]
    charts: tuple[Chart, ...]
    frames: Frames | None
    memory: MemoryPage | None
    tables: tuple[Table, ...]
    facts: Table
    opened: bool


@dataclass(frozen=True)
class Page:
    """What the page says of a run; the cases come worst first.

    Attributes:
        findings: what did not decide, line by line under its title.
    """

    passed: bool
    totals: str
    hardware_key: str
    started: str
    command: str
    cases: tuple[CaseView, ...]
    findings: dict[str, tuple[str, ...]]
    tables: tuple[Table, ...]


def page_of(record: RunRecord, album: Album | None = None) -> Page:
    """The page of a run, with the frames of the album if there is one."""
    findings = {
        "Better than the baseline": _lines(stale_baselines(record)),
        "Missing bands (advisory)": tuple(missing_bands(record)),
        "Orphaned baselines (advisory)": tuple(orphaned_baselines(record)),
        "Did not decide (advisory)": _lines(advisory_checks(record)),
    }
    return Page(
        passed=passed(record),
        totals=totals(record),
        hardware_key=record.hardware_key,
        started=record.started,
        command=" ".join(record.command),
        cases=tuple(_case(case, album) for case in worst_first(record)),
        findings={title: lines for title, lines in findings.items() if lines},
        tables=tuple(run_tables(record)),
    )


def html_report(record: RunRecord, album: Album | None = None) -> str:
    """The report: verdicts, every case's charts, frames and tables, and the environment."""
    return templates().get_template("report.html").render(page=page_of(record, album))


def write_html(record: RunRecord, path: Path, run: Path | None = None) -> None:
    """Write the report to ``path``; its folder is made.

    Args:
        run: the folder that the run wrote its videos to; the report's own unless given.
    """
    write_text(path, html_report(record, Album(run or path.parent, path.parent)))


def _case(case: CaseRecord, album: Album | None) -> CaseView:
    memory, problems = _memory(case, album)
    return CaseView(
        anchor=re.sub(r"[^\w.-]+", "-", f"{case.suite}-{case.case}"),
        name=case.case,
        suite=case.suite,
        verdict=case.verdict.value,
        marks=marks(case),
        head=headline(case),
        why=WHY[case.reason],
        subject=case_subject(case),
        message=case.message,
        notes=(*case_notes(case), *problems),
        charts=tuple(case_charts(case)),
        frames=album.frames(case) if album else None,
        memory=memory,
        tables=tuple(case_tables(case)),
        facts=facts_table(case),
        opened=case.verdict is not Verdict.PASS,
    )


def _memory(case: CaseRecord, album: Album | None) -> tuple[MemoryPage | None, tuple[str, ...]]:
    """What the memory events of a case come to, or a line that says why not, where there are events."""
    events = album.find(events_file(case.case)) if album and case.suite == "memory" else None
    if events is None:
        return None, ()
    try:
        return memory_page(MemoryRecord.read(events)), ()
    except (RecordError, NothingRecorded) as error:
        return None, (f"The memory events of this case cannot be shown: {error}",)


def _lines(found: list[tuple[CaseRecord, CheckRecord]]) -> tuple[str, ...]:
    return tuple(f"{case.case} ({case.suite}): {check.message}" for case, check in found)
