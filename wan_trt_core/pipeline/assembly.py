"""A checkpoint's pipeline as the settings want it: what runs where, in which form, and when it is on the device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from wan_trt_core.backends.base import EngineError
from wan_trt_core.pipeline.engines import VAE_DECODER, EngineStore, Precision, precision_of
from wan_trt_core.pipeline.offload import Turns, offload, overlap
from wan_trt_core.pipeline.slicing import with_sliced_attention
from wan_trt_core.pipeline.swap import REPLACED, replaceable, swap, with_parts
from wan_trt_core.pipeline.tiling import tiled

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from wan_trt_core.backends.base import ModuleBackend
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import ShapeProfile

TEXT_ENCODER = "text_encoder"


def on_engines(
    model: ResolvedModel,
    profile: ShapeProfile,
    precision: Precision,
    backend: str,
    store: EngineStore,
    settings: Settings,
    device: torch.device | str,
    dtypes: Mapping[str, str] | None = None,
    *,
    text_encoder: bool = False,
) -> WanPipeline:
    """A model's pipeline with engines in the place of its transformer and VAE decoder. What the cache lacks of them is
    built before anything is loaded.

    Args:
        dtypes: of the modules, by part, where another arm has them loaded so; the text encoder's comes first from
            ``precision``.
        text_encoder: also put one in the place of the text encoder; ``precision`` then has to name that one's too.

    Raises:
        BackendUnavailable, CheckpointError, ExportError, EngineError, CacheError: from the stage that failed.
    """
    own = precision_of(precision, TEXT_ENCODER) if text_encoder else text_precision(precision)
    dtypes = {**(dtypes or {}), TEXT_ENCODER: own}
    store.build_pipeline(model, profile, precision, backend, text_encoder=text_encoder)
    replaced = (*REPLACED, TEXT_ENCODER) if text_encoder else REPLACED
    stock = placed(model.checkpoint, dtypes, device, settings, store.turns, replaced=replaced)
    made = store.pipeline(model, profile, precision, backend, text_encoder=text_encoder)
    pipe = swap(stock, made, device)
    if offloading(settings, device):
        overlap(*in_order(pipe).values())
    return pipe


def on_modules(
    model: ResolvedModel,
    precision: Precision,
    backend: ModuleBackend,
    settings: Settings,
    device: torch.device | str,
) -> WanPipeline:
    """A model's pipeline whose transformer and VAE a backend for PyTorch's modules runs.

    Raises:
        CheckpointError: for what cannot be loaded.
    """
    dtypes = {**replaced_precisions(precision), TEXT_ENCODER: text_precision(precision)}
    pipe = placed(model.checkpoint, dtypes, device, settings)
    return with_parts(pipe, **{name: backend.wrap(own, settings) for name, own in replaceable(pipe).items()})


def replaced_precisions(precision: Precision) -> dict[str, str]:
    """Those of the modules whose place engines take, by part."""
    return {
        "transformer": precision_of(precision, "dit"),
        "transformer_2": precision_of(precision, "dit_2"),
        "vae": precision_of(precision, VAE_DECODER[0]),
    }


def text_precision(precision: Precision) -> str:
    """That of the text encoder in PyTorch: float32 unless it is named."""
    return "fp32" if isinstance(precision, str) else precision.get(TEXT_ENCODER, "fp32")


def placed(
    checkpoint: Checkpoint,
    dtypes: Mapping[str, str],
    device: torch.device | str,
    settings: Settings,
    turns: Turns | None = None,
    replaced: Collection[str] = (),
) -> WanPipeline:
    """The pipeline of the checkpoint's own modules as the settings want it.

    Args:
        dtypes: precision by part.
        turns: by which engines share the device with these modules.
        replaced: parts that engines will take the place of; their weights are not loaded.

    Raises:
        CheckpointError: for what cannot be loaded.
    """
    stay, offloads = set(staying(settings)), offloading(settings, device)
    if offloads:
        checkpoint = checkpoint.apart()  # modules that come and go are nobody else's
    pipe = checkpoint.pipeline(dtypes, "cpu" if offloads else device, on_host=stay, replaced=replaced)
    if "vae" not in replaced:
        pipe = in_tiles(pipe, settings)
    if (queries := settings.pipeline.attention_slicing) is not None:
        own = {name: module for name, module in replaceable(pipe).items() if name not in replaced}
        pipe = with_parts(
            pipe, **{name: with_sliced_attention(module, queries) for name, module in own.items()}
        )
    if offloads:
        offload(pipe, turns or Turns(), device, stay=stay, leave=replaced)
    return pipe


def in_order(pipe: WanPipeline) -> dict[str, Any]:
    """The parts of a pipeline that work one after the other with nothing between them, by name: an image is encoded
    between the prompt and the first denoising step."""
    from diffusers import WanPipeline

    first = {TEXT_ENCODER: pipe.text_encoder} if isinstance(pipe, WanPipeline) else {}
    return {**first, **replaceable(pipe)}


def in_tiles(pipe: WanPipeline, settings: Settings) -> WanPipeline:
    """A pipeline whose VAE decodes in tiles, where the settings say so; ``pipe`` is left as it was."""
    tile = settings.pipeline.vae_tile
    return pipe if tile is None else with_parts(pipe, vae=tiled(pipe.vae, tile))


def staying(settings: Settings) -> tuple[str, ...]:
    """The parts that run on the CPU, wherever the others do."""
    return (TEXT_ENCODER,) if settings.pipeline.text_encoder_device == "cpu" else ()


def check_text_encoder(backend: str, settings: Settings, device: torch.device | str) -> None:
    """Raise where the settings keep the text encoder on the CPU and its engine would run elsewhere.

    Raises:
        EngineError: naming the setting.
    """
    if TEXT_ENCODER in staying(settings) and torch.device(device).type != "cpu":
        raise EngineError(
            f"pipeline.text_encoder_device is cpu, and {backend} runs on {device}: the text encoder's engine cannot be"
            " on both; change that setting, or leave the engine out"
        )


def offloading(settings: Settings, device: torch.device | str) -> bool:
    """Whether modules take turns on a device: on a CPU they are where they would go to."""
    return settings.pipeline.offload and torch.device(device).type != "cpu"
