"""How near does ``wan-trt memory plan`` come? What it predicts beside what a run really holds at most.

    python benchmarks/memory_plan.py --size 128x128x17 --size 256x256x17 --backend onnxruntime torch
    python benchmarks/memory_plan.py --model wan2.1-t2v-1.3b --profile 480p-81f --precision dit=fp16,vae=fp32 \
        --backend tensorrt torch

Every run is the second video, of two denoising steps, in a process of its own. What of the process there is without a
model is measured there and given to the plan: the table shows it, and how far the rest is off by itself. The table goes
to the terminal as Markdown; ``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from typer import BadParameter

from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.backends.registry import device_of, get_backend
from wan_trt_core.cases import Case, Prompt
from wan_trt_core.cli.videos import precision_for, sized
from wan_trt_core.comparison.benchmark import MEMORY_STEPS, case_of, memory_here
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.memory import ArmName, in_fresh_process
from wan_trt_core.comparison.targets import Asked, PipelineTarget
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.memory import resident_code, resident_set
from wan_trt_core.memory.prediction import choice_of, predict, workload
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.models.prompts import PROMPT
from wan_trt_core.report.markdown import markdown_table

HEADER = (
    "backend",
    "video",
    "device",
    "process alone",
    "planned",
    "measured",
    "off",
    "off, without the process",
)


def measured_here(
    case: Case, settings: Settings, arm: ArmName, in_use: int | None, *, asked: Asked
) -> tuple[int, int]:
    """Bytes of this process without a model, and the most with it; of a device the second alone."""
    bare = resident_set() - resident_code()
    stages = memory_here(case, settings, arm, in_use, asked=asked)
    bare = bare + resident_code() if device_of(settings, case.backend) == "cpu" else 0
    return bare, max(size for _, size in stages)


def row(
    settings: Settings, profile: str | None, backend: str, precision: str | dict[str, str], size: Sizes | None
) -> tuple[str, ...]:
    """One run, and its prediction."""
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    shapes = model.profile(profile)
    case = case_of(settings.model, shapes.name, backend, precision, steps=MEMORY_STEPS, speedup=1.0)
    target = PipelineTarget(case, Context(settings))
    if backend != "torch":
        target.build()  # which is no part of a run
    asked = target.inputs()
    if size is not None:
        asked = replace(asked, generation=asked.generation.of_size(size))
    asked = replace(asked, prompt=Prompt(id="asked", prompt=PROMPT))
    video = asked.generation
    arm: ArmName = "reference" if backend == "torch" else "candidate"
    bare, measured = in_fresh_process(partial(measured_here, asked=asked), arm, case, settings)
    device = device_of(settings, backend)
    text_encoder = "text_encoder" in model.checkpoint.parts
    work = workload(model, shapes, backend, device, settings, text_encoder=text_encoder, process=bare)
    sizes = replace(work.video, height=video.height, width=video.width, frames=video.num_frames)
    planned = predict(replace(work, video=sizes), choice_of(settings, precision)).peak
    named = f"{video.width}x{video.height}, {video.num_frames} frames"
    amounts = (quantity(each, "B") for each in (bare, planned, measured))
    return (
        backend,
        named,
        device,
        *amounts,
        f"{planned / measured - 1:+.1%}",
        f"{(planned - bare) / (measured - bare) - 1:+.1%}",
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table; what is asked for is checked before anything runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--checkpoint")
    parser.add_argument("--profile")
    parser.add_argument("--precision", help="as of wan-trt run")
    parser.add_argument("--backend", nargs="+", default=["onnxruntime", "torch"])
    parser.add_argument(
        "--size", action="append", help="height x width x frames; by default the profile's own"
    )
    given = parser.parse_args(arguments)
    options = {"model": given.model, "checkpoint": given.checkpoint}
    try:
        settings = load_settings(overrides=options).settings
        shapes = resolve(settings.model, settings.checkpoint_of(settings.model)).profile(given.profile)
        sizes = [sized(shapes.opt, text) for text in given.size] if given.size else [None]
        precisions = {}
        for backend in given.backend:
            precisions[backend] = precision_for(given.precision, device_of(settings, backend))
            get_backend(backend).require(settings)
    except (ValueError, BadParameter, BackendUnavailable) as error:
        parser.error(str(error))
    rows = []
    for backend in given.backend:
        settings = load_settings(overrides={**options, "backend": backend}).settings
        rows += [row(settings, given.profile, backend, precisions[backend], size) for size in sizes]
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
