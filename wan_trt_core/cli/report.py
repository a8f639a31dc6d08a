"""``wan-trt report``: the report of a stored run again, one of several jobs, and what changed between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wan_trt_core.cli.options import JsonOption
from wan_trt_core.cli.output import FAILED, OUT, print_json, print_line

commands = typer.Typer()


class _ShowUnlessNamed(TyperGroup):
    """``wan-trt report FILE`` is ``wan-trt report show FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["show", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


reports = typer.Typer(
    cls=_ShowUnlessNamed, no_args_is_help=True, help="The report of a stored run again, or two runs compared."
)
commands.add_typer(reports, name="report")


@reports.command("show", epilog="Example: wan-trt report show outputs/report/results.json --html report.html")
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
    from wan_trt_core.report.summary import passed
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
    if not passed(record):
        raise typer.Exit(FAILED)


@reports.command("compare", epilog="Example: wan-trt report compare main.json mine.json > comment.md")
def compare(
    before: Annotated[Path, typer.Argument(help="results.json of the run to compare with.")],
    after: Annotated[Path, typer.Argument(help="results.json of the new run.")],
    as_json: JsonOption = False,
) -> None:
    """Print as Markdown what changed from one run to another, the worst first; a comparison is no gate."""
    from dataclasses import asdict

    from wan_trt_core.records import RunRecord
    from wan_trt_core.report.changes import compare_runs
    from wan_trt_core.report.markdown import comparison_markdown

    runs = RunRecord.read(before), RunRecord.read(after)
    if as_json:
        print_json(asdict(compare_runs(*runs)))
    else:
        print(comparison_markdown(*runs), end="")


@reports.command("merge", epilog="Example: wan-trt report merge parity.json perf.json --out all.json")
def merge(
    results: Annotated[list[Path], typer.Argument(help="Every results.json that a job wrote.")],
    out: Annotated[Path, typer.Option(help="Write the record of all here.", dir_okay=False)],
) -> None:
    """Make one record of those of several jobs, which have hardware, sources, packages and settings in common."""
    from wan_trt_core.records import RunRecord

    record = RunRecord.merged([RunRecord.read(each) for each in results])
    record.write(out)
    print_line(f"{out}: {len(record.cases)} cases of {len(results)} runs")


@reports.command("verdict", epilog="Example: wan-trt report verdict outputs/report/results.json")
def verdict(results: Annotated[Path, typer.Argument(help="A results.json that a run wrote.")]) -> None:
    """Print the worst verdict of a stored run, one word for scripts; exit 1 unless it is pass."""
    from wan_trt_core.gates.verdict import Verdict
    from wan_trt_core.records import RunRecord
    from wan_trt_core.report.summary import worst_first

    cases = worst_first(RunRecord.read(results))
    worst = cases[0].verdict if cases else Verdict.MISSING
    print_line(worst.value)
    if worst is not Verdict.PASS:
        raise typer.Exit(FAILED)
