"""Engines inside a diffusers pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wan_trt_core.backends.base import Engine
from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.components import get_component
from wan_trt_core.pipeline.engines import PipelineEngines
from wan_trt_core.pipeline.scheduler_step import plan_steps
from wan_trt_core.pipeline.video_processor import staged

if TYPE_CHECKING:
    from diffusers import WanPipeline


REPLACED = ("transformer", "transformer_2", "vae")
"""Parts of a pipeline that :func:`swap` replaces where it has them: of the originals only the configuration is used."""


def replaceable(pipe: WanPipeline) -> dict[str, Any]:
    """The modules of :data:`REPLACED` that a pipeline has, by part."""
    return {name: module for name in REPLACED if (module := getattr(pipe, name, None)) is not None}


def swap(
    pipe: WanPipeline, engines: PipelineEngines, device: torch.device | str | None = None
) -> WanPipeline:
    """A pipeline that runs on engines and shares everything else with ``pipe``, which is left as it was; its frames
    leave a GPU on a shorter way (:mod:`~wan_trt_core.pipeline.video_processor`), and its scheduler's steps are planned
    (:mod:`~wan_trt_core.pipeline.scheduler_step`).

    Args:
        device: of the engines and the parts that stay; that of ``pipe`` unless given. Give it where the parts that
            are replaced lie elsewhere, or nowhere (``replaced`` of
            :meth:`~wan_trt_core.models.checkpoint.Checkpoint.pipeline`).

    Raises:
        EngineError: when the two engines of the VAE decoder do not fit together.
    """
    from wan_trt_core.pipeline.parts import EngineTextEncoder, EngineTransformer, EngineVAE

    def common(component: str, part: str) -> dict[str, Any]:
        precision = engines.precision[component]
        return {
            "prepare": get_component(component).prepare(engines.checkpoint, precision),
            "config": getattr(pipe, part).config,
            "dtype": torch_dtype(precision),
            "device": pipe.device if device is None else torch.device(device),
        }

    parts: dict[str, Any] = {
        "transformer": EngineTransformer(engines.dit, **common("dit", "transformer")),
        "vae": EngineVAE(engines.decoder, encoder=engines.vae_encoder, **common("vae_decoder_first", "vae")),
    }
    if engines.dit_2 is not None:
        parts["transformer_2"] = EngineTransformer(engines.dit_2, **common("dit_2", "transformer_2"))
    if isinstance(engines.text_encoder, Engine):
        parts["text_encoder"] = EngineTextEncoder(
            engines.text_encoder, **common("text_encoder", "text_encoder")
        )
    swapped = with_parts(pipe, **parts)
    swapped.video_processor = staged(swapped.video_processor)
    plan_steps(swapped.scheduler)
    return swapped


def with_parts(pipe: WanPipeline, **parts: Any) -> WanPipeline:
    """A pipeline with some parts replaced; it shares the others with ``pipe``, which is left as it was.

    The scheduler is copied: it holds the state of the video that is being generated.

    Args:
        parts: by the names of ``pipe.components``: ``transformer``, ``vae``, ``text_encoder`` …

    Raises:
        ValueError: for a part that the pipeline does not have.
    """
    components = pipe.components
    unknown = set(parts) - set(components)
    if unknown:
        raise ValueError(f"the pipeline has no part {sorted(unknown)[0]!r}; it has {', '.join(components)}")
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    new: WanPipeline = type(pipe)(
        **{**components, "scheduler": scheduler, **parts},
        boundary_ratio=pipe.config.boundary_ratio,
        expand_timesteps=pipe.config.expand_timesteps,
    )
    return new
