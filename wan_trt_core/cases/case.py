"""A case: what is compared, and what each suite holds it to, every threshold with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SUITES = ("parity", "perf", "memory")
Suite = Literal["parity", "perf", "memory"]

VERSION = 1
"""Version of the case file's format."""

COMPOSITES: Mapping[str, tuple[str, ...]] = {
    "vae_decoder": ("vae_decoder_first", "vae_decoder_next"),
    "vae_encoder": ("vae_encoder_first", "vae_encoder_next"),
    "pipeline": ("dit", "dit_2", "vae_decoder_first", "vae_decoder_next"),
}
"""What a case may name beside a component, and the components that each runs together, as far as the model has them:
the streaming pairs of VAE graphs (``vae_decoder``, ``vae_encoder``), and prompt to video (``pipeline``)."""

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
PRECISION_PARTS = ("dit", "vae", "text_encoder")
"""Keys of a composite's precision, as in ``{dit: fp16, vae: fp32}``; that of ``dit`` is of both where there are two."""

DEFAULT_SPEEDUP = 1.5
"""The gate of a performance case that names no other, against stock diffusers."""

NO_CUDA_GRAPHS = "no-cuda-graphs"
BESIDE: Mapping[str, str] = {"torch-compile": "compile_speedup", NO_CUDA_GRAPHS: "graph_gain"}
"""What a performance case may time beside its gate, each against the candidate, and the metric that comes of it: how
many times faster the candidate is than ``torch.compile`` of the reference, and than itself without CUDA graphs."""

ERROR_OVER_STOCK = "error_over_stock"
"""How many times further from the reference the candidate is than stock diffusers in the candidate's precision (by
relative L2): what the engine adds to what that precision costs anyway. Measured where a parity gate asks for it."""

HIGHER_IS_BETTER = frozenset(
    {"psnr_db", "psnr_db_mean", "cosine", "ssim", "ssim_mean", "cvvdp_jod", "speedup", *BESIDE.values()}
)
"""Metrics (by the last part of their name) that a limit must bound from below; all others from above."""


def better_of(metric: str) -> Literal["higher", "lower"]:
    """Which direction of a metric is better, by its name."""
    return "higher" if metric.rpartition(".")[2] in HIGHER_IS_BETTER else "lower"


CASE_SETTINGS = ("pipeline.", "tensorrt.")
"""Sections of the settings that a case may set for itself: what its candidate does, not how it is measured."""

CEILINGS = {
    "psnr_db": 200.0,
    "psnr_db_mean": 200.0,
    "cosine": 1.0,
    "ssim": 1.0,
    "ssim_mean": 1.0,
    "cvvdp_jod": 10.0,
}
"""The largest value a metric can have: a floor above it could never be reached."""


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError(f"must be a number, not {value!r}")
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limit(_Model):
    """A bound on one metric: at least ``min`` or at most ``max``, and why that number."""

    min: Number | None = Field(default=None, gt=0)
    max: Number | None = Field(default=None, ge=0)
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _bounds(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("needs a min or a max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"has a min ({self.min:g}) above its max ({self.max:g})")
        return self


class Band(_Model):
    """How far a metric may be from its baseline: the larger of ``rel`` (a fraction) and ``abs`` (a value)."""

    rel: Number = Field(ge=0, le=10)
    abs: Number = Field(default=0.0, ge=0)
    reason: str = Field(min_length=1)


class MemoryBand(Band):
    """A band of memory, and others for backends that it does not fit.

    Attributes:
        by_backend: instead of this one, by the backend of the run: what one library repeats to the byte another chooses
            anew with every engine that it builds.
        only_backends: those whose runs have the metric; all of them unless given.
    """

    by_backend: dict[str, Band] = Field(default_factory=dict)
    only_backends: tuple[str, ...] | None = Field(default=None, min_length=1)


class ParityGate(_Model):
    """By metric, floors against the reference (``limits``) and bands around the baseline (``bands``)."""

    limits: dict[str, Limit] = Field(min_length=1)
    bands: dict[str, Band] = Field(default_factory=dict)


class PerfGate(_Model):
    """The least speed-up over stock diffusers (a ratio), and what a timed output must still reach.

    Attributes:
        speedup: ``None`` where none is promised, as of an option that gives time for memory: its bands judge alone.
        reason: why it is under the gate, or none is promised.
        also: what is timed beside it where the case's backend has it, by the names of :data:`BESIDE`.
        limits: floors of what ``also`` measures; the lower end of its interval must reach them, and only where the
            upper end does not either it is a ``fail``.
        time_budget: seconds of measuring, where the calls are too long for the setting of that name; the larger one
            holds.
    """

    speedup: Number | None = Field(default=DEFAULT_SPEEDUP, gt=0)
    reason: str | None = Field(default=None, min_length=1)
    parity: dict[str, Limit] = Field(min_length=1)
    also: tuple[Literal["torch-compile", "no-cuda-graphs"], ...] = ()
    limits: dict[str, Limit] = Field(default_factory=dict)
    bands: dict[str, Band] = Field(default_factory=dict)
    time_budget: Number | None = Field(default=None, gt=0)

    @property
    def below_gate(self) -> bool:
        """Its threshold is under the product's gate, or it has none; every report marks it."""
        return self.speedup is None or self.speedup < DEFAULT_SPEEDUP


PEAK_OVER_REFERENCE = "peak_over_reference"
"""What the candidate uses at most over what the reference does (a ratio)."""

PEAK_OVER_PLAN = "peak_over_plan"
"""What a pipeline uses at most over what ``wan-trt memory plan`` predicts (a ratio); measured where a limit asks for
it."""

DEVICE_GROWTH_LIMIT = 1 << 20
"""Bytes a run by which the use of a GPU may seem to grow unless a case says otherwise."""


STEP_GROWTH_LIMIT = 4096
"""Bytes a denoising step by which a process may provably grow unless a case says otherwise: a page, in which the
resident set is counted."""

KEPT_LIMIT = 1 << 20
"""Bytes of tensors that may be left of the first loading unless a case says otherwise; 192 B were, of tiny-wan."""

RELEASE_LIMIT = 4 << 20
"""Bytes that a process may hold more after unloading than after it had unloaded before, unless a case says otherwise;
under 1 MiB was measured. The same for its use of a GPU, where nothing was left."""


UNATTRIBUTED_LIMIT = 5 << 28
"""Bytes of a GPU that no known owner may hold unless a case says otherwise: 0.72 GB (stock diffusers) to 0.88 (with
TensorRT's engines and CUDA graphs) were measured on an H200 in runs of every size, and half as much again fits."""


class MemoryGate(_Model):
    """Bounds and bands on memory; growth over repeated runs must be nil within ``growth`` (bytes a run).

    Attributes:
        device_growth: the same for all that the process uses on a GPU; judged where there is one.
        step_growth, device_step_growth: the same over the denoising steps of one run of a pipeline (bytes a step).
        release: bytes that loading, one run and unloading may leave, of a process' anonymous memory and mapped files;
            on a GPU of PyTorch's tensors.
        device_release: the same of all that the process uses on a GPU.
        release_tensors: bytes of PyTorch's tensors that the very first loading may leave after unloading.
        unattributed: bytes of a GPU that no known owner may hold: what the process uses there less what PyTorch's
            allocator has reserved and the weights of engines.
        reference: measure the reference's peaks as well, and ``peak_over_reference``, which ``limits`` may bound.
    """

    limits: dict[str, Limit] = Field(default_factory=dict)
    bands: dict[str, MemoryBand] = Field(default_factory=dict)
    growth: Limit
    device_growth: Limit = Limit(
        max=DEVICE_GROWTH_LIMIT,
        reason="the driver gives memory in pieces of 2 MiB; a leak of half a piece a run takes one every second run",
    )
    step_growth: Limit = Limit(
        max=STEP_GROWTH_LIMIT,
        reason="a page of memory: a latent that is kept is more, even of the smallest video",
    )
    device_step_growth: Limit = Limit(
        max=DEVICE_GROWTH_LIMIT,
        reason="the driver gives memory in pieces of 2 MiB; a leak of half a piece a step takes one every second step",
    )
    release: Limit = Limit(
        max=RELEASE_LIMIT,
        reason="arenas that the allocator keeps; weights that stay are more, in any real model",
    )
    device_release: Limit = Limit(
        max=RELEASE_LIMIT,
        reason="pieces of 2 MiB that the driver keeps; what CUDA loads once was there before",
    )
    release_tensors: Limit = Limit(
        max=KEPT_LIMIT,
        reason="constants that a library keeps have some hundred bytes, the smallest weights far more",
    )
    unattributed: Limit = Limit(
        max=UNATTRIBUTED_LIMIT,
        reason="CUDA's context, the kernels of its libraries, TensorRT's and CUDA graphs take 0.7 to 0.9 GB on an H200",
    )
    reference: bool = False


MEAN = "mean."
"""Begins the name of a metric's mean over the prompts of a case; the metric's own name is that of the worst."""


MAX_SEED = 2**64 - 1
"""The largest that PyTorch's generators take."""


class Prompt(_Model):
    """One of the videos that a pipeline's parity is judged by, a row of a file of prompts.

    Attributes:
        id: stable name: the metrics of this video are ``{id}.video.psnr_db`` and so on, in baselines too.
        seed: of the noise.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    prompt: str = Field(min_length=1)
    negative_prompt: str = ""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)


class Case(_Model):
    """One row of the case file.

    Attributes:
        id: stable name; baselines and reports are keyed by it, never by pytest's node id.
        component: a component, or one of :data:`COMPOSITES`.
        precision: of the component; for composites by component, as ``{dit: fp16, vae: fp32}``.
        reference_precision: of stock diffusers; the candidate's own unless given.
        steps: denoising steps of a ``pipeline`` case; the model's own unless given.
        prompts: of a ``pipeline`` case's parity, in the case file the name of a file beside it: limits hold for the
            worst of these videos (and, as ``mean.video.psnr_db``, for their mean), bands for each. One unless given.
        layers: of the transformer of a model with random weights, its first so many; all of them unless given.
        text_encoder: with random weights there is a text encoder as well, of random weights; a checkpoint has its own.
        tf32: products and convolutions of float32 may use TF32, in both arms, whatever ``perf.allow_tf32`` says.
            Without it none does unless that setting is given.
        settings: of ``config.yaml`` that are others for this case, by dotted key (``pipeline.vae_tile: 256``): of
            :data:`CASE_SETTINGS`.
        only_backends: the backends that the case is for. It then runs only where the run names one of them
            (``--wan-backend``), so that a GPU's cases may stand beside those for every machine.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    model: str = Field(min_length=1)
    component: str
    profile: str
    precision: str | dict[str, str]
    reference_precision: str | dict[str, str] | None = None
    backend: str
    steps: int | None = Field(default=None, ge=1)
    prompts: tuple[Prompt, ...] = ()
    layers: int | None = Field(default=None, ge=1)
    text_encoder: bool = False
    tf32: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    only_backends: tuple[str, ...] = ()
    parity: ParityGate | None = None
    perf: PerfGate | None = None
    memory: MemoryGate | None = None

    @property
    def suites(self) -> tuple[Suite, ...]:
        """The suites that this case is in: those it has a gate for."""
        gates: dict[Suite, object] = {"parity": self.parity, "perf": self.perf, "memory": self.memory}
        return tuple(suite for suite, gate in gates.items() if gate is not None)

    @property
    def own_settings(self) -> dict[str, Any]:
        """All that this case sets for itself, by dotted key, TF32 included."""
        return self.settings | ({"perf.allow_tf32": True} if self.tf32 else {})

    @property
    def beside(self) -> tuple[str, ...]:
        """What is timed beside the perf gate: of what it names, that which the case's backend has.

        Only ``tensorrt`` replays CUDA graphs, and a run may name another backend.
        """
        also = self.perf.also if self.perf else ()
        return tuple(name for name in also if name != NO_CUDA_GRAPHS or self.backend == "tensorrt")

    @property
    def parity_bands(self) -> Mapping[str, Band]:
        """By metric; with prompts each video has the bands of the worst of them."""
        bands = self.parity.bands if self.parity else {}
        return bands | {
            f"{prompt.id}.{metric}": band
            for prompt in self.prompts
            for metric, band in bands.items()
            if not metric.startswith(MEAN)
        }

    @property
    def stock_precision(self) -> str | dict[str, str]:
        """That of the reference's modules: the candidate's unless ``reference_precision`` is given."""
        return self.reference_precision or self.precision

    @property
    def memory_bands(self) -> Mapping[str, Band]:
        """By metric, those of the case's backend."""
        bands = self.memory.bands if self.memory else {}
        return {
            metric: band.by_backend.get(self.backend, band)
            for metric, band in bands.items()
            if band.only_backends is None or self.backend in band.only_backends
        }

    @property
    def precision_label(self) -> str:
        """See :func:`precision_word`."""
        return precision_word(self.precision)


def precision_word(precision: str | Mapping[str, str]) -> str:
    """A precision in one word, as ``--precision`` takes it: ``fp32``, or ``dit=fp16,vae=fp32``."""
    if isinstance(precision, str):
        return precision
    return ",".join(f"{part}={own}" for part, own in precision.items())


GATES: Mapping[str, type[_Model]] = {"parity": ParityGate, "perf": PerfGate, "memory": MemoryGate}
BY_METRIC = ("limits", "bands", "parity")
"""Keys of a gate that hold one entry a metric."""
