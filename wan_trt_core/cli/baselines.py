"""``wan-trt baselines``: what is stored, whether it is whole, and how it comes to a newer release."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_trt_core.cli.options import JsonOption, as_run, settings_of
from wan_trt_core.cli.output import FAILED, print_error, print_json, print_line, print_table

if TYPE_CHECKING:
    from wan_trt_core.baselines import BaselineFile
    from wan_trt_core.config import Settings

commands = typer.Typer()
stored_baselines = typer.Typer(
    no_args_is_help=True, help="The stored baselines: what they hold, and how they are made."
)
commands.add_typer(stored_baselines, name="baselines")


@stored_baselines.command("show", epilog="Example: wan-trt baselines show --hardware all")
def show_baselines(
    context: typer.Context,
    baselines: Annotated[Path | None, typer.Option(help="Folder of the baselines.")] = None,
    hardware: Annotated[str, typer.Option(help="A hardware key, 'this' machine's, or 'all'.")] = "all",
    as_json: JsonOption = False,
) -> None:
    """Show stored baselines with their tolerances and where they come from."""
    with settings_of(context, baselines=baselines) as loaded:
        root = loaded.settings.baselines
        key = _this_hardware(loaded.settings) if hardware == "this" else hardware
        stored_files = _baseline_files(root, as_run(None, baselines))
        files = [stored for stored in stored_files if key in ("all", stored.hardware_key)]
    if as_json:
        print_json([asdict(stored) for stored in files])
        return
    if not files:
        print_line(f"{root}: no baselines{'' if hardware == 'all' else f' for {hardware}'}")
    for stored in files:
        _print_baselines(stored)


@stored_baselines.command("check", epilog="Example: wan-trt baselines check --cases suites/cases.yaml")
def check_baselines(
    context: typer.Context,
    baselines: Annotated[Path | None, typer.Option(help="Folder of the baselines.")] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Case file: also name entries that no case asks for.", exists=True)
    ] = None,
) -> None:
    """Read every baseline strictly; exit 3 if one is damaged, 1 if one belongs to no case."""
    with settings_of(context, baselines=baselines) as loaded:
        root = loaded.settings.baselines
        files = list(_baseline_files(root, as_run(cases, baselines)))
        orphans = _orphans(files, cases) if cases else []
    for where in orphans:
        print_error(f"error: {where}: no case of {cases} asks for it")
    print_line(
        f"{root}: {len(files)} files, {sum(len(stored.cases) for stored in files)} entries, all readable"
    )
    if orphans:
        raise typer.Exit(FAILED)


@stored_baselines.command(
    "migrate", epilog="Example: wan-trt baselines migrate --weights checkpoint --dry-run"
)
def migrate_baselines(
    context: typer.Context,
    baselines: Annotated[Path | None, typer.Option(help="Folder of the baselines.")] = None,
    hardware: Annotated[str, typer.Option(help="Only this hardware key's.")] = "*",
    model: Annotated[str, typer.Option(help="Only this model's.")] = "*",
    backend: Annotated[str | None, typer.Option(help="What made the entries that do not say.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the entries that do not say: checkpoint, or 'seeded random'.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Shape profile of the entries that do not say.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name the files, change none.")] = False,
) -> None:
    """Carry baselines of older releases over to this one's schema, from their samples, without measuring."""
    from wan_trt_core.baseline_migration import migrate

    with settings_of(context, baselines=baselines) as loaded:
        root = loaded.settings.baselines
    files = sorted(root.glob(f"{hardware}/{model}/*.json"))
    changed = migrate(files, {"backend": backend, "weights": weights, "profile": profile}, dry_run=dry_run)
    for path in changed:
        print_line(f"{'would change' if dry_run else 'changed'} {path}")
    print_line(f"{root}: {len(files)} files, {len(files) - len(changed)} of them as they should be")


@stored_baselines.command(
    "regenerate",
    add_help_option=False,  # it has its own, with all options
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def regenerate_baselines(context: typer.Context) -> None:
    """Measure and make baselines, the only way they change; --help shows the options."""
    from wan_trt_core.cli.regenerate import main

    raise typer.Exit(main(context.args))


def _baseline_files(root: Path, run: Sequence[str]) -> Iterator[BaselineFile]:
    from wan_trt_core.baselines import read_baselines

    for path in sorted(root.glob("*/*/*.json")):
        stored = read_baselines(root, path.parts[-3], path.parts[-2], path.stem, run)
        if stored is not None:
            yield stored


def _this_hardware(settings: Settings) -> str:
    """The key that the suites store this machine's baselines under, with these settings.

    Raises:
        typer.BadParameter: when the settings ask for a GPU that is not there.
    """
    from wan_trt_core.measure.environment import hardware_key_of

    try:
        return hardware_key_of(settings)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--hardware") from error


def _orphans(files: list[BaselineFile], case_file: Path) -> list[str]:
    from wan_trt_core.baselines import find_orphans
    from wan_trt_core.cases import load_cases
    from wan_trt_core.pytest_plugin.session import allowed_names

    cases = load_cases(case_file, allowed_names()).cases
    found = []
    for stored in files:
        known = [case.id for case in cases if case.model == stored.model and stored.suite in case.suites]
        where = f"{stored.hardware_key}/{stored.model}/{stored.suite}.json"
        found += [f"{where}: {name}" for name in find_orphans(stored, known)]
    return found


def _print_baselines(stored: BaselineFile) -> None:
    from wan_trt_core.deciding_settings import in_words
    from wan_trt_core.gates.bands import band_limits
    from wan_trt_core.gates.formatting import quantity
    from wan_trt_core.observations import extent, origin_of

    rows = [
        (
            case,
            name,
            quantity(metric.value, metric.unit),
            f"{quantity(low, metric.unit)} to {quantity(high, metric.unit)}",
            str(metric.n),
            str(entry.provenance.get("date", ""))[:10],
        )
        for case, entry in stored.cases.items()
        for name, metric in entry.metrics.items()
        for low, high in [band_limits(metric)]
    ]
    rows += [
        (
            case,
            name,
            quantity(metric.value, metric.unit),
            "; ".join(filter(None, (origin_of(entry.observed), extent(metric)))),
            "",
            entry.observed.date[:10],
        )
        for case, entry in stored.cases.items()
        if entry.observed
        for name, metric in entry.observed.metrics.items()
    ]
    rows.sort(key=lambda row: row[:2])
    title = f"{stored.hardware_key} / {stored.model} / {stored.suite}"
    print_table(title, ("case", "metric", "baseline", "band", "runs", "from"), rows)
    for case, entry in stored.cases.items():
        if told := in_words(entry.provenance.get("settings") or {}):
            print_line(f"{case}: measured with {told}")
