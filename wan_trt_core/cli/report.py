"""``wan-trt report``: the report of a stored run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wan_trt_core.cli.options import JsonOption
from wan_trt_core.cli.output import FAILED, OUT, print_json

commands = typer.Typer()


@commands.command(epilog="Example: wan-trt report outputs/report/results.json --html report.html")
def report(
    results: Annotated[Path, typer.Argument(help="A results.json that a run wrote.")],
    markdown: Annotated[
        Path | None, typer.Option(help="Write a Markdown report here.", dir_okay=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report here.", dir_okay=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the verdicts of a stored run again; exit 1 unless all passed."""
    from wan_trt_core.records import RunRecord
    from wan_trt_core.report.html import write_html
    from wan_trt_core.report.markdown import write_markdown
    from wan_trt_core.report.terminal import render

    record = RunRecord.read(results)
    if as_json:
        print_json(
            [
                {
                    "case": case.case,
                    "suite": case.suite,
                    "verdict": case.verdict.value,
                    "reason": case.reason.value,
                }
                for case in record.cases
            ]
        )
    else:
        render(record, OUT)
    if markdown:
        write_markdown(record, markdown)
    if html:
        write_html(record, html, results.parent)
    if not record.cases or any(case.verdict.value != "pass" for case in record.cases):
        raise typer.Exit(FAILED)
