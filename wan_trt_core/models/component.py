"""What a component is: the part of a checkpoint that is exported, built into an engine and judged on its own.

A component is one file in ``models/components/`` whose name is the component's name and which defines
``COMPONENT``, an instance of a :class:`Component` subclass; nothing else has to be registered. Another package brings
one by an entry point, see :mod:`wan_trt_core.models.installed`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import Point, ShapeProfile, Sizes

Tensors = dict[str, "Tensor"]
"""Named tensors: the only thing that flows between components, engines and measurements."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a component's graph.

    Attributes:
        name: the tensor's name in PyTorch, ONNX and the engine alike.
        axes: one entry an axis: an ``int`` where the size is fixed by the checkpoint, else an expression
            over the component's dynamic axes such as ``"height"`` or ``"8*height"``. Only an output's may be a product
            of several (of an input that is an axis of its own, as ``"tokens"``), or what the exporter writes for it to
            the letter, as ``"8*frames - 7"``.
        dtype: ``"float32"``, ``"int64"``, or ``"precision"`` for the precision the component is exported in.
    """

    name: str
    axes: tuple[int | str, ...]
    dtype: str = "precision"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for the given sizes of the dynamic axes."""
        return tuple(axis if isinstance(axis, int) else evaluate_axis(axis, sizes) for axis in self.axes)

    def torch_dtype(self, precision: str) -> torch.dtype:
        """What it is in a component of that precision."""
        import torch

        from wan_trt_core.models.checkpoint import torch_dtype

        dtype: torch.dtype = (
            torch_dtype(precision) if self.dtype == "precision" else getattr(torch, self.dtype)
        )
        return dtype

    def nbytes(self, sizes: Mapping[str, int], precision: str) -> int:
        """Of the tensor, for the given sizes of the dynamic axes."""
        return math.prod(self.shape(sizes)) * self.torch_dtype(precision).itemsize


def evaluate_axis(expression: str, sizes: Mapping[str, int]) -> int:
    """Value of an axis expression: a product of factors such as ``"height"``, ``"2*height"``, ``"a*b*c"``.

    Raises:
        KeyError: when the expression names an axis that ``sizes`` lacks.
    """
    value = 1
    for factor in expression.split("*"):
        value *= int(factor) if factor.isdigit() else sizes[factor]
    return value


class Component(ABC):
    """One exportable part of a model, beside the stock diffusers call that it replaces.

    Two sets of named tensors are told apart everywhere:

    * *call tensors*: what diffusers' own call receives and returns (``hidden_states``, ``timestep`` …);
    * *graph tensors*: what the export-friendly graph, and so the engine, receives and returns.
      :meth:`prepare` turns the first into the second.
    """

    name: ClassVar[str]
    architecture: ClassVar[str] = "wan"
    """That of the checkpoints that it is a component of."""
    part: ClassVar[str]
    """Folder of the checkpoint that holds the weights: ``transformer``, ``vae`` or ``text_encoder``."""
    inside: ClassVar[str]
    """Path of a submodule of the part that runs whenever diffusers' own call does."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    convolutional: ClassVar[bool] = False
    """Its work is convolutions: of float32 ones PyTorch takes TF32 on a GPU unless told otherwise, of matrix products
    not, and so do its engines in float32."""
    fp32_islands: ClassVar[tuple[str, ...]] = ()
    """What stays in float32 inside a half-precision graph, for people and reports."""

    def is_of(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is of its architecture and has its part."""
        return self.architecture == checkpoint.architecture and self.part in checkpoint.parts

    @abstractmethod
    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in the order of its ``forward``."""

    @abstractmethod
    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in the order in which its ``forward`` returns them."""

    @abstractmethod
    def sizes(self, video: Sizes) -> dict[str, int]:
        """Sizes of the graph's dynamic axes for a video of the given pixels, frames and text length."""

    def sizes_at(self, profile: ShapeProfile, point: Point) -> dict[str, int]:
        """:meth:`sizes` of the video at a point of a profile, which an engine is built for."""
        return self.sizes(profile.at(point))

    def profile_name(self, profile: ShapeProfile) -> str:
        """The profile's name as far as its sizes matter to this component: one engine serves all that agree."""
        return profile.name

    @abstractmethod
    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        """The export-friendly module, weights loaded, in eval mode.

        With ``block_outputs`` its ``forward`` returns, after the declared outputs, one more tensor for each
        name in :meth:`blocks`. An attribute ``repeated`` of its class may name its ``ModuleList`` of blocks that run
        one after the other and differ in their weights alone: three of them are traced, however many there are.
        """

    @abstractmethod
    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> Tensors:
        """Realistic float32 inputs of diffusers' own call (noise at a real timestep, a real prompt …)."""

    def calibration_calls(self, checkpoint: Checkpoint, video: Sizes) -> tuple[Tensors, ...]:
        """Call tensors that between them show what a whole run puts through the component."""
        return (self.call_tensors(checkpoint, video),)

    def in_full(self, checkpoint: Checkpoint, call: Tensors) -> Tensors:
        """Call tensors as :meth:`call_tensors`' of which the graph leaves nothing out: each of its values then has its
        equal in diffusers."""
        return call

    @abstractmethod
    def reference(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        """Diffusers' own forward of this component: call tensors to outputs named as :meth:`outputs`."""

    @abstractmethod
    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        """What runs before the engine in each call: call tensors to the graph's input tensors."""

    def once(self, prepare: Callable[[Tensors], Tensors], call: Tensors) -> Callable[[], object] | None:
        """What ``prepare`` does once a video and not in each call, to be timed apart; ``None`` if nothing."""
        return None

    def of_another_step(self, call: Tensors) -> Tensors:
        """The same call as that of another denoising step, for which ``prepare`` has kept nothing: what is timed."""
        return call

    @abstractmethod
    def blocks(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Names of the intermediate outputs, in the order of computation (``blocks.0``, ``blocks.1`` …)."""

    @abstractmethod
    def reference_blocks(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        """As :meth:`reference`, but returns the outputs of :meth:`blocks`, taken by forward hooks."""

    def form(self, precision: str) -> dict[str, Any]:
        """What tells this form of the component in a precision from its other forms: part of what is made of it."""
        return {}

    def has_bf16(self, precision: str) -> bool:
        """Whether its graph in a precision has BF16, which ONNX Runtime computes nothing in on a CPU."""
        return precision == "bf16"

    def describe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Name, part, inputs, outputs and islands, for ``wan-trt inspect``."""
        return {
            "component": self.name,
            "part": self.part,
            "inputs": {spec.name: list(spec.axes) for spec in self.inputs(checkpoint)},
            "outputs": {spec.name: list(spec.axes) for spec in self.outputs(checkpoint)},
            "fp32_islands": list(self.fp32_islands),
        }
