"""``wan-trt explain``: why a case failed: where its outputs part, which kernels got slower, what holds the memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_trt_core.cli.options import BackendOption, CacheOption, CheckpointOption, JsonOption, settings_of
from wan_trt_core.cli.output import FAILED, print_json, print_line

if TYPE_CHECKING:
    from wan_trt_core.cases import Case

commands = typer.Typer()
explanations = typer.Typer(no_args_is_help=True, help="Why a case failed.")
commands.add_typer(explanations, name="explain")

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

        chosen = _case(cases, case, backend)
        session = Context(loaded.settings)
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
        for each in found:
            print_line(f"\n{each.component}: error of each block's output")
            for line in each.divergence.table():
                print_line(line)
    if any(each.divergence.first for each in found):
        raise typer.Exit(FAILED)


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
