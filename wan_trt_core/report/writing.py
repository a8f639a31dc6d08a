"""Writing a report's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.records import RunRecord

RESULTS, REPORT, PAGE = "results.json", "report.md", "report.html"
"""What a run leaves in its report's folder."""


def write_report(run: RunRecord, folder: Path) -> None:
    """Write all three; the folder is made."""
    from wan_trt_core.report.html import write_html
    from wan_trt_core.report.markdown import write_markdown

    run.write(folder / RESULTS)
    write_markdown(run, folder / REPORT)
    write_html(run, folder / PAGE)
