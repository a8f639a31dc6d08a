"""ONNX Runtime's CUDA provider: the graph's operators by cuDNN, cuBLAS and ONNX Runtime's own kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from wan_trt_core.backends.base import BackendUnavailable, Device
from wan_trt_core.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine, Providers

if TYPE_CHECKING:
    from wan_trt_core.backends.onnxruntime import Description
    from wan_trt_core.backends.tensorrt.cuda import CudaStream
    from wan_trt_core.config import Settings

PROBE_TIMEOUT = 120.0
"""Seconds after which a provider that does not come back counts as not loading."""

MAX_GRAPHS = 8
"""CUDA graphs that an engine records at most."""

_TRY = "import sys; from wan_trt_core.backends.registry import get_backend; get_backend(sys.argv[1]).probe()"
_NOT_LOADED = re.compile(r"Failed to load library (\S+) with error: (.+)")
_NO_GRAPH = -1
"""ONNX Runtime neither records nor replays a run of this number."""


class OnnxRuntimeGpuEngine(OnnxRuntimeEngine):
    """A session on a GPU: streams order its work with PyTorch's, and the processor waits for neither."""

    def _run_options(self, bound: Mapping[str, Tensor]) -> Any:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


class OnnxRuntimeCudaEngine(OnnxRuntimeGpuEngine):
    """A session of the CUDA provider, its work replayed as CUDA graphs if the settings say so."""

    def __init__(
        self, description: Description, session: Any, settings: Settings, stream: CudaStream | None = None
    ) -> None:
        super().__init__(description, session, settings, stream)
        self._graphs: dict[tuple[Any, ...], int] = {}
        self._seen: deque[tuple[Any, ...]] = deque(maxlen=8 * MAX_GRAPHS)

    @property
    def graphs(self) -> int:
        """CUDA graphs that ONNX Runtime holds now."""
        return len(self._graphs) if self._session is not None else 0

    def _run_options(self, bound: Mapping[str, Tensor]) -> Any:
        options = super()._run_options(bound)
        if self._settings.onnxruntime.cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(self._graph(bound)))
        return options

    def _graph(self, bound: Mapping[str, Tensor]) -> int:
        """The number of the graph that replays this call.

        ONNX Runtime records one graph a number and replays it without a look at what is bound, so a number stands
        for shapes and addresses. What comes for the first time, or when there are graphs enough, is not recorded.
        """
        key = tuple((name, tuple(tensor.shape), tensor.data_ptr()) for name, tensor in bound.items())
        all_bound = len(bound) == len(self.inputs) + len(self.outputs)
        if key in self._seen and key not in self._graphs and all_bound and len(self._graphs) < MAX_GRAPHS:
            self._graphs[key] = len(self._graphs)
        self._seen.append(key)
        return self._graphs.get(key, _NO_GRAPH)


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """Builds, loads and runs with ONNX Runtime's CUDA provider on the current GPU."""

    name: ClassVar[str] = "onnxruntime-cuda"
    runs_on: ClassVar[Device | None] = "cuda"
    provider: ClassVar[str] = "CUDAExecutionProvider"
    install: ClassVar[str] = 'pip uninstall -y onnxruntime && pip install "wan-trt-core[gpu]"'
    engine: ClassVar[type[OnnxRuntimeEngine]] = OnnxRuntimeCudaEngine

    def require(self, settings: Settings) -> None:
        """Raise unless there is a GPU and the provider really loads: a session of one node is run on it.

        Raises:
            BackendUnavailable: with what the loader says, and what to install.
        """
        super().require(settings)
        reason = why_not(self.name)
        if reason is not None:
            raise BackendUnavailable(f"{self.provider} does not load: {reason}; {self.remedy()}")
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"the {self.name} backend needs an NVIDIA GPU, and PyTorch sees none")
        self.load_libraries()

    def remedy(self) -> str:
        """What helps where the provider does not load."""
        import onnxruntime

        built_for = getattr(onnxruntime, "cuda_version", "")
        return (
            f"it is built for CUDA {built_for} and cuDNN 9, PyTorch here for CUDA {torch.version.cuda}: install"
            " onnxruntime-gpu and torch for one major version of CUDA, with its libraries"
        )

    def load_libraries(self) -> None:
        """Load the CUDA libraries that PyTorch brought: they lie where the loader does not search."""
        import onnxruntime

        with redirect_stdout(
            StringIO()
        ):  # what it could not find, the provider's own loader names if it matters
            onnxruntime.preload_dlls()

    def probe(self) -> None:
        """Run a graph of one node on the provider; ends the process with what is wrong.

        For a process of its own (:func:`why_not`): a library that does not fit may hang or crash.
        """
        import numpy
        import onnxruntime

        self.load_libraries()
        session = onnxruntime.InferenceSession(_one_node(), providers=[self.provider], enable_fallback=0)
        if self.provider not in session.get_providers():
            sys.exit(f"the session fell back to {', '.join(session.get_providers())}")
        session.run(None, {"x": numpy.ones(1, numpy.float32)})

    def device(self, settings: Settings) -> str:
        """The GPU: kernels are chosen for it."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"cuda {properties.name} sm{properties.major}{properties.minor}"

    def providers(self, settings: Settings, stream: CudaStream | None = None) -> Providers:
        """The CUDA provider; ONNX Runtime adds the CPU, for arithmetic on shapes."""
        cuda_graph = settings.onnxruntime.cuda_graph and stream is not None  # no graph while it is built
        return [("CUDAExecutionProvider", cuda_options(settings, stream, cuda_graph=cuda_graph))]

    def stream(self) -> CudaStream | None:
        """A new stream on the current GPU."""
        from wan_trt_core.backends.tensorrt.cuda import CudaStream

        return CudaStream(torch.device("cuda", torch.cuda.current_device()))


def device_options(stream: CudaStream | None) -> dict[str, str]:
    """The GPU and the stream that a session works on; a stream of ONNX Runtime's own where none is given."""
    if stream is None:
        return {"device_id": str(torch.cuda.current_device())}
    return {"device_id": str(stream.device.index), "user_compute_stream": str(stream.handle)}


def cuda_options(settings: Settings, stream: CudaStream | None, *, cuda_graph: bool) -> dict[str, str]:
    """What the CUDA provider is told."""
    return {
        **device_options(stream),
        "use_tf32": str(int(bool(settings.perf.allow_tf32))),
        "cudnn_conv_algo_search": settings.onnxruntime.cudnn_conv_algo_search.upper(),
        "enable_cuda_graph": str(int(cuda_graph)),
        # By default its arena doubles whenever it grows, and the memory suite would gate that.
        "arena_extend_strategy": "kSameAsRequested",
    }


@cache
def why_not(backend: str) -> str | None:
    """Why a backend's provider does not load here, in its loader's words; None when it loads.

    The list that ONNX Runtime gives says what it was built with. What loads shows only in a session, which would
    fall back to the CPU with no more than a line on stderr.
    """
    search = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _TRY, backend]
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False, env=search
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_TIMEOUT:g} s"
    if tried.returncode == 0:
        return None
    return loaders_words(tried.stderr) or f"the process ended with {tried.returncode}"


def loaders_words(text: str) -> str:
    """What is to be known of what ONNX Runtime wrote: the library that is missing, or else the last line."""
    found = _NOT_LOADED.search(text)
    if found:
        return f"{Path(found[1]).name}: {found[2].strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _one_node() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


BACKEND = OnnxRuntimeCudaBackend()
