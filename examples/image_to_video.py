"""An image and a prompt to a video that begins with it: a diffusers pipeline of one's own, on engines.

    export WAN_TRT_BACKEND=tensorrt WAN_TRT_MODEL=Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
    python examples/image_to_video.py photo.jpg "the boat sails on" outputs/videos/image_to_video.mp4

tiny-wan begins with no image, so that a model which does has to be named: this one wants a GPU of 80 GB
(`wan-trt memory plan` has what fits less). `wan-trt run --image` does the same from the shell.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

import wan_trt_core
from wan_trt_core.backends.registry import device_of
from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.generate import check_image
from wan_trt_core.pipeline.video import check_target, write_video

ON_GPU = {"transformer": torch.float16, "transformer_2": torch.float16, "text_encoder": torch.bfloat16}
"""The dtype of each part on a GPU; diffusers loads those that are not named in float32, as the VAE."""


def main(image: Path, prompt: str, out: Path) -> None:
    """Generate one video of the image-to-video model that the settings name; the image is scaled to its size."""
    check_target(out)
    settings = load_settings().settings
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    check_image(True, begins_with_image=model.checkpoint.begins_with_image)
    generation = asdict(model.generation)  # the size, steps and guidance that this model was trained for
    begin = Image.open(image).convert("RGB").resize((generation["width"], generation["height"]))
    dtype = ON_GPU if device_of(settings) == "cuda" else torch.float32
    pipe = WanImageToVideoPipeline.from_pretrained(model.checkpoint.folder, dtype=dtype)
    pipe = wan_trt_core.accelerate(pipe)  # for the model's own video; the VAE's encoder too
    fps = generation.pop("fps")
    noise = torch.Generator().manual_seed(0)
    frames = pipe(begin, prompt, generator=noise, **generation).frames[0]
    print(f"{out}: {write_video(out, frames, fps)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
