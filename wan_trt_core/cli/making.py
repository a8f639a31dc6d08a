"""``wan-trt export`` and ``wan-trt build``: components to ONNX files and to engines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.cli.options import (
    BackendOption,
    CacheOption,
    CheckpointOption,
    JsonOption,
    ModelOption,
    ProfileOption,
    ThreadsOption,
    make_cache,
    make_folder,
    model_of,
    settings_of,
    tidied,
)
from wan_trt_core.cli.output import print_rows
from wan_trt_core.cli.videos import EnginesPrecisionOption, parse_precision
from wan_trt_core.progress import Report, progress

if TYPE_CHECKING:
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.models.component import Component
    from wan_trt_core.models.profiles import ShapeProfile

commands = typer.Typer()

ComponentsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[COMPONENT]...",
        help="Components; by default all of the model's, or those that --precision gives one to.",
    ),
]

Facts = dict[str, Any]
"""A row of the table that a command prints, by column; ``bytes`` and ``seconds`` are numbers."""

Make = Callable[[str, "ResolvedModel", "ShapeProfile", str, Report], Facts]
"""Makes one component of a model for the shapes of a profile in a precision, and tells the progress."""


@commands.command(epilog="Example: wan-trt export dit --precision fp16 --out onnx/")
def export(
    context: typer.Context,
    components: ComponentsArgument = None,
    precision: EnginesPrecisionOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also copy the files here, as {component}_{precision}.onnx.", file_okay=False),
    ] = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export components to ONNX, and check the files against PyTorch.

    For engines of a backend: an FP16 transformer for tensorrt may have another self-attention
    (tensorrt.self_attention).
    """
    options = {"model": model, "checkpoint": checkpoint, "backend": backend, "profile": profile}
    with settings_of(context, **options, cache=cache) as loaded, tidied(loaded.settings.cache, out):
        from wan_trt_core.backends.registry import with_backend
        from wan_trt_core.pipeline.engines import exported_model

        settings = with_backend(loaded.settings)
        make_cache(loaded)
        if out:
            make_folder(out, "--out")

        def export_one(
            name: str, resolved: ResolvedModel, shapes: ShapeProfile, own: str, report: Report
        ) -> Facts:
            onnx = exported_model(name, resolved, shapes, own, settings.backend, settings, progress=report)
            path = _copy_files(onnx.path.parent, out, onnx.path.name) if out else onnx.path
            return {"file": str(path), "bytes": _folder_bytes(onnx.path.parent)}

        rows = _made(components, precision, settings, export_one)
    print_rows(rows, as_json)


@commands.command(epilog="Example: wan-trt build --backend onnxruntime --precision fp32")
def build(
    context: typer.Context,
    components: ComponentsArgument = None,
    precision: EnginesPrecisionOption = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build engines (exporting first what is not exported yet) and load each once."""
    options = {"model": model, "checkpoint": checkpoint, "backend": backend, "profile": profile}
    with (
        settings_of(context, **options, cache=cache, threads=threads) as loaded,
        tidied(loaded.settings.cache),
    ):
        from wan_trt_core.backends.registry import with_backend
        from wan_trt_core.pipeline.engines import load_engine

        settings = with_backend(loaded.settings)
        make_cache(loaded)

        def build_one(
            name: str, resolved: ResolvedModel, shapes: ShapeProfile, own: str, report: Report
        ) -> Facts:
            engine = load_engine(name, resolved, shapes, own, settings.backend, settings, progress=report)
            held = sum(engine.memory().values())
            engine.close()
            return {"backend": settings.backend, "bytes": held}

        rows = _made(components, precision, settings, build_one)
    print_rows(rows, as_json)


def _made(components: list[str] | None, precision: str | None, settings: Settings, make: Make) -> list[Facts]:
    """One row a component: its name and precision, what ``make`` says of it, and the seconds that it took."""
    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.models.components import components_of, get_component, require_precision
    from wan_trt_core.pipeline.engines import usual_of_engine

    resolved = model_of(settings)
    asked = [get_component(name) for name in components or components_of(resolved.checkpoint)]
    if precision is None:
        device = device_of(settings)
        precisions = {component.name: usual_of_engine(component.name, device) for component in asked}
    else:
        precisions = _given(precision, asked, components or [])
    for name, own in precisions.items():  # what is wrong is told before the first export, not after
        require_precision(get_component(name), own)
    if not precisions:
        there = ", ".join(component.name for component in asked)
        raise typer.BadParameter(
            f"{precision or 'the default'} names no component of {resolved.name}; it has {there}",
            param_hint="--precision",
        )
    shapes = resolved.own_profile(settings.profile)
    rows = []
    for name, own in precisions.items():
        started = time.perf_counter()
        with progress() as report:
            facts = make(name, resolved, shapes, own, report)
        seconds = round(time.perf_counter() - started, 3)
        rows.append({"component": name, "precision": own, **facts, "seconds": seconds})
    return rows


def _given(precision: str, asked: list[Component], named: list[str]) -> dict[str, str]:
    """What ``--precision`` gives each of the components that are asked for; those that are named need one."""
    from wan_trt_core.pipeline.engines import precision_of

    by_part = parse_precision(precision, of=named)
    found: dict[str, str] = {}
    for component in asked:
        with suppress(ValueError):  # one that a mapping does not name is not made
            found[component.name] = precision_of(by_part, component.name)
    return found


def _copy_files(source: Path, target: Path, name: str) -> Path:
    """Copy an exported model; each file becomes visible only when it is whole, the graph after its weights."""
    import shutil

    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: file.name == name):
        if file.is_file() and file.name != "manifest.json":
            temporary = target / f".{file.name}.{os.getpid()}.tmp"
            try:
                shutil.copyfile(file, temporary)
                os.replace(temporary, target / file.name)
            finally:
                temporary.unlink(missing_ok=True)
    return target / name


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
