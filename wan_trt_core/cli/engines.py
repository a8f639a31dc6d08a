"""``wan-trt engines``: the cache of ONNX files and engines."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.cli.options import CacheOption, JsonOption, settings_of
from wan_trt_core.cli.output import FAILED, print_error, print_json, print_line, print_table, readable_size

if TYPE_CHECKING:
    from wan_trt_core.engine_cache import EngineCache, Listed

FEW = 5
"""Entries of a list that are shown; ``--json`` has all of them."""

commands = typer.Typer()
engines = typer.Typer(no_args_is_help=True, help="The cache of ONNX files and engines.")
commands.add_typer(engines, name="engines")


@engines.command("list", epilog="Example: wan-trt engines list")
def list_engines(context: typer.Context, cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """List what the cache holds, least recently used first."""
    with _cache(context, cache) as store:
        _print_entries(store, store.list(), as_json)


@engines.command("show", epilog="Example: wan-trt engines show 3f2a")
def show_engine(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="As the list has it, or the beginning of one.")],
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is known of an entry: of an engine its build and what was verified, of an FP16 model its range."""
    with _cache(context, cache) as store:
        found = [entry for entry in store.list() if entry.key.startswith(key)]
    if len(found) != 1:
        raise typer.BadParameter(
            f"{key!r} is the beginning of {len(found)} keys in {store.root}, expected one", param_hint="KEY"
        )
    (entry,) = found
    if as_json:
        print_json({**_as_data(entry), "facts": dict(entry.facts)})
        return
    facts = {**entry.facts, **entry.facts.get("model", {})}
    rows = [(name, _shown(value)) for name, value in facts.items() if name != "model" and value is not None]
    print_table(f"{entry.kind} {entry.title}: {entry.folder}", ("fact", ""), rows)


@engines.command("verify", epilog="Example: wan-trt engines verify")
def verify_engines(context: typer.Context, cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """Check the hash of every file in the cache; exit 1 if an entry must not be loaded."""
    with _cache(context, cache) as store:
        entries = store.verify()
        _print_entries(store, entries, as_json)
    bad = [entry for entry in entries if entry.problem]
    for entry in bad:
        print_error(f"error: {entry.folder}: {entry.problem}; it is made again when it is next asked for")
    if bad:
        raise typer.Exit(FAILED)


@engines.command("prune", epilog="Example: wan-trt engines prune --older-than 7d --max-size 20GiB")
def prune_engines(
    context: typer.Context,
    older_than: Annotated[
        str | None, typer.Option(help="Last used longer ago than this: 30m, 12h, 7d.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="The least recently used beyond this size: 500MiB, 20GiB.")
    ] = None,
    unused: Annotated[
        bool, typer.Option("--unused", help="Broken, or made by versions not installed now.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove entries by the given rules, and whatever interrupted builds have left."""
    seconds = _quantity(older_than, "--older-than", {"s": 1, "m": 60, "h": 3600, "d": 86400})
    size = _quantity(max_size, "--max-size", {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30})
    with _cache(context, cache) as store:
        result = store.prune(
            older_than=seconds, max_bytes=None if size is None else int(size), unused=unused, all=everything
        )
    if as_json:
        print_json(
            {
                "removed": [str(entry.folder) for entry in result.removed],
                "busy": [str(entry.folder) for entry in result.busy],
                "kept": len(result.kept),
                "leftovers": result.stale,
                "freed_bytes": result.freed,
            }
        )
        return
    for entry in result.removed:
        print_line(f"removed {entry.kind} {entry.title}")
    for entry in result.busy:
        print_line(f"in use, kept: {entry.kind} {entry.title}")
    print_line(
        f"{len(result.removed)} removed, {len(result.kept) + len(result.busy)} kept,"
        f" {result.stale} leftovers of interrupted builds removed, {readable_size(result.freed)} freed"
    )


@contextmanager
def _cache(context: typer.Context, folder: Path | None) -> Iterator[EngineCache]:
    with settings_of(context, cache=folder) as loaded:
        from wan_trt_core.engine_cache import EngineCache

        yield EngineCache(loaded.settings.cache, loaded.settings.engine_lock_timeout)


def _quantity(text: str | None, option: str, units: Mapping[str, int]) -> float | None:
    """A number with a unit, in the base unit.

    Raises:
        typer.BadParameter: when it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if found is None or found[2] not in units:
        raise typer.BadParameter(
            f"{text!r} is not a number with one of the units {', '.join(units)}", param_hint=option
        )
    return float(found[1]) * units[found[2]]


def _shown(fact: Any) -> str:
    """A fact in a line: of many entries the first few, of numbers by name the largest."""
    if isinstance(fact, Mapping):
        numbers = all(isinstance(value, int | float) for value in fact.values())
        names = sorted(fact, key=fact.__getitem__, reverse=True) if numbers else list(fact)
        entries = [f"{name} {fact[name]:g}" if numbers else f"{name} {fact[name]}" for name in names]
    elif isinstance(fact, Sequence) and not isinstance(fact, str):
        entries = [str(entry) for entry in fact]
    else:
        return f"{fact:g}" if isinstance(fact, float) else str(fact)
    more = [f"and {len(entries) - FEW} more"] if len(entries) > FEW else []
    return "\n".join((*entries[:FEW], *more)) or "none"


def _as_data(entry: Listed) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "folder": str(entry.folder),
        "bytes": entry.bytes,
        "created": entry.created,
        "used": entry.used,
        "identity": dict(entry.identity),
        "outdated": entry.outdated,
        "problem": entry.problem,
    }


def _print_entries(store: EngineCache, entries: tuple[Listed, ...], as_json: bool) -> None:
    if as_json:
        print_json([_as_data(entry) for entry in entries])
        return
    rows = [
        (
            entry.kind,
            entry.title,
            entry.key[:12],
            readable_size(entry.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            entry.problem or ("outdated" if entry.outdated else "ok"),
        )
        for entry in entries
    ]
    print_table(str(store.root), ("kind", "what", "key", "size", "last used", "state"), rows)
