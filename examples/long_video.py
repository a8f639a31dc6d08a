"""A long video in constant memory: decoded and encoded a few frames at a time, and never whole in memory.

    python examples/long_video.py outputs/videos/long.mp4 401

`AutoencoderKLWan.decode` returns the whole video, so its memory grows with the length. `StreamingDecoder` gives four
frames at a time, from one latent frame and caches of fixed size. What is decoded here is one clip played to and fro;
the latents are 1/48 of the video's numbers, and may come from anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_trt_core.backends.registry import with_backend
from wan_trt_core.config import load_settings
from wan_trt_core.measure.memory import resident_set
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.swap import swap
from wan_trt_core.pipeline.video import check_target, write_long_video

PROMPT = "a small red square moves left"
MIB = 2**20


def to_and_fro(clip: Tensor, latent_frames: int) -> Tensor:
    """One clip's latents, (1, 16, n, height/8, width/8), played forwards and backwards until there are enough."""
    there = torch.cat((clip, clip.flip(2)), dim=2)
    return torch.cat([there] * (latent_frames // there.shape[2] + 1), dim=2)[:, :, :latent_frames]


def pixels(steps: Iterator[Tensor]) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """What the decoder yields, (1, 3, 1 or 4, height, width) in [-1, 1], as frames (1 or 4, height, width, 3)."""
    made = 0
    for step in steps:
        frames = ((step[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        yield frames.permute(1, 2, 3, 0).cpu().numpy().copy()
        made += frames.shape[1]
        if made % 100 == 1:
            print(f"{made:5d} frames, {resident_set() / MIB:.0f} MiB", flush=True)


def main(out: Path, frames: int) -> None:
    """Write a video of so many frames (4k+1)."""
    check_target(out)
    settings = with_backend(load_settings().settings)
    if settings.pipeline.vae_tile is not None:
        sys.exit(
            "pipeline.vae_tile is set, and tiles are decoded one after the other, each through all frames: no frame is"
            " whole before the end. Unset it for a video in constant memory"
        )
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    profile, video = model.profile(settings.profile), model.generation
    with EngineStore(settings) as store:
        stock = model.checkpoint.pipeline()
        pipe = swap(stock, store.pipeline(model, profile, "fp32", settings.backend))
        clip = generate(pipe, PROMPT, video, keep_latents=True).latents[-1]
        mean, std = (
            torch.tensor(values, device=clip.device).reshape(1, -1, 1, 1, 1)
            for values in (stock.vae.config.latents_mean, stock.vae.config.latents_std)
        )
        latents = to_and_fro(clip * std + mean, (frames - 1) // 4 + 1)
        decoder = store.vae_decoder(model, profile, "fp32", settings.backend)
        made = write_long_video(out, pixels(decoder.decode_steps(latents)), video.fps)
    print(f"{out}: {made}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
