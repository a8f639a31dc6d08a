"""One case of one suite: every check that its measurement must go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wan_trt_core.gates.bands import BaselineEntry, judge_bands, regenerate_command
from wan_trt_core.gates.memory import judge_memory
from wan_trt_core.gates.parity import judge_parity
from wan_trt_core.gates.perf import hold_times, hold_unresolved, judge_perf
from wan_trt_core.gates.verdict import Check, Reason, Verdict

if TYPE_CHECKING:
    from wan_trt_core.cases import Band, Case, Suite
    from wan_trt_core.records import Measurement


def judge(
    case: Case,
    suite: Suite,
    measurement: Measurement,
    baseline: BaselineEntry | None,
    *,
    bands_for_hardware: bool,
    require_bands: bool,
    strict_improvements: bool = False,
    baseline_error: str | None = None,
    run: Sequence[str] = (),
) -> tuple[Check, ...]:
    """Judge what was measured.

    Args:
        case: the row of the case file.
        suite: which of its suites was measured.
        measurement: what it came to.
        baseline: the stored entry of this case for this hardware, if there is one.
        bands_for_hardware: this hardware has a baseline file for the model and suite.
        require_bands: a machine without such a file fails the case instead of being reported.
        strict_improvements: a metric that is better than its band fails until it has a new baseline.
        baseline_error: what :class:`~wan_trt_core.baselines.BaselineError` said when the file could not be
            read, or why the entry says nothing about this run; the case is then invalid, whatever its own gates
            say.
        run: the command line of the run, for the commands that messages name.

    Returns:
        The checks, what the suite is about first; :func:`~wan_trt_core.gates.verdict.decide` makes the
        verdict of them. Where the measurement is void, what its numbers would have come to is given as
        advisory.

    Raises:
        ValueError: when the case is not in that suite.
    """
    checks, bands = own_checks(case, suite, measurement), gate_bands(case, suite)
    # as baseline_update.fit_record has it
    acceptable = not measurement.problems and all(
        check.verdict is Verdict.PASS for check in checks if not check.advisory
    )
    if baseline_error is not None:
        message = f"the baseline cannot be used: {baseline_error}"
        banded: tuple[Check, ...] = (Check("band", "", Verdict.INVALID, Reason.BASELINE_INVALID, message),)
    else:
        banded = judge_bands(
            case.id,
            suite,
            bands,
            measurement.metrics,
            baseline,
            bands_for_hardware=bands_for_hardware,
            require_bands=require_bands,
            strict_improvements=strict_improvements,
            acceptable=acceptable,
            run=run,
        )
    if suite == "perf":
        command = regenerate_command(suite, case.id, run) if acceptable else None
        banded = hold_times(hold_unresolved(banded, checks[0]), measurement.metrics, command)
    if not measurement.problems:
        return checks + banded
    void = tuple(_problem(reason, why) for reason, why in sorted(measurement.problems.items()))
    return void + tuple(replace(check, advisory=True) for check in checks + banded)


def gate_bands(case: Case, suite: Suite) -> Mapping[str, Band]:
    """The bands of a case in one suite, by metric: exactly what its baseline entry holds.

    Raises:
        ValueError: when the case is not in that suite.
    """
    if suite == "parity" and case.parity:
        return case.parity_bands
    if suite == "perf" and case.perf:
        return case.perf.bands
    if suite == "memory" and case.memory:
        return case.memory_bands
    raise ValueError(f"case {case.id} has no {suite} gate")


def gate_backends(case: Case, suite: Suite) -> tuple[str, ...]:
    """The backends whose numbers the bands of a case hold: its own, and torch.compile where one is on what is timed of
    it beside the candidate.

    Raises:
        ValueError: when the case is not in that suite.
    """
    from wan_trt_core.cases import BESIDE

    bands = gate_bands(case, suite)
    beside = [name for name in case.beside if BESIDE[name] in bands] if suite == "perf" else []
    return case.backend, *beside


def own_checks(case: Case, suite: Suite, measurement: Measurement) -> tuple[Check, ...]:
    """Of the case's own gates: all but the bands, which a baseline holds.

    Raises:
        ValueError: when the case is not in that suite.
    """
    if suite == "parity" and case.parity:
        return judge_parity(case.parity, measurement)
    if suite == "perf" and case.perf:
        return judge_perf(case.perf, measurement)
    if suite == "memory" and case.memory:
        return judge_memory(case.memory, measurement)
    raise ValueError(f"case {case.id} has no {suite} gate")


def _problem(reason: Reason, why: str) -> Check:
    verdict = Verdict.MISSING if reason is Reason.NOT_MEASURED else Verdict.INVALID
    return Check("validity", "", verdict, reason, why)
