"""Progress: a bar with the time left for each phase, or plain lines where there is no terminal."""

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
"""Called with the name of the phase and the fraction done, 0 to 1."""


@contextmanager
def progress(console: Console = ERR) -> Iterator[Report]:
    """What to hand on as ``progress=``; on a terminal each phase gets a bar, elsewhere two lines."""
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
        task = self._tasks.get(phase)
        if task is None:
            task = self._tasks[phase] = self._bars.add_task(phase, total=1.0)
        self._bars.update(task, completed=fraction)


class _Lines:
    """The begin and the end of each phase: a log of CI has no use for a hundred lines of per cent."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}

    def __call__(self, phase: str, fraction: float) -> None:
        if phase not in self._started:
            if fraction >= 1:
                return  # there was nothing to do
            self._started[phase] = time.perf_counter()
            self._print(f"{phase} …")
        elif fraction >= 1:
            seconds = time.perf_counter() - self._started.pop(phase)
            self._print(f"{phase}: done in {seconds:.1f} s")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)
