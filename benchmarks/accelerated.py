"""How much faster is a pipeline after ``wan_trt_core.accelerate``? Whole generations in pairs, and where the time goes.

    python benchmarks/accelerated.py --threads 2 --at-least 2.0
    WAN_TRT_PERF__ALLOW_TF32=true python benchmarks/accelerated.py --model wan2.1-t2v-1.3b --profile 480p-81f \\
        --backend tensorrt --precision dit=fp16,vae=fp32 --steps 4 --full-steps 50

Stock diffusers and the accelerated pipeline generate the same video from the same noise, in turns, in one process and
with the same threads. Both arms are the pipeline's own call, prompt to frames. The shares of its stages are measured
in pairs of generations of their own, which are not in the ratio. Where a generation of all its steps takes minutes,
pairs of a few steps tell the ratio of every stage, and ``--full-steps`` times one whole generation of each arm besides.
With ``--at-least`` the exit code is 1 unless the ratio's interval is proven to lie above. Where diffusers' own modules
run in the accelerated arm its times are worth nothing: none is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from typer import BadParameter

import wan_trt_core
from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.backends.registry import device_of, get_backend, with_backend
from wan_trt_core.cli.videos import parse_precision
from wan_trt_core.comparison.conditions import equal_conditions, mark, snapshot, synchronize
from wan_trt_core.comparison.targets import Arm, Outputs
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates.statistics import paired_ratio, ratio_interval
from wan_trt_core.measure.environment import hardware_key
from wan_trt_core.measure.timing import PairedTimer
from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel, resolve
from wan_trt_core.models.prompts import PROMPT
from wan_trt_core.pipeline.acceleration import originals
from wan_trt_core.pipeline.assembly import TEXT_ENCODER, replaced_precisions, text_precision
from wan_trt_core.pipeline.generate import GenerationError, generate
from wan_trt_core.pipeline.stages import time_stages
from wan_trt_core.records import write_json

TAIL = 0.01
"""Chance that the true ratio lies beyond the interval, on each side."""

ENGINES = ("transformer", "vae")
"""The stages that engines take."""

DRAWN = "random states"
"""The stage in the place of ``text encoder`` where a pipeline has none: both arms draw them, which is no ratio."""

Stages = Mapping[str, Mapping[str, Sequence[float]]]
"""Seconds by arm and stage, one of each generation, in pairs."""


class FellBack(RuntimeError):
    """The accelerated arm ran diffusers' own modules."""


def measure(
    settings: Settings,
    precision: str | dict[str, str],
    generation: dict[str, int],
    pairs: int,
    staged: int,
    *,
    warm_up: int = 2,
    full_steps: int | None = None,
    report: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Time both arms.

    Args:
        precision: of both arms' modules; the text encoder's is float32 unless it is named.
        generation: what differs from the profile's sizes, where one is named, and the model's own generation settings.
        pairs: of generations; three at least.
        staged: pairs of generations whose stages are timed.
        warm_up: generations of each arm before any is timed.
        full_steps: of one more generation of each arm, whose stages are timed; None for no such.
        report: given the result after each of the three parts, as far as it goes then.

    Returns:
        ``speedup``, its interval ``low`` and ``high``, the ``seconds`` of every generation by arm, the largest
        ``difference`` of a pixel (0 to 1), and the ``conditions``; then the ``stages``' seconds by arm, and their
        ``ratios`` over the pairs; then, of ``full``, its ``steps``, ``stages``, ``seconds`` by arm, ``speedup``, and
        the share of each arm ``outside`` of :data:`ENGINES`.

    Raises:
        FellBack: when the accelerated arm ran diffusers' own modules.
    """
    device = device_of(settings)
    dtypes = {**replaced_precisions(precision), TEXT_ENCODER: text_precision(precision)}
    # opened twice: accelerate takes diffusers' modules off the device, and the reference needs them there
    models = [resolve(settings.model, settings.checkpoint_of(settings.model)) for _ in range(2)]
    stock = models[0].checkpoint.pipeline(dtypes, device)
    accelerated = models[1].checkpoint.pipeline(dtypes)
    wan_trt_core.accelerate(accelerated, precision=precision, settings=settings)
    asked = asked_of(models[0], settings.profile, generation)
    arm = Arm(partial(_video, accelerated), forbidden=lambda: originals(accelerated))
    arms: dict[str, Callable[[GenerationDefaults], Outputs]] = {
        "stock": partial(_video, stock),
        "accelerated": partial(_watched, arm),
    }
    pipes = {"stock": stock, "accelerated": accelerated}
    with equal_conditions(settings):
        timer = PairedTimer(
            *(partial(call, asked) for call in arms.values()), synchronize=synchronize, warmup=warm_up
        )
        timer.warm_up()
        timed = tuple(islice(timer.pairs(), pairs))
        expected, found = (outputs.video for outputs in timer.outputs)
        seconds = {
            "stock": [pair.reference for pair in timed],
            "accelerated": [pair.candidate for pair in timed],
        }
        interval = ratio_interval(seconds["stock"], seconds["accelerated"], TAIL)
        result = {
            "model": models[0].name,
            "hardware": hardware_key(device),
            "backend": settings.backend,
            "precision": precision,
            "generation": asdict(asked),
            "speedup": interval.point,
            "low": interval.low,
            "high": interval.high,
            "seconds": seconds,
            "difference": float(np.abs(expected - found).max()),
            "conditions": snapshot(),
        }
        report(result)
        stages = _stages(pipes, arms, asked, staged)
        result |= {"stages": stages, "ratios": _ratios(stages)}
        report(result)
        if full_steps is not None:
            whole = _stages(pipes, arms, replace(asked, num_inference_steps=full_steps), 1)
            result["full"] = {"steps": full_steps, "stages": whole, **_summed(whole)}
            report(result)
    return result


def asked_of(model: ResolvedModel, profile: str | None, generation: dict[str, int]) -> GenerationDefaults:
    """The video of a profile, where one is named, else the model's own; ``generation`` comes before both."""
    usual = model.generation if profile is None else model.generation.of_size(model.profile(profile).opt)
    return replace(usual, **generation)


def _video(pipe: Any, generation: GenerationDefaults) -> Outputs:
    return Outputs(video=generate(pipe, PROMPT, generation).frames)


def _watched(arm: Arm, generation: GenerationDefaults) -> Outputs:
    with arm.watched() as ran:
        outputs = arm.call(generation)
    if ran:
        raise FellBack(
            f"diffusers' own {', '.join(dict.fromkeys(ran))} ran in the accelerated arm; see the log"
        )
    return outputs


def _stages(
    pipes: Mapping[str, Any],
    arms: Mapping[str, Callable[[GenerationDefaults], object]],
    asked: GenerationDefaults,
    pairs: int,
) -> dict[str, dict[str, list[float]]]:
    """Time the stages of pairs of generations, every other one in reverse order."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for index in range(pairs):
        for name in list(arms)[:: -1 if index % 2 else 1]:
            runs[name].append(_parts(pipes[name], partial(arms[name], asked)))
    return {
        name: {stage: [run[stage] for run in of_arm] for stage in of_arm[0]} for name, of_arm in runs.items()
    }


def _parts(pipe: Any, call: Callable[[], object]) -> dict[str, float]:
    """Seconds of one generation: in the text encoder, the transformer, the VAE, and all the rest, which is the
    scheduler, guidance, and frames to NumPy."""
    times = time_stages(pipe, call, mark=mark)
    by_stage = dict(times.stages)
    parts = {
        DRAWN if pipe.text_encoder is None else "text encoder": by_stage["text encode"],
        "transformer": times.transformer,
        "vae": by_stage["decode"],
    }
    return {**parts, "the rest": sum(by_stage.values()) - sum(parts.values())}


def _ratios(stages: Stages) -> dict[str, dict[str, float]]:
    """Of every stage that has one, with its interval where there are pairs enough for that."""
    found = {}
    for name, stock in stages["stock"].items():
        if name == DRAWN:
            continue
        ours = stages["accelerated"][name]
        found[name] = {"ratio": paired_ratio(stock, ours)}
        if len(stock) >= 3:
            interval = ratio_interval(stock, ours, TAIL)
            found[name] |= {"low": interval.low, "high": interval.high}
    return found


def _summed(stages: Stages) -> dict[str, Any]:
    """What the stages of one generation of each arm come to."""
    seconds = {arm: sum(times[0] for times in of_arm.values()) for arm, of_arm in stages.items()}
    return {
        "seconds": seconds,
        "speedup": seconds["stock"] / seconds["accelerated"],
        "outside": {
            arm: 1 - sum(of_arm[name][0] for name in ENGINES) / seconds[arm] for arm, of_arm in stages.items()
        },
    }


def _told(result: dict[str, Any]) -> Iterator[str]:
    """The part of a result that came last."""
    if "full" in result:
        full = result["full"]
        seconds, outside = full["seconds"], full["outside"]
        yield (
            f"one generation of {full['steps']} steps: stock {seconds['stock']:.2f} s, accelerated"
            f" {seconds['accelerated']:.2f} s, {full['speedup']:.2f}x; outside {' and '.join(ENGINES)}"
            f" {outside['stock']:.2%} and {outside['accelerated']:.2%}"
        )
        yield from _table(full["stages"])
    elif "stages" in result:
        yield from _table(result["stages"])
    else:
        video = result["generation"]
        yield (
            f"{result['model']}, {video['num_frames']} frames of {video['width']}x{video['height']},"
            f" {video['num_inference_steps']} steps, guidance {video['guidance_scale']:g}, {result['backend']},"
            f" {result['conditions']['threads']} threads"
        )
        yield (
            f"accelerated is {result['speedup']:.2f}x as fast as stock, {1 - TAIL:.0%} interval {result['low']:.2f}x"
            f" to {result['high']:.2f}x over {len(result['seconds']['stock'])} pairs; largest difference of a pixel"
            f" {result['difference']:.1e}"
        )


def _table(stages: Stages) -> Iterator[str]:
    stock, ours = ({name: median(times) for name, times in stages[arm].items()} for arm in stages)
    yield f"{'':14}{'stock':>10}{'accelerated':>13}{'ratio':>8}{'share':>8}"
    ratios = _ratios(stages)
    for name in stock:
        told = f"{ratios[name]['ratio']:.2f}x" if name in ratios else ""
        share = f"{ours[name] / sum(ours.values()):.0%}"
        yield f"{name:14}{stock[name]:8.3f} s{ours[name]:11.3f} s{told:>8}{share:>8}"


def main(arguments: list[str] | None = None) -> None:
    """Print the ratio and the stages as they come; every number so far is then in ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--checkpoint")
    parser.add_argument("--backend")
    parser.add_argument("--profile")
    parser.add_argument(
        "--precision", default="fp32", help="fp32, fp16, or dit=fp16,vae=fp32,text_encoder=bf16"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pairs", type=int, default=7, help="of generations, 3 at least")
    parser.add_argument("--staged", type=int, default=3, help="pairs of generations whose stages are timed")
    parser.add_argument("--warm-up", type=int, default=2, help="generations of each arm before any is timed")
    parser.add_argument(
        "--full-steps", type=int, help="of one more generation of each arm, whose stages are timed"
    )
    parser.add_argument(
        "--at-least", type=float, help="exit code 1 unless the ratio's whole interval is this much"
    )
    parser.add_argument("--json", type=Path)
    sizes = {"height": "height", "width": "width", "frames": "num_frames", "steps": "num_inference_steps"}
    for option in sizes:
        parser.add_argument(f"--{option}", type=int)
    given = vars(parser.parse_args(arguments))
    for option, least in {"pairs": 3, "staged": 1, "warm_up": 0, "full_steps": 1, "steps": 1}.items():
        if given[option] is not None and given[option] < least:
            parser.error(f"--{option.replace('_', '-')} is {given[option]}, at least {least} is needed")
    named = {name: given[name] for name in ("model", "checkpoint", "backend", "profile", "threads")}
    try:
        settings = with_backend(load_settings(overrides={**named, "on_missing_shape": "torch"}).settings)
        precision = parse_precision(given["precision"])
        get_backend(settings.backend).require(settings)
        resolve(settings.model, settings.checkpoint_of(settings.model)).profile(settings.profile)
    except (ValueError, BadParameter, BackendUnavailable) as error:
        parser.error(str(error))
    generation = {name: given[option] for option, name in sizes.items() if given[option] is not None}

    def report(result: dict[str, Any]) -> None:
        print("\n".join(_told(result)), flush=True)
        if given["json"]:
            write_json(given["json"], result)

    counts = {"warm_up": given["warm_up"], "full_steps": given["full_steps"]}
    try:
        found = measure(
            settings, precision, generation, given["pairs"], given["staged"], **counts, report=report
        )
    except GenerationError as error:
        parser.error(str(error))
    except FellBack as error:
        parser.exit(1, f"invalid: {error}\n")
    if (least := given["at_least"]) is not None and found["low"] < least:
        parser.exit(1, f"failed: {found['low']:.2f}x is proven, and {least:.2f}x is asked for\n")


if __name__ == "__main__":
    main()
