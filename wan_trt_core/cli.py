"""``wan-trt``: every step of the main job as a command.

Exit codes: 0 done; 1 it failed, or a verdict did; 2 wrong usage; 3 wrong input (settings, checkpoint, file);
130 interrupted. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from wan_trt_core import __version__
from wan_trt_core.logs import logging_to
from wan_trt_core.progress import ERR, progress

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from wan_trt_core.baselines import BaselineFile
    from wan_trt_core.config import Loaded, Settings
    from wan_trt_core.doctor import Diagnosis
    from wan_trt_core.engine_cache import EngineCache, Listed
    from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel
    from wan_trt_core.models.profiles import ShapeProfile
    from wan_trt_core.pipeline.engines import EngineStore

FAILED = 1
USAGE = 2
WRONG_INPUT = 3
INTERRUPTED = 130

OUT = Console()

app = typer.Typer(
    name="wan-trt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take the Wan video models from PyTorch through ONNX into engines, run them, and judge them.",
    epilog="Exit codes: 0 done, 1 failed or a verdict did, 2 wrong usage, 3 wrong input, 130 interrupted.",
)
engines_app = typer.Typer(no_args_is_help=True, help="The cache of ONNX files and engines.")
baselines_app = typer.Typer(
    no_args_is_help=True, help="The stored baselines; tools/regenerate_baselines.py changes them."
)
app.add_typer(engines_app, name="engines")
app.add_typer(baselines_app, name="baselines")

_PANEL = "Settings (defaults: config.yaml, WAN_TRT_*)"
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Catalogue name or checkpoint folder.", rich_help_panel=_PANEL)
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Folder of a named model's weights.", rich_help_panel=_PANEL),
]
BackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="onnxruntime, torch-compile or torch.", rich_help_panel=_PANEL),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Shape profile, as 128p-17f.", rich_help_panel=_PANEL)
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Folder of ONNX files and engines.", rich_help_panel=_PANEL)
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads.", rich_help_panel=_PANEL)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32 or fp16.")]
ComponentsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[COMPONENT]...", help="Components; all of the model's by default."),
]


@dataclass(frozen=True)
class _Common:
    """The options before the command."""

    config: Path | None
    log_level: str | None
    log_file: Path | None


def main() -> None:
    """The console script: run a command, and turn our own errors into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # A checkpoint is a folder: no library shall ask a hub for one, nor draw its bars through ours.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _say("interrupted; nothing half-written was left, and what was finished is kept")
        raise
    except KeyboardInterrupt:
        _say("interrupted; nothing half-written was left, and what was finished is kept")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(FAILED)  # the reader of our output went away
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        _say(f"error: {error}".replace("--wan-", "--"))  # the options are named as here, not as in pytest
        sys.exit(code)


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that what cleans up on the way out does, as on Ctrl-C


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can act on; ``None`` for a mistake of ours: show its traceback.

    Our own errors are a ``ValueError`` where the input is wrong, a ``RuntimeError`` where something failed.
    """
    if isinstance(error, OSError):
        return FAILED
    if not type(error).__module__.startswith("wan_trt_core"):
        return None
    return WRONG_INPUT if isinstance(error, ValueError) else FAILED


def _say(line: str) -> None:
    ERR.print(line, markup=False, highlight=False, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


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
    context.obj = _Common(config, log_level, log_file)


@contextmanager
def _settings(context: typer.Context, **options: Any) -> Iterator[Loaded]:
    """The settings with the command's options, and logging as they say while the block runs."""
    from wan_trt_core.config import load_settings

    given: _Common = context.obj
    overrides = {"log.level": given.log_level, "log.file": given.log_file, **options}
    loaded = load_settings(given.config, overrides)
    with logging_to(loaded.settings.log):
        yield loaded


@app.command(epilog="Example: wan-trt export dit --precision fp16 --out onnx/")
def export(
    context: typer.Context,
    components: ComponentsArgument = None,
    precision: PrecisionOption = "fp32",
    out: Annotated[
        Path | None,
        typer.Option(help="Also copy the files here, as {component}_{precision}.onnx.", file_okay=False),
    ] = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export components to ONNX, and check the files against PyTorch."""
    with _settings(context, model=model, checkpoint=checkpoint, profile=profile, cache=cache) as loaded:
        from wan_trt_core.pipeline.engines import exported_model

        settings = loaded.settings
        resolved = _resolve(settings)
        rows = []
        for name in _component_names(components):
            started = time.perf_counter()
            with progress() as report:
                onnx = exported_model(
                    name, resolved, resolved.profile(settings.profile), precision, settings, progress=report
                )
            path = _copy_files(onnx.path.parent, out, onnx.path.name) if out else onnx.path
            rows.append(
                {
                    "component": name,
                    "precision": precision,
                    "file": str(path),
                    "bytes": _folder_bytes(onnx.path.parent),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
    _print_rows(rows, as_json)


@app.command(epilog="Example: wan-trt build --backend onnxruntime --precision fp32")
def build(
    context: typer.Context,
    components: ComponentsArgument = None,
    precision: PrecisionOption = "fp32",
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
    with _settings(context, **options, cache=cache, threads=threads) as loaded:
        from wan_trt_core.pipeline.engines import load_engine

        settings = loaded.settings
        resolved = _resolve(settings)
        rows = []
        for name in _component_names(components):
            started = time.perf_counter()
            with progress() as report:
                engine = load_engine(
                    name,
                    resolved,
                    resolved.profile(settings.profile),
                    precision,
                    settings.backend,
                    settings,
                    progress=report,
                )
            memory = engine.memory()
            engine.close()
            rows.append(
                {
                    "component": name,
                    "precision": precision,
                    "backend": settings.backend,
                    "bytes": sum(memory.values()),
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
    _print_rows(rows, as_json)


@app.command(epilog='Example: wan-trt run --prompt "a small red square moves left" --out video.mp4')
def run(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    out: Annotated[Path, typer.Option(help="Video file (H.264 in MP4).", dir_okay=False)],
    negative_prompt: Annotated[str, typer.Option(help="What it should not show.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 1 turns guidance off.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    height: Annotated[int | None, typer.Option(min=16, help="Pixels, a multiple of 16.")] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Pixels, a multiple of 16.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames, 4k+1.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, or by component: dit=fp16,vae=fp32.")] = "fp32",
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a video from a prompt; exports and builds first what is not in the cache yet."""
    options = {"model": model, "checkpoint": checkpoint, "backend": backend, "profile": profile}
    with _settings(context, **options, cache=cache, threads=threads) as loaded:
        from dataclasses import replace

        from wan_trt_core.pipeline.generate import check_request
        from wan_trt_core.pipeline.video import check_target

        settings = loaded.settings
        check_target(out)
        resolved = _resolve(settings)
        asked = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "num_frames": frames,
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        generation = replace(resolved.generation, **given)
        check_request(prompt, generation, seed)
        result = _generate(
            settings, resolved, generation, _precision(precision), prompt, negative_prompt, seed, out
        )
    if as_json:
        _print_json(result)
        return
    _line(
        f"{out}: {result['frames']} frames of {result['width']}x{result['height']}, {result['codec']},"
        f" generated in {result['seconds']:.1f} s by {result['backend']}"
    )


@app.command(epilog="Example: wan-trt inspect ~/models/Wan2.1-T2V-1.3B-Diffusers")
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or a name of the catalogue.")
    ],
    checkpoint: CheckpointOption = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor with dtype and shape.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List a checkpoint's parts with parameters, dtypes and shapes, and the components it is exported as."""
    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.components import component_names, get_component

    resolved = resolve(model, checkpoint)
    parts = resolved.checkpoint.inspect()
    components = [get_component(name).describe(resolved.checkpoint) for name in component_names()]
    if as_json:
        _print_json({"folder": str(resolved.checkpoint.folder), "parts": parts, "components": components})
        return
    _print_table(
        f"{resolved.name}: {resolved.checkpoint.folder}",
        ("part", "class", "parameters", "size", "dtypes", "tensors"),
        [
            (name, part["class"], f"{part['parameters']:,}", _mib(part["bytes"]), ", ".join(part["dtypes"]),
             str(len(part["tensors"])))
            for name, part in parts.items()
        ],
    )  # fmt: skip
    for each in components:
        _line(f"\n{each['component']} (of {each['part']})")
        _line(f"  inputs:  {_shapes(each['inputs'])}")
        _line(f"  outputs: {_shapes(each['outputs'])}")
        if each["fp32_islands"]:
            _line(f"  fp32 inside half precision: {', '.join(each['fp32_islands'])}")
    if tensors:
        rows = [
            (f"{name}.{tensor}", info["dtype"], "x".join(map(str, info["shape"])))
            for name, part in parts.items()
            for tensor, info in part["tensors"].items()
        ]
        _print_table("tensors", ("tensor", "dtype", "shape"), rows)


@app.command(epilog="Example: wan-trt doctor --json > machine.json")
def doctor(
    context: typer.Context,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the effective settings, what this machine has, and what is missing for which feature."""
    with _settings(context, model=model, checkpoint=checkpoint, backend=backend, cache=cache) as loaded:
        from wan_trt_core.doctor import diagnose

        with ERR.status("looking at this machine …"):
            found = diagnose(loaded)
    if as_json:
        _print_json(found.as_json())
    else:
        _print_diagnosis(found)
    if not found.healthy:
        raise typer.Exit(FAILED)


@engines_app.command("list", epilog="Example: wan-trt engines list")
def engines_list(context: typer.Context, cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """List what the cache holds, least recently used first."""
    with _cache(context, cache) as store:
        _print_entries(store, store.list(), as_json)


@engines_app.command("verify", epilog="Example: wan-trt engines verify")
def engines_verify(context: typer.Context, cache: CacheOption = None, as_json: JsonOption = False) -> None:
    """Check the hash of every file in the cache; exit 1 if an entry must not be loaded."""
    with _cache(context, cache) as store:
        entries = store.verify()
        _print_entries(store, entries, as_json)
    bad = [entry for entry in entries if entry.problem]
    for entry in bad:
        _say(f"error: {entry.folder}: {entry.problem}; it is made again when it is next asked for")
    if bad:
        raise typer.Exit(FAILED)


@engines_app.command("prune", epilog="Example: wan-trt engines prune --older-than 7d --max-size 20GiB")
def engines_prune(
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
        _print_json(
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
        _line(f"removed {entry.kind} {entry.title}")
    for entry in result.busy:
        _line(f"in use, kept: {entry.kind} {entry.title}")
    _line(
        f"{len(result.removed)} removed, {len(result.kept) + len(result.busy)} kept,"
        f" {result.stale} leftovers of interrupted builds removed, {_mib(result.freed)} freed"
    )


@baselines_app.command("show", epilog="Example: wan-trt baselines show --hardware all")
def baselines_show(
    context: typer.Context,
    baselines: Annotated[Path | None, typer.Option(help="Folder of the baselines.")] = None,
    hardware: Annotated[str, typer.Option(help="A hardware key, 'this' machine's, or 'all'.")] = "all",
    as_json: JsonOption = False,
) -> None:
    """Show stored baselines with their tolerances and where they come from."""
    with _settings(context, baselines=baselines) as loaded:
        root = loaded.settings.baselines
        files = [stored for stored in _baseline_files(root) if _is_hardware(stored.hardware_key, hardware)]
    if as_json:
        _print_json([asdict(stored) for stored in files])
        return
    if not files:
        _line(f"{root}: no baselines{'' if hardware == 'all' else f' for {hardware}'}")
    for stored in files:
        _print_baselines(stored)


@baselines_app.command("check", epilog="Example: wan-trt baselines check --cases suites/cases.yaml")
def baselines_check(
    context: typer.Context,
    baselines: Annotated[Path | None, typer.Option(help="Folder of the baselines.")] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Case file: also name entries that no case asks for.", exists=True)
    ] = None,
) -> None:
    """Read every baseline strictly; exit 3 if one is damaged, 1 if one belongs to no case."""
    with _settings(context, baselines=baselines) as loaded:
        root = loaded.settings.baselines
        files = list(_baseline_files(root))
        orphans = _orphans(files, cases) if cases else []
    for where in orphans:
        _say(f"error: {where}: no case of {cases} asks for it")
    _line(f"{root}: {len(files)} files, {sum(len(stored.cases) for stored in files)} entries, all readable")
    if orphans:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: wan-trt report outputs/report/results.json --markdown report.md")
def report(
    results: Annotated[Path, typer.Argument(help="A results.json that a run wrote.")],
    markdown: Annotated[
        Path | None, typer.Option(help="Write a Markdown report here.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the verdicts of a stored run again; exit 1 unless all passed."""
    from wan_trt_core.records import RunRecord
    from wan_trt_core.report.markdown import write_markdown
    from wan_trt_core.report.terminal import render

    record = RunRecord.read(results)
    if as_json:
        _print_json(
            [
                {
                    "case": case.case,
                    "suite": case.suite,
                    "verdict": case.verdict.value,
                    "reason": case.reason.value,
                }
                for case in record.cases
            ]
        )
    else:
        render(record, OUT)
    if markdown:
        write_markdown(record, markdown)
    if not record.cases or any(case.verdict.value != "pass" for case in record.cases):
        raise typer.Exit(FAILED)


def _baseline_files(root: Path) -> Iterator[BaselineFile]:
    from wan_trt_core.baselines import read_baselines

    for path in sorted(root.glob("*/*/*.json")):
        stored = read_baselines(root, path.parts[-3], path.parts[-2], path.stem)
        if stored is not None:
            yield stored


def _is_hardware(key: str, wanted: str) -> bool:
    if wanted == "this":
        import torch

        from wan_trt_core.measure.environment import hardware_key

        wanted = hardware_key("cuda" if torch.cuda.is_available() else "cpu")
    return wanted in ("all", key)


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
    from wan_trt_core.gates.bands import band_limits
    from wan_trt_core.gates.formatting import quantity

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
    title = f"{stored.hardware_key} / {stored.model} / {stored.suite}"
    _print_table(title, ("case", "metric", "baseline", "band", "runs", "from"), rows)


def _generate(
    settings: Settings,
    model: ResolvedModel,
    generation: GenerationDefaults,
    precision: str | dict[str, str],
    prompt: str,
    negative_prompt: str,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Build what is missing, generate, write the file; returns what ``run --json`` prints."""
    from wan_trt_core.comparison.conditions import equal_conditions
    from wan_trt_core.pipeline.engines import EngineStore
    from wan_trt_core.pipeline.generate import generate
    from wan_trt_core.pipeline.video import write_video

    with progress() as report, equal_conditions(settings), EngineStore(settings, report) as store:
        pipe = _pipeline(settings, model, generation, precision, store)
        steps = generation.num_inference_steps
        report("generate", 0.0)
        started = time.perf_counter()
        generated = generate(
            pipe,
            prompt,
            generation,
            seed,
            negative_prompt=negative_prompt,
            on_step=lambda done, _: report("generate", done / (steps + 1)),  # the last part is decoding
        )
        seconds = time.perf_counter() - started
        report("generate", 1.0)
        info = write_video(out, generated.frames, generation.fps)
    return {
        "video": str(out.absolute()),
        "prompt": prompt,
        "seed": seed,
        "model": model.name,
        "backend": settings.backend,
        "precision": precision,
        "steps": steps,
        "seconds": round(seconds, 3),
        **asdict(info),
    }


def _pipeline(
    settings: Settings,
    model: ResolvedModel,
    generation: GenerationDefaults,
    precision: str | dict[str, str],
    store: EngineStore,
) -> WanPipeline:
    """The checkpoint's pipeline with the backend's engines, or its modules, in it."""
    from wan_trt_core.backends.base import ModuleBackend
    from wan_trt_core.backends.registry import device_of, get_backend
    from wan_trt_core.pipeline.engines import precision_of
    from wan_trt_core.pipeline.swap import swap, with_parts

    backend = get_backend(settings.backend)
    backend.require(settings)
    if not isinstance(backend, ModuleBackend):
        profile = model.profile(settings.profile)
        _check_size(profile, generation)
        pipe = model.checkpoint.pipeline(device=device_of(settings))
        return swap(pipe, store.pipeline(model, profile, precision, settings.backend))
    dtypes = {
        "transformer": precision_of(precision, "dit"),
        "vae": precision_of(precision, "vae_decoder_first"),
    }
    pipe = model.checkpoint.pipeline(dtypes, device_of(settings))
    parts = {name: backend.wrap(getattr(pipe, name), settings) for name in dtypes}
    return with_parts(pipe, **parts)


def _check_size(profile: ShapeProfile, generation: GenerationDefaults) -> None:
    """Raise unless the engines of the profile serve a video of this size.

    Raises:
        typer.BadParameter: naming the option and the range.
    """
    asked = {"height": generation.height, "width": generation.width, "frames": generation.num_frames}
    for name, value in asked.items():
        least, most = getattr(profile.min, name), getattr(profile.max, name)
        if not least <= value <= most:
            raise typer.BadParameter(
                f"{value} is outside the profile {profile.name} ({least} to {most}); name another --profile",
                param_hint=f"--{name}",
            )


def _precision(text: str) -> str | dict[str, str]:
    """``fp16``, or ``dit=fp16,vae=fp32`` by component."""
    if "=" not in text:
        return text
    from wan_trt_core.pipeline.engines import precision_of

    pairs = (part.partition("=")[::2] for part in text.split(","))
    precision = {name.strip(): value.strip() for name, value in pairs}
    try:
        for component in ("dit", "vae_decoder_first", "vae_decoder_next"):
            precision_of(precision, component)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--precision") from error
    return precision


def _resolve(settings: Settings) -> ResolvedModel:
    from wan_trt_core.models.catalogue import resolve

    return resolve(settings.model, settings.checkpoint)


def _component_names(wanted: list[str] | None) -> tuple[str, ...]:
    from wan_trt_core.models.components import component_names, get_component

    for name in wanted or ():
        get_component(name)  # a misspelt name is told before the first export, not after
    return tuple(wanted or component_names())


def _copy_files(source: Path, target: Path, name: str) -> Path:
    """Copy an exported model; each file becomes visible only when it is whole."""
    import shutil

    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
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


@contextmanager
def _cache(context: typer.Context, folder: Path | None) -> Iterator[EngineCache]:
    with _settings(context, cache=folder) as loaded:
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


def _print_entries(store: EngineCache, entries: tuple[Listed, ...], as_json: bool) -> None:
    if as_json:
        _print_json(
            [
                {
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
                for entry in entries
            ]
        )
        return
    rows = [
        (
            entry.kind,
            entry.title,
            entry.key[:12],
            _mib(entry.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            entry.problem or ("outdated" if entry.outdated else "ok"),
        )
        for entry in entries
    ]
    _print_table(str(store.root), ("kind", "what", "key", "size", "last used", "state"), rows)


def _print_diagnosis(found: Diagnosis) -> None:
    settings = [(row["key"], str(row["value"]), row["source"]) for row in found.settings]
    _print_table("Settings", ("setting", "value", "from"), settings)
    machine = dict(found.machine)
    machine["memory"] = f"{machine['memory'] / 2**30:.0f} GiB"
    gpus = machine.pop("gpus")
    machine["gpu"] = "; ".join(", ".join(gpu.values()) for gpu in gpus) or "none"
    _print_table("Machine", ("", ""), [(key.replace("_", " "), str(value)) for key, value in machine.items()])
    _line("Features")
    width = max(len(each.name) for each in found.findings)
    for each in found.findings:
        _line(f"  {each.status:7}  {each.name:{width}}  {each.detail}")
        if each.fix:
            _line(f"{'':{width + 13}}needed for: {each.feature}")
            _line(f"{'':{width + 13}}to mend it: {each.fix}")
    _line("\nThe main job can run." if found.healthy else "\nThe main job cannot run with these settings.")


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    cells = [
        tuple(_mib(value) if key == "bytes" else str(value) for key, value in row.items()) for row in rows
    ]
    _print_table("", tuple("size" if key == "bytes" else key for key in rows[0]), cells)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    OUT.print(table)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _line(text: str) -> None:
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def _shapes(tensors: Mapping[str, list[int | str]]) -> str:
    """Names and axes, the many caches of a streaming graph cut short."""
    names = [f"{name} ({', '.join(map(str, axes))})" for name, axes in tensors.items()]
    return ", ".join(names if len(names) <= 8 else [*names[:2], f"… {len(names) - 3} more", names[-1]])


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
