"""The full report in Markdown, for a file and for the summary page of a GitHub Actions job."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.records import CaseRecord, CheckRecord, RunRecord
from wan_trt_core.report.summary import (
    WHY,
    advisory_checks,
    check_headline,
    headline,
    marks,
    missing_bands,
    perf_rows,
    stale_baselines,
    totals,
    worst_first,
)

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""GitHub Actions names the file of the job's summary in it."""

TOP_KERNELS = 10
"""Kernels of the candidate that the report lists; the record has more."""


def markdown_report(record: RunRecord) -> str:
    """The report: verdicts, what is missing, every case's checks and metrics, and the environment."""
    verdict = "pass" if _passed(record) else "NOT PASSED"
    parts = [
        f"# wan-trt: {verdict}",
        f"{totals(record)}. Hardware `{record.hardware_key}`, started {record.started}.",
        _verdicts(record),
        _listed("Better than the baseline", stale_baselines(record)),
        _missing(record),
        _listed("Did not decide (advisory)", advisory_checks(record)),
        "## Cases",
        *(_case(case) for case in worst_first(record)),
        "## Environment",
        _table(("what", "value"), _flat(record.environment)),
        "## Settings",
        _table(("setting", "value"), _flat(record.settings)),
        f"Command: `{' '.join(record.command)}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_markdown(record: RunRecord, path: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Write the report to ``path``, and append it to the job's summary where there is one.

    Args:
        record: the run.
        path: the report's file; its folder is made.
        environ: the environment; ``GITHUB_STEP_SUMMARY`` names the summary's file.
    """
    text = markdown_report(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if summary := environ.get(SUMMARY_VARIABLE):
        with open(summary, "a", encoding="utf-8") as stream:
            stream.write(text)


def _passed(record: RunRecord) -> bool:
    return bool(record.cases) and all(case.verdict is Verdict.PASS for case in record.cases)


def _verdicts(record: RunRecord) -> str:
    rows = []
    for case in worst_first(record):
        head = headline(case)
        why = WHY[case.reason] + "".join(f" **{mark}**" for mark in marks(case))
        verdict = case.verdict.value if case.verdict is Verdict.PASS else f"**{case.verdict.value.upper()}**"
        rows.append((f"`{case.case}`", case.suite, verdict, head.metric, head.value, head.limit, why))
    return _table(("case", "suite", "verdict", "metric", "measured", "limit", "why"), rows)


def _listed(title: str, found: list[tuple[CaseRecord, CheckRecord]]) -> str:
    if not found:
        return ""
    lines = [f"- `{case.case}` ({case.suite}): {_escape(check.message)}" for case, check in found]
    return "\n".join([f"## {title}", "", *lines])


def _missing(record: RunRecord) -> str:
    lines = [f"- {_escape(line)}" for line in missing_bands(record)]
    return "\n".join(["## Missing bands (advisory)", "", *lines]) if lines else ""


def _case(case: CaseRecord) -> str:
    title = f"{case.verdict.value.upper()} {case.case} ({', '.join((case.suite, *marks(case)))})"
    weights = f" ({case.random_weights})" if case.random_weights else ""
    what = (
        f"{case.model}{weights} / {case.component} / {case.profile} / {case.precision} / {case.backend}, "
        f"{case.seconds:.1f} s"
    )
    facts = dict(case.measurement.facts)
    kernels = facts.pop("kernels", {})
    perf = _table(("performance", "measured"), perf_rows(case))
    parts = [what, _escape(case.message), perf, _kernels(kernels), _checks(case), _metrics(case)]
    if case.measurement.notes:
        parts.append("\n".join(f"- {_escape(note)}" for note in case.measurement.notes))
    parts.append(_table(("fact", "value"), _flat(facts)))
    body = "\n\n".join(part for part in parts if part)
    opened = "" if case.verdict is Verdict.PASS else " open"
    return f"<details{opened}><summary>{_escape(title)}</summary>\n\n{body}\n\n</details>"


def _checks(case: CaseRecord) -> str:
    rows = []
    for check in case.checks:
        head = check_headline(case, check)
        verdict = check.verdict.value + (" (advisory)" if check.advisory else "")
        rows.append((check.gate, check.metric, verdict, head.value, head.limit, check.message))
    return _table(("gate", "metric", "verdict", "measured", "limit", "message"), rows)


def _metrics(case: CaseRecord) -> str:
    rows = [
        (name, quantity(metric.value, metric.unit), str(len(metric.samples) or ""), metric.detail)
        for name, metric in sorted(case.measurement.metrics.items())
    ]
    return _table(("metric", "value", "samples", "detail"), rows)


def _kernels(kernels: Mapping[str, Any]) -> str:
    """Where both arms' time goes, by what the kernels do, and the candidate's costliest kernels."""
    if not kernels:
        return ""
    if "error" in kernels:
        return f"The kernels could not be told apart: {_escape(kernels['error'])}"
    arms = (kernels["reference"], kernels)
    rows = [
        (group, *(quantity(arm["groups_ms"][group] / 1000, "s") for arm in arms))
        for group in kernels["groups_ms"]
    ]
    rows.append(("all kernels", *(quantity(arm["total_ms"] / 1000, "s") for arm in arms)))
    top = [(name, quantity(ms / 1000, "s"), str(count)) for name, ms, count in kernels["top"][:TOP_KERNELS]]
    groups = _table(("one call", "reference", "candidate"), rows)
    return f"{groups}\n\n{_table(('costliest kernels of the candidate', 'time', 'launches'), top)}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(_escape(cell) for cell in row) for row in rows]
    if not lines:
        return ""
    head = [" | ".join(header), " | ".join("---" for _ in header)]
    return "\n".join(f"| {line} |" for line in head + lines)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(data.items()):
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif name.startswith("engines."):  # what each engine holds, in bytes
            rows.append((name, quantity(value, "B")))
        else:
            rows.append((name, str(value)))
    return rows


def _escape(text: str) -> str:
    """Keep a cell in its cell: no line breaks, no bars, no tags."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\r", " ").replace("\n", " ")
