"""Whether a GPU has room for the video of a user's own pipeline: asked before anything is moved, built or loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wan_trt_core.memory.plan import lacking
from wan_trt_core.memory.prediction import CUDA_OWN, Choice, choice_of, unplanned, workload
from wan_trt_core.models.checkpoint import DTYPES, torch_dtype
from wan_trt_core.models.footprint import stock_bytes, weight_bytes
from wan_trt_core.pipeline.assembly import TEXT_ENCODER, staying
from wan_trt_core.pipeline.generate import GenerationError

if TYPE_CHECKING:
    from wan_trt_core.models.profiles import ShapeProfile
    from wan_trt_core.pipeline.acceleration import Acceleration

IN_PYTORCH = (TEXT_ENCODER, "image_encoder")
"""Parts whose modules run beside engines, unless an engine does their work."""

logger = logging.getLogger(__name__)


def tell_unchecked(unknown: str) -> None:
    """One line of the log where nobody looks whether there is room, for the prediction does not know something."""
    logger.warning("whether the GPU has room is not checked: the prediction does not know %s", unknown)


def require_room_for(acceleration: Acceleration, profile: ShapeProfile) -> None:
    """Raise where a pipeline on the engines of a profile clearly needs more than its GPU has, for a video of the
    profile's own size.

    Raises:
        GenerationError: with the profile, what is needed, and the settings that fit.
    """
    if unknown := next(_unknown(acceleration), ""):
        tell_unchecked(unknown)
        return
    model, settings = acceleration.model, acceleration.settings
    has_encoder = acceleration.pipe.text_encoder is not None
    work = workload(model, profile, acceleration.backend, "cuda", settings, text_encoder=has_encoder)
    work, choice = replace(work, in_memory=True), _choice(acceleration)
    free = free_for(acceleration.pipe, acceleration.device)
    told = lacking(work, choice, free)
    # in FP32 the scratch memory of a DiT is a guess, and a high one: FP16's is the least that it can be
    if told and choice.dit == "fp32" and not lacking(work, replace(choice, dit="fp16"), free):
        tell_unchecked("what a DiT in FP32 needs at work")
    elif told:
        size = profile.opt
        raise GenerationError(f"{profile.name} ({size.height}x{size.width}, {size.frames} frames): {told}")


def free_for(pipe: Any, device: torch.device) -> int:
    """Bytes of a GPU that a pipeline may take: those that are free, those that PyTorch only keeps, and what its modules
    and the process's CUDA context hold already, which is predicted too. Modules leave where engines come."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    cached = reserved - torch.cuda.memory_allocated(device)
    modules = (part for part in pipe.components.values() if isinstance(part, nn.Module))
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    held = sum(tensor.nbytes for tensor in tensors if tensor.device == device)
    outside = max(0, total - free - reserved)  # other processes' too: how much nobody tells
    return free + cached + held + min(outside, CUDA_OWN)


def _choice(acceleration: Acceleration) -> Choice:
    """What the engines compute in, and what the modules beside them are in."""
    precision = acceleration.precision
    given: dict[str, Any] = {name: _precision(module) for name, module in _beside(acceleration)}
    if TEXT_ENCODER in precision:
        given |= {"text_encoder": precision[TEXT_ENCODER], "text_encoder_engine": True}
    engines = {"dit": precision["transformer"], "vae": precision["vae"]}
    return replace(choice_of(acceleration.settings, engines), **given)


def _unknown(acceleration: Acceleration) -> Iterator[str]:
    """What the prediction does not know of a pipeline, in words."""
    checkpoint = acceleration.model.checkpoint
    if beyond := unplanned(checkpoint):
        yield beyond
    if len({own for name, own in acceleration.precision.items() if name.startswith("transformer")}) > 1:
        yield "two transformers in two precisions"
    for name, module in _beside(acceleration):
        if any(map(_moved, module.modules())):
            yield f"what the hooks on the {name} move"
        plain = all(type(weight) is nn.Parameter for weight in module.parameters())
        own = _precision(module)
        if not plain or not own or weight_bytes(module) != stock_bytes(checkpoint, name, own):
            yield f"the weights of the {name}"


def _beside(acceleration: Acceleration) -> Iterator[tuple[str, Any]]:
    """The modules that run in PyTorch beside engines on the device, by part."""
    elsewhere = {*acceleration.stock, *staying(acceleration.settings)}
    for name in IN_PYTORCH:
        module = getattr(acceleration.pipe, name, None)
        if module is not None and name not in elsewhere:
            yield name, module


def _moved(module: Any) -> bool:
    """Whether accelerate's or diffusers' hooks may bring its weights and take them away."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", ()))


def _precision(module: Any) -> str:
    """The word for what a module is in; empty where there is none."""
    return next((word for word in DTYPES if torch_dtype(word) == module.dtype), "")
