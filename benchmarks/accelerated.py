"""How much faster is a pipeline after ``wan_trt_core.accelerate``? Whole generations in pairs, and where the time goes.

    python benchmarks/accelerated.py --threads 2
    python benchmarks/accelerated.py --model wan2.1-t2v-1.3b --backend tensorrt --precision dit=fp16,vae=fp32

Stock diffusers and the accelerated pipeline generate the same video from the same noise, in turns, in one process and
with the same threads. Both arms are the pipeline's own call, prompt to frames. The shares of its stages are measured
in generations of their own, which are not in the ratio. Where diffusers' own modules run in the accelerated arm its
times are worth nothing: none is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import wan_trt_core
from wan_trt_core.backends.registry import device_of
from wan_trt_core.comparison.conditions import equal_conditions, snapshot, synchronize
from wan_trt_core.comparison.targets import Arm, Outputs
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates.statistics import ratio_interval
from wan_trt_core.measure.timing import PairedTimer
from wan_trt_core.models.catalogue import GenerationDefaults, resolve
from wan_trt_core.models.prompts import PROMPT
from wan_trt_core.pipeline.acceleration import originals
from wan_trt_core.pipeline.engines import precision_of
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.stages import median_call, time_stages

TAIL = 0.01
"""Chance that the true ratio lies beyond the interval, on each side."""


class FellBack(RuntimeError):
    """The accelerated arm ran diffusers' own modules."""


def measure(
    settings: Settings, precision: str | dict[str, str], generation: dict[str, int], pairs: int, staged: int
) -> dict[str, Any]:
    """Time both arms.

    Args:
        precision: of both arms' modules.
        generation: what differs from the model's own generation settings.
        pairs: of generations; three at least.
        staged: generations of each arm whose stages are timed.

    Returns:
        ``speedup``, its interval ``low`` and ``high``, the ``seconds`` of every generation and those of
        each of the ``stages`` by arm, the largest ``difference`` of a pixel (0 to 1), and the ``conditions``.

    Raises:
        FellBack: when the accelerated arm ran diffusers' own modules.
    """
    device = device_of(settings)
    dtypes = {
        "transformer": precision_of(precision, "dit"),
        "transformer_2": precision_of(precision, "dit_2"),
        "vae": precision_of(precision, "vae_decoder_first"),
    }
    # opened twice: accelerate takes diffusers' modules off the device, and the reference needs them there
    models = [resolve(settings.model, settings.checkpoint) for _ in range(2)]
    stock = models[0].checkpoint.pipeline(dtypes, device)
    accelerated = models[1].checkpoint.pipeline(dtypes)
    wan_trt_core.accelerate(accelerated, precision=precision, settings=settings)
    asked = replace(models[0].generation, **generation)
    arm = Arm(partial(_video, accelerated), forbidden=lambda: originals(accelerated))
    arms: dict[str, Callable[[], Outputs]] = {
        "stock": partial(_video, stock, asked),
        "accelerated": partial(_watched, arm, asked),
    }
    with equal_conditions(settings):
        timer = PairedTimer(*arms.values(), synchronize=synchronize)
        timer.warm_up()
        timed = tuple(islice(timer.pairs(), pairs))
        expected, found = (outputs.video for outputs in timer.outputs)
        stages = {}
        for name, pipe in (("stock", stock), ("accelerated", accelerated)):
            stages[name] = _stages(pipe, arms[name], staged)
        conditions = snapshot()
    seconds = {"stock": [pair.reference for pair in timed], "accelerated": [pair.candidate for pair in timed]}
    interval = ratio_interval(*seconds.values(), TAIL)
    return {
        "model": models[0].name,
        "backend": settings.backend,
        "precision": precision,
        "generation": asdict(asked),
        "speedup": interval.point,
        "low": interval.low,
        "high": interval.high,
        "seconds": seconds,
        "stages": stages,
        "difference": float(np.abs(expected - found).max()),
        "conditions": conditions,
    }


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


def _stages(pipe: Any, call: Callable[[], object], runs: int) -> dict[str, float]:
    """Seconds of the median one of ``runs`` generations: in the text encoder, the transformer, the VAE, and all the
    rest, which is the scheduler, guidance, and frames to NumPy."""
    times = median_call([time_stages(pipe, call, synchronize=synchronize) for _ in range(runs)])
    by_stage = dict(times.stages)
    parts = {
        "text encoder": by_stage["text encode"],
        "transformer": times.transformer,
        "vae": by_stage["decode"],
    }
    return {**parts, "the rest": sum(by_stage.values()) - sum(parts.values())}


def _told(result: dict[str, Any]) -> Iterator[str]:
    video = result["generation"]
    yield (
        f"{result['model']}, {video['num_frames']} frames of {video['width']}x{video['height']},"
        f" {video['num_inference_steps']} steps, guidance {video['guidance_scale']:g}, {result['backend']},"
        f" {result['conditions']['threads']} threads"
    )
    yield (
        f"accelerated is {result['speedup']:.2f}x as fast as stock, {1 - TAIL:.0%} interval {result['low']:.2f}x to"
        f" {result['high']:.2f}x over {len(result['seconds']['stock'])} pairs; largest difference of a pixel"
        f" {result['difference']:.1e}"
    )
    yield f"{'':14}{'stock':>10}{'accelerated':>13}{'ratio':>8}{'share':>8}"
    stock, ours = result["stages"]["stock"], result["stages"]["accelerated"]
    for name in stock:
        ratio = f"{stock[name] / ours[name]:.2f}x" if ours[name] > 0 else ""
        share = f"{ours[name] / sum(ours.values()):.0%}"
        yield f"{name:14}{stock[name]:8.3f} s{ours[name]:11.3f} s{ratio:>8}{share:>8}"


def main(arguments: list[str] | None = None) -> None:
    """Print the ratio and the stages; write every number to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--checkpoint")
    parser.add_argument("--backend")
    parser.add_argument("--profile")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, or dit=fp16,vae=fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pairs", type=int, default=7, help="of generations, 3 at least")
    parser.add_argument(
        "--staged", type=int, default=3, help="generations of each arm whose stages are timed"
    )
    parser.add_argument("--json", type=Path)
    sizes = {"height": "height", "width": "width", "frames": "num_frames", "steps": "num_inference_steps"}
    for option in sizes:
        parser.add_argument(f"--{option}", type=int)
    given = vars(parser.parse_args(arguments))
    if given["pairs"] < 3 or given["staged"] < 1:
        parser.error("at least 3 --pairs and 1 --staged")
    named = {name: given[name] for name in ("model", "checkpoint", "backend", "profile", "threads")}
    settings = load_settings(overrides={**named, "on_missing_shape": "torch"}).settings
    precision: Any = given["precision"]
    if "=" in precision:
        precision = dict(part.split("=") for part in precision.split(","))
    generation = {name: given[option] for option, name in sizes.items() if given[option] is not None}
    try:
        result = measure(settings, precision, generation, given["pairs"], given["staged"])
    except FellBack as error:
        parser.exit(1, f"invalid: {error}\n")
    print("\n".join(_told(result)))
    if given["json"]:
        given["json"].write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
