"""A prompt to a video: diffusers' pipeline with engines in the place of its transformer and VAE decoder.

    python examples/text_to_video.py "a small red square moves left" outputs/videos/text_to_video.mp4

The first run exports and builds, the next ones load from the cache. `wan-trt run` does the same from the shell.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.swap import swap
from wan_trt_core.pipeline.video import write_video


def main(prompt: str, out: Path) -> None:
    """Generate one video of the model that the settings name (tiny-wan unless config.yaml says otherwise)."""
    settings = load_settings().settings
    model = resolve(settings.model, settings.checkpoint)
    with EngineStore(settings) as store:
        engines = store.pipeline(model, model.profile(settings.profile), "fp32", settings.backend)
        pipe = swap(model.checkpoint.pipeline(), engines)
        video = generate(pipe, prompt, model.generation, seed=0)
    print(f"{out}: {write_video(out, video.frames, model.generation.fps)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
