"""What does it cost to record memory events? The same denoising with and without, timed in pairs.

    python benchmarks/memory_events.py
    python benchmarks/memory_events.py --model wan2.1-t2v-1.3b --profile 480p-17f --precision fp16 --steps 10

Each time is that of all denoising steps of stock diffusers but the first. Beside the ratio of the pairs, whose interval
is as wide as the machine is restless, stands what one look at the books costs by itself, one a step. Weights are
random where no checkpoint is given. The table goes to the terminal as Markdown; ``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from wan_trt_core.backends.registry import device_of
from wan_trt_core.comparison.conditions import equal_conditions, synchronize
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates.statistics import ratio_interval
from wan_trt_core.measure.memory_events import FILE_NAME
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.models.prompts import random_states
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.recording import RunRecording, recorded_run

TAIL = 0.025
"""Of the interval, on each side."""

LOOKS = 200


class Denoising:
    """Denoising at the size that a profile is tuned for, up to the latents.

    Args:
        path: of the recorder's file.
    """

    def __init__(
        self, model: ResolvedModel, sizes: Sizes, precision: str, steps: int, settings: Settings, path: Path
    ) -> None:
        self._settings, self._path, self._steps = settings, path, steps
        self._checkpoint, self._store = model.checkpoint, EngineStore(settings)
        self._loaded = "transformer", precision, device_of(settings)
        self._pipe = model.checkpoint.pipeline({"transformer": precision}, device_of(settings))
        self._pipe.set_progress_bar_config(disable=True)
        states = random_states("a red square", sizes.text_length, self._pipe.transformer.config.text_dim)
        self._call: dict[str, Any] = {
            "prompt_embeds": states.to(self._pipe.device),
            "height": sizes.height,
            "width": sizes.width,
            "num_frames": sizes.frames,
            "num_inference_steps": steps,
            "guidance_scale": 1.0,
            "max_sequence_length": sizes.text_length,
            "output_type": "latent",
        }

    def plain(self) -> tuple[float, torch.Tensor]:
        """Without a recorder: seconds a step, and the latents."""
        return self._run(RunRecording(None))

    def recorded(self) -> tuple[float, torch.Tensor]:
        """With one."""
        with recorded_run(self._path, self._settings, {}) as recording:
            self._know_owner(recording)
            return self._run(recording)

    def look_seconds(self) -> float:
        """What beginning a stage costs, in the middle of a run: the median of many."""
        times = []
        with recorded_run(self._path, self._settings, {}) as recording:
            self._know_owner(recording)
            with recording.stages(self._pipe, lambda *_: None) as on_step:
                on_step(0, LOOKS + 1)
                for step in range(1, LOOKS + 1):
                    started = time.perf_counter()
                    on_step(step, LOOKS + 1)
                    times.append(time.perf_counter() - started)
        return median(times)

    def _know_owner(self, recording: RunRecording) -> None:
        with recording.loads(self._checkpoint, self._store):
            self._checkpoint.load(*self._loaded)

    def _run(self, recording: RunRecording) -> tuple[float, torch.Tensor]:
        """Seconds of every step but the first; a step ends with what the recorder does at its end."""
        times = []
        with recording.stages(self._pipe, lambda *_: None) as on_step:

            def stepped(_: Any, step: int, *__: Any) -> dict[str, Any]:
                if step in (0, self._steps - 1):
                    synchronize()
                    times.append(time.perf_counter())
                on_step(step + 1, self._steps)
                return {}

            generator = torch.Generator().manual_seed(0)
            latents = self._pipe(**self._call, generator=generator, callback_on_step_end=stepped).frames
        return (times[1] - times[0]) / (self._steps - 1), latents


def measure(denoising: Denoising, pairs: int) -> dict[str, float]:
    """Both arms' seconds a step, the share that recording adds with its interval, and what one look costs."""
    arms = denoising.plain, denoising.recorded
    (_, first), (_, second) = (arm() for arm in arms)  # warm, and the same
    if not torch.equal(first, second):
        raise SystemExit("the recorded run made other latents: the times cannot be compared")
    times: tuple[list[float], list[float]] = [], []
    for pair in range(pairs):
        for arm in (0, 1) if pair % 2 == 0 else (1, 0):
            times[arm].append(arms[arm]()[0])
    interval = ratio_interval(*times, TAIL)
    look, step = denoising.look_seconds(), median(times[0])
    return {
        "plain_s": step,
        "recorded_s": median(times[1]),
        "added": 1 / interval.point - 1,
        "added_low": 1 / interval.high - 1,
        "added_high": 1 / interval.low - 1,
        "look_s": look,
        "look_share": look / step,
        "pairs": pairs,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it with every number to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-wan")
    parser.add_argument("--profile")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    settings = load_settings(overrides={"backend": "torch"}).settings
    model = resolve(given.model, settings.checkpoint)
    sizes = model.profile(given.profile).opt
    with tempfile.TemporaryDirectory(prefix="wan-trt-") as folder, equal_conditions(settings):
        path = Path(folder) / FILE_NAME
        denoising = Denoising(model, sizes, given.precision, given.steps, settings, path)
        found = measure(denoising, given.pairs)
    print("| a step | recorded | added, 95 % interval | one look at the books | of a step |")
    print("|---|---|---|---|---|")
    print(
        f"| {found['plain_s'] * 1e3:.2f} ms | {found['recorded_s'] * 1e3:.2f} ms"
        f" | {found['added']:+.2%} ({found['added_low']:+.2%} to {found['added_high']:+.2%})"
        f" | {found['look_s'] * 1e3:.3f} ms | {found['look_share']:.2%} |"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
