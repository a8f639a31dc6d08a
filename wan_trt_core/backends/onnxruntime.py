"""ONNX Runtime: engines that run on any CPU. Its providers for GPUs, ``onnxruntime_cuda`` and
``onnxruntime_tensorrt``, are built on what is here.

An engine folder holds the graph after ONNX Runtime's own optimisation (``{component}_{precision}.onnx``,
weights beside it) and ``engine.json``. Loading it optimises nothing again.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from wan_trt_core.backends._tensors import (
    UNKNOWN,
    check_devices,
    check_inputs,
    check_outputs,
    dtype_name,
    output_shape,
)
from wan_trt_core.backends.base import (
    BackendUnavailable,
    Device,
    Engine,
    EngineBackend,
    EngineError,
    OnnxModel,
    Progress,
    TensorInfo,
)
from wan_trt_core.distributions import ONNX_RUNTIME, distribution_versions
from wan_trt_core.measure.environment import cpu_name

if TYPE_CHECKING:
    from wan_trt_core.backends.tensorrt.cuda import CudaStream
    from wan_trt_core.config import Settings

Providers = list[tuple[str, dict[str, str]]]
"""Execution providers in order of preference, each with its options."""

DESCRIPTION = "engine.json"
"""What the folder holds, for :meth:`OnnxRuntimeBackend.load`."""

EXTERNAL_BYTES = 1024
"""Weights from this size on are stored beside the graph, which has no room for 2 GiB and is read whole."""

_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# ONNX Runtime's name, PyTorch's name, onnx.TensorProto's number
_TYPES = (
    ("float", "float32", 1),
    ("uint8", "uint8", 2),
    ("int8", "int8", 3),
    ("int32", "int32", 6),
    ("int64", "int64", 7),
    ("bool", "bool", 9),
    ("float16", "float16", 10),
    ("double", "float64", 11),
    ("bfloat16", "bfloat16", 16),
)
_DTYPES = {f"tensor({ort})": name for ort, name, _ in _TYPES}
_ELEMENTS = {name: number for _, name, number in _TYPES}


@dataclass(frozen=True)
class Description:
    """What ``engine.json`` holds.

    Attributes:
        graph: name of the graph's file.
        weights: bytes.
        shapes: min, opt and max of each input, as the engine was built for them.
    """

    component: str
    precision: str
    graph: str
    weights: int
    shapes: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.component}_{self.precision}"


class OnnxRuntimeEngine(Engine):
    """A session that reads its inputs where they are and writes its outputs where they are wanted.

    Args:
        stream: the one that the session was made to work on, on a GPU.
    """

    def __init__(
        self, description: Description, session: Any, settings: Settings, stream: CudaStream | None = None
    ) -> None:
        self.name = f"engine {description.name}"
        self.description = description
        self.inputs = {node.name: _info(node) for node in session.get_inputs()}
        self.outputs = {node.name: _info(node) for node in session.get_outputs()}
        self._settings = settings
        self._session: Any | None = session
        self._stream = stream
        self._device = stream.device if stream else torch.device("cpu")

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the outputs are new tensors on the engine's device.

        Raises:
            EngineError: for a missing, superfluous, wrongly typed, shaped or placed tensor, by name; for an
                engine that is closed; for what ONNX Runtime refuses, with its message.
        """
        return self.run_into(inputs, {})

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`run`, the named outputs written into the given tensors without a copy."""
        session = self._open()
        sizes = check_inputs(self.name, self.inputs, inputs)
        check_outputs(self.name, self.outputs, outputs, sizes, inputs)
        check_devices(self.name, self._device, inputs, outputs)
        binding = session.io_binding()
        read = {name: inputs[name].contiguous() for name in self.inputs}
        for name, tensor in read.items():
            binding.bind_input(name, *_place(tensor))
        written: dict[str, Tensor] = {}
        for name, info in self.outputs.items():
            target = outputs.get(name)
            if target is None:
                target = self._allocate(info, sizes)
            if target is None:
                binding.bind_output(name, self._device.type, self._device.index or 0)
            else:
                binding.bind_output(name, *_place(target))
                written[name] = target
        with self._in_order():
            self._execute(session, binding, {**read, **written})
        if len(written) == len(self.outputs):
            return written
        results = zip(self.outputs, binding.get_outputs(), strict=True)
        return {
            name: written[name] if name in written else from_dlpack(value._ortvalue)
            for name, value in results
        }

    def memory(self) -> dict[str, int]:
        """``weights``: bytes of the graph's weights. ONNX Runtime tells nothing of its arena."""
        return {"weights": self.description.weights}

    @contextmanager
    def profiled(self, graph: Path, prefix: Path) -> Iterator[list[Path]]:
        """Meanwhile ONNX Runtime's profiler watches every node: another session on the CPU runs the same engine.

        Args:
            graph: the engine's file.
            prefix: of the name of the profile.

        Yields:
            A list that holds the profile's file (a JSON list of events) once this has ended.
        """
        options = session_options(self._settings, "disabled")
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        providers: Providers = [("CPUExecutionProvider", {})]
        usual, found = self._open(), list[Path]()
        self._session = watched = new_session(graph, options, providers, f"profiling {self.name}")
        try:
            yield found
        finally:
            self._session = usual
            found.append(Path(watched.end_profiling()))

    def close(self) -> None:
        """Release the session."""
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise EngineError(f"{self.name} is closed")
        return self._session

    def _allocate(self, info: TensorInfo, sizes: Mapping[str, int]) -> Tensor | None:
        shape = output_shape(info, sizes)
        return (
            None
            if shape is None
            else torch.empty(shape, dtype=getattr(torch, info.dtype), device=self._device)
        )

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """After what the caller has asked of the GPU so far, before what it asks from then on; one call at a time."""
        if self._stream is None:
            yield
            return
        with self._stream.turn():
            self._stream.after_caller()
            try:
                yield
            finally:  # what was asked of the GPU before an error or Ctrl-C still reads and writes these tensors
                self._stream.before_caller()

    def _run_options(self, bound: Mapping[str, Tensor]) -> Any:
        """How ONNX Runtime is to run once with these tensors bound; None for as always."""
        return None

    def _execute(self, session: Any, binding: Any, bound: Mapping[str, Tensor]) -> None:
        try:
            session.run_with_iobinding(binding, self._run_options(bound))
        except _ort_errors() as error:
            raise EngineError(f"{self.name}: ONNX Runtime: {error}") from error


class OnnxRuntimeBackend(EngineBackend):
    """Builds, loads and runs with ONNX Runtime on the CPU; the base of its other providers.

    Attributes:
        provider: the execution provider that must load.
        install: how to get it.
        engine: what a loaded engine becomes.
    """

    name: ClassVar[str] = "onnxruntime"
    runs_on: ClassVar[Device | None] = "cpu"
    provider: ClassVar[str] = "CPUExecutionProvider"
    install: ClassVar[str] = 'pip install "wan-trt-core[cpu]", or "wan-trt-core[gpu]" for a GPU (never both)'
    engine: ClassVar[type[OnnxRuntimeEngine]] = OnnxRuntimeEngine

    def require(self, settings: Settings) -> None:
        """Raise unless one build of ONNX Runtime is installed and has the provider.

        Raises:
            BackendUnavailable: with what to install, or the providers that there are.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"the {self.name} backend needs ONNX Runtime, which does not import here: {error};"
                f" {self.install}"
            ) from error
        builds = distribution_versions(*ONNX_RUNTIME)
        if len(builds) > 1:
            raise BackendUnavailable(
                f"{' and '.join(builds)} are both installed and overwrite each other's files:"
                f" pip uninstall -y {' '.join(builds)}, then install one of them"
            )
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise BackendUnavailable(
                f"this ONNX Runtime {onnxruntime.__version__} has no {self.provider}; it has"
                f" {', '.join(available)}; {self.install}"
            )

    def versions(self) -> dict[str, str]:
        """Version of the ONNX Runtime distribution that is installed."""
        return distribution_versions(*ONNX_RUNTIME)

    def options(self, settings: Settings, precision: str) -> dict[str, Any]:
        """Optimisation level and provider."""
        return {
            "graph_optimization_level": settings.onnxruntime.graph_optimization_level,
            "provider": self.provider,
        }

    def device(self, settings: Settings) -> str:
        """The CPU: at level ``all`` the graph is laid out for this very one's vector unit."""
        if settings.onnxruntime.graph_optimization_level != "all":
            return f"cpu {platform.machine()}"
        return f"cpu {cpu_name()} {torch.backends.cpu.get_cpu_capability()}"

    def build(
        self, model: OnnxModel, folder: Path, settings: Settings, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Optimise the graph and save it; facts: ``build_seconds``, ``weights`` in bytes.

        Raises:
            EngineError: when ONNX Runtime refuses the model or cannot write, or a provider does not load.
            BackendUnavailable: as :meth:`require`.
        """
        self.require(settings)
        report = progress or (lambda phase, fraction: None)
        report("optimise", 0.0)
        started = time.perf_counter()
        description = Description(model.component, model.precision, model.path.name, 0, model.shapes)
        weights = self.make(model, description, folder, settings)
        description = replace(description, weights=weights)
        (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n")
        report("optimise", 1.0)
        return {"build_seconds": time.perf_counter() - started, "weights": weights}

    def make(self, model: OnnxModel, description: Description, folder: Path, settings: Settings) -> int:
        """Leave in the folder what :meth:`session` reads there; returns the bytes of the weights."""
        graph = folder / description.graph
        options = session_options(settings, settings.onnxruntime.graph_optimization_level)
        options.optimized_model_filepath = str(graph)
        entries = {
            "session.optimized_model_external_initializers_file_name": f"{graph.name}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": str(EXTERNAL_BYTES),
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        new_session(model.path, options, self.providers(settings), f"building engine {description.name}")
        return _weights(graph)

    def load(self, folder: Path, settings: Settings) -> OnnxRuntimeEngine:
        """Load an engine.

        Raises:
            EngineError: when the folder holds none, ONNX Runtime refuses it, or a provider did not load.
            BackendUnavailable: as :meth:`require`.
        """
        self.require(settings)
        description = _read_description(folder)
        stream = self.stream()
        session = self.session(folder, description, settings, stream)
        return self.engine(description, session, settings, stream)

    def session(
        self, folder: Path, description: Description, settings: Settings, stream: CudaStream | None
    ) -> Any:
        """ONNX Runtime's session for an engine on disk."""
        options = session_options(settings, "disabled")  # it was optimised when it was built
        providers = self.providers(settings, stream)
        return new_session(
            folder / description.graph, options, providers, f"loading engine {description.name}"
        )

    def providers(self, settings: Settings, stream: CudaStream | None = None) -> Providers:
        """What a session runs on, for a session that works on that stream."""
        return [(self.provider, {})]

    def stream(self) -> CudaStream | None:
        """A stream for one engine; None on the CPU."""
        return None


def session_options(settings: Settings, level: str) -> Any:
    """The options of every session, at a level of ``onnxruntime.graph_optimization_level``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    options.intra_op_num_threads = settings.threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = (
        3  # its warnings are on saved graphs being hardware specific, as `device` knows
    )
    spinning = "1" if settings.onnxruntime.allow_spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    # Threads that go on spinning after a run would slow down what runs next: the other arm of a comparison.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def new_session(path: Path, options: Any, providers: Providers, doing: str) -> Any:
    """A session on exactly these providers.

    Raises:
        EngineError: when ONNX Runtime refuses the graph, or a provider does not load.
    """
    import onnxruntime

    try:
        # Its own fallback would turn a refusal by the GPU into a session on the CPU.
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except _ort_errors() as error:
        raise EngineError(f"{doing}: ONNX Runtime refuses {path}: {error}") from error
    asked = [name for name, _ in providers]
    # ONNX Runtime appends the CPU for what the others cannot run; that one alone may come unasked.
    loaded = [name for name in session.get_providers() if name in asked or name != "CPUExecutionProvider"]
    if loaded != asked:
        raise EngineError(
            f"{doing}: silent fallback: asked for {', '.join(asked)}, ONNX Runtime loaded"
            f" {', '.join(session.get_providers())}; `wan-trt doctor` shows which backends load and why not"
        )
    return session


def _place(tensor: Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
    """What ``bind_input`` and ``bind_output`` take: device, its index, element type, shape, address."""
    device, shape = tensor.device, tuple(tensor.shape)
    return device.type, device.index or 0, _ELEMENTS[dtype_name(tensor.dtype)], shape, tensor.data_ptr()


def _info(node: Any) -> TensorInfo:
    if node.type not in _DTYPES:
        raise EngineError(
            f"tensor {node.name!r} is a {node.type}, which this backend cannot exchange with PyTorch"
        )
    return TensorInfo(_DTYPES[node.type], tuple(UNKNOWN if axis is None else axis for axis in node.shape))


def _weights(graph: Path) -> int:
    """Bytes of the weights, read from the saved graph without loading them."""
    import onnx

    total = 0
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        total += math.prod(tensor.dims) * itemsize
    return total


def _read_description(folder: Path) -> Description:
    path = folder / DESCRIPTION
    try:
        return Description(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{path}: no engine of the onnxruntime backend: {error}") from error


def _ort_errors() -> tuple[type[Exception], ...]:
    """Every exception of ONNX Runtime: they have no common base, and some are plain RuntimeErrors."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    own = (kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError)


BACKEND = OnnxRuntimeBackend()
