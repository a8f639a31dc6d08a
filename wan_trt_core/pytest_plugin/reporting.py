"""What people see of a session, in the process that reports (under xdist the controller)."""

from __future__ import annotations

import io
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from wan_trt_core.pytest_plugin import checkpoints, judging
from wan_trt_core.pytest_plugin.options import MARKERS
from wan_trt_core.report.writing import PAGE, REPORT, RESULTS, write_report

if TYPE_CHECKING:
    from wan_trt_core.measure.environment import SourceState
    from wan_trt_core.pytest_plugin.session import WanSession
    from wan_trt_core.records import CaseRecord, RunRecord

NO_GATE = "NOT GATING (--wan-no-gate): verdicts are recorded and fail no test"


def header(session: WanSession) -> list[str]:
    """What is judged, on what, and whether it gates; nothing in runs that are not about us."""
    if not session.active:
        return []
    from wan_trt_core.backends.registry import UnknownBackend
    from wan_trt_core.cases import CaseFileError
    from wan_trt_core.config import ConfigError

    try:
        settings, sources, overrides = session.settings, session.loaded.sources, session.overrides
        hardware = session.hardware_key
    except (ConfigError, UnknownBackend, RuntimeError) as error:
        return [f"wan-trt: {error}"]

    def chosen(name: str) -> str:
        return f"{overrides[name]} ({sources[name]})" if name in overrides else "by case"

    bands = "required" if session.require_bands else "where this hardware has them"
    if settings.strict_improvements:
        bands += f", improvements beyond them fail ({sources['strict_improvements']})"
    try:
        left_out, cases = session.left_out, session.case_file.cases
    except CaseFileError:  # collection says what is wrong, if a test wants cases at all
        left_out, cases = "", ()
    if session.require_bands:
        from wan_trt_core.gates.judging import gate_bands

        if not any(gate_bands(case, suite) for case in cases for suite in case.suites):
            bands += " (no case has any)"
    return [
        f"wan-trt: model {chosen('model')}, backend {chosen('backend')}, profile {chosen('profile')}",
        *([f"wan-trt: {given}"] if (given := checkpoints.told(session)) else []),
        f"wan-trt: hardware {hardware}, cases {session.case_path}",
        f"wan-trt: baselines {settings.baselines}, bands {bands}",
        *([f"wan-trt: {left_out}"] if left_out else []),
        f"wan-trt: {'gating: everything but pass fails its test' if session.gating else NO_GATE}",
    ]


class Collector:
    """Collects the records of all cases and, at the end, writes and prints them."""

    def __init__(self, session: WanSession) -> None:
        self.session = session
        self._records: dict[tuple[str, str], CaseRecord] = {}
        self._started = datetime.now(UTC)
        self._run: RunRecord | None = None
        self._not_written: str | None = None
        session.keep = self.keep

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the record of a case; a later one (of the call) replaces an earlier one (of the setup)."""
        record = judging.received(report)
        if record is not None:
            self.keep(record)

    def keep(self, record: CaseRecord) -> None:
        """Write what is known, each time: a killed run (a job's time limit, a system out of memory) leaves it."""
        self._records[record.suite, record.case] = record
        # a process whose workers collect knows the backends from nowhere else
        self.session.backends.add(record.backend)
        with suppress(OSError):  # told at the end, if it is still so
            self.run_record().write(self.session.settings.report / RESULTS)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write ``results.json``, ``report.md`` and ``report.html``."""
        if self._records:
            self._run = self.run_record()
            try:
                write_report(self._run, self.session.settings.report)
            except OSError as error:
                folder = self.session.settings.report
                self._not_written = (
                    f"the results could not be written to {folder}: {error}; "
                    "free space there, or name another folder with --wan-report"
                )
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table of verdicts and where the files are."""
        if self._run is None:
            return
        terminalreporter.write_sep("=", "wan-trt")
        terminalreporter.write(self._table(self._run, terminalreporter))
        if not self.session.gating:
            terminalreporter.write_line(NO_GATE, yellow=True, bold=True)
        if self._not_written:
            terminalreporter.write_line(f"ERROR: {self._not_written}", red=True)
            return
        from wan_trt_core.report.github import annotate

        for command in annotate(self._run, self.session.case_path):
            terminalreporter.write_line(command)
        for name in (RESULTS, REPORT, PAGE):
            terminalreporter.write_line(f"{name}: {self.session.settings.report / name}")

    def run_record(self) -> RunRecord:
        """Everything that was measured and decided so far, in the order of the suites and the case file."""
        from wan_trt_core.backends.registry import device_of
        from wan_trt_core.measure.environment import environment_record
        from wan_trt_core.records import RunRecord
        from wan_trt_core.report.summary import ORPHANS

        session = self.session
        environment = environment_record(
            device_of(session.settings, session.backend),
            source=self._source,
            throttle_before=session.throttle_before,
        )
        order = {case.id: index for index, case in enumerate(session.case_file.cases)}
        suites = tuple(MARKERS)
        records = sorted(
            self._records.values(),
            key=lambda record: (suites.index(record.suite), order.get(record.case, -1)),
        )
        return RunRecord(
            started=self._started.isoformat(timespec="seconds"),
            command=session.command,
            hardware_key=session.hardware_key,
            environment={
                **environment,
                "gating": session.gating,
                "require_bands": session.require_bands,
                ORPHANS: session.orphans(self._records),
            },
            settings=session.settings.flat(),
            cases=tuple(records),
        )

    @cached_property
    def _source(self) -> SourceState:
        """Asked once, for the first record: before anything is written, and before a measurement of hours."""
        from wan_trt_core.measure.environment import measured_source

        return measured_source(self.session.settings.report)

    @staticmethod
    def _table(run: RunRecord, terminalreporter: pytest.TerminalReporter) -> str:
        from rich.console import Console

        from wan_trt_core.report.terminal import render

        writer = terminalreporter.config.get_terminal_writer()
        text = io.StringIO()
        console = Console(
            file=text,
            width=writer.fullwidth,
            force_terminal=writer.hasmarkup,
            no_color=not writer.hasmarkup,
            highlight=False,
        )
        render(run, console)
        return text.getvalue()
