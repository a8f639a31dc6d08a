"""``wan-trt benchmark``: whole videos of stock diffusers and of other backends, side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.cli.options import (
    AttentionSlicingOption,
    CacheOption,
    CheckpointOption,
    JsonOption,
    MaxGraphsOption,
    ModelOption,
    OffloadOption,
    ProfileOption,
    ShareScratchOption,
    TextEncoderDeviceOption,
    ThreadsOption,
    VaeFramesOption,
    VaeLeanOption,
    VaeTileOption,
    WeightStreamingOption,
    make_cache,
    make_folder,
    model_of,
    savings_of,
    settings_of,
    tell_not_taken,
    tidied,
)
from wan_trt_core.cli.output import FAILED, OUT, print_json, print_line
from wan_trt_core.cli.videos import (
    FramesOption,
    Guidance2Option,
    GuidanceOption,
    HeightOption,
    ImageOption,
    NegativePromptOption,
    PartsPrecisionOption,
    SeedOption,
    StepsOption,
    WidthOption,
    check_memory,
    check_size,
    open_image,
    parse_precision,
    precision_for,
    with_options,
)
from wan_trt_core.models.prompts import PROMPT
from wan_trt_core.progress import progress

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.comparison.context import Context
    from wan_trt_core.comparison.targets import Asked
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.progress import Report
    from wan_trt_core.records import CaseRecord, RunRecord

commands = typer.Typer()

REFERENCE = "torch"
"""The backend that every other is compared with: stock diffusers."""


@commands.command(
    epilog="Example: wan-trt benchmark --compare torch onnxruntime --steps 10 --report outputs/benchmark"
)
def benchmark(
    context: typer.Context,
    compare: Annotated[
        list[str],
        typer.Option(help="What is compared: a backend, and those that follow; torch is the reference."),
    ],
    others: Annotated[list[str] | None, typer.Argument(metavar="[BACKEND]...", help="More backends.")] = None,
    prompt: Annotated[str, typer.Option(help="What the video shows.")] = PROMPT,
    image: ImageOption = None,
    negative_prompt: NegativePromptOption = "",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_2: Guidance2Option = None,
    seed: SeedOption = 0,
    height: HeightOption = None,
    width: WidthOption = None,
    frames: FramesOption = None,
    precision: PartsPrecisionOption = None,
    reference_precision: Annotated[
        str | None, typer.Option(help="Of stock diffusers, if not the candidates' own.")
    ] = None,
    runs: Annotated[int, typer.Option(min=3, help="Timed videos of each arm, in pairs.")] = 3,
    warmup: Annotated[int | None, typer.Option(min=0, help="Videos of each arm before any is timed.")] = None,
    speedup: Annotated[float, typer.Option(min=0.01, help="The ratio to prove over stock diffusers.")] = 1.0,
    profile_memory: Annotated[
        bool, typer.Option("--profile-memory", help="Also the most memory in each stage, of both arms.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write results.json, report.md, report.html and the videos here.", file_okay=False),
    ] = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    text_encoder_device: TextEncoderDeviceOption = None,
    offload: OffloadOption = None,
    vae_tile: VaeTileOption = None,
    vae_frames_per_step: VaeFramesOption = None,
    vae_lean: VaeLeanOption = None,
    attention_slicing: AttentionSlicingOption = None,
    weight_streaming_budget_gib: WeightStreamingOption = None,
    share_scratch: ShareScratchOption = None,
    max_graphs: MaxGraphsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate the same video with stock diffusers and with other backends: time by stage, ratio, and quality.

    Exit code 1 unless every candidate proves the ratio and makes the same video. The options for less memory are the
    candidates', but for --vae-tile: tiles change the video, so stock diffusers decodes in the same.
    """
    options = {"model": model, "checkpoint": checkpoint, "profile": profile, "perf.warmup": warmup}
    with (
        settings_of(context, **options, **savings_of(context), cache=cache, threads=threads) as loaded,
        tidied(report, loaded.settings.cache),
    ):
        from wan_trt_core.backends.registry import device_of
        from wan_trt_core.cases import Prompt
        from wan_trt_core.comparison.benchmark import case_of, measure_and_judge
        from wan_trt_core.comparison.targets import Asked
        from wan_trt_core.pipeline.generate import check_image, check_request, tell_what_is_cut
        from wan_trt_core.pipeline.video import check_encoder

        settings = loaded.settings
        resolved = model_of(settings)
        shapes = resolved.own_profile(settings.profile)
        if image is not None:  # without one it is of random colours, where one is needed
            resolved = resolved.making(from_image=True)
            check_image(True, begins_with_image=resolved.checkpoint.begins_with_image)
        usual = resolved.generation.of_size(shapes.opt)
        generation = with_options(usual, steps, guidance, height, width, frames, guidance_2)
        check_request(prompt, generation, seed, resolved.spatial, two_experts=resolved.two_experts)
        stock = parse_precision(reference_precision, "--reference-precision") if reference_precision else None
        cases = [
            case_of(
                settings.model,
                shapes.name,
                backend,
                precision_for(precision, device_of(settings, backend)),
                reference_precision=stock,
                steps=generation.num_inference_steps,
                speedup=speedup,
            )
            for backend in _candidates([*compare, *(others or ())])
        ]
        asked = Asked(
            generation,
            Prompt(id="asked", prompt=prompt, negative_prompt=negative_prompt, seed=seed),
            None if image is None else open_image(image),
        )
        for case in cases:
            _check(case, resolved, asked, settings)
        tell_not_taken(context, settings, *(case.backend for case in cases))
        make_cache(loaded, *(case.backend for case in cases))
        tell_what_is_cut(resolved.checkpoint, generation.max_sequence_length, prompt, negative_prompt)
        if report:
            check_encoder()
            make_folder(report, "--report")
        measured = partial(measure_and_judge, asked=asked, runs=runs, profile_memory=profile_memory)
        run = _run(cases, measured, settings, report)
    if as_json:
        print_json([_numbers(record) for record in run.cases])
    else:
        _show(run, report)
    if any(record.verdict.value != "pass" for record in run.cases):
        raise typer.Exit(FAILED)


def _candidates(named: list[str]) -> list[str]:
    """What is compared with the reference, each once."""
    candidates = [name for name in dict.fromkeys(named) if name != REFERENCE]
    if not candidates:
        raise typer.BadParameter(
            f"{REFERENCE} is the reference; name a backend to compare with it, as --compare {REFERENCE} onnxruntime",
            param_hint="--compare",
        )
    return candidates


def _check(case: Case, model: ResolvedModel, asked: Asked, settings: Settings) -> None:
    """Raise unless a candidate can run here, in its precision, and make a video of this size.

    Raises:
        UnknownBackend, BackendUnavailable, ComponentError, CheckpointError, GenerationError, typer.BadParameter: naming
            what is wrong.
    """
    from wan_trt_core.backends.base import EngineBackend
    from wan_trt_core.backends.registry import device_of, get_backend
    from wan_trt_core.cases import COMPOSITES
    from wan_trt_core.config import PipelineSettings
    from wan_trt_core.models.checkpoint import torch_dtype
    from wan_trt_core.pipeline.engines import check_engines, precision_of

    backend, shapes = get_backend(case.backend), model.profile(case.profile)
    backend.require(settings)
    for name in COMPOSITES[case.component]:
        torch_dtype(precision_of(case.stock_precision, name))
    if isinstance(backend, EngineBackend):
        check_engines(backend, model, case.precision, settings)
        check_size(shapes, asked.generation)
    if device_of(settings, case.backend) == "cuda":  # each arm by itself: both together need more
        tiles = PipelineSettings(vae_tile=settings.pipeline.vae_tile)  # the reference's own, see there
        stock = settings.model_copy(update={"pipeline": tiles})
        for own, runs, precision in (
            (stock, REFERENCE, case.stock_precision),
            (settings, case.backend, case.precision),
        ):
            check_memory(own, model, shapes, asked.generation, precision, runs)


def _run(
    cases: list[Case],
    measured: Callable[[Case, Context, Report], CaseRecord],
    settings: Settings,
    report: Path | None,
) -> RunRecord:
    """Measure one candidate after the other. The results are written after each, the reports at the end."""
    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.comparison.context import Context
    from wan_trt_core.measure.environment import (
        environment_record,
        hardware_key,
        measured_source,
        throttle_counters,
    )
    from wan_trt_core.records import RunRecord
    from wan_trt_core.report.writing import RESULTS, write_report

    device = max(device_of(settings, case.backend) for case in cases)  # the GPU where any runs on one
    before, source = throttle_counters(), measured_source(report)
    run = RunRecord(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        hardware_key=hardware_key(device),
        environment={},
        settings=settings.flat(),
        cases=(),
    )
    with progress() as told, closing(Context(settings, report)) as shared:
        for case in cases:
            records = (*run.cases, measured(case, shared, told))
            environment = environment_record(device, source=source, throttle_before=before)
            run = run.model_copy(update={"environment": environment, "cases": records})
            if report:
                run.write(report / RESULTS)
    if report:
        write_report(run, report)
    return run


def _show(run: RunRecord, report: Path | None) -> None:
    from wan_trt_core.report.terminal import render_benchmark
    from wan_trt_core.report.writing import PAGE, REPORT, RESULTS

    render_benchmark(run, OUT)
    if report:
        for name in (RESULTS, REPORT, PAGE):
            print_line(f"{name}: {report / name}")


def _numbers(record: CaseRecord) -> dict[str, Any]:
    """What ``--json`` prints of a candidate; seconds, bytes, and ratios over stock diffusers."""
    measured = record.measurement
    interval: dict[str, Any] = next((c.evidence for c in record.checks if c.metric == "speedup"), {})
    return {
        "backend": record.backend,
        "precision": record.precision,
        "verdict": record.verdict.value,
        "reason": record.reason.value,
        "message": record.message,
        "interval": {
            name: interval[name] for name in ("low", "high", "pairs", "confidence") if name in interval
        },
        "metrics": {name: metric.value for name, metric in measured.metrics.items()},
        "stages": measured.facts.get("stages", {}),
        "transformer_s": measured.facts.get("transformer_s", {}),
        "stage_memory": measured.facts.get("stage_memory", {}),
    }
