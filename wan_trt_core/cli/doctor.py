"""``wan-trt doctor``: what this machine can run, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wan_trt_core.cli.options import (
    BackendOption,
    CacheOption,
    CheckpointOption,
    JsonOption,
    ModelOption,
    settings_of,
)
from wan_trt_core.cli.output import FAILED, print_json, print_line, print_table
from wan_trt_core.gates.formatting import GIB
from wan_trt_core.progress import ERR

if TYPE_CHECKING:
    from wan_trt_core.doctor import Diagnosis

commands = typer.Typer()


@commands.command(epilog="Example: wan-trt doctor --json > machine.json")
def doctor(
    context: typer.Context,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the effective settings, what this machine has, and what is missing for which feature."""
    with settings_of(context, model=model, checkpoint=checkpoint, backend=backend, cache=cache) as loaded:
        from wan_trt_core.doctor import diagnose

        with ERR.status("looking at this machine …"):
            found = diagnose(loaded)
    if as_json:
        print_json(found.as_json())
    else:
        _print_diagnosis(found)
    if not found.healthy:
        raise typer.Exit(FAILED)


def _print_diagnosis(found: Diagnosis) -> None:
    settings = [(row["key"], str(row["value"]), row["source"]) for row in found.settings]
    print_table("Settings", ("setting", "value", "from"), settings)
    machine = dict(found.machine)
    machine["memory"] = f"{machine['memory'] / GIB:.0f} GiB"
    gpus = machine.pop("gpus")
    machine["gpu"] = "; ".join(", ".join(gpu.values()) for gpu in gpus) or "none"
    print_table("Machine", ("", ""), [(key.replace("_", " "), str(value)) for key, value in machine.items()])
    print_line("Features")
    width = max(len(each.name) for each in found.findings)
    for each in found.findings:
        print_line(f"  {each.status:7}  {each.name:{width}}  {each.detail}")
        if each.fix and each.fix != each.detail:  # an error that says both is told once
            print_line(f"{'':{width + 13}}needed for: {each.feature}")
            print_line(f"{'':{width + 13}}to mend it: {each.fix}")
    print_line(
        "\nThe main job can run." if found.healthy else "\nThe main job cannot run with these settings."
    )
