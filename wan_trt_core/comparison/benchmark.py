"""Whole videos: stock diffusers against one candidate, timed in pairs as the perf suite does, and by stage."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from wan_trt_core.backends.registry import device_of
from wan_trt_core.cases import Case, Limit, PerfGate
from wan_trt_core.comparison.conditions import equal_conditions, mark, synchronize
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.frames import keep_frames
from wan_trt_core.comparison.memory import in_fresh_process
from wan_trt_core.comparison.perf import time_target
from wan_trt_core.comparison.targets import ArmName, Asked, Outputs, PipelineTarget, Target
from wan_trt_core.config import Settings
from wan_trt_core.gates import judge
from wan_trt_core.gates.verdict import Check, Reason, Verdict
from wan_trt_core.measure.device_memory import SAMPLE_SECONDS, current_device_memory
from wan_trt_core.measure.memory import resident_set
from wan_trt_core.measure.memory_events import label
from wan_trt_core.pipeline.offload import give_back_cached
from wan_trt_core.pipeline.stages import StageTimes, median_call, peaks_by_stage, time_stages
from wan_trt_core.progress import Report
from wan_trt_core.records import CaseRecord, Measurement

STAGED = 3
"""Videos of each arm whose stages are timed, apart from the pairs."""

MEMORY_STEPS = 2
"""Denoising steps at most of the video whose memory is measured."""

ARMS: tuple[ArmName, ...] = ("reference", "candidate")

OUTPUTS: Mapping[str, Limit] = {
    "video.psnr_db": Limit(min=40.0, reason="of the worst frame; differences under 40 dB begin to be seen")
}
"""What both arms' videos must still be, or their times mean nothing."""

ALSO_COMPUTED = frozenset({"video.cvvdp_jod"})
"""A metric that is computed only where it is asked for."""


def case_of(
    model: str,
    profile: str,
    backend: str,
    precision: str | dict[str, str],
    *,
    reference_precision: str | dict[str, str] | None = None,
    steps: int,
    speedup: float,
) -> Case:
    """The case of one candidate, as a case file would have it.

    Args:
        reference_precision: of stock diffusers; the candidate's own unless given, the text encoder's too.
        speedup: the ratio to prove over stock diffusers.
    """
    reason = "given on the command line"
    return Case(
        id=f"benchmark-{backend}",
        model=model,
        component="pipeline",
        profile=profile,
        precision=precision,
        reference_precision=reference_precision or precision,
        backend=backend,
        steps=steps,
        perf=PerfGate(speedup=speedup, reason=reason, parity=dict(OUTPUTS)),
    )


def measure_and_judge(
    case: Case, context: Context, progress: Report, *, asked: Asked, runs: int, profile_memory: bool = False
) -> CaseRecord:
    """The record of one candidate. What fails of it is in its record: the others are measured all the same.

    Args:
        runs: timed pairs of videos, three at least, and as many of the candidate beside itself.
        profile_memory: measure the memory of each stage as well.
    """
    started = time.perf_counter()
    try:
        measurement = measure(case, context.under(case), progress, asked, runs)
        if profile_memory:
            context.close()  # engines take room that the other processes may need
            measurement = with_memory(measurement, case, context.settings, progress, asked)
        found = judge(case, "perf", measurement, None, bands_for_hardware=False, require_bands=False)
        # what a gate's message says to raise is an option here
        checks = tuple(
            replace(check, message=check.message.replace("perf.max_pairs", "--runs")) for check in found
        )
    except Exception as error:  # of whatever kind, as in the suites
        measurement = Measurement(metrics={})
        message = f"{type(error).__name__}: {error}"
        checks = (Check("validity", "", Verdict.INVALID, Reason.NOT_MEASURED, message),)
    give_back_cached()
    return CaseRecord.judged(case, "perf", checks, measurement, time.perf_counter() - started)


def measure(case: Case, context: Context, progress: Report, asked: Asked, runs: int) -> Measurement:
    """Time both arms in pairs, then the stages of each: ``facts["stages"]`` has (stage, seconds) by arm, and
    ``facts["transformer_s"]`` what of that is inside the transformer."""
    assert case.perf is not None
    settings = context.settings
    perf = settings.perf.model_copy(
        update={"min_pairs": runs, "max_pairs": runs, "time_budget": math.inf}  # as many as were asked for
    )
    videos = 2 * (perf.warmup + max(perf.noise_pairs, runs) + runs + STAGED)
    done = 0

    def on_step(step: int, steps: int) -> None:
        nonlocal done
        done += 1
        progress(f"benchmark {case.backend}", min(done / (videos * steps), 0.99))

    with equal_conditions(settings):
        target = PipelineTarget(case, context, asked, on_step)
        target.build(progress)
        progress(f"benchmark {case.backend}", 0.0)

        def keep(reference: Outputs, candidate: Outputs) -> dict[str, Any]:
            kept = keep_frames(context.report, case.id, reference, candidate, target.fps)
            return kept | stage_facts(target)

        measurement = time_target(
            target, case.perf.speedup, perf, frozenset(OUTPUTS) | ALSO_COMPUTED, keep=keep
        )
        progress(f"benchmark {case.backend}", 1.0)
        return measurement


def stage_facts(target: Target) -> dict[str, Any]:
    """The times of each stage of both arms' pipelines: those of the median one of :data:`STAGED` videos."""
    arms = dict(zip(ARMS, (target.reference, target.candidate), strict=True))
    runs: dict[ArmName, list[StageTimes]] = {name: [] for name in arms}
    for _ in range(STAGED):
        for name, arm in arms.items():  # in turns, as the pairs
            call = partial(arm.call, target.inputs())
            runs[name].append(time_stages(arm.pipe, call, mark=mark))
    times = {name: median_call(each) for name, each in runs.items()}
    return {
        "stages": {name: [list(stage) for stage in each.stages] for name, each in times.items()},
        "transformer_s": {name: each.transformer for name, each in times.items()},
    }


def with_memory(
    measurement: Measurement, case: Case, settings: Settings, progress: Report, asked: Asked
) -> Measurement:
    """The measurement with the fact ``stage_memory``: the most held in each stage (stage, bytes), by arm.

    Of the process, on a GPU what it uses there, each arm in a process of its own. The video has few steps, for its size
    decides and not their number.
    """
    job = f"memory {case.backend}"
    steps = min(asked.generation.num_inference_steps, MEMORY_STEPS)
    short = replace(asked, generation=replace(asked.generation, num_inference_steps=steps))
    held: dict[str, Any] = {}
    try:
        for done, arm in enumerate(ARMS):
            progress(job, done / len(ARMS))
            held[arm] = in_fresh_process(partial(memory_here, asked=short), arm, case, settings)
    except Exception as error:  # of whatever kind: the times stand, and were expensive
        why = f"the memory of each stage was not measured: {type(error).__name__}: {error}"
        return measurement.model_copy(update={"notes": (*measurement.notes, why)})
    progress(job, 1.0)
    notes = measurement.notes
    if steps < asked.generation.num_inference_steps:
        notes = (
            *notes,
            f"the memory is that of a video of {steps} denoising steps: each step holds what the others do",
        )
    facts = measurement.facts | {"stage_memory": held}
    return measurement.model_copy(update={"facts": facts, "notes": notes})


def memory_here(
    case: Case, settings: Settings, arm: ArmName, in_use: int | None, *, asked: Asked
) -> tuple[tuple[str, int], ...]:
    """The most that this process, which should have done nothing else, holds in each stage (stage, bytes).

    Args:
        in_use: bytes in use on the device before this process came.
    """
    device = current_device_memory(in_use) if device_of(settings, case.backend) == "cuda" else None
    with equal_conditions(settings):
        target = PipelineTarget(case, Context(settings), asked)
        side = target.arm(arm)
        call = partial(side.call, asked)
        call()
        if device is not None:
            device.release()  # what loading and the first video's choice of kernels took for a while
        read = resident_set if device is None else device.used
        peaks = peaks_by_stage(side.pipe, call, read, synchronize=synchronize, seconds=SAMPLE_SECONDS)
        return tuple((label(stage, index=index), size) for stage, index, size in peaks)
