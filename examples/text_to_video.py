"""A prompt to a video: a diffusers pipeline of one's own, on engines.

    python examples/text_to_video.py "a small red square moves left" outputs/videos/text_to_video.mp4

The first run exports and builds, the next ones load from the cache. `wan-trt run` does the same from the shell.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanPipeline

import wan_trt_core
from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.video import write_video


def main(prompt: str, out: Path) -> None:
    """Generate one video of the model that the settings name (tiny-wan unless config.yaml says otherwise)."""
    settings = load_settings().settings
    model = resolve(settings.model, settings.checkpoint)
    pipe = WanPipeline.from_pretrained(model.checkpoint.folder)
    pipe = wan_trt_core.accelerate(pipe, profile=model.profile(settings.profile))
    generation = asdict(model.generation)  # the size, steps and guidance that this model was trained for
    fps = generation.pop("fps")
    frames = pipe(prompt, generator=torch.Generator().manual_seed(0), **generation).frames[0]
    print(f"{out}: {write_video(out, frames, fps)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
