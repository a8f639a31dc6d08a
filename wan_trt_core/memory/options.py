"""What lowers the peak of a pipeline, and its price. A new option is a row of :data:`OPTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from wan_trt_core.backends.registry import get_backend
from wan_trt_core.memory.advice import TILE, WHOLE_ONLY
from wan_trt_core.memory.measured import (
    BUS,
    DECODE_SECONDS,
    INT8_SECONDS,
    TILE_PIXEL,
    encode_seconds,
    lean_seconds,
    shown_of_streaming,
    single_seconds,
)
from wan_trt_core.memory.prediction import VAE_NEXT, Choice, Workload, stock_part, weight_terms
from wan_trt_core.models.checkpoint import INT8
from wan_trt_core.models.profiles import SPATIAL, tiles_of

# ---- measured numbers: one NVIDIA H200, TensorRT 10.6, Wan 2.1 1.3B at 480x832 (docs/memory.md) ----------

ENGINE_LOADING = 2.3e9
"""Bytes a second at which an engine is loaded: 3.24 GB add 1.42 s to a video that is offloaded."""
CALL_FLOPS = 600e12
"""Operations a second of a DiT's engine in half precision, attention and all: 575 to 680 at the sizes of the baselines
(1.3B, 14B, 5B)."""


@dataclass(frozen=True)
class Option:
    """A setting that lowers the peak.

    Attributes:
        name: the setting, or the component of ``--precision``, and its value, as they are given.
        change: of :class:`Choice`.
        where: whether it does anything, for a workload and the choice before.
        seconds: that it adds to a video, modelled.
        loss: how far it changes the video: 0 not at all, 1 by rounding that shows in no frame, 2 more.
        price: in words.
    """

    name: str
    change: tuple[tuple[str, Any], ...]
    where: Callable[[Workload, Choice], bool]
    seconds: Callable[[Workload, Choice], float]
    loss: int
    price: str


def _encodes(work: Workload, choice: Choice) -> bool:
    return work.text_encoder and work.device == "cuda" and choice.encodes_in_pytorch


def _free(work: Workload, choice: Choice) -> float:
    return 0.0


def _offload_seconds(work: Workload, choice: Choice) -> float:
    return sum(
        term.size / (ENGINE_LOADING if "engine" in term.owner else BUS)
        for _, term in weight_terms(work, choice)
    )


def _encode_seconds(work: Workload, choice: Choice) -> float:
    parameters = stock_part(work, "text_encoder", "fp32").weights / 4
    in_bf16 = choice.text_encoder in ("bf16", INT8)
    return encode_seconds(parameters, work.video.text_length, in_bf16=in_bf16)


def _int8_seconds(work: Workload, choice: Choice) -> float:
    return INT8_SECONDS


def _lean_seconds(work: Workload, choice: Choice) -> float:
    return lean_seconds(work.video.height, work.video.width, work.video.frames)


def _single_seconds(work: Workload, choice: Choice) -> float:
    return single_seconds(work.video.height, work.video.width, work.video.frames)


def _tile_seconds(work: Workload, choice: Choice) -> float:
    video = work.video
    heights, widths = tiles_of(video.height, video.width, choice.vae_tile)
    pixels = TILE_PIXEL * sum(heights) * sum(widths) - video.height * video.width
    return DECODE_SECONDS * video.frames * pixels


def call_seconds(work: Workload) -> float:
    """Of the transformer, on an H200: two operations for each parameter and token, four for each pair of tokens."""
    config, video = work.checkpoint.config("transformer"), work.video
    rows, height, width = config["patch_size"]
    tokens = (video.latent_frames // rows) * (video.latent_height // height) * (video.latent_width // width)
    parameters = stock_part(work, "transformer", "fp32").weights / 4
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    operations: float = 2 * parameters * tokens + 4 * config["num_layers"] * channels * tokens**2
    return operations / CALL_FLOPS


def _stream_seconds(work: Workload, choice: Choice) -> float:
    """What the work of a call cannot hide of the bus' time."""

    def size(choice: Choice) -> int:
        return sum(term.size for part, term in weight_terms(work, choice) if part != "text_encoder")

    streamed = size(replace(choice, weight_streaming_budget_gib=None)) - size(choice)
    on_the_bus = streamed / len(work.dits) / BUS  # a call is of one
    return work.calls * shown_of_streaming(on_the_bus, call_seconds(work))


OPTIONS: tuple[Option, ...] = (
    Option(
        "tensorrt.share_scratch=true",
        (("share_scratch", True),),
        lambda work, choice: work.backend == "tensorrt",
        _free,
        0,
        "nothing",
    ),
    Option(
        "pipeline.vae_frames_per_step=1",
        (("vae_frames_per_step", 1),),
        lambda work, choice: work.engines and work.device == "cuda",
        _single_seconds,
        0,
        "twice as many steps of the decode",
    ),
    Option(
        "pipeline.vae_lean=true",
        (("vae_lean", True),),
        lambda work, choice: work.engines,
        _lean_seconds,
        1,
        "caches in half precision: its rounding, as a TF32 product's, and its range",
    ),
    Option(
        "pipeline.offload=true",
        (("offload", True),),
        lambda work, choice: work.device == "cuda",
        _offload_seconds,
        0,
        "every component is loaded again for each video: modules over the bus, engines from the cache",
    ),
    Option(
        "pipeline.text_encoder_device=cpu",
        (("text_encoder_device", "cpu"),),
        lambda work, choice: _encodes(work, choice) and choice.text_encoder == "fp32",
        _encode_seconds,
        1,
        "two prompts on the host, whose sums are in another order",
    ),
    Option(
        "pipeline.text_encoder_device=cpu",
        (("text_encoder_device", "cpu"),),
        lambda work, choice: _encodes(work, choice) and choice.text_encoder == "bf16",
        _encode_seconds,
        2,
        "two prompts on the host, which rounds otherwise: 29.8 dB from the GPU's video, with random weights in BF16",
    ),
    Option(
        "pipeline.text_encoder_device=cpu",
        (("text_encoder_device", "cpu"),),
        lambda work, choice: _encodes(work, choice) and choice.text_encoder not in ("fp32", "bf16"),
        _encode_seconds,
        2,
        "two prompts on the host, which rounds otherwise: how far that moves the video was measured in BF16 alone",
    ),
    Option(
        "tensorrt.weight_streaming_budget_gib=0",
        (("weight_streaming_budget_gib", 0.0),),
        lambda work, choice: work.backend == "tensorrt",
        _stream_seconds,
        0,
        "the DiT's weights over the bus in every call, whose work hides most of it where it takes longer: of the"
        " 1.3B's at 81 frames 7.5 to 23 ms of 113 showed; built with tensorrt.weight_streaming",
    ),
    Option(
        "text_encoder=bf16",
        (("text_encoder", "bf16"),),
        lambda work, choice: _encodes(work, choice) and choice.text_encoder == "fp32",
        _free,
        2,
        "rounding of the prompt's states, not measured; two ways to round in BF16 made videos 29.8 dB apart",
    ),
    Option(
        "dit=fp16",
        (("dit", "fp16"),),
        lambda work, choice: work.device == "cuda" and choice.dit == "fp32",
        _free,
        1,
        "rounding: the parity suite says how much",
    ),
    Option(
        "vae=fp16",
        (("vae", "fp16"),),
        lambda work, choice: (
            work.device == "cuda" and choice.vae == "fp32" and not (work.engines and VAE_NEXT in WHOLE_ONLY)
        ),
        _free,
        1,
        "rounding: the parity suite says how much",
    ),
    Option(
        "text_encoder=int8",
        (("text_encoder", "int8"),),
        lambda work, choice: _encodes(work, choice) and not work.in_memory,
        _int8_seconds,
        2,
        "rounding of the prompt's states: 25.2 dB from BF16's video, with random weights",
    ),
    Option(
        f"pipeline.vae_tile={TILE}",
        (("vae_tile", TILE),),
        lambda work, choice: (
            choice.vae_tile is None
            and max(work.video.height, work.video.width) > TILE
            and not (work.engines and work.video.spatial != SPATIAL)  # whose engines decode no tiles
        ),
        _tile_seconds,
        2,
        "tiles overlap, and other pixels at their seams",
    ),
)
"""All settings that are considered, those that leave the video as it is first."""


def offered(work: Workload, choice: Choice) -> Iterator[Option]:
    """The options that change something for a workload and a choice, and that its backend runs with."""
    refused = get_backend(work.backend).refuses
    for option in OPTIONS:
        changes = any(getattr(choice, name) != value for name, value in option.change)
        if changes and option.name.partition("=")[0] not in refused and option.where(work, choice):
            yield option
