"""What a command answers: results on standard output, all else on standard error, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from wan_trt_core.progress import ERR

# Exit codes; 2, wrong usage, is typer's own.
FAILED = 1
WRONG_INPUT = 3
INTERRUPTED = 130

OUT = Console()


def print_error(text: str) -> None:
    """One line on standard error, as it is: no markup, no wrapping."""
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)


def print_line(text: str) -> None:
    """One line on standard output, as it is."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Plain, so that a program can read standard output."""
    from wan_trt_core.records import finite

    print(json.dumps(finite(data), indent=2, allow_nan=False))


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows of the same keys, at least one, as a table or as JSON; the key ``bytes`` is shown as a size."""
    if as_json:
        print_json(rows)
        return
    cells = [
        tuple(readable_size(value) if key == "bytes" else str(value) for key, value in row.items())
        for row in rows
    ]
    print_table("", tuple("size" if key == "bytes" else key for key in rows[0]), cells)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; without a header where no column has a name."""
    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    OUT.print(table)


def readable_size(size: int) -> str:
    """Bytes as MiB, from one GiB on as GiB."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
