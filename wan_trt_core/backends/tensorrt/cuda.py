"""A stream of its own on one GPU, and CUDA graphs on it, by cuda-python's runtime bindings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from wan_trt_core.backends.base import BackendUnavailable, EngineError
from wan_trt_core.gates.formatting import GIB


class CaptureRefused(RuntimeError):
    """The work cannot become a CUDA graph; it still runs without one."""


class CudaStream:
    """A stream that the work of engines runs on. TensorRT synchronises on the default one, which cannot be captured.

    Args:
        device: the GPU, by index.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.RLock()
        self._caller: torch.cuda.Stream | None = None

    @property
    def handle(self) -> int:
        """The ``cudaStream_t``."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One call at a time, its GPU the current one.

        Other threads wait meanwhile. A caller on another stream than the one before waits for all that was asked of
        that one: until then its results may lie in the buffers that this call writes.
        """
        with self._lock, self.on_device():
            caller, self._caller = self._caller, torch.cuda.current_stream(self.device)
            if caller is not None and caller != self._caller:
                self._caller.wait_stream(caller)
            yield

    def after_caller(self) -> None:
        """Wait for what the caller has asked for so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def before_caller(self) -> None:
        """Let what the caller asks for from now on wait for this stream."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait until the work is done."""
        self._stream.synchronize()

    def on_device(self) -> AbstractContextManager[Any]:
        """Context in which this stream's GPU is the current one: TensorRT and CUDA graphs belong to that."""
        return torch.cuda.device(self.device)

    def capture(self, work: Callable[[], bool]) -> CudaGraph:
        """Record what ``work`` asks of this stream, without running it.

        Raises:
            CaptureRefused: when the work cannot be recorded. The stream is usable afterwards.
        """
        runtime = _runtime()
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        success = runtime.cudaError_t.cudaSuccess

        def refused(what: str, error: Any) -> CaptureRefused:
            runtime.cudaGetLastError()  # a refusal leaves an error that the next call would report
            return CaptureRefused(f"{what} ({_text(runtime, error)})")

        (error,) = runtime.cudaStreamBeginCapture(self.handle, mode)
        if error != success:
            raise refused("the stream cannot be recorded", error)
        try:
            accepted = work()
        except BaseException:  # Ctrl-C too: a stream that goes on recording runs nothing any more
            _, graph = runtime.cudaStreamEndCapture(self.handle)
            if graph is not None:
                runtime.cudaGraphDestroy(graph)
            runtime.cudaGetLastError()
            raise
        error, graph = runtime.cudaStreamEndCapture(self.handle)
        if error != success:
            raise refused("the engine's work was refused", error)
        try:
            if not accepted:
                raise refused("TensorRT refused the engine's work", error)
            error, executable = runtime.cudaGraphInstantiate(graph, 0)
            if error != success:
                raise refused("the graph cannot be instantiated", error)
        finally:
            runtime.cudaGraphDestroy(graph)
        return CudaGraph(executable, self)


class CudaGraph:
    """Recorded work. It has the shapes and the addresses of its tensors fixed in it."""

    def __init__(self, executable: Any, stream: CudaStream) -> None:
        self._executable: Any | None = executable
        self._stream = stream

    def launch(self) -> None:
        """Run the work on the stream that it was recorded on.

        Raises:
            EngineError: when CUDA refuses.
        """
        runtime = _runtime()
        _check(runtime, *runtime.cudaGraphLaunch(self._executable, self._stream.handle))

    def close(self) -> None:
        """Give the graph back."""
        if self._executable is not None:
            _runtime().cudaGraphExecDestroy(self._executable)
            self._executable = None


def require_cuda() -> None:
    """Raise unless there is a GPU and the bindings that graphs need.

    Raises:
        BackendUnavailable: with what is missing.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "the tensorrt backend needs an NVIDIA GPU, and PyTorch sees none; `wan-trt doctor` shows the driver"
        )
    _runtime()


def on_callers_gpu() -> AbstractContextManager[Any]:
    """Context for another thread, which would begin on the first GPU: makes the one that is current here its own."""
    return torch.cuda.device(torch.cuda.current_device()) if torch.cuda.is_available() else nullcontext()


def free_memory(device: torch.device | None = None) -> str:
    """What is free on a GPU, the current one unless named, for an error message: which it takes nothing from where the
    GPU does not answer any more."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        why, *_ = str(error).split("\n")
        return f"what is free is not known: {why}"
    return f"{free / GIB:.2f} of {total / GIB:.2f} GiB are free on {torch.cuda.get_device_name(device)}"


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailable(
            f"CUDA graphs need cuda-python 12.6 or later: {error};"
            ' pip install "wan-trt-core[gpu,tensorrt]", or set tensorrt.cuda_graphs to false'
        ) from error
    return runtime


def _check(runtime: Any, error: Any, *_: Any) -> None:
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA: {_text(runtime, error)}")


def _text(runtime: Any, error: Any) -> str:
    _, text = runtime.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)
