"""What a pipeline will hold at each stage, before anything is loaded.

Functions of shapes, of what the manifests of built engines tell, and of a few measured numbers, each named below. Every
term says where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from wan_trt_core.backends.base import EngineBackend
from wan_trt_core.backends.registry import get_backend
from wan_trt_core.cases import COMPOSITES
from wan_trt_core.gates.formatting import GIB
from wan_trt_core.memory.measured import LEAN_SCRATCH, STREAMED_SCRATCH
from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.components import get_component
from wan_trt_core.models.footprint import (
    Footprint,
    encode_footprint,
    graph_footprint,
    live_bytes,
    stock_footprint,
)
from wan_trt_core.models.profiles import SPATIAL, tiles_of
from wan_trt_core.models.random_weights import UMT5_XXL
from wan_trt_core.models.vae_caches import CacheSpec, decoder_caches, encoder_caches
from wan_trt_core.pipeline.offload import Needs, fits_beside
from wan_trt_core.pipeline.tiling import TiledDecoder

if TYPE_CHECKING:
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import ShapeProfile, Sizes

Source = Literal["shapes", "engine", "measured", "not measured"]
"""Where a term comes from: the configuration of the model, the manifest of an engine in the cache, a measurement; or
what was measured of something else, as of TensorRT's engines for those of another backend."""

Stage = Literal["load", "text_encode", "image_encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = ("load", "text_encode", "image_encode", "denoise", "decode")
"""Only a video that begins with an image has an ``image_encode``."""

_TURNS: Mapping[Stage, tuple[str, ...]] = {
    "text_encode": ("text_encoder",),
    "image_encode": ("image_encoder", "vae"),
    "denoise": ("transformer", "transformer_2"),
    "decode": ("vae",),
}
"""The parts that a stage runs, one after the other: where they are offloaded, one of them is on the device."""

VAE_FIRST, VAE_NEXT = COMPOSITES["vae_decoder"]
ENCODER_FIRST, ENCODER_NEXT = COMPOSITES["vae_encoder"]

# ---- measured numbers: one NVIDIA H200, PyTorch 2.11, TensorRT 10.6, Wan 2.1 1.3B at 480x832 (docs/performance.md)

CUDA_OWN = 840_000_000
"""Context, kernels and graphs, in no other book: 0.80 GB beside one component, 0.82 to 0.86 beside a pipeline."""
KEPT_BY_CUDA = 0.32
"""Of what stock PyTorch's decode needs, what its allocator keeps beside it in blocks that do not fit: 0.26 at 17
frames, 0.38 at 81."""
SCRATCH: Mapping[str, float] = {"transformer": 1.7, "vae": 1.2}
"""TensorRT's scratch memory over what PyTorch would hold, by part: 0.66 GB for 0.39, 9.40 GB for 7.81. Of the engines
that encode nothing was measured: they are taken to be as those that decode."""
SCRATCH_FIRST = 3.5
"""The same of the VAE's engine for the first step: 3.04 GB for 0.88, the 11.64 of both engines less the 8.60 of the
next steps'."""

# ---- measured on two cores of a Xeon 6 and of an EPYC, glibc 2.36, tiny-wan and its twins ----------------------

KEPT_BY_MALLOC = 300_000_000
"""What glibc keeps at most of the blocks under 32 MiB that stock PyTorch's decode has freed: 0.25 to 0.37 GB at three
sizes. A small decode keeps 0.1 GB and once what it needs, a tiny one up to twelve times that; with
MALLOC_MMAP_THRESHOLD_ in the environment none does."""


@dataclass(frozen=True)
class Choice:
    """The settings that decide what memory a pipeline needs.

    Attributes:
        dit, vae, text_encoder, image_encoder: precisions; of ``dit`` where there are two both.
        text_encoder_device: ``auto`` or ``cpu``.
        text_encoder_engine: an engine does its work, beside engines of the others; at work it needs what PyTorch does.
        offload: a component is on the device during its own stage only.
        vae_tile: pixels a side.
        vae_frames_per_step: latent frames.
        vae_lean: the decoder's engines in the form that needs less memory.
        weight_streaming_budget_gib: weights of the DiT's engine on the device.
        share_scratch: engines that never run together share theirs.
    """

    dit: str = "fp32"
    vae: str = "fp32"
    text_encoder: str = "fp32"
    image_encoder: str = "fp32"
    text_encoder_device: str = "auto"
    text_encoder_engine: bool = False
    offload: bool = False
    vae_tile: int | None = None
    vae_frames_per_step: int = 1
    vae_lean: bool = False
    weight_streaming_budget_gib: float | None = None
    share_scratch: bool = True

    @property
    def encodes_in_pytorch(self) -> bool:
        """Whether PyTorch runs the text encoder on the device."""
        return self.text_encoder_device != "cpu" and not self.text_encoder_engine


@dataclass(frozen=True)
class Workload:
    """What will run.

    Attributes:
        text_encoder: whether there is one.
        device: ``cuda`` or ``cpu``.
        calls: of the transformer, a video.
        process: bytes of a process that has imported what a run imports, measured here; of a ``cpu`` only.
        gives_back: the process's allocator keeps nothing that was freed.
        in_memory: the modules are a caller's, loaded already: no precision that is asked for stores its text encoder in
            eight bits.
        built: facts of the manifest of the engine that would be loaded, by component, precision and what else makes it
            another engine, where there is one.
    """

    checkpoint: Checkpoint
    video: Sizes
    backend: str
    device: str
    text_encoder: bool = True
    calls: int = 100
    process: int = 0
    gives_back: bool = False
    in_memory: bool = False
    built: Callable[[str, str, Choice], Mapping[str, Any] | None] = lambda component, precision, choice: None

    @cached_property
    def engines(self) -> bool:
        """Whether engines do the work of the transformers and the VAE."""
        return isinstance(get_backend(self.backend), EngineBackend)

    def known(self, source: Source) -> Source:
        """How well a term of engines, or of what CUDA takes beside them, is known: on a GPU only TensorRT's were
        measured, and another backend's are taken to be as those."""
        elsewhere = self.engines and self.device == "cuda" and self.backend != "tensorrt"
        return "not measured" if elsewhere and source != "engine" else source

    @property
    def from_image(self) -> bool:
        """Whether the video begins with an image."""
        return self.checkpoint.begins_with_image

    @property
    def dits(self) -> tuple[str, ...]:
        """The components that predict the flow, each in its time."""
        return tuple(name for name in ("dit", "dit_2") if get_component(name).part in self.checkpoint.parts)


@dataclass(frozen=True)
class Term:
    """Bytes that one owner holds during a stage, and where the number comes from."""

    owner: str
    size: int
    source: Source


@dataclass(frozen=True)
class Prediction:
    """What each stage holds."""

    stages: Mapping[Stage, tuple[Term, ...]]

    def of(self, stage: Stage) -> int:
        """The most during a stage, bytes."""
        return sum(term.size for term in self.stages[stage])

    @property
    def peak_stage(self) -> Stage:
        """The stage that holds most."""
        return max(self.stages, key=self.of)

    @property
    def peak(self) -> int:
        """The most of all, bytes."""
        return self.of(self.peak_stage)


def unplanned(checkpoint: Checkpoint) -> str:
    """What a pipeline has that the prediction does not know, in words; empty where it knows all."""
    both = checkpoint.begins_with_image and checkpoint.timestep_by_frame
    return "an image to begin with and a timestep a token" if both else ""


# ---- prediction --------------------------------------------------------------------------------------------


def predict(work: Workload, choice: Choice) -> Prediction:
    """The bytes that each stage of a first video holds at most: of the device, or of the process on a CPU."""
    offloads = choice.offload and work.device == "cuda"
    own = Term("CUDA's own", CUDA_OWN, work.known("measured"))
    if work.device == "cpu":
        own = Term("Python, PyTorch and what else is imported", work.process, "measured")
    held = list(weight_terms(work, choice))
    coming = _coming(work, choice, held) if offloads else {}
    stages: dict[Stage, tuple[Term, ...]] = {}
    for stage in STAGES:
        if stage == "image_encode" and not work.from_image:
            continue
        if not offloads:
            loaded = [term for _, term in held]
        elif stage == "load":
            loaded = sorted((term for _, term in held), key=lambda term: term.size)[-1:]
        else:
            turns = [_of(turn, held) + coming.get((stage, turn), []) for turn in _TURNS[stage]]
            loaded = max(turns, key=lambda terms: sum(term.size for term in terms))
        stages[stage] = (own, *loaded, *_working(work, choice, stage))
    return Prediction(stages)


def _coming(
    work: Workload, choice: Choice, held: Sequence[tuple[str, Term]]
) -> dict[tuple[Stage, str], list[Term]]:
    """The engines that are loaded while the part before theirs is at work, by stage and part, as
    :func:`~wan_trt_core.pipeline.offload.overlap` lets them."""
    if not work.engines:
        return {}
    stage_of: dict[str, Stage] = {}
    if work.text_encoder and not work.from_image:
        stage_of["text_encoder"] = "text_encode"
    stage_of |= {**{get_component(name).part: "denoise" for name in work.dits}, "vae": "decode"}
    scratch = {get_component(name).part: _scratch(work, choice, name, work.video)[0] for name in work.dits}
    scratch["vae"] = _scratch(work, choice, VAE_NEXT, _seen(work, choice))[0]
    fits = fits_beside(
        [Needs(sum(term.size for term in _of(part, held)), scratch.get(part, 0)) for part in stage_of]
    )
    return {
        (stage_of[now], now): _of(following, held)
        for (now, following), room in zip(pairwise(stage_of), fits, strict=True)
        if room
    }


def _of(part: str, held: Sequence[tuple[str, Term]]) -> list[Term]:
    return [term for owner, term in held if owner == part]


def weight_terms(work: Workload, choice: Choice) -> Iterator[tuple[str, Term]]:
    """Weights by the part of the model whose stage they are needed in."""
    on_host = work.device == "cpu"
    if work.text_encoder and not choice.text_encoder_engine and (on_host or choice.encodes_in_pytorch):
        size = stock_part(work, "text_encoder", choice.text_encoder).weights
        yield "text_encoder", Term("text encoder weights", size, "shapes")
    if "image_encoder" in work.checkpoint.parts:
        size = stock_part(work, "image_encoder", choice.image_encoder).weights
        yield "image_encoder", Term("image encoder weights", size, "shapes")
    transformers = {get_component(name).part: choice.dit for name in work.dits}
    for part, precision in (*transformers.items(), ("vae", choice.vae)):
        if not work.engines:  # which are in the place of modules without weights
            yield part, Term(f"{part} weights", stock_part(work, part, precision).weights, "shapes")
    if work.engines:
        encoders = (ENCODER_FIRST, ENCODER_NEXT) if work.from_image else ()
        text = ("text_encoder",) if work.text_encoder and choice.text_encoder_engine else ()
        for component in (*work.dits, VAE_FIRST, VAE_NEXT, *encoders, *text):
            part, precision = get_component(component).part, _precision(choice, component)
            size, source = _engine_weights(work, choice, component)
            size -= _streamed(work, choice, component)
            yield part, Term(f"{component} engine weights", size, source)


def _engine_weights(work: Workload, choice: Choice, component: str) -> tuple[int, Source]:
    """All of an engine's, wherever they lie."""
    precision = _precision(choice, component)
    facts = work.built(component, precision, choice) or {}
    size = facts.get("weights") or graph_footprint(work.checkpoint, component, precision, work.video).weights
    return int(size), work.known("engine" if "weights" in facts else "shapes")


def _streamed(work: Workload, choice: Choice, component: str) -> int:
    """Bytes of an engine's weights that wait in host memory."""
    budget = choice.weight_streaming_budget_gib
    if budget is None or get_component(component).part == "vae":
        return 0
    return max(0, _engine_weights(work, choice, component)[0] - round(budget * GIB))


def _working(work: Workload, choice: Choice, stage: Stage) -> Iterator[Term]:
    """What a stage holds beside weights."""
    here = work.device == "cpu" or choice.text_encoder_device != "cpu"
    if stage == "text_encode" and work.text_encoder and here:
        yield Term(
            "text encoder at work", stock_part(work, "text_encoder", choice.text_encoder).working, "shapes"
        )
    if stage == "image_encode":
        yield from _encode_image(work, choice)
    if stage == "denoise":
        yield from _denoise(work, choice)
    if stage == "decode":
        yield from (_decode_on_engines if work.engines else _decode_stock)(work, choice)


def _encode_image(work: Workload, choice: Choice) -> Iterator[Term]:
    """The image and black frames behind it are encoded as a video; the image encoder, which needs less, is done."""
    yield Term("the image as a video", _video_bytes(work, choice.vae), "shapes")
    if not work.engines:
        seen = _seen(work, choice)
        needs = encode_footprint(work.checkpoint, choice.vae, seen, convolved_on=work.device)
        yield Term("vae at work, its caches and the latents", needs.working, "shapes")
        return
    specs = encoder_caches(work.checkpoint.config("vae"))
    caches = sum(_cache_bytes(cache, choice, work.video) for cache in specs)
    if work.device == "cuda":
        yield from _scratch_held(choice, _encoders(work, choice))
        yield Term("caches of the vae, two sets", 2 * caches, work.known("shapes"))
    else:
        yield _arena(work, choice, (ENCODER_FIRST, ENCODER_NEXT), "vae's encoder engines at work")
        yield Term("caches of the vae, the set that is read", caches, "shapes")


def _denoise(work: Workload, choice: Choice) -> Iterator[Term]:
    if work.engines and work.device == "cuda":
        experts = _dits(work, choice)
        before = _encoders(work, choice) if work.from_image else []
        yield from _scratch_held(choice, experts[:1] if choice.offload else experts, before)
    elif work.engines:
        for name in work.dits:
            yield _arena(work, choice, (name,), f"{name} engine at work")
        if work.from_image:
            yield _arena(work, choice, (ENCODER_FIRST, ENCODER_NEXT), "arenas of the vae's encoder engines")
    else:
        yield Term("transformer at work", stock_part(work, "transformer", choice.dit).working, "shapes")


def _decode_stock(work: Workload, choice: Choice) -> Iterator[Term]:
    on_device, seen = work.device == "cuda", _seen(work, choice)
    working = stock_footprint(work.checkpoint, "vae", choice.vae, seen, convolved_on=work.device).working
    yield Term("vae at work, its caches and the video", working, "shapes")
    if seen != work.video:  # every tile is kept until all are blended
        heights, widths = _tiles(work, choice)
        whole = _video_bytes(work, choice.vae)
        tiles = round(whole * sum(heights) * sum(widths) / (work.video.height * work.video.width))
        yield Term("tiles of the video, and it whole", whole + tiles, "shapes")
    if on_device:
        yield Term("kept by PyTorch's allocator", round(KEPT_BY_CUDA * working), "measured")
    elif not work.gives_back:
        # blocks of 32 MiB and more, as of what a convolution takes for itself, are given back
        working = stock_footprint(work.checkpoint, "vae", choice.vae, seen).working
        if work.from_image:
            working += encode_footprint(work.checkpoint, choice.vae, work.video).working
        kept = min(KEPT_BY_MALLOC, KEPT_BY_MALLOC // 3 + working, 12 * working)
        yield Term("kept by the process's allocator", kept, "measured")


def _decode_on_engines(work: Workload, choice: Choice) -> Iterator[Term]:
    seen, (heights, widths) = _seen(work, choice), _tiles(work, choice)
    found = decoder_caches(work.checkpoint.config("vae"), half=choice.vae_lean)

    def of(height: int, width: int) -> list[int]:
        sizes = replace(work.video, height=height, width=width)
        return [_cache_bytes(cache, choice, sizes) for cache in found]

    caches = of(seen.height, seen.width)
    if work.device == "cuda":
        scratch, source = _scratch(work, choice, VAE_NEXT, seen)
        known = source == "engine"  # of the engine for these steps
        own = Term(
            "scratch of the vae engines", (1 if known else choice.vae_frames_per_step) * scratch, source
        )
        first = Term(f"scratch of the {VAE_FIRST} engine", *_scratch(work, choice, VAE_FIRST, seen))
        before = [*_dits(work, choice), *(_encoders(work, choice) if work.from_image else ())]
        yield from _scratch_held(choice, [own, first], before)
        from wan_trt_core.backends.tensorrt.runtime import OWN_OUTPUT_BYTES, STAGED_BYTES

        # what the first step's engine leaves in its own buffers, and what that of the others copies to its own: a set
        # for each shape of tiles
        shapes = [of(height, width) for height in {*heights} for width in {*widths}]
        buffers = [
            size
            for most in (OWN_OUTPUT_BYTES, STAGED_BYTES)
            for each in shapes
            for size in each
            if size < most
        ]
        yield Term("buffers of the vae engines", sum(buffers), work.known("shapes"))
        yield Term("caches of the vae, two sets", 2 * sum(caches), work.known("shapes"))
    else:
        yield _arena(work, choice, (VAE_FIRST, VAE_NEXT), "vae engines at work", seen)
        yield Term("caches of the vae, the set that is read", sum(caches), "shapes")
        for name in work.dits:
            yield _arena(work, choice, (name,), f"arena of the {name} engine")
        if work.from_image:
            yield _arena(work, choice, (ENCODER_FIRST, ENCODER_NEXT), "arenas of the vae's encoder engines")
    video = _video_bytes(work, choice.vae)
    yield Term("the video", video, "shapes")
    if work.device == "cuda" and choice.vae_tile is not None and seen != work.video:
        # whole frames leave caches in which these find room; of a tile's none is large enough
        yield Term("copies of a frame behind the decode", 2 * video // work.video.frames, "shapes")
        beside = _beside_the_video(work.video, choice.vae_tile, choice.vae)
        yield Term("a tile and edges of others", beside, "shapes")


def _dits(work: Workload, choice: Choice) -> list[Term]:
    """Scratch memory of each engine that denoises."""
    return [
        Term(f"scratch of the {name} engine", *_scratch(work, choice, name, work.video)) for name in work.dits
    ]


def _encoders(work: Workload, choice: Choice) -> list[Term]:
    """Scratch memory of both engines that encode an image."""
    return [
        Term(f"scratch of the {name} engine", *_scratch(work, choice, name, work.video))
        for name in (ENCODER_NEXT, ENCODER_FIRST)
    ]


def _scratch_held(choice: Choice, now: Sequence[Term], before: Sequence[Term] = ()) -> Iterator[Term]:
    """What a stage holds of its engines' scratch memory, and of those that ran before it and are still loaded. What is
    lent to one at a time is as large as any of them needs it."""
    held = [*now, *(() if choice.offload else before)]
    if choice.share_scratch:
        yield max(held, key=lambda term: term.size)
    else:
        yield from held


def _arena(
    work: Workload, choice: Choice, components: Sequence[str], owner: str, seen: Sizes | None = None
) -> Term:
    """What engines on a CPU need at work, and keep from then on; of a pair the first one's results are the other's."""
    needs = [
        graph_footprint(
            work.checkpoint, name, _precision(choice, name), seen or work.video, lean=choice.vae_lean
        )
        for name in components
    ]
    size = sum(each.working for each in needs) - sum(each.outputs for each in needs[:-1])
    return Term(owner, size, "shapes")


def _scratch(work: Workload, choice: Choice, component: str, seen: Sizes) -> tuple[int, Source]:
    """Of a TensorRT engine, as it was built, else by shapes; and what it needs more for weights that it streams."""
    precision = _precision(choice, component)
    known = (work.built(component, precision, choice) or {}).get("scratch")
    more = round(STREAMED_SCRATCH * _streamed(work, choice, component))
    if known and seen == work.video:
        return int(known) + more, "engine"
    kind = "vae" if get_component(component).part == "vae" else "transformer"
    fused = kind == "transformer" and precision != "fp32"  # attention, as PyTorch's
    if fused:
        needs = stock_footprint(work.checkpoint, kind, precision, seen)
    else:
        needs = graph_footprint(work.checkpoint, component, precision, seen)
    source: Source = "shapes" if fused or kind == "vae" else "not measured"
    factor = SCRATCH_FIRST if component in (VAE_FIRST, ENCODER_FIRST) else SCRATCH[kind]
    lean = LEAN_SCRATCH if kind == "vae" and choice.vae_lean else 1.0
    return round(lean * factor * (needs.working - needs.outputs)) + more, work.known(source)


def _precision(choice: Choice, component: str) -> str:
    part = get_component(component).part
    return {"vae": choice.vae, "text_encoder": choice.text_encoder}.get(part, choice.dit)


def stock_part(work: Workload, part: str, precision: str) -> Footprint:
    return stock_footprint(work.checkpoint, part, precision, work.video)


def _seen(work: Workload, choice: Choice) -> Sizes:
    """What the VAE sees at once."""
    heights, widths = _tiles(work, choice)
    return replace(work.video, height=heights[0], width=widths[0])


def _tiles(work: Workload, choice: Choice) -> tuple[list[int], list[int]]:
    return tiles_of(work.video.height, work.video.width, choice.vae_tile)


@cache
def _beside_the_video(video: Sizes, tile: int, precision: str) -> int:
    """What a decode in tiles on engines holds at most beside the video: a tile, the edges of those to the left and
    above it, and what blends it with them."""

    def decode(latents: Tensor) -> Tensor:
        height, width = (SPATIAL * size for size in latents.shape[-2:])
        shape = (1, 3, video.frames, height, width)
        return torch.empty(shape, dtype=torch_dtype(precision), device="meta")

    decoder: Any = SimpleNamespace(decode=decode)
    latents = torch.empty((1, 1, 1, video.height // SPATIAL, video.width // SPATIAL), device="meta")
    most, whole = live_bytes(partial(TiledDecoder(decoder, tile).decode, latents), nn.Identity())
    return most - whole


def _video_bytes(work: Workload, precision: str) -> int:
    return 3 * work.video.frames * work.video.height * work.video.width * torch_dtype(precision).itemsize


def _cache_bytes(cache: CacheSpec, choice: Choice, seen: Sizes) -> int:
    sizes = {"height": seen.latent_height, "width": seen.latent_width}
    return cache.taken().nbytes(sizes, choice.vae)


# ---- what is asked, from the settings -----------------------------------------------------------------------


def workload(
    model: ResolvedModel,
    profile: ShapeProfile,
    backend: str,
    device: str,
    settings: Settings,
    *,
    text_encoder: bool = True,
    process: int = 0,
) -> Workload:
    """What a profile's own size of a model comes to here, with what the cache holds.

    Args:
        text_encoder: even where the weights are random and have none, if they are of the published size.
        process: see :class:`Workload`.
    """
    from wan_trt_core.pipeline.engines import cached_facts

    @cache
    def of_form(component: str, precision: str, lean: bool, latents: int) -> Mapping[str, Any] | None:
        form = {"vae_lean": lean, "vae_frames_per_step": latents}
        chosen = settings.model_copy(update={"pipeline": settings.pipeline.model_copy(update=form)})
        return cached_facts(component, model, profile, precision, backend, chosen)

    def built(component: str, precision: str, choice: Choice) -> Mapping[str, Any] | None:
        return of_form(component, precision, choice.vae_lean, choice.vae_frames_per_step)

    generation = model.generation
    own = "text_encoder" in model.checkpoint.parts
    published = model.checkpoint.config("transformer")["text_dim"] == UMT5_XXL["d_model"]
    return Workload(
        model.checkpoint,
        profile.opt,
        backend,
        device,
        text_encoder and (own or published),
        calls=generation.num_inference_steps * (2 if generation.guidance_scale > 1 else 1),
        process=process,
        gives_back="MALLOC_MMAP_THRESHOLD_" in os.environ,
        built=built,
    )


_SETTINGS: Mapping[str, str] = {
    "offload": "pipeline.offload",
    "text_encoder_device": "pipeline.text_encoder_device",
    "vae_tile": "pipeline.vae_tile",
    "vae_lean": "pipeline.vae_lean",
    "vae_frames_per_step": "pipeline.vae_frames_per_step",
    "weight_streaming_budget_gib": "tensorrt.weight_streaming_budget_gib",
    "share_scratch": "tensorrt.share_scratch",
}
"""The setting that each field of a choice is."""


def memory_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide what memory a run needs, but for those that are as by default: what advice on its
    events leaves out."""
    flat, usual = settings.flat(), type(settings)().flat()
    keys = (*_SETTINGS.values(), "pipeline.attention_slicing", "tensorrt.max_graphs")
    return {key: flat[key] for key in keys if key in flat and flat[key] != usual[key]}


def choice_of(settings: Settings, precision: str | Mapping[str, str]) -> Choice:
    """The choice that settings and precisions are; a setting that there is not is as if it were not given.

    Args:
        precision: one for the engines, or one for each component; the text encoder's is float32 unless it is named.
    """
    flat = settings.flat()
    given = Choice(**{field: flat[key] for field, key in _SETTINGS.items() if key in flat})
    if isinstance(precision, str):
        return replace(given, dit=precision, vae=precision)
    vae = precision.get("vae") or precision.get(VAE_NEXT, "fp32")
    encoder = precision.get("text_encoder", "fp32")
    return replace(given, dit=precision.get("dit", "fp32"), vae=vae, text_encoder=encoder)
