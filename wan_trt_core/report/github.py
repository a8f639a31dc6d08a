"""Annotations of a GitHub Actions job: what did not pass, shown at its case in the change's files.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.records import RunRecord
from wan_trt_core.report.summary import orphaned_baselines, stale_baselines, worst_first

ACTIONS_VARIABLE = "GITHUB_ACTIONS"
"""``true`` in every job of GitHub Actions."""
WORKSPACE_VARIABLE = "GITHUB_WORKSPACE"
"""The folder of the checkout; annotations name files relative to it."""


def annotate(record: RunRecord, case_file: Path, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Workflow commands, the worst first (GitHub shows ten errors and ten warnings a step); none outside of Actions.

    What did not pass is an error, or a warning where the run does not gate; so are baselines that want to be renewed.
    """
    if environ.get(ACTIONS_VARIABLE) != "true":
        return
    file = os.path.relpath(case_file, environ.get(WORKSPACE_VARIABLE, "."))
    lines = _case_lines(case_file)
    severity = "error" if record.environment.get("gating", True) else "warning"
    for case in worst_first(record):
        if case.verdict is not Verdict.PASS:
            title = f"{case.case} ({case.suite}) {case.verdict.value.upper()} ({case.reason.value})"
            text = "\n".join((case.message, *case.measurement.notes))
            yield _command(severity, file, lines.get(case.case), title, text)
    for case, check in stale_baselines(record):
        if check.verdict is Verdict.PASS:
            title = f"{case.case} ({case.suite}) is better than its baseline"
            yield _command("warning", file, lines.get(case.case), title, check.message)
    for text in orphaned_baselines(record):
        yield _command("warning", file, None, "orphaned baseline", text)


def _case_lines(case_file: Path) -> dict[str, int]:
    """The line of each case's id."""
    try:
        text = case_file.read_text(encoding="utf-8")
    except OSError:
        return {}
    found = re.compile(r"""^[\s{-]*["']?id["']?\s*:\s*["']?([^"'\s#,}]+)""")
    matches = ((number, found.match(line)) for number, line in enumerate(text.splitlines(), 1))
    return {match[1]: number for number, match in matches if match}


def _command(severity: str, file: str, line: int | None, title: str, text: str) -> str:
    properties = {"file": file, "line": line, "title": f"wan-trt: {title}"}
    given = ",".join(
        f"{key}={_property(str(value))}" for key, value in properties.items() if value is not None
    )
    return f"::{severity} {given}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
