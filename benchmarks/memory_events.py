"""What does it cost to record memory events? The same denoising with and without, timed in turns.

    python benchmarks/memory_events.py
    python benchmarks/memory_events.py --model wan2.1-t2v-1.3b --profile 480p-17f --precision fp16 --steps 10
    python benchmarks/memory_events.py --backend tensorrt --model wan2.1-t2v-1.3b --profile 480p-17f \
        --precision dit=fp16,vae=fp32 --steps 10

Each time is that of all denoising steps of stock diffusers, or with ``--backend`` of engines, all of a pipeline's,
which are asked at every step what they hold; with guidance, but the first and the last: on a GPU by the clock on the
wall, on a CPU the processor time of all threads, which does not mind who else uses the machine. The run without is also
timed against itself, which shows what the method finds where there is nothing. Of tiny-wan that is more than recording
takes, so beside the ratios stands what the recorder does at a step's end, timed there: in the middle of the run, where
nothing that it needs is in a cache. Weights are random where no checkpoint is given. The table goes to the terminal as
Markdown; ``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from typer import BadParameter

from wan_trt_core.backends.base import BackendUnavailable, EngineBackend
from wan_trt_core.backends.registry import device_of, get_backend
from wan_trt_core.cli.videos import precision_for
from wan_trt_core.comparison.conditions import equal_conditions, synchronize
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates.statistics import ratio_interval
from wan_trt_core.measure.memory_events import FILE_NAME
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.profiles import ShapeProfile
from wan_trt_core.models.prompts import random_states
from wan_trt_core.pipeline.assembly import on_engines
from wan_trt_core.pipeline.engines import EngineStore, precision_of
from wan_trt_core.pipeline.recording import RunRecording, recorded_run
from wan_trt_core.pipeline.stages import through

TAIL = 0.025
"""Of the interval, on each side."""


@dataclass(frozen=True)
class Denoised:
    """One denoising.

    Attributes:
        step: seconds a step, on a CPU of all its cores.
        step_wall: the same by the clock on the wall.
        ends: seconds by that clock that the end of each of these steps took beside the scheduler's own.
        latents: what came of it.
    """

    step: float
    step_wall: float
    ends: tuple[float, ...]
    latents: torch.Tensor


class Denoising:
    """Denoising at the size that a profile is tuned for, up to the latents.

    Args:
        profile: whose opt size the video has.
        precision: of a composite by component, as cases have it.
        backend: that runs the engines, or ``torch``.
        store: loads the engines; its owner closes it.
        path: of the recorder's file.
    """

    def __init__(
        self,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: str | dict[str, str],
        backend: str,
        steps: int,
        settings: Settings,
        store: EngineStore,
        path: Path,
    ) -> None:
        self._device, self._path, self._steps = device_of(settings, backend), path, steps
        self._checkpoint, self._store = model.checkpoint, store
        sizes, dtype = profile.opt, precision_of(precision, "dit")
        if backend == "torch":
            self._load: Callable[[], object] = partial(
                model.checkpoint.load, "transformer", dtype, self._device
            )
            self._pipe = model.checkpoint.pipeline({"transformer": dtype}, self._device)
        else:
            self._load = partial(store.pipeline, model, profile, precision, backend)
            self._pipe = on_engines(model, profile, precision, backend, store, settings, self._device)
        self._pipe.set_progress_bar_config(disable=True)
        self._clock = time.perf_counter if self._device == "cuda" else time.process_time
        width = model.checkpoint.config("transformer")["text_dim"]
        self._call: dict[str, Any] = {
            **{
                name: random_states(prompt, sizes.text_length, width).to(self._pipe.device)
                for name, prompt in (("prompt_embeds", "a red square"), ("negative_prompt_embeds", ""))
            },
            "height": sizes.height,
            "width": sizes.width,
            "num_frames": sizes.frames,
            "num_inference_steps": steps,
            "guidance_scale": model.generation.guidance_scale,
            "max_sequence_length": sizes.text_length,
            "output_type": "latent",
        }

    def plain(self) -> Denoised:
        """Without a recorder."""
        return self._run(RunRecording(None))

    def recorded(self) -> Denoised:
        """With one."""
        with recorded_run(self._path, self._device, {}) as recording:
            with recording.loads(self._checkpoint, self._store):
                self._load()
            return self._run(recording)

    def _run(self, recording: RunRecording) -> Denoised:
        """Times every step but the first and the last; a step ends with what the recorder does at its end, which it
        does not after the last."""
        first, last = 0, self._steps - 2
        times: list[tuple[float, float]] = []
        inside: list[float] = []
        ends: list[float] = []

        def scheduler(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            latents = original(*args, **keywords)
            inside.append(time.perf_counter() - started)
            return latents

        def ended(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            latents = original(*args, **keywords)
            ends.append(time.perf_counter() - started - inside[-1])
            return latents

        def stepped(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step in (first, last):
                synchronize()
                times.append((self._clock(), time.perf_counter()))
            return {}

        with (
            through(self._pipe.scheduler, "step", scheduler),
            recording.stages(self._pipe),
            through(self._pipe.scheduler, "step", ended),
        ):
            generator = torch.Generator().manual_seed(0)
            latents = self._pipe(**self._call, generator=generator, callback_on_step_end=stepped).frames
        step, wall = ((end - begin) / (last - first) for begin, end in zip(*times, strict=True))
        return Denoised(step, wall, tuple(ends[first + 1 : last + 1]), latents)


def measure(denoising: Denoising, rounds: int) -> dict[str, Any]:
    """Seconds a step, the share that recording adds with its interval and that of nothing, and what the recorder takes
    at a step's end."""
    first, second = denoising.plain(), denoising.recorded()  # warm, and the same
    if not torch.equal(first.latents, second.latents):
        raise SystemExit("the recorded run made other latents: the times cannot be compared")
    arms = {"plain": denoising.plain, "recorded": denoising.recorded, "again": denoising.plain}
    runs: dict[str, list[Denoised]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms) if turn % 2 == 0 else reversed(arms):
            runs[name].append(arms[name]())
    times = {name: [run.step for run in made] for name, made in runs.items()}
    ends = {name: median(end for run in made for end in run.ends) for name, made in runs.items()}
    end = ends["recorded"] - ends["plain"]  # less what timing it takes
    return {
        "rounds": rounds,
        "step_s": {name: median(values) for name, values in times.items()},
        "added": {name: added(times["plain"], times[name]) for name in ("recorded", "again")},
        "step_end_s": end,
        "step_end_share": end / median(run.step_wall for run in runs["plain"]),
    }


def added(plain: list[float], other: list[float]) -> tuple[float, float, float]:
    """The share by which ``other`` takes longer: low end of the interval, centre, high end."""
    interval = ratio_interval(plain, other, TAIL)
    return 1 / interval.high - 1, 1 / interval.point - 1, 1 / interval.low - 1


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it with every number to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-wan")
    parser.add_argument("--profile")
    parser.add_argument("--precision", help="as of wan-trt run")
    parser.add_argument("--backend", default="torch", help="torch for stock diffusers, else of the engines")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.steps < 3:
        parser.error("--steps: the first and the last are not timed, so there must be three")
    if given.rounds < 3:
        parser.error("--rounds: an interval needs three")
    try:
        settings = load_settings(overrides={"backend": given.backend}).settings
        model = resolve(given.model, settings.checkpoint_of(given.model))
        precision = precision_for(given.precision, device_of(settings))
        profile, backend = model.profile(given.profile), get_backend(given.backend)
        backend.require(settings)
    except (ValueError, BadParameter, BackendUnavailable) as error:
        parser.error(str(error))
    if given.backend != "torch" and not isinstance(backend, EngineBackend):
        parser.error(f"--backend: {given.backend} has no engines that could be asked")
    with (
        tempfile.TemporaryDirectory(prefix="wan-trt-") as folder,
        equal_conditions(settings),
        EngineStore(settings) as store,
    ):
        path = Path(folder) / FILE_NAME
        made = model, profile, precision, given.backend
        found = measure(Denoising(*made, given.steps, settings, store, path), given.rounds)
    recorded, again = (
        f"{centre:+.2%} ({low:+.2%} to {high:+.2%})"
        for low, centre, high in (found["added"][name] for name in ("recorded", "again"))
    )
    print(
        "| a step | recording adds, 95 % interval | nothing adds | the recorder at a step's end | of a step |"
    )
    print("|---|---|---|---|---|")
    print(
        f"| {found['step_s']['plain'] * 1e3:.2f} ms | {recorded} | {again} | {found['step_end_s'] * 1e3:.3f} ms"
        f" | {found['step_end_share']:.2%} |"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
