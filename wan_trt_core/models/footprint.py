"""Bytes that a part of a model needs, from its configuration alone: nothing is loaded, nothing computed.

Modules are made without memory (PyTorch's ``meta`` device) and called there. Every operation then tells the shapes of
its results without computing them, and what of these is alive at once is counted.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_trt_core.models.checkpoint import INT8, Checkpoint, kept_in, torch_dtype
from wan_trt_core.models.components import get_component
from wan_trt_core.models.components.dit import image_tokens
from wan_trt_core.models.random_weights import UMT5_XXL
from wan_trt_core.models.vae_decoder import VaeDecoder

if TYPE_CHECKING:
    from wan_trt_core.models.profiles import Sizes

_STORED = (nn.Linear, nn.Embedding)

STEADY = 3
"""Latent frames after which every step of the VAE holds the same, but for the video that it adds to."""


Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Footprint:
    """What a part needs, in bytes.

    Attributes:
        weights: of its parameters.
        working: the most that a call holds beside them and what it is given, its results included.
        outputs: of its results.
    """

    weights: int
    working: int
    outputs: int = 0


def _remembered(
    compute: Callable[Concatenate[Checkpoint, Given], Result],
) -> Callable[Concatenate[Checkpoint, Given], Result]:
    """``compute``, called once for the same arguments. What it says is kept with the checkpoint and goes with it: the
    function's own cache would hold the checkpoint for ever, and with it the weights that it has loaded."""

    @functools.wraps(compute)
    def remembering(checkpoint: Checkpoint, /, *args: Given.args, **keywords: Given.kwargs) -> Result:
        known = vars(checkpoint).setdefault("_footprints", {})
        key = compute.__name__, args, *sorted(keywords.items())
        if key not in known:
            known[key] = compute(checkpoint, *args, **keywords)
        found: Result = known[key]
        return found

    return remembering


class EmptyCheckpoint(Checkpoint):
    """The modules of a checkpoint without memory for their weights, in the dtypes that they would be loaded in."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._of = checkpoint
        self._modules = {}
        self.parts = tuple(dict.fromkeys((*checkpoint.parts, "text_encoder")))

    @property
    def source(self) -> str:
        return self._of.source

    def config(self, part: str) -> dict[str, Any]:
        if part == "text_encoder" and part not in self._of.parts:
            return dict(UMT5_XXL)
        return self._of.config(part)

    def pipeline_config(self) -> dict[str, Any]:
        return self._of.pipeline_config()

    def _load(self, part: str, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        module = self.empty(part)
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(kept_in(module, name, dtype))
        return module.to("meta")


@_remembered
def _emptied(checkpoint: Checkpoint) -> EmptyCheckpoint:
    return EmptyCheckpoint(checkpoint)


@_remembered
def stock_footprint(
    checkpoint: Checkpoint, part: str, precision: str, video: Sizes, *, convolved_on: str | None = None
) -> Footprint:
    """Of a part as diffusers runs it: one call of an encoder or of a transformer, or of the VAE a whole decode.

    Args:
        convolved_on: ``cuda`` or ``cpu``: count what convolutions over frames take there for themselves. cuDNN's copy
            what they read and write into another order (held against an H200: 9.90 GB were counted and 9.92 measured
            for the decode of 480x832 by 81 frames); on a CPU the small ones write out a matrix (:data:`SMALL`).
    """
    stored = "fp32" if precision == INT8 else precision
    module: Any = _emptied(checkpoint).load(part, stored, "meta")
    dtype = torch_dtype(stored)
    frames, height, width = video.latent_frames, video.latent_height, video.latent_width
    channels = checkpoint.config("vae")["z_dim"]
    if part == "text_encoder":
        # a mask with four axes is taken as it is; of any other the values would be looked at
        tokens, mask = (1, video.text_length), (1, 1, video.text_length, video.text_length)
        call = functools.partial(module, _empty(tokens, torch.int64), _empty(mask, dtype))
        working, outputs = live_bytes(call, module)
        if precision != INT8:
            return Footprint(weight_bytes(module), working, outputs)
        matrices = {
            id(layer.weight): layer.weight for layer in module.modules() if isinstance(layer, _STORED)
        }
        saved = sum(weight.nbytes - weight.numel() - 4 * len(weight) for weight in matrices.values())
        largest = max(layer.weight.nbytes for layer in module.modules() if isinstance(layer, nn.Linear))
        return Footprint(weight_bytes(module) - saved, working + largest, outputs)
    if part == "image_encoder":
        side = checkpoint.config(part)["image_size"]
        call = functools.partial(module, _empty((1, 3, side, side), dtype), output_hidden_states=True)
        return Footprint(weight_bytes(module), *live_bytes(call, module))
    if part.startswith("transformer"):
        config = checkpoint.config(part)
        a_token = (frames * (height // 2) * (width // 2),) if checkpoint.timestep_by_frame else ()
        image = config.get("image_dim")
        call = functools.partial(
            module,
            _empty((1, config["in_channels"], frames, height, width), dtype),
            _empty((1, *a_token), torch.float32),
            _empty((1, video.text_length, config["text_dim"]), dtype),
            _empty((1, image_tokens(checkpoint), image), dtype) if image else None,
            return_dict=False,
        )
        return Footprint(weight_bytes(module), *live_bytes(call, module))
    steps = min(frames, STEADY)
    decode = functools.partial(
        module.decode, _empty((1, channels, steps, height, width), dtype), return_dict=False
    )
    working, outputs = live_bytes(decode, module, convolved_on=convolved_on)
    later = 4 * (frames - steps) * 3 * video.height * video.width * dtype.itemsize
    return Footprint(weight_bytes(module), working + later, outputs + later)


@_remembered
def encode_footprint(
    checkpoint: Checkpoint, precision: str, video: Sizes, *, convolved_on: str | None = None
) -> Footprint:
    """Of the VAE as diffusers encodes a video with it, without results; ``convolved_on`` as :func:`stock_footprint`."""
    module: Any = _emptied(checkpoint).load("vae", precision, "meta")
    frames = min(video.frames, 4 * STEADY - 3)
    given = _empty((1, 3, frames, video.height, video.width), torch_dtype(precision))
    call = functools.partial(module.encode, given, return_dict=False)
    working, _ = live_bytes(call, module, convolved_on=convolved_on)  # what it gives is a distribution
    return Footprint(weight_bytes(module), working)


@_remembered
def stock_bytes(checkpoint: Checkpoint, part: str, precision: str) -> int:
    """Of the weights of diffusers' or transformers' own module."""
    return weight_bytes(_emptied(checkpoint).load(part, precision, "meta"))


@_remembered
def engine_bytes(checkpoint: Checkpoint, component: str, precision: str) -> int:
    """Of the weights of the graph that an engine is built of: so large is its ONNX file, and about so large the engine
    (those of the 1.3B have 3.00 GiB by this and 3.02 in the baselines of an H200)."""
    with torch.device("meta"):
        return weight_bytes(get_component(component).graph(_emptied(checkpoint), precision))


@_remembered
def graph_footprint(
    checkpoint: Checkpoint, component: str, precision: str, video: Sizes, *, lean: bool = False
) -> Footprint:
    """Of the graph that an engine is built of, as PyTorch would run it.

    Args:
        lean: the VAE decoder's in the form that needs less memory.
    """
    part, empty = get_component(component), _emptied(checkpoint)
    if lean and isinstance(part, VaeDecoder):
        part = part.in_less_memory()
    with torch.device("meta"):
        graph = part.graph(empty, precision)
    sizes = part.sizes(video)
    inputs = [_empty(spec.shape(sizes), spec.torch_dtype(precision)) for spec in part.inputs(empty)]
    working, outputs = live_bytes(functools.partial(graph, *inputs), graph, convolved_on="cuda")
    return Footprint(weight_bytes(graph), working, outputs)


def weight_bytes(module: nn.Module) -> int:
    """Of the parameters, each once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def live_bytes(
    call: Callable[[], object],
    module: nn.Module,
    *,
    convolved_on: str | None = None,
    fused: bool = True,
) -> tuple[int, int]:
    """The most bytes that are alive during a call, without the module's own, and those of its results.

    Args:
        convolved_on: as :func:`stock_footprint`.
        fused: PyTorch's attention writes no scores.
    """
    live = _Live(module, convolved_on)
    with torch.no_grad(), _FusedAttention() if fused else _WrittenAttention(), live:
        results = call()
    return live.peak, sum(leaf.nbytes for leaf in tree_leaves(results) if isinstance(leaf, Tensor))


SMALL = 20_480
"""Channels x frames x rows up to which PyTorch leaves a convolution over frames on a CPU to its own code (`use_mkldnn`
in its `Convolution.cpp`), which writes out the pixels that every output is made of: a matrix of 216 MiB for 8 channels
of 4 frames of 256x256, where oneDNN needs 5. Measured so with PyTorch 2.15."""


class _FusedAttention(TorchFunctionMode):
    """PyTorch's attention as its fused kernels do it, which write no scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return self.attended(named["query"], named["key"], named["value"])

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class _WrittenAttention(_FusedAttention):
    """As ONNX Runtime does it on a CPU: in two products, the scores between them."""

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.transpose(-2, -1), dim=-1) @ value


class _Live(TorchDispatchMode):
    """Counts the storages that operations make, from their making until nobody holds them."""

    def __init__(self, module: nn.Module, convolved_on: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._convolved_on = convolved_on
        self._now = 0
        own = (*module.parameters(), *module.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        own = 0
        if func is torch.ops.aten.convolution.default and results.dim() == 5:
            own = self._convolution(args[0], args[1], results)
        self.peak = max(self.peak, self._now + own)
        return results

    def _convolution(self, pixels: Tensor, weight: Tensor, results: Tensor) -> int:
        """What it takes for itself."""
        if self._convolved_on == "cuda":
            return int(pixels.nbytes + results.nbytes)
        if self._convolved_on == "cpu" and pixels.shape[:4].numel() <= SMALL and weight[0, 0].numel() > 1:
            return int(results[0, 0].numel() * weight[0].numel() * results.itemsize)
        return 0

    def _add(self, storage: Any) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, address: int, size: int) -> None:
        self._known.discard(address)  # another storage may get it
        self._now -= size


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
