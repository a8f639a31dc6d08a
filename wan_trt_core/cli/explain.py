"""``wan-trt explain``: why a case failed: where its outputs part, which kernels got slower, what holds the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.cli.options import BackendOption, CacheOption, CheckpointOption, JsonOption, settings_of
from wan_trt_core.cli.output import FAILED, print_json, print_line, print_table

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.gates.bands import BaselineEntry, BaselineMetric
    from wan_trt_core.measure.differences import Change
    from wan_trt_core.records import CaseRecord, Metric

commands = typer.Typer()
explanations = typer.Typer(no_args_is_help=True, help="Why a case failed.")
commands.add_typer(explanations, name="explain")

TOP = 10
"""Kernels that are listed, of those whose time changed by most."""

RecordArgument = Annotated[Path, typer.Argument(help="A results.json that a run wrote.")]
OneCaseOption = Annotated[str | None, typer.Option("--case", help="Only this case; by default all in both.")]
CasesOption = Annotated[Path, typer.Option("--cases", help="Case file.", exists=True, dir_okay=False)]


@explanations.command("parity", epilog="Example: wan-trt explain parity tiny-wan-dit-fp32")
def explain_parity(
    context: typer.Context,
    case: Annotated[str, typer.Argument(metavar="CASE", help="Id of a case.")],
    cases: CasesOption = Path("suites/cases.yaml"),
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the error grows from block to block, and name the first block and operation that diverge.

    Builds engines that give out every block's output. Exit 1 where a block diverges.
    """
    with settings_of(context, checkpoint=checkpoint, cache=cache) as loaded:
        from wan_trt_core.comparison.context import Context
        from wan_trt_core.comparison.parity import explanations_of
        from wan_trt_core.config import of_suites

        chosen = _case(cases, case, backend)
        session = Context(of_suites(loaded.settings))
        try:
            found = explanations_of(chosen, session.under(chosen))
        finally:
            session.close()
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        if not found:
            print_line(
                f"{chosen.id}: {chosen.backend} runs PyTorch's own modules: it has no blocks to compare"
            )
        for line in (line for each in found for line in each.describe()):
            print_line(line)
        for each in (each for each in found if each.divergence.errors):
            print_line(f"\n{each.component}: error of each block's output")
            for line in each.divergence.table():
                print_line(line)
    if any(each.divergence.first for each in found):
        raise typer.Exit(FAILED)


@explanations.command("perf", epilog="Example: wan-trt explain perf before/results.json after/results.json")
def explain_perf(
    context: typer.Context,
    before: RecordArgument,
    after: Annotated[
        Path | None,
        typer.Argument(help="Another; without it stock diffusers and the candidate of the first."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Against the kernels that the cases' stored baselines hold.")
    ] = False,
    case: OneCaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which kernels got slower between two records: by what they do, and by name."""
    from wan_trt_core.gates.perf import CANDIDATE, REFERENCE
    from wan_trt_core.measure.differences import kernel_difference, machine, most_changed, slower_call

    if baseline and after:
        raise typer.BadParameter("give a second record or --baseline, not both", param_hint="--baseline")
    with settings_of(context) as loaded:
        root = loaded.settings.baselines
    told = []
    for name, first, second in _pairs(before, after or before, "perf", case):
        old, new = _kernels(first, before), _kernels(second, after or before)
        time: Metric | BaselineMetric | None = first.measurement.metrics.get(CANDIDATE)
        if baseline:
            stored = _stored(first, before, root)
            assert stored.kernels is not None
            old, time = stored.kernels, stored.metrics.get(CANDIDATE)
        elif after is None:
            old, time = old["reference"], first.measurement.metrics.get(REFERENCE)
        difference = kernel_difference(old, new)
        now = second.measurement.metrics.get(CANDIDATE)
        call = slower_call(difference.total, time.value if time else None, now.value if now else None)
        candidate = {} if after or baseline else {"candidate_layers": new.get("layers", ())}
        summary = {"case": name, "summary": difference.describe(), "call": call}
        told.append({**summary, **asdict(difference), **candidate})
        if as_json:
            continue
        if call:
            print_line(f"{name}: {call}")
        print_line(f"{name}: {difference.describe()}")
        if "reference" in old:
            print_line(f"  {machine(old, new)}")
        rows = [*difference.groups, difference.total]
        _print_changes("kernels", rows, lambda ms: f"{ms:.3f} ms")
        for what, changes in (("kernels by name", difference.kernels), ("layers", difference.layers)):
            if changes:
                _print_changes(what, most_changed(changes, TOP), lambda ms: f"{ms:.3f} ms")
        if after is None and not baseline:
            _print_layers(new.get("layers", ()))
    if as_json:
        print_json(told)


@explanations.command(
    "memory", epilog="Example: wan-trt explain memory before/results.json after/results.json"
)
def explain_memory(
    before: RecordArgument, after: RecordArgument, case: OneCaseOption = None, as_json: JsonOption = False
) -> None:
    """Show who holds more memory in the second of two records."""
    from wan_trt_core.gates.formatting import quantity
    from wan_trt_core.measure.differences import held_by, memory_difference

    told = []
    for name, first, second in _pairs(before, after, "memory", case):
        difference = memory_difference(held_by(first.measurement), held_by(second.measurement))
        told.append({"case": name, "summary": difference.describe(), **asdict(difference)})
        if not as_json:
            print_line(f"{name}: {difference.describe()}")
            rows = [*difference.owners, difference.total]
            _print_changes("memory", rows, lambda size: quantity(size, "B"))
            if difference.stages:
                _print_changes("peak by stage", difference.stages, lambda size: quantity(size, "B"))
    if as_json:
        print_json(told)


def _print_layers(layers: Sequence[tuple[str, float, int]]) -> None:
    """A TensorRT engine's own, by what they do and the module they came from: stock diffusers has none to compare."""
    from wan_trt_core.measure.differences import costliest

    rows = [
        (name, f"{ms:.3f} ms", f"{share:.1%}", str(runs)) for name, ms, share, runs in costliest(layers, TOP)
    ]
    if rows:
        print_table("", ("layers of the candidate", "time", "of all layers", "runs"), rows)


def _print_changes(what: str, changes: Iterable[Change], text: Callable[[float], str]) -> None:
    from wan_trt_core.measure.differences import shortened

    def signed(value: float) -> str:
        return f"{'-' if value < 0 else '+'}{text(abs(value))}"

    rows = [
        (shortened(change.name), text(change.before), text(change.after), signed(change.added))
        for change in changes
    ]
    print_table("", (what, "before", "after", "change"), rows)


def _pairs(
    before: Path, after: Path, suite: str, only: str | None
) -> list[tuple[str, CaseRecord, CaseRecord]]:
    """The cases of a suite that are in both records.

    Raises:
        RecordError: when a file is no record, or the records have no such case in common.
    """
    from wan_trt_core.records import RecordError, RunRecord

    first, second = (
        {case.case: case for case in RunRecord.read(path).cases if case.suite == suite}
        for path in (before, after)
    )
    common = [name for name in first if name in second and only in (None, name)]
    if not common:
        wanted = f"the case {only!r} with" if only else "a case with"
        raise RecordError(
            f"{before} and {after} do not both have {wanted} the suite {suite}: the first has"
            f" {', '.join(first) or 'none'}, the second {', '.join(second) or 'none'}"
        )
    return [(name, first[name], second[name]) for name in common]


def _kernels(case: CaseRecord, path: Path) -> Mapping[str, Any]:
    """The kernels of a case.

    Raises:
        RecordError: when there are none, with the reason where the record has one.
    """
    from wan_trt_core.records import RecordError

    found: Mapping[str, Any] = case.measurement.facts.get("kernels", {})
    if "top" not in found:
        why = found.get("error", "perf.kernels was off, or the backend has no profiler")
        raise RecordError(f"{path}: no kernels of {case.case}: {why}")
    return found


def _stored(case: CaseRecord, path: Path, root: Path) -> BaselineEntry:
    """A case's baseline, which has kernels, on the hardware that the record comes from.

    Raises:
        BaselineError: when there is no baseline of the case, it is of another backend, of other weights or
            settings, or it has no kernels.
    """
    from wan_trt_core.baselines import (
        BaselineError,
        baseline_path,
        other_origin,
        other_settings,
        read_baselines,
    )
    from wan_trt_core.deciding_settings import deciding
    from wan_trt_core.gates.bands import regenerate_command
    from wan_trt_core.records import RunRecord

    record = RunRecord.read(path)
    run = (*record.command, "--wan-baselines", str(root))  # these are read, wherever that run had its own
    where = (root, record.hardware_key, case.model, "perf")
    stored = read_baselines(*where, run)
    entry = stored.cases.get(case.case) if stored else None
    own = case.measurement.facts.get("settings", {})
    settings = deciding(record.settings, case.component, (case.backend,), own)
    if entry is not None and (
        other := other_origin(case.case, "perf", entry, case.origin, run)
        or other_settings(case.case, "perf", entry, settings, own, run)
    ):
        raise BaselineError(other)
    if entry is None or entry.kernels is None:
        lacking = "no baseline of" if entry is None else "no kernels in the baseline of"
        command = regenerate_command("perf", case.case, run)
        raise BaselineError(f"{baseline_path(*where)}: {lacking} {case.case}; make it with: {command}")
    return entry


def _case(path: Path, wanted: str, backend: str | None) -> Case:
    """A case by its id.

    Raises:
        CaseFileError: when the file is wrong.
        typer.BadParameter: naming the cases that there are.
    """
    from wan_trt_core.cases import load_cases
    from wan_trt_core.pytest_plugin.session import allowed_names

    file = load_cases(path, allowed_names()).overridden(backend=backend)
    file.require_names(allowed_names(), "--backend")
    found = [case for case in file.cases if case.id == wanted]
    if not found:
        known = ", ".join(case.id for case in file.cases)
        raise typer.BadParameter(f"no case {wanted!r} in {path}; there are {known}", param_hint="CASE")
    return found[0]
