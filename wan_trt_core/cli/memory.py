"""``wan-trt memory``: what a run holds, and what would lower its peak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_trt_core.cli.options import (
    BackendOption,
    CacheOption,
    CheckpointOption,
    JsonOption,
    ModelOption,
    ProfileOption,
    make_folder,
    model_of,
    settings_of,
)
from wan_trt_core.cli.output import FAILED, print_json, print_line
from wan_trt_core.cli.videos import PartsPrecisionOption, precision_for

if TYPE_CHECKING:
    from wan_trt_core.config import Settings
    from wan_trt_core.memory.prediction import Choice

commands = typer.Typer()
memory = typer.Typer(no_args_is_help=True, help="What a run holds, will hold, and what would lower its peak.")
commands.add_typer(memory, name="memory")


@memory.callback()
def group() -> None:
    """What a run holds, will hold, and what would lower its peak."""


@memory.command(
    "analyze",
    epilog="Example: wan-trt memory analyze memory_events.json --output report.md",
)
def analyze(
    events: Annotated[Path, typer.Argument(help="A memory_events.json of wan-trt run --profile-memory.")],
    output: Annotated[
        list[Path] | None,
        typer.Option(help="Write the report here: HTML if it ends in .html, else Markdown.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the peak and its owners, growth, and what would lower the peak, in order of what it saves for what it costs.

    Without --output the report is printed as Markdown. A run that failed is analysed as far as it came.
    """
    from dataclasses import asdict

    from wan_trt_core.measure.memory_events import MemoryRecord
    from wan_trt_core.memory.analysis import NothingRecorded, analyse
    from wan_trt_core.report.memory_report import memory_markdown, memory_page, write_memory_report

    record = MemoryRecord.read(events)
    try:
        page = memory_page(record)
    except NothingRecorded as error:
        raise NothingRecorded(f"{events}: {error}") from None
    for path in output or ():
        make_folder(path.parent, "--output")
        write_memory_report(record, path)
    if as_json:
        failure = record.failure.model_dump(mode="json") if record.failure else None
        print_json(asdict(analyse(record)) | {"failure": failure})
    elif output:
        print_line(f"{page.headline}: {', '.join(map(str, output))}")
    else:
        print(memory_markdown(record), end="")


@memory.command(
    "plan",
    epilog="Example: wan-trt memory plan --model wan2.1-t2v-1.3b --profile 480p-81f --gpu 24GB",
)
def plan_memory(
    context: typer.Context,
    gpu: Annotated[
        str | None, typer.Option(help="Its memory, as 24GB: cards are named in GiB. By default only predict.")
    ] = None,
    precision: PartsPrecisionOption = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="All models of the catalogue, or --model, on GPUs of 8 to 141 GB."),
    ] = False,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the peak of each stage before anything is loaded, and name the settings that fit a GPU.

    With --gpu for tensorrt, unless --backend or WAN_TRT_BACKEND names another that runs on one. Also predicts for the
    text encoder of a model with random weights, which has none: --precision takes text_encoder=bf16 and int8 too. Exit
    code 1 where nothing fits.
    """
    from wan_trt_core.config import parse_size

    try:
        budget = parse_size(gpu) if gpu is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gpu") from None
    for option, value, what in (
        ("--gpu", gpu, "is of GPUs of 8 to 141 GB"),
        ("--json", as_json, "is Markdown"),
        ("--backend", backend, "has tensorrt and torch"),
        ("--profile", profile, "has every profile"),
    ):
        if table and value:
            raise typer.BadParameter(f"--table {what}: it takes no {option}", param_hint=option)
    options = {"model": model, "checkpoint": checkpoint, "backend": backend, "profile": profile}
    with settings_of(context, **options, cache=cache) as loaded:
        from wan_trt_core.backends.registry import device_of, get_backend, runs_on, with_backend
        from wan_trt_core.cases import precision_word
        from wan_trt_core.memory.plan import plan
        from wan_trt_core.memory.prediction import choice_of, unplanned, workload
        from wan_trt_core.report.memory_plan_report import plan_json, plan_markdown

        settings = loaded.settings
        resolved = model_of(settings, download=False)
        if (unknown := unplanned(resolved.checkpoint)) and (model or not table):
            raise typer.BadParameter(f"{resolved.name} has {unknown}, which the prediction does not know yet")
        if table:
            by_part = precision_for(precision, "cuda")
            print_line(_sizes(settings, choice_of(settings, by_part), model))
            print_line(f"\nIn {precision_word(by_part)}.")
            return
        shapes = resolved.own_profile(settings.profile)
        settings = with_backend(settings)
        runs = settings.backend
        get_backend(runs)
        device = device_of(settings)
        if budget is not None:
            device = "cuda"
            if runs_on(runs) == "cpu":
                if "backend" in loaded.overrides:  # a settings file holds defaults, which ask for nothing
                    raise typer.BadParameter(
                        f"the backend {runs} runs on the CPU, which has no GPU to fit into; name another --backend",
                        param_hint="--gpu",
                    )
                runs = "tensorrt"
        by_part = precision_for(precision, device)
        choice = choice_of(settings, by_part)
        process = 0
        if device == "cpu":
            from wan_trt_core.comparison.memory import bare_process

            process = bare_process()
        found = plan(workload(resolved, shapes, runs, device, settings, process=process), choice, budget)
        measured = _stored(settings, shapes.name, runs)
    if as_json:
        print_json({"precision": by_part, **plan_json(found, measured)})
    else:
        title = f"Memory of {resolved.name}, {shapes.name}, on {runs} in {precision_word(by_part)}"
        print(plan_markdown(title, found, measured), end="")
    if found.missing:
        raise typer.Exit(FAILED)


def _sizes(settings: Settings, choice: Choice, only: str | None) -> str:
    from wan_trt_core.memory.prediction import unplanned, workload
    from wan_trt_core.models.catalogue import model_names, resolve
    from wan_trt_core.report.memory_plan_report import LEGEND, sizes_table

    named = [resolve(name, download=False) for name in ([only] if only else model_names())]
    models = [model for model in named if not unplanned(model.checkpoint)]
    rows = [
        # by shapes alone: the same on every machine, whatever its cache holds
        (
            f"{model.name} {profile.name}, {backend}",
            replace(workload(model, profile, backend, "cuda", settings), built=lambda *_: None),
        )
        for model in models
        for profile in model.profiles.values()
        for backend in ("tensorrt", "torch")
    ]
    return f"{sizes_table(rows, choice)}\n\n{LEGEND}."


def _stored(settings: Settings, profile: str, backend: str) -> dict[str, int]:
    """Peaks of pipelines in the stored baselines, bytes, by hardware and case."""
    from wan_trt_core.baselines import baseline_path, read_baselines

    found: dict[str, int] = {}
    pattern = baseline_path(settings.baselines, "any", settings.model, "memory").relative_to(
        settings.baselines / "any"
    )
    for path in sorted(settings.baselines.glob(f"*/{pattern}")):
        stored = read_baselines(settings.baselines, path.parts[-3], settings.model, "memory")
        for case, entry in stored.cases.items() if stored else ():
            of = entry.provenance
            metric = entry.metrics.get("device_used") or entry.metrics.get("resident_set_peak")
            if "pipeline" in case and metric and (of.get("profile"), of.get("backend")) == (profile, backend):
                found[f"{case} ({of.get('weights')} weights), {path.parts[-3]}"] = round(metric.value)
    return found
