"""A user's own pipeline on engines: :func:`accelerate` puts them in, :func:`restore` takes them out again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from wan_trt_core.backends.base import EngineBackend, EngineError
from wan_trt_core.backends.registry import device_of, engine_backend, tell_idle_gpu, with_backend
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.models.checkpoint import located
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import ShapeProfile
from wan_trt_core.pipeline.acceleration import ENGINES_OF, Acceleration, restore
from wan_trt_core.pipeline.assembly import TEXT_ENCODER, check_text_encoder
from wan_trt_core.pipeline.compatibility import require_compatible
from wan_trt_core.pipeline.engines import Precision, check_precision, check_tiles, precision_of
from wan_trt_core.pipeline.precisions import ENGINES_ON_GPU
from wan_trt_core.pipeline.swap import replaceable

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from wan_trt_core.models.catalogue import ResolvedModel

__all__ = ["JIT", "PRECISIONS", "accelerate", "restore"]

PRECISIONS: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What an engine computes in unless told otherwise: as its module does. What the commands build by default
(:data:`~wan_trt_core.pipeline.precisions.ENGINES_ON_GPU`) takes its place where the module is in bfloat16 and there are
no such engines (only the transformer has them, and only TensorRT runs them), and where it is a VAE in half precision,
whose engines in that would spoil the video."""

JIT = "jit"
"""In the place of a profile's name: the first call builds for the sizes that it sees."""

logger = logging.getLogger(__name__)


def accelerate(
    pipe: WanPipeline,
    profile: str | ShapeProfile | None = None,
    backend: str | None = None,
    precision: Precision | None = None,
    settings: Settings | None = None,
    *,
    text_encoder: bool = False,
) -> WanPipeline:
    """Put engines in the place of a pipeline's transformers and VAE; all else of it stays as it is, but for the way on
    which frames leave a GPU (:class:`~wan_trt_core.pipeline.video_processor.StagedVideoProcessor`), and the step of a
    UniPC scheduler (:class:`~wan_trt_core.pipeline.scheduler_step.PlannedStep`).

    Engines are loaded from the cache (the setting ``cache``, ``WAN_TRT_CACHE``), and exported and built first where it
    has none; those of the VAE's encoder only for image to video, else when something is first encoded. They are made of
    the weights in memory. What no engine serves later (another size, see the setting ``on_missing_shape``; several
    videos at once; attention_kwargs) is told in one line of the log a video.

    Args:
        pipe: a ``WanPipeline`` or ``WanImageToVideoPipeline``, with one transformer or two. One that is accelerated
            already is restored first, also where this then raises: after ``enable_model_cpu_offload()`` remove the
            hooks before. Diffusers' modules go to host memory, what stays in PyTorch (the encoders of prompts and
            images) to the backend's device.
        profile: a shape profile, or the name of one of the model's, or :data:`JIT`. By default that of the settings,
            else of the catalogue's model whose size the transformer has that which serves the model's own video size;
            for a transformer of another size as :data:`JIT`.
        backend: one with engines; that of the settings by default. Where they name none either, ``tensorrt`` if it is
            installed and PyTorch sees a GPU, else ``onnxruntime``.
        precision: one for all, or ``{"dit": "fp16", "vae": "fp32"}``; by default that of the modules, see
            :data:`PRECISIONS`.
        settings: those of ``config.yaml`` and the environment by default.
        text_encoder: also put one in the place of the text encoder, which stays in PyTorch by default.

    Returns:
        ``pipe`` itself.

    Raises:
        IncompatiblePipeline: before any work, naming each module that engines cannot replace and why.
        ConfigError, CatalogueError, ComponentError, UnknownBackend, BackendUnavailable, EngineError: before any work,
            for settings, a profile, a precision or a backend that there is not, or that cannot serve here.
        GenerationError: before any work, where engines have to be built and the GPU has too little memory for a video
            of the profile's own size (its ``opt``); with what is needed, and the settings that fit.
        ExportError, EngineError, CacheError: from an export or build; the pipeline is then as it was.
    """
    restore(pipe)
    require_compatible(pipe, text_encoder=text_encoder)
    settings = settings or load_settings().settings
    backend = backend or with_backend(settings).backend
    runs = engine_backend(backend)
    runs.require(settings)
    tell_idle_gpu(settings, backend)
    device = located(device_of(settings, backend))
    if pipe.device.type != "cpu" and located(pipe.device) != device:
        raise EngineError(
            f"the pipeline is on {pipe.device}, and {backend} runs on {device}: name another backend, or move it there"
        )
    if text_encoder:
        check_text_encoder(backend, settings, device)
    parts = (*replaceable(pipe), *((TEXT_ENCODER,) if text_encoder else ()))
    acceleration = Acceleration(pipe, settings, backend, _precisions(pipe, parts, precision, runs), device)
    check_tiles(acceleration.model.spatial, settings)
    if not isinstance(profile, ShapeProfile):
        profile = _profile(profile or settings.profile, acceleration.model)
    # with all engines in the cache nothing takes long, but the prediction would
    if profile is not None and device.type == "cuda" and acceleration.lacks(profile):
        from wan_trt_core.memory.room import require_room_for

        require_room_for(acceleration, profile)
    with acceleration.undone_on_error():
        if profile is not None:
            acceleration.build(profile)
            for part in acceleration.stock:
                acceleration.load(part, profile)
        acceleration.put_in()
    return pipe


def _profile(name: str | None, model: ResolvedModel) -> ShapeProfile | None:
    """That of a name, else of the model's own video; None where the first call builds for its sizes.

    Raises:
        CatalogueError: for a name that the model does not have.
    """
    if name == JIT or not (name or model.profiles):
        return None
    return model.own_profile(name)


def _precisions(
    pipe: WanPipeline, parts: Iterable[str], precision: Precision | None, runs: EngineBackend
) -> dict[str, str]:
    """The precision of the engines of each of the parts.

    Raises:
        ComponentError: for one that there are no engines in, or none that the backend runs.
        ValueError: for a mapping that leaves a part out.
    """
    chosen: dict[str, str] = {}
    for name in parts:
        components, own = ENGINES_OF[name], getattr(pipe, name).dtype
        if precision is not None:
            chosen[name] = precision_of(precision, components[0])
        else:
            chosen[name], usual = PRECISIONS[own], precision_of(ENGINES_ON_GPU, components[0])
            if chosen[name] not in {*get_component(components[0]).precisions} & {*runs.precisions}:
                chosen[name] = usual
                logger.warning(
                    "%s: %s has no engines in %s; they compute in %s", name, runs.name, own, chosen[name]
                )
            elif chosen[name] == "fp16" and name == "vae":
                chosen[name] = usual
                logger.warning(
                    "%s: its engines compute in %s, for those in %s sum in half precision; name its precision to have"
                    " them",
                    name,
                    chosen[name],
                    own,
                )
        logger.info("%s in %s: engines in %s", name, own, chosen[name])
        for component in components:
            check_precision(runs, component, chosen[name])
    return chosen
