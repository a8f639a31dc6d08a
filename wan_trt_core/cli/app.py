"""The console script: its commands, the options before them, and what an error ends it with."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from wan_trt_core import __version__
from wan_trt_core.causes import disk_full
from wan_trt_core.cli import (
    baselines,
    benchmark,
    doctor,
    engines,
    explain,
    inspect,
    making,
    memory,
    report,
    run,
)
from wan_trt_core.cli.options import Common
from wan_trt_core.cli.output import FAILED, INTERRUPTED, WRONG_INPUT, print_error

app = typer.Typer(
    name="wan-trt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take the Wan video models from PyTorch through ONNX into engines, run them, and judge them.",
    epilog="Exit codes: 0 done, 1 failed or a verdict did, 2 wrong usage, 3 wrong input, "
    "130 interrupted, 143 ended by SIGTERM.",
)
for _group in (making, run, benchmark, inspect, doctor, report, explain, memory, engines, baselines):
    app.add_typer(_group.commands)


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings file; by default config.yaml here.", exists=True, dir_okay=False),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_file: Annotated[Path | None, typer.Option(help="Also log to this file.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command hold for every command."""
    context.obj = Common(config, log_level, log_file)


def main() -> None:
    """The console script: run a command, and turn our own errors into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print_error("interrupted; nothing half-written was left, and what was finished is kept")
        raise
    except KeyboardInterrupt:
        print_error("interrupted; nothing half-written was left, and what was finished is kept")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(FAILED)  # the reader of our output went away
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        hint = ""
        if isinstance(error, OSError) and disk_full(error):  # errors of ours say it themselves
            hint = "; the disk is full: free some space, or name another folder"
        # the options are named as here, not as in pytest
        print_error(f"error: {error}{hint}".replace("--wan-", "--"))
        sys.exit(code)


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that what cleans up on the way out does, as on Ctrl-C


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can act on; ``None`` for a mistake of ours: show its traceback.

    Our own errors are a ``ValueError`` where the input is wrong, a ``RuntimeError`` where something failed.
    """
    from wan_trt_core.measure.memory_recorder import out_of_memory

    if isinstance(error, OSError) or out_of_memory(error):
        return FAILED
    if not type(error).__module__.startswith("wan_trt_core"):
        return None
    return WRONG_INPUT if isinstance(error, ValueError) else FAILED


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit
