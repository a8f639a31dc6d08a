"""The table of verdicts in the terminal, worst first; it reads well at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.records import CaseRecord, RunRecord
from wan_trt_core.report.changes import MetricChange, Weight
from wan_trt_core.report.summary import (
    WHY,
    advisory_checks,
    benchmark_rows,
    benchmark_title,
    headline,
    marks,
    missing_bands,
    orphaned_baselines,
    perf_rows,
    stale_baselines,
    totals,
    worst_first,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.INVALID: "bold magenta",
    Verdict.MISSING: "bold yellow",
    Verdict.INCONCLUSIVE: "bold cyan",
}

BESIDE_CASE = 46
"""Columns that all but the case's name need: suite 6, INCONCLUSIVE 12, measured 9, limit 4, BELOW GATE 10, gaps 5."""


def render(record: RunRecord, console: Console) -> None:
    """Print the table, the reason of everything that did not pass, the numbers of the perf cases, and the totals."""
    console.print(verdict_table(record, console.width))
    for case in worst_first(record):
        if case.verdict is not Verdict.PASS:
            _explain(case, console)
    for case in worst_first(record):
        if rows := perf_rows(case):
            _line(console, "perf", f"{case.case}: {'; '.join(f'{name} {value}' for name, value in rows)}", "")
    for case, check in stale_baselines(record):
        _line(console, "note", f"{case.case} ({case.suite}): {check.message}", "yellow")
    _advisory(record, console)
    _line(console, "hardware", record.hardware_key, "")
    _line(console, "total", totals(record), "bold")


def render_benchmark(record: RunRecord, console: Console) -> None:
    """Print both arms of every candidate side by side, the reason of everything that did not pass, and notes."""
    _line(console, "compared", benchmark_title(record), "")
    console.print(benchmark_table(record))
    for case in worst_first(record):
        if case.verdict is not Verdict.PASS:
            _explain(case, console)
        for note in case.measurement.notes if case.verdict is Verdict.PASS else ():
            _line(console, "note", f"{case.case}: {note}", "yellow")
    _line(console, "hardware", record.hardware_key, "")


def benchmark_table(record: RunRecord) -> Table:
    """Two columns a candidate: stock diffusers as timed in pairs with it, and the candidate."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("one video", no_wrap=True)
    columns = []
    for case in record.cases:
        table.add_column("torch", justify="right", overflow="fold")
        table.add_column(case.backend, justify="right", overflow="fold")
        columns.append(benchmark_rows(case))
    for name in dict.fromkeys(name for rows in columns for name in rows):
        table.add_row(name, *(cell for rows in columns for cell in rows.get(name, ("", ""))))
    return table


def verdict_table(record: RunRecord, width: int) -> Table:
    """One row a case: case, suite, verdict, the number that decided, its limit, and why.

    A case is looked up by its whole name, so where ``width`` (columns) allows the name stays in one piece and the
    words beside it wrap.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    longest = max((len(case.case) for case in record.cases), default=0)
    table.add_column("case", no_wrap=longest + BESIDE_CASE <= width, overflow="fold")
    table.add_column("suite", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for number in ("measured", "limit"):
        table.add_column(number, justify="right", overflow="fold")
    table.add_column("why", overflow="fold")
    for case in worst_first(record):
        head = headline(case)
        verdict = case.verdict.value.upper()
        table.add_row(
            Text(case.case),
            case.suite,
            Text(verdict, style=_STYLES[case.verdict]),
            Text(head.value),
            Text(head.limit),
            _why(case, head.metric),
        )
    return table


def changes_table(changes: Sequence[MetricChange]) -> Table:
    """Old, new, change and what is allowed of every metric, in the order given, below the name of its case."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("case, metric", "old", "new", "change", "allowed", "outcome"):
        number = name in ("old", "new", "change")
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
            min_width={"case, metric": 24, "allowed": 9, "outcome": 9}.get(name),
        )
    bad = "bold red"
    styles = {Weight.FAILED: bad, Weight.WORSE: bad, Weight.NOTABLE: "green", Weight.UNCHANGED: "dim"}
    case = ""
    for row in changes:
        if row.case != case:  # in a line of its own, which a long one may fold
            case = row.case
            table.add_row(case)
        cells = (f"  {row.metric}", *row.values, row.change, row.allowed, row.outcome)
        table.add_row(*cells, style=styles[row.weight])
    return table


def _why(case: CaseRecord, metric: str) -> Text:
    from rich.text import Text

    text = Text(WHY[case.reason])
    if metric and metric != "speedup" and case.verdict is not Verdict.PASS:
        text.append(f" ({metric})")
    for mark in marks(case):
        text.append(f" {mark}", style="bold yellow")
    return text


def _explain(case: CaseRecord, console: Console) -> None:
    where = f"{case.case} ({case.suite})"
    _line(console, case.verdict.value.upper(), f"{where}: {case.message}", _STYLES[case.verdict])
    others = [
        check.message
        for check in case.checks
        if check.verdict is not Verdict.PASS and not check.advisory and check.message != case.message
    ]
    for text in (*others, *case.measurement.notes):
        _line(console, "", text, "")


def _advisory(record: RunRecord, console: Console) -> None:
    for text in missing_bands(record):
        _line(console, "missing", text, "yellow")
    for text in orphaned_baselines(record):
        _line(console, "orphan", text, "yellow")
    for case, check in advisory_checks(record):
        _line(console, "advisory", f"{case.case} ({case.suite}): {check.message}", "yellow")


def _line(console: Console, label: str, text: str, style: str) -> None:
    """A label and a text that wraps beside it."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=12, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style=style), Text(text))
    console.print(grid)
