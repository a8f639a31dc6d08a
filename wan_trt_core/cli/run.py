"""``wan-trt run``: a video from a prompt."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_trt_core.cli.options import (
    AttentionSlicingOption,
    BackendOption,
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
from wan_trt_core.cli.output import print_json, print_line
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
    open_image,
    precision_for,
    profile_for,
    with_options,
)
from wan_trt_core.progress import progress

if TYPE_CHECKING:
    from diffusers import WanPipeline
    from PIL.Image import Image

    from wan_trt_core.backends.base import Backend
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel
    from wan_trt_core.pipeline.engines import EngineStore

commands = typer.Typer()

SNAPSHOT = "memory_snapshot.pickle"
"""Beside the memory events."""


@commands.command(epilog='Example: wan-trt run --prompt "a small red square moves left" --out video.mp4')
def run(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    out: Annotated[Path, typer.Option(help="Video file (H.264 in MP4).", dir_okay=False)],
    frames_dir: Annotated[
        Path | None,
        typer.Option(
            "--frames-dir", help="Also each frame (PNG) here, a folder with nothing in it.", file_okay=False
        ),
    ] = None,
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
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    backend: BackendOption = None,
    profile: ProfileOption = None,
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    text_encoder_engine: Annotated[
        bool,
        typer.Option(
            "--text-encoder-engine",
            help="Run the text encoder as an engine too, not in PyTorch; in fp32 unless --precision says another.",
        ),
    ] = False,
    text_encoder_device: TextEncoderDeviceOption = None,
    offload: OffloadOption = None,
    vae_tile: VaeTileOption = None,
    vae_frames_per_step: VaeFramesOption = None,
    vae_lean: VaeLeanOption = None,
    attention_slicing: AttentionSlicingOption = None,
    weight_streaming_budget_gib: WeightStreamingOption = None,
    share_scratch: ShareScratchOption = None,
    max_graphs: MaxGraphsOption = None,
    profile_memory: Annotated[
        bool, typer.Option("--profile-memory", help="Write memory_events.json, for wan-trt memory analyze.")
    ] = False,
    memory_snapshot: Annotated[
        bool,
        typer.Option("--memory-snapshot", help="With it, PyTorch's own history of the GPU's allocations."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate a video from a prompt; exports and builds first what is not in the cache yet."""
    options = {"model": model, "checkpoint": checkpoint, "backend": backend, "profile": profile}
    with (
        settings_of(context, **options, **savings_of(context), cache=cache, threads=threads) as loaded,
        tidied(out.parent, frames_dir, loaded.settings.report, loaded.settings.cache) as made,
    ):
        from wan_trt_core.backends.registry import device_of, with_backend
        from wan_trt_core.measure.device_memory import allocator_snapshot
        from wan_trt_core.measure.memory_events import FILE_NAME, run_folder
        from wan_trt_core.pipeline.generate import (
            check_image,
            check_request,
            check_weights,
            tell_what_is_cut,
        )
        from wan_trt_core.pipeline.video import check_frames_target, check_target

        settings = with_backend(loaded.settings)
        check_target(out)
        if frames_dir:
            check_frames_target(frames_dir)
        resolved = model_of(settings).making(from_image=image is not None)
        check_weights(resolved)
        check_image(image is not None, begins_with_image=resolved.checkpoint.begins_with_image)
        begins_with = None if image is None else open_image(image)
        generation = with_options(resolved.generation, steps, guidance, height, width, frames, guidance_2)
        check_request(prompt, generation, seed, resolved.spatial, two_experts=resolved.two_experts)
        length, device = generation.max_sequence_length, device_of(settings)
        by_part = precision_for(precision, device, text_encoder_engine=text_encoder_engine)
        tell_what_is_cut(resolved.checkpoint, length, prompt, negative_prompt)
        _check(settings, resolved, generation, by_part, text_encoder_engine=text_encoder_engine)
        tell_not_taken(context, settings, settings.backend)
        make_cache(loaded, settings.backend)
        if memory_snapshot:
            _check_snapshot(profile_memory, device)
        events = snapshot = None
        if profile_memory:
            make_folder(
                settings.report, "--profile-memory", "set `report` (WAN_TRT_REPORT) to another folder"
            )
            folder = run_folder(settings.report, out.stem, datetime.now(UTC))
            made.append(folder)
            events, snapshot = folder / FILE_NAME, folder / SNAPSHOT if memory_snapshot else None
        with allocator_snapshot(snapshot):
            result = _generate(
                settings,
                resolved,
                generation,
                by_part,
                prompt,
                negative_prompt,
                begins_with,
                seed,
                out,
                frames_dir,
                events,
                text_encoder_engine=text_encoder_engine,
            )
    if as_json:
        print_json(result)
        return
    from wan_trt_core.cases import precision_word

    print_line(
        f"{out}: {result['frames']} frames of {result['width']}x{result['height']}, {result['codec']},"
        f" generated in {result['seconds']:.1f} s by {result['backend']}"
        f" in {precision_word(result['precision'])}"
    )
    if frames_dir:
        print_line(f"{frames_dir}: each of them as PNG")
    if events:
        print_line(f"{events}: read it with wan-trt memory analyze")
    if snapshot:
        print_line(f"{snapshot}: drop it on https://pytorch.org/memory_viz")


def _check_snapshot(profile_memory: bool, device: str) -> None:
    """Raise unless PyTorch's allocator has a history to keep.

    Raises:
        typer.BadParameter: naming what is missing.
    """
    option = "--memory-snapshot"
    if not profile_memory:
        raise typer.BadParameter(
            "goes with --profile-memory, whose folder it is written to", param_hint=option
        )
    if device != "cuda":
        raise typer.BadParameter(
            "needs a GPU: the history is that of PyTorch's allocator there", param_hint=option
        )


def _check(
    settings: Settings,
    model: ResolvedModel,
    generation: GenerationDefaults,
    precision: str | dict[str, str],
    *,
    text_encoder_engine: bool,
) -> None:
    """Raise unless the backend can make such a video here, as far as that is known before any work.

    Raises:
        UnknownBackend, BackendUnavailable, ComponentError, CheckpointError, CatalogueError, ConfigError,
            GenerationError, typer.BadParameter: naming what is wrong.
    """
    from wan_trt_core.backends.base import EngineBackend
    from wan_trt_core.backends.registry import device_of, get_backend, tell_idle_gpu
    from wan_trt_core.models.checkpoint import torch_dtype
    from wan_trt_core.pipeline.engines import check_engines, components_run, precision_of

    backend = get_backend(settings.backend)
    if text_encoder_engine:
        _check_text_encoder(backend, settings, precision)
    backend.require(settings)
    if isinstance(backend, EngineBackend):
        shapes = profile_for(model, settings.profile, generation)
        check_engines(backend, model, precision, settings)
    else:
        shapes = model.profile(settings.profile)
        for name in components_run("pipeline", model.checkpoint):
            torch_dtype(precision_of(precision, name))
    tell_idle_gpu(settings, settings.backend)
    if device_of(settings) == "cuda":
        check_memory(
            settings,
            model,
            shapes,
            generation,
            precision,
            settings.backend,
            text_encoder_engine=text_encoder_engine,
        )


def _check_text_encoder(backend: Backend, settings: Settings, precision: str | dict[str, str]) -> None:
    """Raise unless the backend can run the text encoder as an engine where the settings want it.

    Raises:
        typer.BadParameter: naming the option.
    """
    from wan_trt_core.backends.base import EngineBackend, EngineError
    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.pipeline.assembly import TEXT_ENCODER, check_text_encoder
    from wan_trt_core.pipeline.engines import check_precision, precision_of

    try:
        if not isinstance(backend, EngineBackend):
            raise EngineError(f"the backend {backend.name} runs PyTorch modules and has no engines")
        check_precision(backend, TEXT_ENCODER, precision_of(precision, TEXT_ENCODER))
        check_text_encoder(backend.name, settings, device_of(settings))
    except (EngineError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--text-encoder-engine") from error


def _generate(
    settings: Settings,
    model: ResolvedModel,
    generation: GenerationDefaults,
    precision: str | dict[str, str],
    prompt: str,
    negative_prompt: str,
    image: Image | None,
    seed: int,
    out: Path,
    frames_dir: Path | None,
    events: Path | None,
    *,
    text_encoder_engine: bool,
) -> dict[str, Any]:
    """Build what is missing, generate, write the files; returns what ``run --json`` prints."""
    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.comparison.conditions import equal_conditions
    from wan_trt_core.memory.prediction import memory_settings
    from wan_trt_core.pipeline.engines import EngineStore
    from wan_trt_core.pipeline.generate import generate
    from wan_trt_core.pipeline.recording import recorded_run
    from wan_trt_core.pipeline.video import VideoError, write_frames, write_video

    facts = {
        "model": model.name,
        "backend": settings.backend,
        "precision": precision,
        "text_encoder_engine": text_encoder_engine,
        **asdict(generation),
        "settings": memory_settings(settings),
    }
    with (
        progress() as report,
        equal_conditions(settings),
        recorded_run(events, device_of(settings), facts) as recording,
        EngineStore(settings, report) as store,
    ):
        with recording.loads(model.checkpoint, store):
            pipe = _pipeline(
                settings, model, generation, precision, store, text_encoder_engine=text_encoder_engine
            )
        steps = generation.num_inference_steps
        report("generate", 0.0)
        started = time.perf_counter()
        with recording.stages(pipe):
            generated = generate(
                pipe,
                prompt,
                generation,
                seed,
                negative_prompt=negative_prompt,
                image=image,
                on_step=lambda done, _: report("generate", done / (steps + 1)),  # the last part is decoding
            )
        seconds = time.perf_counter() - started
        report("generate", 1.0)
        with recording.writing():
            try:
                if frames_dir:  # first: the video may go into the same folder
                    write_frames(frames_dir, generated.frames)
            except VideoError as error:  # a disk that they fill may hold the video, which took minutes
                write_video(out, generated.frames, generation.fps)
                raise VideoError(f"{error}; the video itself is in {out}") from error
            info = write_video(out, generated.frames, generation.fps)
        del pipe
        recording.unload(model.checkpoint)
    return {
        "video": str(out.absolute()),
        "prompt": prompt,
        "seed": seed,
        "model": model.name,
        "backend": settings.backend,
        "precision": precision,
        "text_encoder_engine": text_encoder_engine,
        "steps": steps,
        "seconds": round(seconds, 3),
        **asdict(info),
        **({"frames_dir": str(frames_dir.absolute())} if frames_dir else {}),
        **({"memory_events": str(events.absolute())} if events else {}),
    }


def _pipeline(
    settings: Settings,
    model: ResolvedModel,
    generation: GenerationDefaults,
    precision: str | dict[str, str],
    store: EngineStore,
    *,
    text_encoder_engine: bool,
) -> WanPipeline:
    """The checkpoint's pipeline with the backend's engines, or its modules, in it; what :func:`_check` has let pass."""
    from wan_trt_core.backends.base import ModuleBackend
    from wan_trt_core.backends.registry import device_of, get_backend
    from wan_trt_core.pipeline.assembly import on_engines, on_modules

    backend, device = get_backend(settings.backend), device_of(settings)
    if isinstance(backend, ModuleBackend):
        return on_modules(model, precision, backend, settings, device)
    profile = profile_for(model, settings.profile, generation)
    made = (model, profile, precision, backend.name, store, settings, device)
    return on_engines(*made, text_encoder=text_encoder_engine)
