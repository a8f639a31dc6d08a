"""The interface between the core and whatever executes a graph.

There are two kinds of backend. A :class:`ModuleBackend` runs diffusers' own PyTorch module, perhaps wrapped
(``torch``, the reference, and ``torch-compile``). An :class:`EngineBackend` turns a checked ONNX model into
an engine on disk, loads it, and runs it (``onnxruntime`` and its GPU providers, ``tensorrt``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_trt_core.config import Settings

Progress = Callable[[str, float], None]
"""Called with the name of the phase and the fraction done, 0 to 1."""


Device = Literal["cpu", "cuda"]


class BackendUnavailable(RuntimeError):
    """The backend cannot run on this machine; the message says why and what to install."""


class EngineError(RuntimeError):
    """An engine could not be built, loaded or run; the message names the engine and the tensor or file."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of an engine's input or output; a dynamic axis is a string."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxModel:
    """A checked ONNX model on disk, as the exporter left it (see ``wan_trt_core.export``).

    Attributes:
        component: name of the component it was exported from.
        path: the ``.onnx`` file, ``{component}_{precision}.onnx``, external data beside it.
        sha256: hash over the graph file and its external data: the identity of the engine's source.
        profile: the shape profile (name and per-input min, opt, max shapes) that it was exported for.
        opt_shapes: as ``shapes``, of the profile's opt alone: more than one where calls for one video differ.
        block_outputs: names of the extra per-block outputs; empty in a model that is built for speed.
        largest_activations: of a model in FP16, or with caches in it, the largest absolute value that each layer of the
            stock module put out, by the layer's name.
        compared: the profile's points, or the smaller size, at which it was compared with PyTorch.
    """

    component: str
    precision: str
    path: Path
    sha256: str
    profile: str
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    opt_shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    block_outputs: tuple[str, ...] = ()
    largest_activations: Mapping[str, float] | None = None
    compared: tuple[str, ...] = ()


class Engine(ABC):
    """A loaded engine: named tensors in, named tensors out."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    caches: int = 0
    """Bytes that whoever streams with it holds for its next call; no part of :meth:`memory`."""

    @property
    def problems(self) -> tuple[str, ...]:
        """In what the engine is not what was meant to be built (an attention that was not fused): such an engine may
        run, but a case that uses it is ``invalid``."""
        return ()

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once. The inputs are not modified; the outputs are the caller's to keep.

        Raises:
            EngineError: for a missing, superfluous, wrongly typed or wrongly shaped tensor, by name.
        """

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`run`, but writes the outputs named in ``outputs`` into those tensors.

        They must be contiguous, of the right dtype and shape, and share no memory with the inputs. Outputs
        that are not named are allocated. This default copies; a backend that can bind addresses overrides it.

        Raises:
            EngineError: as :meth:`run`, and for an output that cannot be written to, by name.
        """
        results = self.run(inputs)
        unknown = set(outputs) - set(results)
        if unknown:
            raise EngineError(f"no output {sorted(unknown)[0]!r}; there are {', '.join(results)}")
        for name, tensor in outputs.items():
            tensor.copy_(results[name])
        return {**results, **outputs}

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """Meanwhile nothing is replayed as a CUDA graph, so that what graphs gain can be measured. A backend that has
        none is as it always is."""
        yield

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Bytes it is known to hold, by owner (``weights``, ``workspace`` …), as far as the backend tells."""

    @property
    def working(self) -> int:
        """Bytes that it will hold at work beside its weights, where the backend tells before it runs."""
        return 0

    @property
    def graphs(self) -> int:
        """CUDA graphs held now. What they hold of the GPU no library tells."""
        return 0

    def keep(self, caches: int) -> None:
        """Be told that so many bytes of :attr:`caches` are held from now on."""
        self.caches = caches

    def close(self) -> None:  # noqa: B027  (an engine that holds nothing has nothing to release)
        """Release what the engine holds. Running it afterwards is an error."""


class Backend(ABC):
    """What both kinds of backend have."""

    name: ClassVar[str]
    runs_on: ClassVar[Device | None] = None
    """Where it runs, if it runs in one place only; else it takes a CUDA GPU where there is one."""
    refuses: ClassVar[tuple[str, ...]] = ()
    """Settings, by dotted key, that it does not run with where they are on."""

    @abstractmethod
    def require(self, settings: Settings) -> None:
        """Raise unless this backend can run here.

        Raises:
            BackendUnavailable: with the reason and the extra or package to install.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of what executes the graph: part of every record."""


class ModuleBackend(Backend):
    """Runs diffusers' own module in PyTorch."""

    @abstractmethod
    def wrap(self, module: nn.Module, settings: Settings) -> nn.Module:
        """The module to call instead of diffusers' own (itself, or compiled)."""


class EngineBackend(Backend):
    """Builds engines from ONNX, loads and runs them.

    Attributes:
        precisions: of the graphs that it runs.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")

    def built_by(self) -> dict[str, str]:
        """Those of :meth:`versions` that decide what is built, all unless a backend says otherwise: part of an engine's
        identity."""
        return self.versions()

    @abstractmethod
    def options(self, settings: Settings, precision: str) -> dict[str, Any]:
        """The build options that these settings come to for an engine of a precision: part of its identity,
        JSON-serialisable."""

    @abstractmethod
    def device(self, settings: Settings) -> str:
        """What the engine is built for (an engine loads only there): part of its identity."""

    @abstractmethod
    def build(
        self, model: OnnxModel, folder: Path, settings: Settings, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build an engine into an empty folder; returns facts for its manifest (timings, sizes).

        The caller (``engine_cache``) makes the folder visible only after this returns, so an interrupted or
        failed build leaves nothing behind.
        """

    @abstractmethod
    def load(self, folder: Path, settings: Settings) -> Engine:
        """Load an engine that :meth:`build` left and whose manifest has been verified."""
