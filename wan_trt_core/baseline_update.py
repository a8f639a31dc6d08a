"""Making baselines: what is measured, what is refused, and what is written.
``wan-trt baselines regenerate``.

Baselines change only here. The run that sets one must have been made by one process alone, not slowed down, from a
known commit without changes; what it measured is stored under its own hardware. A case must pass every gate but the
bands: one that does not is refused and its entry stays as it is, which keeps no other case back. A stored value
changes only when a metric leaves its band: within it nothing is written, so that noise does not creep into
the baselines. What would let pass that failed before needs a reason, which is stored with the entry; so does an
entry that would go because no case asks for it, as it may belong to another case file.

A reason that the case file or the settings alone call for is asked for before measuring. What was measured and not
stored is kept.

Numbers of other settings (:mod:`wan_trt_core.deciding_settings`) are replaced with a reason only, within their bands
too, and then as a whole; an entry that does not say its settings counts as made with the defaults.

An entry's judged numbers and kernels are of one measurement: where it has no kernels and the new run does, it is
replaced as a whole, once, with the provenance of that run. New ones alone never touch an entry that has some. What is
observed and judged by nothing (:mod:`wan_trt_core.observations`) is replaced with the entry. Where the bands hold it
comes beside what stays, with the commit of its own run: where there is none yet, and again where that is asked for.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.baselines import (
    ORIGIN,
    BaselineEntry,
    BaselineError,
    BaselineFile,
    BaselineMetric,
    Change,
    Row,
    Tolerance,
    compare_entries,
    find_orphans,
    new_entry,
    other_origin,
    read_baselines,
    write_baselines,
)
from wan_trt_core.cases import better_of
from wan_trt_core.config import CASE_FIELDS, ConfigError, load_settings, of_suites
from wan_trt_core.deciding_settings import changed_in_words, deciding, differing, in_words
from wan_trt_core.gates.bands import Observed, usable
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.gates.judging import gate_backends, gate_bands, own_checks
from wan_trt_core.gates.perf import SPEEDUP, unresolved
from wan_trt_core.gates.verdict import Check, Reason, Verdict
from wan_trt_core.measure.differences import kernel_difference
from wan_trt_core.observations import beside, extent, observed, origin_of
from wan_trt_core.report.changes import MetricChange, baseline_changes, worst_first
from wan_trt_core.report.markdown import changes_markdown
from wan_trt_core.report.writing import RESULTS

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.measure.environment import SourceState
    from wan_trt_core.records import CaseRecord, CheckRecord, RunRecord


_XDIST = re.compile(
    r"(?:^|\s)(?:-n[\s=]*(?!0(?:\s|$))\w+|--numprocesses[\s=]+(?!0(?:\s|$))|--dist[\s=]+(?!no(?:\s|$))|--tx\b)"
)
"""Options of pytest-xdist that start workers; ``-n0`` and ``--dist no`` do not."""

_MEASURED = (0, 1)
"""Exit codes of pytest (``pytest.ExitCode``) after all cases: each was measured, or some test failed."""


class Refused(RuntimeError):
    """The baselines may not be made like this; the message says why and what to do instead."""


@dataclass(frozen=True)
class Provenance:
    """Where a new baseline comes from, besides what the record itself says."""

    commit: str
    date: str
    command: tuple[str, ...]
    accepted_regression: str | None = None


@dataclass(frozen=True)
class Plan:
    """What regenerating would do to the baseline file of one model; nothing is written yet.

    Attributes:
        before: the file as it is, if there is one.
        after: the file as it would be.
        touched: cases whose entry changes.
        rows: old and new of every metric, those of untouched cases too.
        orphans: cases that the file holds and no case file has; they are dropped only in a complete run.
        kernels: what happens to the stored kernels of touched cases, for people, by case.
        observed: the touched cases of which only what nothing judges is new.
        settings: what touched cases were measured with, for people, where it is not the defaults, by case.
        other_settings: how the settings of touched cases differ from those of the numbers that go, for people, by case.
        refused: why a case is no baseline, by case; its entry stays as it is.
    """

    hardware_key: str
    model: str
    suite: str
    before: BaselineFile | None
    after: BaselineFile
    touched: frozenset[str]
    rows: tuple[Row, ...]
    orphans: tuple[str, ...] = field(default=())
    kernels: Mapping[str, str] = field(default_factory=dict)
    observed: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    other_settings: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def loosened(self) -> tuple[Row, ...]:
        """The rows that need a reason."""
        return tuple(row for row in self.rows if row.loosens)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The orphans that go; they need a reason too."""
        return tuple(case for case in self.orphans if case in self.touched)


def refuse_xdist(environ: Mapping[str, str]) -> None:
    """Refuse to measure beside other workers.

    Raises:
        Refused: inside an xdist worker, or when ``PYTEST_ADDOPTS`` would start some.
    """
    if worker := environ.get("PYTEST_XDIST_WORKER"):
        raise Refused(f"this runs inside the pytest-xdist worker {worker}; run the tool by itself")
    options = environ.get("PYTEST_ADDOPTS", "")
    if _XDIST.search(options):
        raise Refused(
            f"PYTEST_ADDOPTS={options!r} would measure beside other workers; unset it: PYTEST_ADDOPTS="
        )


def usable_commit(
    source: SourceState, written: Collection[str], commit: str | None = None, tree_state: str | None = None
) -> str:
    """The commit that a baseline may name: known, and without changes but those of the tool itself.

    Args:
        source: what git, or the record, says of the sources.
        written: files and folders that the tool writes, as git names them, relative to the repository.
        commit: given by hand, for machines without git.
        tree_state: ``clean`` or ``dirty``, given with it.

    Raises:
        Refused: when the commit is unknown, or the tree is dirty.
    """
    if source.commit is None:
        if commit is None or tree_state is None:
            lacking = (
                "there is no git here;" if source.dirty is None else "git has no commit here yet; commit, or"
            )
            raise Refused(f"{lacking} say what was measured: --commit SHA --tree-state clean|dirty")
        source = replace(source, commit=commit, dirty=tree_state != "clean")
    elif commit is not None and not source.commit.startswith(commit):
        raise Refused(f"--commit {commit} was given, but git says {source.commit}")
    if (source := source.without(written)).dirty:
        changed = source.changed
        names = f": {', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}" if changed else ""
        raise Refused(
            f"the tree is dirty{names}; commit first (and have git ignore what runs write), so that the baseline"
            " names what was measured"
        )
    assert source.commit is not None
    return source.commit


def check_record(record: RunRecord, hardware_key: str) -> None:
    """Refuse a run that no baseline of this hardware may come from.

    Raises:
        Refused: when it ran on other hardware, the machine was slowed down meanwhile, or there were other workers.
    """
    if record.hardware_key != hardware_key:
        raise Refused(
            f"the record comes from {record.hardware_key}, not from {hardware_key}; give those of one hardware"
        )
    if slowed := record.environment.get("throttled"):
        raise Refused(f"the machine was slowed down while it measured ({slowed}); run again when it is not")
    if _XDIST.search(command := " ".join(record.command)):
        raise Refused(f"the record was made beside other workers ({command}); measure without xdist")


def fit_record(record: RunRecord, suite: Suite, case: Case) -> CaseRecord:
    """One case of one suite in a record, fit to be a baseline: its measurement passes the gates that the case file has
    now, whatever it had when the record was made.

    Raises:
        Refused: when it is absent, its measurement is void, or a gate other than the bands does not pass.
    """
    found = _measured(record, suite, case.id)
    if found is None:
        raise Refused(f"case {case.id}: the run did not measure it in suite {suite}; see its output above")
    for reason, why in found.measurement.problems.items():
        raise Refused(f"case {case.id}: its measurement is void ({reason.value}): {why}")
    invalid = (check for check in found.checks if check.gate == "validity")
    checks: tuple[CheckRecord | Check, ...] = (*invalid, *own_checks(case, suite, found.measurement))
    for check in checks:
        if not check.advisory and check.verdict is not Verdict.PASS:
            told = (
                "it could not be measured"
                if check.reason is Reason.NOT_MEASURED
                else "it does not pass its own gates, so it cannot be a baseline"
            )
            raise Refused(f"case {case.id}: {told}: {check.message}")
    return found


def overrides(given: Mapping[str, Any]) -> dict[str, str | None]:
    """What measuring replaces in every case: as given by option, else as the environment says; ``None`` keeps."""
    named = load_settings(overrides={name: given[name] for name in CASE_FIELDS}).overrides
    return {name: named.get(name) for name in CASE_FIELDS}


def this_hardware(backend: str | None) -> str:
    """The key that measuring with this backend (that of the settings if ``None``) will store under.

    A process of its own is asked: what CUDA keeps on the GPU for this one would be there while the suites measure.

    Raises:
        Refused: when a setting is wrong, or asks for a GPU that is not there.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_hardware, backend).result()
    except (ConfigError, RuntimeError) as error:
        raise Refused(str(error)) from error


def foresee(
    root: Path,
    hardware_key: str,
    suite: Suite,
    cases: Sequence[Case],
    *,
    backend: str | None = None,
    selected: Collection[str] | None = None,
    command: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> tuple[Plan, ...]:
    """What the case file and the settings alone would change, were every value to stay as it is stored: known before
    measuring.

    Args:
        root: the baselines folder.
        hardware_key: of the machine that will measure.
        suite: which suite.
        cases: all cases of the case file, as they will be measured, see :func:`overrides`.
        backend: what the run will name; without it the cases that are for some backends only are left out.
        selected: as for :func:`plan_update`.
        command: likewise.
        settings: with which the run will measure, by dotted key; those that are stored unless given.

    Raises:
        Refused: when there is nothing to measure, or baselines of another backend or profile are stored.
        BaselineError: when a stored file is invalid.
    """
    banded = _banded(cases, suite)
    wanted = _wanted(banded, suite, selected, {backend})
    plans = []
    for model in sorted({banded[case].model for case in wanted}):
        before = read_baselines(root, hardware_key, model, suite, command)
        stored = before.cases if before else {}
        entries = {
            name: _with_bands_of(case, suite, stored[name], settings)
            for name, case in banded.items()
            if name in wanted and case.model == model and name in stored
        }
        new = BaselineFile(hardware_key, model, suite, entries)
        plans.append(_plan(new, before, _known(cases, suite), complete=selected is None, command=command))
    if refused := [why for plan in plans for why in plan.refused.values()]:
        raise Refused("; ".join(refused))
    return tuple(plans)


def plan_bands(
    root: Path,
    hardware_key: str,
    suite: Suite,
    cases: Sequence[Case],
    reason: str | None,
    *,
    selected: Collection[str] | None = None,
    command: Sequence[str] = (),
) -> tuple[Plan, ...]:
    """The case file's bands around the values that are stored, one plan a model: nothing is measured, no orphan goes.
    A metric that has a band now is judged from what was observed of it, see :func:`_judging_observed`.

    Args:
        reason: why a band may be wider; kept with the entries, after what theirs was accepted for.
        selected: ids of the cases; all that have a baseline unless given.
        command: as for :func:`plan_update`.

    Raises:
        Refused: when a selected case has no bands.
        BaselineError: when a stored file is invalid.
    """
    banded = _banded(cases, suite)
    if unknown := sorted(set(selected or ()) - set(banded)):
        raise Refused(
            f"no case with bands in suite {suite} is called {', '.join(unknown)}; {_choices(banded)}"
        )
    plans = []
    for model in sorted({case.model for case in banded.values()}):
        if (before := read_baselines(root, hardware_key, model, suite, command)) is None:
            continue
        entries = {}
        for name, entry in before.cases.items():
            if name in banded and (selected is None or name in selected):
                told = "; ".join(filter(None, (entry.provenance["accepted_regression"], reason)))
                provenance = {**entry.provenance, "accepted_regression": told or None}
                made = banded[name].model_copy(update={"backend": entry.provenance["backend"]})
                entries[name] = replace(_judging_observed(made, suite, entry), provenance=provenance)
        new = BaselineFile(hardware_key, before.model, suite, entries)
        plans.append(_plan(new, before, _known(cases, suite), complete=False, measured=False))
    return tuple(plans)


def plan_update(
    root: Path,
    suite: Suite,
    cases: Sequence[Case],
    records: Sequence[RunRecord],
    provenance: Provenance,
    *,
    selected: Collection[str] | None = None,
    observe: bool = False,
    command: Sequence[str] = (),
) -> tuple[Plan, ...]:
    """What the records would change, one plan a model. A case that is unfit in one of them, see :func:`fit_record`, or
    of which baselines of another origin are stored is refused; the others are planned without it.

    Args:
        root: the baselines folder.
        suite: which suite.
        cases: all cases of the case file; those without a band in this suite have no baseline, and those for other
            backends only than the records' have none here.
        records: one or more independent runs, on the same hardware.
        provenance: of the new entries.
        selected: ids of the cases to regenerate; all of them unless given. Orphans are dropped only then.
        observe: of entries whose bands the records keep nothing is replaced but what is observed, which is where they
            have some already.
        command: what the user named, as a run's command line names it; those of messages name it too, see
            :func:`~wan_trt_core.gates.bands.regenerate_command`.

    Raises:
        Refused: when there is nothing to store.
        BaselineError: when the stored file is invalid.
    """
    banded = _banded(cases, suite)
    wanted = _wanted(banded, suite, selected, {case.backend for record in records for case in record.cases})
    by_model: dict[str, list[str]] = {}
    for case in sorted(wanted):
        measured = _measured(records[0], suite, case)
        by_model.setdefault(measured.model if measured else banded[case].model, []).append(case)
    hardware_key = records[0].hardware_key
    known = _known(cases, suite)
    plans = []
    for model, ids in sorted(by_model.items()):
        entries, refused = {}, {}
        for case in ids:
            try:
                entries[case] = _entry(banded[case], suite, records, provenance)
            except (Refused, BaselineError) as error:
                refused[case] = str(error)
        before = read_baselines(root, hardware_key, model, suite, command)
        plans.append(
            _plan(
                BaselineFile(hardware_key, model, suite, entries),
                before,
                known,
                complete=selected is None,
                command=command,
                observe=observe,
                refused=refused,
            )
        )
    return tuple(plans)


def cases_held(
    suite: Suite, cases: Sequence[Case], records: Sequence[RunRecord]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the cases that one of the records holds, and of those that none does: of all that would be regenerated
    where none is selected, in the order of the case file.

    Raises:
        Refused: when the records hold none of them.
    """
    banded = _banded(cases, suite)
    wanted = _wanted(banded, suite, None, {case.backend for record in records for case in record.cases})
    measured = {case.case for record in records for case in record.cases if case.suite == suite}
    held = tuple(name for name in banded if name in wanted & measured)
    absent = tuple(name for name in banded if name in wanted - measured)
    if not held:
        raise Refused(
            f"{_said_of(records)} none of the {len(absent)} cases of suite {suite}: {_some(absent)}"
        )
    return held, absent


def told_absent(
    suite: Suite, held: Sequence[str], absent: Sequence[str], records: Sequence[RunRecord]
) -> str:
    """One line on what :func:`cases_held` found."""
    return (
        f"{_said_of(records)} {len(held)} of the {len(held) + len(absent)} cases of suite {suite}; what is stored of"
        f" the others stays as it is: {_some(absent)}"
    )


def require_reason(plans: Sequence[Plan], reason: str | None) -> None:
    """Refuse to loosen, or to drop, without a reason.

    Raises:
        Refused: when a row loosens, numbers of other settings are replaced or an orphan goes, and no reason (or an
            empty one) is given.
    """
    if reason and reason.strip():
        return
    needed = []
    if rows := [row for plan in plans for row in plan.loosened]:
        names = "; ".join(f"{row.case} {row.metric}: {row.kind.value}" for row in rows)
        needed.append(
            f"this would let pass what failed before ({names}); say why: --accept-regression REASON"
        )
    if other := [f"{case}: {what}" for plan in plans for case, what in plan.other_settings.items()]:
        needed.append(
            f"this would replace numbers of other settings ({'; '.join(other)}); measure with those of the stored, "
            "keep these in a folder of their own (--baselines), or say why: --accept-regression REASON"
        )
    if dropped := [f"{plan.model} {case}" for plan in plans for case in plan.dropped]:
        needed.append(
            f"this would drop baselines that no case of this case file asks for ({'; '.join(dropped)}); they may "
            "belong to another case file: keep them by naming this one's with --case, or give each file a folder of "
            "its own (--baselines); if they shall go, say why: --accept-regression REASON"
        )
    if needed:
        raise Refused("; ".join(needed))


def apply(root: Path, plans: Sequence[Plan]) -> tuple[Path, ...]:
    """Write the files that change; returns them."""
    return tuple(write_baselines(root, plan.after, plan.touched) for plan in plans if plan.touched)


def plan_changes(plans: Sequence[Plan]) -> tuple[MetricChange, ...]:
    """Old and new of every metric, what needs a reason first."""
    return worst_first(change for plan in plans for change in baseline_changes(plan.suite, plan.rows))


def plan_markdown(plans: Sequence[Plan]) -> str:
    """The same as a document, for who reviews the change: one section for each file."""
    parts = []
    for plan in plans:
        orphans = "".join(
            f"\n- `{case}`: no case of this case file is called so; its baseline is "
            f"{'dropped' if case in plan.dropped else 'kept'}"
            for case in plan.orphans
        )
        refused = "".join(f"\n- {why}" for why in plan.refused.values())
        settings = "".join(f"\n- `{case}`: {what}" for case, what in told_settings(plan).items())
        profiles = "".join(f"\n- `{case}`: kernel profile: {what}" for case, what in plan.kernels.items())
        beside_it = "".join(
            f"\n- `{case}`: {origin_of(entry.observed)}, judged by nothing: {_listed(entry.observed)}"
            for case, entry in plan.after.cases.items()
            if case in plan.touched and entry.observed
        )
        parts += [
            f"## Baselines of {plan.hardware_key} / {plan.model} / {plan.suite}",
            changes_markdown(plan_changes([plan])),
            settings.strip(),
            profiles.strip(),
            beside_it.strip(),
            f"Orphans:\n{orphans}" if orphans else "",
            f"Refused, what is stored of them stays as it is:\n{refused}" if refused else "",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def told_settings(plan: Plan) -> dict[str, str]:
    """What people are told of the settings of touched cases, by case; nothing where they are the defaults as before."""
    told = {case: f"measured with {what}" for case, what in plan.settings.items()}
    for case, what in plan.other_settings.items():
        told[case] = f"measured with other settings than the stored numbers: {what}"
    return told


def measurement_command(
    suite: str,
    report: Path,
    *,
    suites: Path,
    cases: Collection[str] | None,
    options: Mapping[str, str | Sequence[str]],
) -> list[str]:
    """The pytest run that measures: this interpreter, one process, no gate, a report of its own.

    Args:
        suite: the marker.
        report: folder that the run writes ``results.json`` into.
        suites: folder of the suites.
        cases: ids to run; all unless given.
        options: values of further ``--wan-`` options by name, several of one that is repeated.
    """
    own = suites / suite  # where there is one, the other suites and the unit tests need not be collected
    folder = own if own.is_dir() else suites
    command = [sys.executable, "-m", "pytest", "-m", suite, str(folder), "-p", "no:xdist", "--wan-no-gate"]
    command += [f"--wan-report={report}"]
    for name, given in sorted(options.items()):
        command += [f"--wan-{name}={value}" for value in ([given] if isinstance(given, str) else given)]
    # with the brackets that an item's name has around the id, as pytest would take a part of one for it
    return command + (["-k", " or ".join(f"[{case}]" for case in sorted(cases))] if cases else [])


def measure(command: Sequence[str], report: Path) -> RunRecord:
    """Run the measurement and read its record.

    Raises:
        Refused: when pytest did not end well, or left no record. That a case could not be measured the record says.
        RecordError: when the record is not one of this version.
    """
    from wan_trt_core.records import RunRecord

    results = report / RESULTS
    result = subprocess.run(list(command), check=False)
    if result.returncode not in _MEASURED or not results.is_file():
        raise Refused(f"the measurement ended with code {result.returncode}: {shlex.join(command)}")
    return RunRecord.read(results)


def measure_runs(
    suite: str,
    runs: int,
    measured: list[RunRecord],
    *,
    suites: Path,
    cases: Collection[str] | None,
    options: Mapping[str, str | Sequence[str]],
) -> None:
    """Measure ``runs`` times, each in a process of its own.

    Args:
        measured: gets the record of every run as soon as it is there, and what one that breaks has left of its own.
    """
    from wan_trt_core.records import RecordError, RunRecord

    for run in range(runs):
        print(f"measuring, run {run + 1} of {runs}", flush=True)
        with tempfile.TemporaryDirectory(prefix="wan-trt-") as folder:
            report = Path(folder)
            command = measurement_command(suite, report, suites=suites, cases=cases, options=options)
            try:
                measured.append(measure(command, report))
            except (Refused, KeyboardInterrupt):
                with suppress(RecordError):
                    measured.append(RunRecord.read(report / RESULTS))
                raise


@contextmanager
def records_kept(folder: Path, suite: str) -> Iterator[list[RunRecord]]:
    """A list for what is measured, which an error does not throw away: it is kept, and a note on the error says where.

    Args:
        folder: see :func:`keep_records`.
    """
    measured: list[RunRecord] = []
    try:
        yield measured
    except BaseException as error:
        if measured:
            try:
                error.add_note(keep_records(measured, folder, suite))
            except OSError as unwritable:
                error.add_note(f"what was measured could not be kept: {unwritable}")
        raise


def keep_records(records: Sequence[RunRecord], folder: Path, suite: str) -> str:
    """Write the records to a new folder in ``folder``; returns what to say of it."""
    new = folder / f"{suite}-{now().replace(':', '')}"  # no colons: artifacts of GitHub Actions may have none
    paths = [new / f"{run}.json" for run in range(1, len(records) + 1)]
    for record, path in zip(records, paths, strict=True):
        record.write(path)
    return f"what was measured is kept; to go on from it: --from-record {shlex.join(map(str, paths))}"


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hardware(backend: str | None) -> str:
    from wan_trt_core.measure.environment import hardware_key_of

    return hardware_key_of(of_suites(load_settings(overrides={"backend": backend}).settings))


def _banded(cases: Sequence[Case], suite: Suite) -> dict[str, Case]:
    return {case.id: case for case in cases if getattr(case, suite) is not None and gate_bands(case, suite)}


def _known(cases: Sequence[Case], suite: Suite) -> frozenset[str]:
    return frozenset(case.id for case in cases if getattr(case, suite) is not None)


def _wanted(
    banded: Mapping[str, Case],
    suite: Suite,
    selected: Collection[str] | None,
    backends: Collection[str | None],
) -> set[str]:
    """The cases to regenerate: those selected, else all that these backends run."""
    here = {
        name for name, case in banded.items() if not case.only_backends or {*backends} & {*case.only_backends}
    }
    wanted = here if selected is None else set(selected)
    if unknown := sorted(wanted - set(banded)):
        raise Refused(
            f"no case with bands in suite {suite} is called {', '.join(unknown)}; {_choices(banded)}"
        )
    if not wanted:
        raise Refused(f"no case of the case file has bands in suite {suite}: there is nothing to store")
    return wanted


def _with_bands_of(
    case: Case, suite: Suite, stored: BaselineEntry, settings: Mapping[str, Any] | None
) -> BaselineEntry:
    """A stored entry as it would be with the same values; a metric that is new has none yet."""
    origin: dict[str, Any] = {"backend": case.backend, "profile": case.profile}
    if settings is not None:
        origin["settings"] = deciding(settings, case.component, gate_backends(case, suite), case.own_settings)
    return replace(stored, metrics=_rebanded(case, suite, stored), provenance={**stored.provenance, **origin})


def _rebanded(case: Case, suite: Suite, stored: BaselineEntry) -> dict[str, BaselineMetric]:
    """The stored values in the bands of the case file."""
    return {
        name: replace(stored.metrics[name], tolerance=Tolerance(band.rel, band.abs, band.reason))
        for name, band in gate_bands(case, suite).items()
        if name in stored.metrics
    }


def _judging_observed(case: Case, suite: Suite, stored: BaselineEntry) -> BaselineEntry:
    """A stored entry in the bands of the case file, with those metrics that were observed and that a band judges now.

    A number of the entry's own commit is no longer told as observed; one of another run is, for its commit. Left out is
    what has an interval (whether it is known to its band a run has to show), and what no baseline may be, such as 0.
    """
    metrics = _rebanded(case, suite, stored)
    observed = stored.observed
    if observed is None:
        return replace(stored, metrics=metrics)
    taken = {
        name: BaselineMetric(
            seen.value,
            seen.unit,
            better_of(name),
            Tolerance(band.rel, band.abs, band.reason),
            samples=(seen.value,),
        )
        for name, band in gate_bands(case, suite).items()
        if name not in metrics
        and (seen := observed.metrics.get(name))
        and seen.pairs is None
        and usable(seen.value)
    }
    if observed.commit == stored.provenance["commit"]:
        left = {name: seen for name, seen in observed.metrics.items() if name not in taken}
        observed = replace(observed, metrics=left) if left else None
    return replace(stored, metrics={**metrics, **taken}, observed=observed)


def _plan(
    new: BaselineFile,
    before: BaselineFile | None,
    known: Collection[str],
    *,
    complete: bool,
    command: Sequence[str] = (),
    measured: bool = True,
    observe: bool = False,
    refused: Mapping[str, str] | None = None,
) -> Plan:
    """What the new entries would do to those before; where nothing was ``measured`` these go on being explained.

    Args:
        observe: as for :func:`plan_update`.
        refused: cases that have no new entry, and why; those join them whose stored entry is of another origin.
    """
    refused = dict(refused or {})
    stored = dict(before.cases) if before else {}
    rows: list[Row] = []
    touched: set[str] = set()
    kernels: dict[str, str] = {}
    seen: set[str] = set()
    settings: dict[str, str] = {}
    resettled: dict[str, str] = {}
    after = dict(stored)
    for case, entry in new.cases.items():
        old = stored.get(case)
        if old and (other := other_origin(case, new.suite, old, entry.provenance, command)):
            refused[case] = other
            continue
        found = compare_entries(case, old, entry)
        rows += found
        profile = old.kernels if old else None
        first = profile is None and entry.kernels is not None and not observe
        if what := _resettled(old, entry):
            resettled[case] = what
        if what or first or any(row.kind is not Change.WITHIN_BAND for row in found):
            touched.add(case)
            kept = None if measured or old is None else old.provenance["accepted_regression"]
            after[case] = entry if what else _explained(entry, found, kept)
            if measured and (given := in_words(entry.provenance.get("settings") or {})):
                settings[case] = given
            if what := _kernel_change(profile, entry.kernels):
                kernels[case] = what
        elif (
            old and measured and (observe or old.observed is None) and (new_one := beside(old, entry)) != old
        ):
            touched.add(case)
            seen.add(case)
            after[case] = new_one
    orphans = find_orphans(before, known) if before else ()
    if complete:
        touched |= set(orphans)
        after = {case: entry for case, entry in after.items() if case not in orphans}
    return Plan(
        new.hardware_key,
        new.model,
        new.suite,
        before,
        replace(new, cases=after),
        frozenset(touched),
        tuple(rows),
        orphans,
        kernels,
        frozenset(seen),
        settings,
        resettled,
        dict(sorted(refused.items())),
    )


def _measured(record: RunRecord, suite: str, case: str) -> CaseRecord | None:
    return next((found for found in record.cases if (found.suite, found.case) == (suite, case)), None)


def _entry(case: Case, suite: Suite, records: Sequence[RunRecord], provenance: Provenance) -> BaselineEntry:
    """What the records come to for one case.

    Raises:
        Refused: when it is unfit in one of them, or they are of different origins or settings.
        BaselineError: when a measured value cannot be stored.
    """
    runs = [fit_record(record, suite, case) for record in records]
    origin = _origin(case.id, runs)
    ran = case.model_copy(update={"backend": origin["backend"]})
    settings = _settings(ran, gate_backends(ran, suite), records)
    beside_it = ran.beside if suite == "perf" else ()
    entry = new_entry(
        case.id,
        gate_bands(ran, suite),
        [run.measurement for run in runs],
        _provenance(provenance, records[0], runs[0], {**origin, "settings": settings}),
        observed(
            ran,
            suite,
            runs,
            provenance.commit,
            min(record.started for record in records),
            _settings(ran, (ran.backend, *beside_it), records),
        ),
    )
    for run in runs:
        _require_resolved(run, entry)
    return entry


def _require_resolved(run: CaseRecord, entry: BaselineEntry) -> None:
    """Refuse a speed-up that no run could be held to: one that is not known to its own band."""
    if (stored := entry.metrics.get(SPEEDUP)) is None:
        return
    width = stored.tolerance.width(stored.value)
    for check in run.checks:
        if check.gate == SPEEDUP and (why := unresolved(check.evidence, width)):
            raise Refused(f"case {run.case}: {why}")


def _resettled(old: BaselineEntry | None, entry: BaselineEntry) -> str:
    """How the settings of an entry differ from those of the one that it would replace, in words; empty where they do
    not."""
    if old is None:
        return ""
    made = old.provenance.get("settings")
    told = changed_in_words(differing(made or {}, entry.provenance.get("settings") or {}))
    return f"{told} (the stored do not say theirs)" if told and made is None else told


def _kernel_change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """What accepting a run does to the kernels of an entry, in words; empty where neither has any."""
    if old is None or new is None:
        return "new" if new else "gone, this run has none" if old else ""
    return kernel_difference(old, new).describe()


def _listed(observed: Observed) -> str:
    told = (
        (name, quantity(metric.value, metric.unit), extent(metric))
        for name, metric in observed.metrics.items()
    )
    return ", ".join(f"{name} {value}{f' ({more})' if more else ''}" for name, value, more in told)


def _explained(entry: BaselineEntry, rows: Sequence[Row], kept: str | None) -> BaselineEntry:
    """With its own reason only where something was loosened: elsewhere it would explain nothing, and that which is
    ``kept`` stands."""
    if any(row.loosens for row in rows):
        return entry
    return replace(entry, provenance={**entry.provenance, "accepted_regression": kept})


def _origin(case: str, found: Sequence[CaseRecord]) -> dict[str, str]:
    """What all records of a case say of its backend and its weights."""
    for key in ORIGIN:
        if len(values := sorted({record.origin[key] for record in found})) > 1:
            raise Refused(f"case {case}: the records differ in {key} ({', '.join(values)})")
    return found[0].origin


def _settings(case: Case, backends: Collection[str], records: Sequence[RunRecord]) -> dict[str, Any]:
    """What all records say of the settings that decide a case's numbers on these backends."""
    first, *others = (
        deciding(record.settings, case.component, backends, case.own_settings) for record in records
    )
    for other in others:
        if changed := differing(first, other):
            raise Refused(f"case {case.id}: the records differ in {changed_in_words(changed)}")
    return first


def _provenance(
    provenance: Provenance, record: RunRecord, case: CaseRecord, origin: Mapping[str, Any]
) -> dict[str, Any]:
    # a runtime found as libraries alone (TensorRT beside a GPU) is no package, but its backend knows its version
    runtimes = case.measurement.facts.get("backend_versions", {})
    return {
        **origin,
        "commit": provenance.commit,
        "dirty": False,
        "date": provenance.date,
        "command": shlex.join(provenance.command),
        "versions": {**record.environment.get("packages", {}), **runtimes},
        "accepted_regression": provenance.accepted_regression,
    }


def _said_of(records: Sequence[RunRecord]) -> str:
    return "the record holds" if len(records) == 1 else "the records hold"


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _choices(banded: Collection[str]) -> str:
    return f"there are {', '.join(sorted(banded))}" if banded else "the case file has none"
