"""``wan-trt memory``: what a run holds, and what would lower its peak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wan_trt_core.cli.options import JsonOption
from wan_trt_core.cli.output import print_json, print_line

commands = typer.Typer()
memory = typer.Typer(no_args_is_help=True, help="What a run holds, and what would lower its peak.")
commands.add_typer(memory, name="memory")


@memory.callback()
def group() -> None:
    """What a run holds, and what would lower its peak."""


@memory.command(
    "analyze",
    epilog="Example: wan-trt memory analyze outputs/report/video/memory_events.json --output report.md",
)
def analyze(
    events: Annotated[Path, typer.Argument(help="A memory_events.json of wan-trt run --profile-memory.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Write the report here: HTML if it ends in .html, else Markdown.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the peak and its owners, growth, and what would lower the peak, in order of what it saves for what it costs.

    Without --output the report is printed as Markdown. A run that failed is analysed as far as it came.
    """
    from dataclasses import asdict

    from wan_trt_core.measure.memory_events import MemoryRecord
    from wan_trt_core.report.memory_analysis import analyse
    from wan_trt_core.report.memory_report import memory_markdown, memory_page, write_memory_report

    record = MemoryRecord.read(events)
    page = memory_page(record)
    for path in output or ():
        write_memory_report(record, path)
    if as_json:
        failure = record.failure.model_dump(mode="json") if record.failure else None
        print_json(asdict(analyse(record)) | {"failure": failure})
    elif output:
        print_line(f"{page.headline}: {', '.join(map(str, output))}")
    else:
        print(memory_markdown(record), end="")
