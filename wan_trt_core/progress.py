"""Progress: a bar with the time left for each job, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ERR = Console(stderr=True)
"""Everything but results goes to stderr, so that standard output can be piped on."""

Report = Callable[[str, float], None]
"""Called with the job, as ``export dit fp32: trace`` (after the colon its stage), and the fraction done."""


@contextmanager
def progress(console: Console = ERR) -> Iterator[Report]:
    """What to hand on as ``progress=``; on a terminal each job gets a bar, elsewhere two lines."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, fraction: float) -> None:
        job, stage = _split(phase)
        if job not in self._tasks:
            self._tasks[job] = self._bars.add_task(job, total=1.0)
        shown = f"{job}: {stage}" if stage and fraction < 1 else job
        self._bars.update(self._tasks[job], completed=fraction, description=shown)


class _Lines:
    """The begin and the end of each job: a log of CI has no use for a hundred lines of per cent."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}

    def __call__(self, phase: str, fraction: float) -> None:
        job, _ = _split(phase)
        if job not in self._started:
            if fraction >= 1:
                return  # there was nothing to do
            self._started[job] = time.perf_counter()
            self._print(f"{job} …")
        elif fraction >= 1:
            seconds = time.perf_counter() - self._started.pop(job)
            self._print(f"{job}: done in {seconds:.1f} s")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def _split(phase: str) -> tuple[str, str]:
    """``build dit fp32: optimise`` is one job at one of its stages; the fraction is that of the job."""
    job, _, stage = phase.partition(": ")
    return job, stage
