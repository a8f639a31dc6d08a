"""A prompt to a video: a diffusers pipeline of one's own, on engines.

    python examples/text_to_video.py "a small red square moves left" outputs/videos/text_to_video.mp4

That is tiny-wan on a CPU. Wan itself, on TensorRT (a GPU of 40 GB; `wan-trt memory plan` has what fits less):

    export WAN_TRT_BACKEND=tensorrt WAN_TRT_MODEL=Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    python examples/text_to_video.py "a cat walks on the grass, realistic" outputs/videos/cat.mp4

The first run downloads, exports and builds, the next ones load from the cache. `wan-trt run` does the same from the
shell.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanPipeline

import wan_trt_core
from wan_trt_core.backends.registry import device_of
from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.video import check_target, write_video

ON_GPU = {"transformer": torch.float16, "transformer_2": torch.float16, "text_encoder": torch.bfloat16}
"""The dtype of each part on a GPU; diffusers loads those that are not named in float32, as the VAE."""


def main(prompt: str, out: Path) -> None:
    """Generate one video of the model that the settings name (tiny-wan unless config.yaml says otherwise)."""
    check_target(out)
    settings = load_settings().settings
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    dtype = ON_GPU if device_of(settings) == "cuda" else torch.float32
    pipe = WanPipeline.from_pretrained(model.checkpoint.folder, dtype=dtype)
    pipe = wan_trt_core.accelerate(pipe)  # for the profile that serves the model's own video
    generation = asdict(model.generation)  # the size, steps and guidance that this model was trained for
    fps = generation.pop("fps")
    frames = pipe(prompt, generator=torch.Generator().manual_seed(0), **generation).frames[0]
    print(f"{out}: {write_video(out, frames, fps)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
