"""CUDA graphs on a runtime that only notes what is asked: every result is looked at, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wan_trt_core.backends.base import EngineError
from wan_trt_core.backends.tensorrt import cuda
from wan_trt_core.backends.tensorrt.cuda import CaptureRefused, CudaStream


class FakeRuntime:
    """As ``cuda.bindings.runtime``: every call answers with a tuple that begins with its error."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="of this thread")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = ""

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*given: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            error = 1 if name == self.fails else 0
            made = {"cudaStreamEndCapture": "graph", "cudaGraphInstantiate": "executable"}
            return (error, None if error else made[name]) if name in made else (error,)

        return call

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"operation not permitted" if error else b"no error"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=7))
    return fake


def capture(accepted: bool = True) -> cuda.CudaGraph:
    return CudaStream(torch.device("cuda", 0)).capture(lambda: accepted)


def test_work_is_recorded_launched_and_given_back_once(driver: FakeRuntime) -> None:
    graph = capture()
    graph.launch()
    graph.close()
    graph.close()
    assert driver.calls == [
        "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy",
        "cudaGraphLaunch", "cudaGraphExecDestroy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("cudaStreamBeginCapture", r"the stream cannot be recorded \(operation not permitted\)"),
        ("cudaStreamEndCapture", r"the engine's work was refused \(operation not permitted\)"),
        ("cudaGraphInstantiate", r"the graph cannot be instantiated \(operation not permitted\)"),
    ],
)
def test_what_cannot_be_recorded_is_refused_wherever_it_shows(
    driver: FakeRuntime, fails: str, told: str
) -> None:
    """A refusal, so that the engine runs without graphs; no error is left for the next call to report."""
    driver.fails = fails
    with pytest.raises(CaptureRefused, match=told):
        capture()
    assert "cudaGetLastError" in driver.calls
    assert ("cudaGraphDestroy" in driver.calls) == (fails == "cudaGraphInstantiate")


def test_work_that_tensorrt_refuses_ends_the_recording_and_leaves_no_graph(driver: FakeRuntime) -> None:
    with pytest.raises(CaptureRefused, match="TensorRT refused the engine's work"):
        capture(accepted=False)
    assert driver.calls == [
        "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGetLastError", "cudaGraphDestroy",
    ]  # fmt: skip


@pytest.mark.parametrize("fails", ["", "cudaStreamEndCapture"])
def test_work_that_raises_ends_the_recording(driver: FakeRuntime, fails: str) -> None:
    """A stream that went on recording would run nothing any more."""

    def interrupted() -> bool:
        driver.calls.append("work")
        raise KeyboardInterrupt

    driver.fails = fails
    with pytest.raises(KeyboardInterrupt):
        CudaStream(torch.device("cuda", 0)).capture(interrupted)
    destroyed = [] if fails else ["cudaGraphDestroy"]
    assert driver.calls == [
        "cudaStreamBeginCapture", "work", "cudaStreamEndCapture", *destroyed, "cudaGetLastError",
    ]  # fmt: skip


def test_a_launch_that_cuda_refuses_is_an_error(driver: FakeRuntime) -> None:
    graph = capture()
    driver.fails = "cudaGraphLaunch"
    with pytest.raises(EngineError, match="CUDA: operation not permitted"):
        graph.launch()


class Caller:
    """A stream of PyTorch that notes whom it waits for."""

    def __init__(self) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        self.waited.append("the host waits")


def test_a_caller_on_another_stream_waits_for_the_one_before(
    driver: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first reads may lie in the engine's own buffers, which the second call writes."""
    first, second = Caller(), Caller()
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    stream = CudaStream(torch.device("cuda", 0))
    for caller in (first, first, second, second):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, caller=caller: caller)
        with stream.turn():
            pass
    assert (first.waited, second.waited) == ([], [first])


def test_a_stream_works_on_its_own_gpu_in_turn_with_the_caller_there(
    driver: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the first of a machine's GPUs, which is the current one wherever nobody chose."""
    callers = {f"cuda:{index}": Caller() for index in range(2)}
    own, current = Caller(), ["cuda:0"]
    made: list[str] = []

    def stream_on(device: torch.device) -> Caller:
        made.append(str(device))
        return own

    @contextmanager
    def device(named: torch.device) -> Iterator[None]:
        current.append(str(named))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", stream_on)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda named: callers[str(named)])
    stream = CudaStream(torch.device("cuda", 1))
    assert made == ["cuda:1"]
    with stream.turn():
        assert current == ["cuda:0", "cuda:1"]
        stream.after_caller()
        assert own.waited == [callers["cuda:1"]]
        stream.before_caller()
        assert callers["cuda:1"].waited == [own]
        stream.synchronize()
        assert own.waited[1:] == ["the host waits"]
    assert current == ["cuda:0"]


def test_threads_take_turns(driver: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Caller())
    stream, inside, most = CudaStream(torch.device("cuda", 0)), [0], [0]

    def call() -> None:
        with stream.turn():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
