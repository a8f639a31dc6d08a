"""From a prompt to a video, by any ``WanPipeline``: stock, compiled or with engines inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from wan_trt_core.cases import MAX_SEED
from wan_trt_core.models.profiles import SPATIAL, Sizes
from wan_trt_core.models.prompts import random_states
from wan_trt_core.models.random_weights import RandomCheckpoint
from wan_trt_core.models.vae_caches import spatial_scale

if TYPE_CHECKING:
    import numpy as np
    from diffusers import WanPipeline
    from PIL.Image import Image
    from torch import Tensor

    from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel
    from wan_trt_core.models.checkpoint import Checkpoint

OnStep = Callable[[int, int], None]
"""Called after each denoising step with the steps done and the steps in all."""

logger = logging.getLogger(__name__)


class GenerationError(ValueError):
    """A video cannot be generated as asked for; the message names the setting and what is allowed."""


@dataclass(frozen=True)
class Generated:
    """A generated video.

    Attributes:
        frames: (frames, height, width, 3) float32 in [0, 1].
        latents: after each denoising step, (1, 16, latent frames, height/8, width/8) float32 on the
            pipeline's device; empty unless asked for.
    """

    frames: np.ndarray[Any, np.dtype[np.float32]]
    latents: tuple[Tensor, ...] = ()


def generate(
    pipe: WanPipeline,
    prompt: str,
    generation: GenerationDefaults,
    seed: int = 0,
    *,
    negative_prompt: str = "",
    image: Image | None = None,
    keep_latents: bool = False,
    on_step: OnStep | None = None,
) -> Generated:
    """Generate one video. The same seed gives the same initial noise on every device and backend.

    Args:
        prompt: what the video shows.
        generation: size in pixels, frames, steps, guidance, padded length of the prompt in tokens.
        negative_prompt: what it should not show; without effect at guidance 1.
        image: what it begins with, in image to video; it is scaled to the video's size.
        keep_latents: return the latents after each step, to compare two runs along their trajectory.
        on_step: for progress.

    Raises:
        GenerationError: before any work, for an empty prompt, settings that do not fit the model, or no image where one
            is needed.
        UnsupportedCall, EngineError: from engines inside the pipeline.
    """
    two_experts = getattr(pipe, "transformer_2", None) is not None
    check_request(prompt, generation, seed, spatial_scale(pipe.vae.config), two_experts=two_experts)
    import torch
    from diffusers import WanImageToVideoPipeline

    check_image(image is not None, begins_with_image=isinstance(pipe, WanImageToVideoPipeline))

    latents: list[Tensor] = []

    def after_step(_: WanPipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if keep_latents:
            latents.append(tensors["latents"].detach().clone())
        if on_step is not None:
            on_step(step + 1, generation.num_inference_steps)
        return {}

    with _without_bar(pipe):
        output = pipe(
            **({} if image is None else {"image": image}),
            **_prompts(pipe, prompt, negative_prompt, generation.max_sequence_length),
            height=generation.height,
            width=generation.width,
            num_frames=generation.num_frames,
            num_inference_steps=generation.num_inference_steps,
            guidance_scale=generation.guidance_scale,
            guidance_scale_2=generation.guidance_scale_2,
            max_sequence_length=generation.max_sequence_length,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=after_step,
            output_type="np",
        )
    return Generated(output.frames[0], tuple(latents))


def check_request(
    prompt: str,
    generation: GenerationDefaults,
    seed: int = 0,
    spatial: int = SPATIAL,
    *,
    two_experts: bool = False,
) -> None:
    """Check what can be checked before anything is loaded.

    Args:
        spatial: pixels that a latent of the model covers in height and in width.
        two_experts: the model has a second transformer.

    Raises:
        GenerationError: for an empty prompt or settings that do not fit the model.
    """
    if not prompt.strip():
        raise GenerationError("the prompt is empty: say what the video shows")
    if generation.num_inference_steps < 1:
        raise GenerationError(f"num_inference_steps must be positive, not {generation.num_inference_steps}")
    if generation.guidance_scale_2 is not None and not two_experts:
        raise GenerationError(
            f"guidance_scale_2 ({generation.guidance_scale_2:g}) is that of a second expert, as Wan 2.2 A14B has, and"
            " this model has one transformer: leave it out"
        )
    for name in ("guidance_scale", "guidance_scale_2"):
        if not isfinite(scale := getattr(generation, name) or 0.0):
            raise GenerationError(f"{name} must be finite, not {scale}")
    if not 0 <= seed <= MAX_SEED:
        raise GenerationError(f"the seed must be from 0 to {MAX_SEED}, not {seed}")
    try:
        size = generation.height, generation.width, generation.num_frames
        Sizes(*size, generation.max_sequence_length, spatial)
    except ValueError as error:
        raise GenerationError(f"this video cannot be generated: {error}") from error


def tell_what_is_cut(checkpoint: Checkpoint, length: int, prompt: str, negative_prompt: str = "") -> None:
    """One line of the log for each prompt of more than ``length`` tokens, with the words that do not count."""
    if "text_encoder" not in checkpoint.parts:
        return  # its states are random
    tokenizer = checkpoint.tokenizer()
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        tell_cut(tokenizer, length, name, text)


def tell_cut(tokenizer: Any, length: int, name: str, text: str) -> None:
    """As :func:`tell_what_is_cut`, of one text.

    Args:
        tokenizer: one that knows where its tokens lie in the text (``is_fast``).
        name: of the argument that gives the text.
    """
    found = tokenizer(text, return_offsets_mapping=True)
    tokens = found.input_ids
    if len(tokens) > length:
        begins, _ = found.offset_mapping[length - 1]  # the last that counts is the mark of the end
        logger.warning(
            "the %s has %d tokens; only the first %d count (max_sequence_length), which leaves out: %s",
            name.replace("_", " "),
            len(tokens),
            length,
            text[begins:].strip(),
        )


def check_image(given: bool, *, begins_with_image: bool) -> None:
    """Check that there is an image where the model's videos begin with one, and none elsewhere.

    Raises:
        GenerationError: saying which.
    """
    if given != begins_with_image:
        raise GenerationError(
            "image to video: the video begins with an image, and none is given"
            if begins_with_image
            else "text to video: the video begins with no image; give the checkpoint of an image-to-video model"
        )


def check_weights(model: ResolvedModel) -> None:
    """Check that the model was trained: a video that someone wants to see, not one that is only compared.

    Raises:
        GenerationError: for random weights, with how to get real ones.
    """
    checkpoint = model.checkpoint
    if isinstance(checkpoint, RandomCheckpoint):
        raise GenerationError(
            f"{model.name} has {checkpoint.source} weights, whose video would be noise. {checkpoint.remedy}"
        )


def _prompts(pipe: WanPipeline, prompt: str, negative_prompt: str, length: int) -> dict[str, Any]:
    """The pipeline's arguments for the prompts: without a text encoder their states, which are random."""
    if pipe.text_encoder is None:
        dim = pipe.transformer.config.text_dim
        return {
            name: random_states(text, length, dim).to(pipe._execution_device)
            for name, text in (("prompt_embeds", prompt), ("negative_prompt_embeds", negative_prompt))
        }
    return {"prompt": prompt, "negative_prompt": negative_prompt}


@contextmanager
def _without_bar(pipe: WanPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar: progress goes to the caller."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
