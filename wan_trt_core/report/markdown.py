"""The full report in Markdown, for a file and for the summary page of a GitHub Actions job."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.records import CaseRecord, CheckRecord, RunRecord, write_text
from wan_trt_core.report.changes import MetricChange, Weight, compare_runs
from wan_trt_core.report.summary import (
    WHY,
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
from wan_trt_core.report.tables import case_notes, case_subject, case_tables, facts_table, run_tables

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""GitHub Actions names the file of the job's summary in it."""


def markdown_report(record: RunRecord) -> str:
    """The report: verdicts, what is missing, every case's checks and metrics, and the environment."""
    verdict = "pass" if passed(record) else "NOT PASSED"
    parts = [
        f"# wan-trt: {verdict}",
        f"{totals(record)}. Hardware `{record.hardware_key}`, started {record.started}.",
        _verdicts(record),
        _listed("Better than the baseline", stale_baselines(record)),
        _missing(record),
        _listed("Did not decide (advisory)", advisory_checks(record)),
        "## Cases",
        *(_case(case) for case in worst_first(record)),
        *(f"## {table.title}\n\n{markdown_table(table.header, table.rows)}" for table in run_tables(record)),
        f"Command: `{' '.join(record.command)}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_markdown(before: RunRecord, after: RunRecord) -> str:
    """What changed from one run to the other, short enough for a comment on a pull request."""
    found = compare_runs(before, after)
    runs = [
        (name, _commit(run), run.started, run.hardware_key)
        for name, run in (("before", before), ("after", after))
    ]
    verdicts = [
        (f"`{row.case}`", row.suite, row.before or "new", row.after or "removed", row.why)
        for row in found.verdicts
    ]
    parts = [
        f"## wan-trt: {found.summary}",
        "\n".join(f"- **{escape(note)}**" for note in found.notes),
        markdown_table(("case", "suite", "before", "after", "why"), verdicts),
        changes_markdown(found.metrics),
        markdown_table(("run", "commit", "started", "hardware"), runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def changes_markdown(changes: Sequence[MetricChange]) -> str:
    """The table of changed metrics, the worst first; what did not change is folded away."""
    header = ("case", "suite", "metric", "old", "new", "change", "allowed", "outcome")
    rows = [
        (
            f"`{row.case}`",
            row.suite,
            row.metric,
            *row.values,
            row.change,
            row.allowed,
            f"**{row.outcome}**" if row.weight <= Weight.WORSE else row.outcome,
        )
        for row in changes
    ]
    told = sum(row.weight is not Weight.UNCHANGED for row in changes)
    rest = markdown_table(header, rows[told:])
    folded = f"<details><summary>{len(rows) - told} unchanged</summary>\n\n{rest}\n\n</details>"
    parts = [markdown_table(header, rows[:told]), folded if rest else ""]
    return "\n\n".join(part for part in parts if part)


def write_markdown(record: RunRecord, path: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Write the report to ``path``, and append it to the job's summary where there is one.

    Args:
        record: the run.
        path: the report's file; its folder is made.
        environ: the environment; ``GITHUB_STEP_SUMMARY`` names the summary's file.
    """
    text = markdown_report(record)
    write_text(path, text)
    if summary := environ.get(SUMMARY_VARIABLE):
        with open(summary, "a", encoding="utf-8") as stream:
            stream.write(text)


def _commit(record: RunRecord) -> str:
    source = record.environment.get("source", {})
    return f"{(source.get('commit') or 'unknown')[:12]}{' and changes' if source.get('dirty') else ''}"


def _verdicts(record: RunRecord) -> str:
    rows = []
    for case in worst_first(record):
        head = headline(case)
        why = WHY[case.reason] + "".join(f" **{mark}**" for mark in marks(case))
        verdict = case.verdict.value if case.verdict is Verdict.PASS else f"**{case.verdict.value.upper()}**"
        rows.append((f"`{case.case}`", case.suite, verdict, head.metric, head.value, head.limit, why))
    return markdown_table(("case", "suite", "verdict", "metric", "measured", "limit", "why"), rows)


def _listed(title: str, found: list[tuple[CaseRecord, CheckRecord]]) -> str:
    if not found:
        return ""
    lines = [f"- `{case.case}` ({case.suite}): {escape(check.message)}" for case, check in found]
    return "\n".join([f"## {title}", "", *lines])


def _missing(record: RunRecord) -> str:
    sections = {"Missing bands": missing_bands(record), "Orphaned baselines": orphaned_baselines(record)}
    return "\n\n".join(
        "\n".join([f"## {title} (advisory)", "", *(f"- {escape(line)}" for line in lines)])
        for title, lines in sections.items()
        if lines
    )


def _case(case: CaseRecord) -> str:
    title = f"{case.verdict.value.upper()} {case.case} ({', '.join((case.suite, *marks(case)))})"
    notes = "\n".join(f"- {escape(note)}" for note in case_notes(case))
    tables = (markdown_table(table.header, table.rows) for table in (*case_tables(case), facts_table(case)))
    body = "\n\n".join(part for part in (case_subject(case), escape(case.message), notes, *tables) if part)
    opened = "" if case.verdict is Verdict.PASS else " open"
    return f"<details{opened}><summary>{escape(title)}</summary>\n\n{body}\n\n</details>"


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table; empty without rows."""
    lines = [" | ".join(escape(cell) for cell in row) for row in rows]
    if not lines:
        return ""
    head = [" | ".join(header), " | ".join("---" for _ in header)]
    return "\n".join(f"| {line} |" for line in head + lines)


def escape(text: str) -> str:
    """Keep a cell in its cell: no line breaks, no bars, no tags."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\r", " ").replace("\n", " ")
