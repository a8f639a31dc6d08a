"""``wan-trt baselines regenerate``: make, check or accept baselines, the only way they change.

The rules are those of :mod:`wan_trt_core.baseline_update`. In a checkout ``python tools/regenerate_baselines.py`` does
the same.

    wan-trt baselines regenerate --suite perf --dry-run          # measure and show, write nothing
    wan-trt baselines regenerate --suite perf --case dit-fp32    # one case
    wan-trt baselines regenerate --suite perf --check            # fail if one would change
    wan-trt baselines regenerate --suite perf --bands-only       # measure nothing: a band of the case file changed
    wan-trt baselines regenerate --suite perf --accept-regression "reference needs float32 now"

Exit codes: 0 done (or nothing to do), 1 refused (of several cases perhaps some; the others are stored), or with --check
a baseline would change, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from wan_trt_core import baseline_update as update
from wan_trt_core.backends.registry import of_one_device
from wan_trt_core.baselines import BaselineError
from wan_trt_core.cases import SUITES, Case, CaseFileError, load_cases
from wan_trt_core.cli.options import as_run
from wan_trt_core.config import OUTPUTS, ConfigError, load_settings, of_suites
from wan_trt_core.measure.environment import SourceState, names_in_repository, source_state
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.records import RecordError, RunRecord, write_text
from wan_trt_core.report.terminal import changes_table

NAME = ("wan-trt", "baselines", "regenerate")
CASES = Path("suites/cases.yaml")
"""The case file where none is named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        return _regenerate(options, console, sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt as error:
        _say_failed("interrupted: nothing was written", error, console)
        return 130
    except (
        update.Refused,
        BaselineError,
        CaseFileError,
        ConfigError,
        RecordError,
        RuntimeError,
    ) as error:
        _say_failed(f"refused: {error}", error, console)
        return 1


def _say_failed(text: str, error: BaseException, console: Console) -> None:
    lines = [text, *getattr(error, "__notes__", ())]
    console.print("\n".join(lines), style="bold red", markup=False, soft_wrap=True)


def _regenerate(options: argparse.Namespace, console: Console, arguments: Sequence[str]) -> int:
    update.refuse_xdist(os.environ)
    options.named = as_run(None if options.cases == CASES else options.cases, options.baselines)
    options.baselines = options.baselines or load_settings().settings.baselines
    cases = _cases(options)
    if options.bands_only:
        where = options.baselines, _hardware(options, cases), options.suite, cases, options.accept_regression
        return _planned(
            options, console, update.plan_bands(*where, selected=options.case, command=options.named)
        )
    commit = None if options.from_record else _commit(source_state(Path.cwd()), options)
    folder = _kept(options)
    with update.records_kept(folder, options.suite) as measured:
        records = _records(options, cases, measured)
        code = _judged(options, console, arguments, cases, records, commit)
        if measured and (code or options.dry_run):
            console.print(update.keep_records(measured, folder, options.suite), markup=False, soft_wrap=True)
        return code


def _judged(
    options: argparse.Namespace,
    console: Console,
    arguments: Sequence[str],
    cases: Sequence[Case],
    records: Sequence[RunRecord],
    commit: str | None,
) -> int:
    for record in records:
        update.check_record(record, options.hardware or records[0].hardware_key)
    commit = commit or _commit(_recorded_source(records, _written(options)), options)
    provenance = update.Provenance(
        commit,
        update.now(),
        (*NAME, *map(_anywhere, arguments)),
        options.accept_regression,
    )
    selected = options.case
    if options.from_record and selected is None:
        held, absent = update.cases_held(options.suite, cases, records)
        if absent:  # then it is no run of all cases, and drops no orphan
            selected = held
            told = update.told_absent(options.suite, held, absent, records)
            console.print(told, style="yellow", soft_wrap=True, markup=False)
    plans = update.plan_update(
        options.baselines,
        options.suite,
        cases,
        records,
        provenance,
        selected=selected,
        observe=options.observed,
        command=options.named,
    )
    return _planned(options, console, plans)


def _anywhere(argument: str) -> str:
    """An argument as it is kept, and committed: a path of this machine only as far as it is one below this folder."""
    option, equals, value = argument.rpartition("=")
    path, here = Path(value), Path.cwd()
    if not path.is_absolute():
        return argument
    return f"{option}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name}"


def _planned(options: argparse.Namespace, console: Console, plans: Sequence[update.Plan]) -> int:
    """Show what would change, and write it unless it must not be."""
    console.print(changes_table(update.plan_changes(plans)))
    for plan in plans:
        for case, what in update.told_settings(plan).items():
            console.print(f"{case}: {what}", style="yellow", soft_wrap=True, markup=False)
        for case, what in plan.kernels.items():
            console.print(f"{case}: kernel profile: {what}", soft_wrap=True, markup=False)
        for case in sorted(plan.observed):
            text = (
                f"{case}: every metric is within its band and stays; what nothing judges is that of this run"
            )
            console.print(text, soft_wrap=True, markup=False)
        for orphan in plan.orphans:
            outcome = "would go" if orphan in plan.dropped else "is kept (only a run of all cases drops it)"
            text = f"{plan.model}: no case of {options.cases} is called {orphan}; its baseline {outcome}"
            console.print(text, style="yellow", markup=False)
    write_text(options.diff, update.plan_markdown(plans))
    console.print(f"for review: {options.diff}")
    refused = [why for plan in plans for why in plan.refused.values()]
    for why in refused:
        console.print(f"refused: {why}", style="bold red", soft_wrap=True, markup=False)
    if options.check:
        return _checked(plans, console)
    update.require_reason(plans, options.accept_regression)
    if options.dry_run:
        console.print("dry run: no baseline was written")
        return 1 if refused else 0
    for path in update.apply(options.baselines, plans):
        console.print(f"wrote {path}")
    if not refused and not any(plan.touched for plan in plans):
        console.print("every metric is within its band: nothing to write")
    return 1 if refused else 0


def _checked(plans: Sequence[update.Plan], console: Console) -> int:
    # what nothing judges can be no drift
    changed = sorted({case for plan in plans for case in plan.touched - plan.observed})
    if changed:
        console.print(f"baselines would change: {', '.join(changed)}", style="bold red")
        return 1
    if any(plan.refused for plan in plans):
        return 1
    console.print("the baselines hold")
    return 0


def _cases(options: argparse.Namespace) -> tuple[Case, ...]:
    allowed = allowed_names()
    file = load_cases(options.cases, allowed, "--cases").overridden(**update.overrides(vars(options)))
    file.require_names(allowed, "the options")
    return file.cases


def _backend(options: argparse.Namespace, cases: Sequence[Case]) -> str | None:
    """That of the cases that are measured, for the device that they run on; ``None`` where they have several."""
    asked = update.overrides(vars(options))["backend"]
    measured = [
        case.backend
        for case in cases
        if options.suite in case.suites
        and case.id in (options.case or [case.id])
        and not case.only_backends  # which are left out where no backend is asked for
    ]
    return asked or of_one_device(load_settings().settings, measured)


def _records(
    options: argparse.Namespace, cases: Sequence[Case], measured: list[RunRecord]
) -> list[RunRecord]:
    if options.from_record:
        return [RunRecord.read(path) for path in options.from_record]
    _refuse_foreseen(options, cases)
    given = {name: getattr(options, name) for name in ("backend", "model", "profile", "cache")}
    values = {name: str(value) for name, value in given.items() if value is not None}
    named = {"checkpoint": options.checkpoint} if options.checkpoint else {}
    update.measure_runs(
        options.suite,
        options.runs,
        measured,
        suites=options.suites,
        cases=options.case,
        options={"cases": str(options.cases), "baselines": str(options.baselines), **values, **named},
    )
    return measured


def _refuse_foreseen(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Ask for a reason before measuring where the case file alone calls for one; a check changes nothing."""
    backend = update.overrides(vars(options))["backend"]
    plans = update.foresee(
        options.baselines,
        _hardware(options, cases),
        options.suite,
        cases,
        backend=backend,
        selected=options.case,
        command=options.named,
        settings=of_suites(load_settings().settings).flat(),
    )
    if not options.check:
        update.require_reason(plans, options.accept_regression)


def _hardware(options: argparse.Namespace, cases: Sequence[Case]) -> str:
    """What is given, else this machine's."""
    if options.hardware:
        return str(options.hardware)
    try:
        return update.this_hardware(_backend(options, cases))
    except update.Refused as error:
        if options.bands_only:
            raise update.Refused(f"{error}; of another machine: --hardware KEY") from error
        raise


def _kept(options: argparse.Namespace) -> Path:
    """Folder of the records that are not stored."""
    return Path(options.diff.parent, "records")


def _written(options: argparse.Namespace) -> tuple[str, ...]:
    """What the tool writes, as git names it."""
    report = load_settings().settings.report
    return names_in_repository(options.baselines, OUTPUTS, report, options.diff, _kept(options))


def _commit(source: SourceState, options: argparse.Namespace) -> str:
    return update.usable_commit(source, _written(options), options.commit, options.tree_state)


def _recorded_source(records: Sequence[RunRecord], written: Sequence[str]) -> SourceState:
    """What the records say of the sources, if they agree."""
    found = {
        SourceState(source.get("commit"), source.get("dirty"), tuple(source.get("changed", ()))).without(
            written
        )
        for source in (record.environment.get("source", {}) for record in records)
    }
    if len(found) != 1:
        raise update.Refused("the records come from different commits or trees; measure them all from one")
    return found.pop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(NAME),
        description=(__doc__ or "").partition(": ")[2].partition("\n")[0],
        epilog=f"Example: {' '.join(NAME)} --suite perf --case tiny-wan-dit-fp32",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", required=True, choices=SUITES, help="suite whose baselines are made")
    add("--case", action="append", metavar="ID", help="only this case (may be repeated)")
    add("--cases", type=Path, default=CASES, metavar="FILE", help="case file")
    add("--suites", type=Path, default=_suites(), metavar="FOLDER", help="folder of the suites")
    add("--baselines", type=Path, metavar="FOLDER", help="folder of the baselines, instead of the settings'")
    add("--backend", metavar="NAME", help="backend of all cases, instead of the case file's")
    add("--model", metavar="MODEL", help="model of all cases, instead of the case file's")
    add(
        "--checkpoint",
        action="append",
        metavar="[MODEL=]FOLDER|ID",
        help="weights of all cases, or of one model's (may be repeated); else those installed or seeded random ones",
    )
    add("--profile", metavar="NAME", help="shape profile of all cases, instead of the case file's")
    add("--cache", type=Path, metavar="FOLDER", help="ONNX files and engines")
    add("--runs", type=_positive, default=1, metavar="N", help="independent runs, each a process of its own")
    add(
        "--from-record",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="results.json to use instead of measuring; without --case of the cases that it holds",
    )
    add(
        "--bands-only",
        action="store_true",
        help="the case file's bands around the values that are stored, observed ones too; nothing is measured",
    )
    add(
        "--observed",
        action="store_true",
        help="of cases within their bands replace nothing but what nothing judges: speed-ups, stock diffusers' memory",
    )
    add(
        "--hardware",
        metavar="KEY",
        help="baselines of this hardware, instead of the record's or this machine's",
    )
    add("--accept-regression", metavar="REASON", help="why something may be worse, looser or dropped")
    add(
        "--diff",
        type=Path,
        default=OUTPUTS / "baselines.md",
        metavar="FILE",
        help="the table as Markdown, for who reviews the change",
    )
    add("--commit", metavar="SHA", help="commit that was measured, where there is no git")
    add("--tree-state", choices=("clean", "dirty"), help="whether files differed from it")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="show the table, change no baseline")
    mode.add_argument("--check", action="store_true", help="fail if a baseline would change; change none")
    return parser


def _suites() -> Path:
    """The product's suites: as they are installed, or those of the checkout that this is part of."""
    installed = importlib.util.find_spec("wan_trt_core.suites")
    if installed is not None and installed.submodule_search_locations:
        return Path(installed.submodule_search_locations[0])
    return Path(__file__).resolve().parents[2] / "suites"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value
