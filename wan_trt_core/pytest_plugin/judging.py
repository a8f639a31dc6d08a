"""Measurement -> checks -> verdict -> test outcome, and the record that goes with the test's report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wan_trt_core.gates.verdict import Check, Reason, Verdict
from wan_trt_core.pytest_plugin.collecting import NoCases, Subject, subject_of
from wan_trt_core.pytest_plugin.session import SESSION
from wan_trt_core.report.writing import REPORT

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.pytest_plugin.session import WanSession
    from wan_trt_core.records import CaseRecord, Measurement

STARTED = pytest.StashKey[float]()
"""When measuring began, on the clock of :func:`time.perf_counter`."""

RECORD = pytest.StashKey["CaseRecord"]()

_NEXT = {
    Verdict.FAIL: "if the change is meant, say so in the case file or the baseline, with its reason",
    Verdict.INVALID: "nothing was proven either way; mend the cause and run again",
    Verdict.MISSING: "a gate without its numbers lets nothing through; supply them",
    Verdict.INCONCLUSIVE: "not proven either way; a quieter machine or a larger budget decides it",
}


def judge_item(
    item: pytest.Item, session: WanSession, case: Case, suite: Suite, measurement: Measurement
) -> CaseRecord:
    """Judge, keep the record with the item, and fail the item unless it passes (or gating is off)."""
    __tracebackhide__ = True
    seconds = time.perf_counter() - item.stash.get(STARTED, time.perf_counter())
    record = judge_case(session, case, suite, measurement, seconds)
    if record.verdict is Verdict.FAIL and record.reason is not Reason.BETTER_THAN_BAND:
        session.keep(record)  # a run that is killed while it looks for the reason leaves the numbers
        try:
            record = _explained(session, case, suite, record)
        except KeyboardInterrupt:  # finding out why may take engines of its own; the verdict stands without
            record = _noted(record, "why was not found out: interrupted")
            item.session.shouldstop = "interrupted"
    item.stash[RECORD] = record
    if record.verdict is Verdict.PASS:
        return record
    message = failure_message(record, session.settings.report / REPORT)
    if session.gating:
        pytest.fail(message, pytrace=False)
    item.add_report_section("call", "wan-trt (not gating)", message)
    return record


def judge_case(
    session: WanSession, case: Case, suite: Suite, measurement: Measurement, seconds: float
) -> CaseRecord:
    """The record of one case: every check of its gate, and the verdict they come to."""
    from wan_trt_core.baselines import other_origin, other_settings
    from wan_trt_core.deciding_settings import deciding
    from wan_trt_core.gates import gate_backends, judge
    from wan_trt_core.records import CaseRecord

    stored = session.stored(case, suite)
    origin = {"backend": case.backend, "weights": measurement.weights, "profile": case.profile}
    mismatch = None
    if stored.entry:
        own = case.own_settings
        settings = deciding(session.settings.flat(), case.component, gate_backends(case, suite), own)
        mismatch = other_origin(case.id, suite, stored.entry, origin, session.command) or other_settings(
            case.id, suite, stored.entry, settings, own, session.command
        )
    checks = judge(
        case,
        suite,
        measurement,
        stored.entry,
        bands_for_hardware=stored.for_hardware,
        require_bands=session.require_bands,
        strict_improvements=session.settings.strict_improvements,
        baseline_error=stored.error or mismatch,
        run=session.command,
    )
    return CaseRecord.judged(case, suite, checks, measurement, seconds)


def _explained(session: WanSession, case: Case, suite: Suite, record: CaseRecord) -> CaseRecord:
    """The record with lines that say why it failed, which for parity takes another run of the engines."""
    try:
        notes = session.config.hook.pytest_wan_explain(
            case=case,
            suite=suite,
            session=session,
            measurement=record.measurement,
            baseline=session.stored(case, suite).entry,
        )
    except Exception as error:  # of whatever kind: the case has failed, and that is what must be told
        notes = (f"why could not be found out: {type(error).__name__}: {error}",)
    return _noted(record, *notes)


def _noted(record: CaseRecord, *notes: str) -> CaseRecord:
    measurement = record.measurement.model_copy(update={"notes": (*record.measurement.notes, *notes)})
    return record.model_copy(update={"measurement": measurement})


def not_measured(
    subject: Subject, why: str, seconds: float, verdict: Verdict = Verdict.INVALID
) -> CaseRecord:
    """The record of a case that could not be measured: it stays in every report."""
    from wan_trt_core.records import CaseRecord, CheckRecord, Measurement

    check = Check("validity", "", verdict, Reason.NOT_MEASURED, why)
    unmeasured = Measurement(metrics={})
    if not isinstance(subject.case, NoCases):
        return CaseRecord.judged(subject.case, subject.suite, (check,), unmeasured, seconds)
    return CaseRecord(
        case=subject.name,
        suite=subject.suite,
        **dict.fromkeys(("model", "component", "profile", "precision", "backend"), ""),
        verdict=verdict,
        reason=check.reason,
        message=why,
        checks=(CheckRecord.of(check),),
        measurement=unmeasured,
        seconds=seconds,
    )


def failure_message(record: CaseRecord, report: Path) -> str:
    """Case, verdict, reason and numbers in the first line, then the rest and what to do."""
    others = [
        f"  {check.verdict.value} ({check.reason.value}): {check.message}"
        for check in record.checks
        if check.verdict is not Verdict.PASS and not check.advisory and check.message != record.message
    ]
    verdict = f"{record.verdict.value.upper()} ({record.reason.value})"
    lines = [
        f"{record.case} ({record.suite}) {verdict}: {record.message}",
        *others,
        *(f"  {note}" for note in record.measurement.notes),
        f"  {_NEXT[record.verdict]}; all numbers are in {report}",
    ]
    return "\n".join(lines)


def attach(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Put the record on the report as JSON: it reaches the controller under xdist too.

    A case that passes its setup gets a preliminary record, which stands if the process dies while measuring.
    """
    subject = subject_of(item)
    if subject is None or report.when == "teardown" or (report.when == "setup" and report.skipped):
        return
    if report.when == "setup" and report.passed:
        _send(report, not_measured(subject, "the test did not end: its process died or was interrupted", 0.0))
        return
    record = item.stash.get(RECORD, None)
    if record is None:
        record = _without_judgement(item, call, report, subject)
    from wan_trt_core.report.junit import junit_properties

    properties = junit_properties(record)
    item.user_properties.extend(properties)
    report.user_properties.extend(properties)
    _send(report, record)


def received(report: pytest.TestReport) -> CaseRecord | None:
    """The record that :func:`attach` put on a report, if there is one."""
    from wan_trt_core.records import CaseRecord

    text = getattr(report, "wan_record", None)
    return None if text is None else CaseRecord.model_validate(json.loads(text))


def _send(report: pytest.TestReport, record: CaseRecord) -> None:
    report.__dict__["wan_record"] = json.dumps(record.model_dump(mode="json"))  # xdist sends what is in here


def _without_judgement(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, subject: Subject
) -> CaseRecord:
    """The record of an item that ended before a verdict; the item fails, whatever ended it."""
    if isinstance(subject.case, NoCases):
        return not_measured(subject, subject.case.message, call.duration, Verdict.MISSING)
    written = item.config.stash[SESSION].settings.report / REPORT
    if call.excinfo is None or report.outcome != "failed":
        ended = (
            "it was skipped while measuring" if report.skipped else "the test ended without calling wan_judge"
        )
        detail = f" ({call.excinfo.value})" if call.excinfo else ""
        record = not_measured(subject, f"nothing was judged: {ended}{detail}", call.duration)
        report.outcome = "failed"
        report.longrepr = failure_message(record, written)
        return record
    error = call.excinfo.value
    record = not_measured(subject, f"{type(error).__name__}: {error}", call.duration)
    if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
        # one of our own errors: its message says what to do, a traceback would only hide it
        shown = pytest.fail.Exception(failure_message(record, written), pytrace=False)
        excinfo = pytest.ExceptionInfo.from_exception(shown.with_traceback(call.excinfo.tb))
        report.longrepr = excinfo.getrepr(style="value")
    return record
