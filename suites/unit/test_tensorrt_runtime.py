"""The TensorRT runtime's own logic, on an engine and a stream that only note what is asked of them."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_stream import FakeStream
from torch import Tensor

from wan_trt_core.backends.base import EngineError, TensorInfo
from wan_trt_core.backends.tensorrt import api, runtime
from wan_trt_core.backends.tensorrt.cuda import CaptureRefused
from wan_trt_core.backends.tensorrt.plan import Description
from wan_trt_core.config import TensorRtSettings

CPU = torch.device("cpu")
RANGE = {"x": ((1, 4), (2, 4), (8, 4)), "cache": ((1, 4), (2, 4), (8, 4))}
FIXED = {"x": ((2, 4),) * 3, "cache": ((2, 4),) * 3}


def description(*profiles: Any) -> Description:
    rows = TensorInfo("float32", ("rows", 4))
    return Description(
        component="fake", precision="fp32", plan="fake_fp32.trt", inputs={"x": rows, "cache": rows},
        outputs={"y": rows, "left": rows}, profiles=profiles or (RANGE,), attentions=0,
    )  # fmt: skip


class FakeContext:
    """``y = x + cache``, ``left = 2 x``, at the addresses that were set: it reads and writes memory by address."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.profile = -1
        self.profiler: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def update_device_memory_size_for_shapes(self) -> int:
        return self.engine.device_memory_size_v2

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.refuses:
            return False
        self.engine.enqueued += 1
        self.engine.work(dict(self.addresses), self.shapes["x"])
        if self.profiler is not None:
            assert self.engine.recording is None  # a graph has no layers to time
            self.profiler.report_layer_time("add", 0.5)
            self.profiler.report_layer_time("double", 0.25)
        return True


class FakeEngine:
    device_memory_size_v2 = 1024

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []
        self.enqueued = 0
        self.refuses = False
        self.recording: list[Callable[[], None]] | None = None

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user managed"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def work(self, addresses: dict[str, int], shape: tuple[int, ...]) -> None:
        def compute() -> None:
            x, cache, y, left = (at(addresses[name], shape) for name in ("x", "cache", "y", "left"))
            y.copy_(x + cache)
            left.copy_(2 * x)

        if self.recording is None:
            compute()
        else:
            self.recording.append(compute)


def at(address: int, shape: tuple[int, ...]) -> Tensor:
    import ctypes

    count = shape[0] * shape[1]
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32).view(shape)


class FakeGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work
        self.launched = 0
        self.closed = False

    def launch(self) -> None:
        assert not self.closed
        self.launched += 1
        for step in self.work:
            step()

    def close(self) -> None:
        self.closed = True


class CapturingStream(FakeStream):
    """Records the engine's work as graphs, unless it refuses."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__()
        self.engine = engine
        self.graphs: list[FakeGraph] = []
        self.refuses = False

    def synchronize(self) -> None:
        self.order.append("synchronize")

    def capture(self, work: Callable[[], bool]) -> FakeGraph:
        if self.refuses:
            raise CaptureRefused("not this one")
        self.engine.recording = []
        assert work()
        graph = FakeGraph(self.engine.recording)
        self.engine.recording = None
        self.graphs.append(graph)
        return graph


class Rig(SimpleNamespace):
    engine: runtime.TensorRtEngine
    fake: FakeEngine
    stream: CapturingStream
    scratch: runtime.Scratch

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        results = self.engine.run_into(inputs, outputs or {})
        assert torch.equal(results["y"], inputs["x"] + inputs["cache"])
        assert torch.equal(results["left"], 2 * inputs["x"])
        return results


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    strategies = SimpleNamespace(USER_MANAGED="user managed")
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=strategies, IProfiler=object)
    monkeypatch.setattr(api, "tensorrt", lambda: trt)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")

    def make(*profiles: Any, scratch: runtime.Scratch | None = None, **settings: Any) -> Rig:
        fake = FakeEngine()
        stream = CapturingStream(fake)
        log = SimpleNamespace(errors=["the reason"])
        scratch = scratch or runtime.Scratch(CPU)
        engine = runtime.TensorRtEngine(
            description(*profiles), fake, stream, scratch, TensorRtSettings(**settings), 100, log
        )
        return Rig(engine=engine, fake=fake, stream=stream, scratch=scratch)

    yield make


def aligned(rows: int = 2) -> Tensor:
    """Random values at an address that TensorRT takes."""
    room = torch.empty(rows * 4 + runtime.ALIGNMENT)
    first = (-room.data_ptr() % runtime.ALIGNMENT) // 4
    return room[first : first + rows * 4].view(rows, 4).copy_(torch.randn(rows, 4))


def inputs(rows: int = 2) -> dict[str, Tensor]:
    return {"x": aligned(rows), "cache": aligned(rows)}


def test_the_second_call_is_captured_and_every_later_one_replayed(rig: Callable[..., Rig]) -> None:
    it = rig()
    for _ in range(5):
        it.run(inputs())  # new tensors each time: small ones are copied to one address
    assert it.fake.enqueued == 2  # once plainly, once while capturing
    assert [graph.launched for graph in it.stream.graphs] == [4]
    assert it.engine.graphs == 1


def test_an_engine_first_run_in_inference_mode_also_runs_outside(rig: Callable[..., Rig]) -> None:
    """Its buffers outlive the mode; PyTorch writes into none that was made in it once it has ended."""
    it = rig()
    with torch.inference_mode():
        it.run(inputs())
    with torch.no_grad():
        it.run(inputs())
    with torch.inference_mode():
        it.run(inputs())


def test_results_are_the_callers_to_keep(rig: Callable[..., Rig]) -> None:
    it = rig()
    first, kept = inputs(), None
    kept = it.run(first)
    it.run(inputs())
    assert torch.equal(kept["y"], first["x"] + first["cache"])


def test_large_tensors_stay_where_the_caller_has_them(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig()
    given, written = inputs(), {"left": aligned()}
    results = it.run(given, written)
    assert results["left"] is written["left"]
    context = it.fake.contexts[0]
    assert context.addresses["x"] == given["x"].data_ptr()
    assert context.addresses["left"] == written["left"].data_ptr()


def test_two_sets_of_caches_are_two_graphs(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the streaming VAE runs: what one step writes the next reads, and the buffers change places."""
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig()
    frame, taken, spare = aligned(), aligned(), aligned()
    for _ in range(6):
        it.run({"x": frame, "cache": taken}, {"left": spare})
        taken, spare = spare, taken
    assert [graph.launched for graph in it.stream.graphs] == [2, 2]


def test_an_unaligned_tensor_is_copied(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig()
    shifted = torch.empty(12)[1:9].view(2, 4).copy_(torch.randn(2, 4))
    assert shifted.data_ptr() % runtime.ALIGNMENT
    output = torch.empty(12)[1:9].view(2, 4)
    results = it.run({"x": shifted, "cache": aligned()}, {"left": output})
    assert results["left"] is output


def test_new_shapes_take_a_context_of_their_own_and_old_ones_keep_theirs(rig: Callable[..., Rig]) -> None:
    it = rig()
    for rows in (2, 3, 2, 3, 2, 3):
        it.run(inputs(rows))
    assert len(it.fake.contexts) == 2
    assert [graph.launched for graph in it.stream.graphs] == [2, 2]


def test_the_least_recently_used_context_goes_with_its_graphs(rig: Callable[..., Rig]) -> None:
    it = rig()
    for rows in range(1, runtime.MAX_CONTEXTS + 2):
        it.run(inputs(rows))
        it.run(inputs(rows))
    assert it.engine.graphs == runtime.MAX_CONTEXTS
    assert it.stream.graphs[0].closed and not it.stream.graphs[1].closed
    it.run(inputs(1))
    assert len(it.fake.contexts) == runtime.MAX_CONTEXTS + 2


def test_no_more_graphs_are_kept_than_asked_for(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig(max_graphs=2)
    several = [inputs() for _ in range(3)]
    for given in several:
        for _ in range(2):
            it.run(given)
    assert it.engine.graphs == 2
    assert [graph.closed for graph in it.stream.graphs] == [True, False, False]


def test_one_set_of_addresses_too_many_does_not_capture_every_call(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture costs more than the call without a graph: the least recently used is the next to be used here."""
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig(max_graphs=8)
    several = [inputs() for _ in range(9)]
    for _ in range(10):
        for given in several:
            it.run(given)
    replayed = sum(graph.launched for graph in it.stream.graphs)
    assert replayed > 3 * len(it.stream.graphs)


def test_growing_scratch_memory_captures_again(rig: Callable[..., Rig]) -> None:
    it = rig()
    for _ in range(3):
        it.run(inputs())
    before = it.fake.contexts[0].memory
    it.engine._scratch.address(1 << 20)  # another engine needs more, so the memory moves
    it.run(inputs())
    assert it.fake.contexts[0].memory != before
    assert len(it.stream.graphs) == 1
    it.run(inputs())
    assert len(it.stream.graphs) == 2


def test_a_refused_capture_runs_plainly_and_warns_once(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    it = rig()
    it.stream.refuses = True
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            it.run(inputs())
    assert it.fake.enqueued == 4
    assert [record.message for record in caplog.records] == [
        "engine fake_fp32 runs without CUDA graphs: not this one"
    ]


def test_graphs_can_be_switched_off(rig: Callable[..., Rig]) -> None:
    it = rig(cuda_graphs=False)
    for _ in range(3):
        it.run(inputs())
    assert (it.fake.enqueued, it.stream.graphs) == (3, [])


def test_layers_are_timed_in_calls_of_their_own(rig: Callable[..., Rig]) -> None:
    it = rig()
    for _ in range(3):
        it.run(inputs())
    with it.engine.profiled() as times:
        it.run(inputs())
        it.run(inputs())
    assert times == 2 * [("add", 0.5), ("double", 0.25)]
    for _ in range(3):
        it.run(inputs())
    assert len(times) == 4  # nothing is timed any more,
    assert [graph.launched for graph in it.stream.graphs] == [2, 2]  # and graphs are captured again
    assert it.stream.graphs[0].closed


def test_graphs_can_be_left_aside_for_a_call(rig: Callable[..., Rig]) -> None:
    """The arm that shows what graphs gain runs on the same engine, in turns with the one that has them."""
    it = rig()
    for _ in range(2):
        it.run(inputs())
    for _ in range(2):
        with it.engine.without_graphs():
            it.run(inputs())
        it.run(inputs())
    assert it.fake.enqueued == 4  # before and in the capture, and twice without
    assert [graph.launched for graph in it.stream.graphs] == [3]


FREE = "1.00 of 8.00 GiB are free on NVIDIA H200"
"""Why TensorRT had no room it says itself, with what it asked for."""


def test_a_refused_enqueue_is_an_error_with_its_reason_and_what_was_free(rig: Callable[..., Rig]) -> None:
    it = rig()
    it.fake.refuses = True
    with pytest.raises(EngineError, match=f"engine fake_fp32: TensorRT refused to run: the reason; {FREE}"):
        it.engine.run(inputs())


@pytest.mark.parametrize(
    ("call", "answer", "told"),
    [
        ("set_optimization_profile_async", False, "profile 0 was refused: the reason"),
        ("set_input_shape", False, r"input 'x' of shape \(2, 4\) was refused: the reason"),
        ("infer_shapes", ["y"], "TensorRT cannot tell the shapes of y"),
        ("set_tensor_address", False, "the address of 'x' was refused: the reason"),
    ],
)
def test_what_a_context_refuses_is_an_error_and_nothing_is_enqueued(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, call: str, answer: Any, told: str
) -> None:
    """TensorRT raises nothing: the engine would run on whatever the context had before."""
    it = rig()
    monkeypatch.setattr(FakeContext, call, lambda *_: answer)
    with pytest.raises(EngineError, match=f"engine fake_fp32: {told}"):
        it.engine.run(inputs())
    assert it.fake.enqueued == 0


def test_no_execution_context_is_an_error_with_its_reason_and_what_was_free(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "create_execution_context", lambda *_: None)
    with pytest.raises(EngineError, match=f"TensorRT made no execution context: the reason; {FREE}"):
        rig().engine.run(inputs())


def test_a_gpu_that_does_not_answer_takes_no_reason_away(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call fails, that for the free memory too."""

    def broken(_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")

    it = rig()
    it.fake.refuses = True
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    message = "refused to run: the reason; what is free is not known: CUDA error: an illegal .* encountered$"
    with pytest.raises(EngineError, match=message):
        it.engine.run(inputs())


def test_a_fixed_profile_is_taken_before_a_range(rig: Callable[..., Rig]) -> None:
    it = rig(RANGE, FIXED)
    it.run(inputs(2))
    it.run(inputs(3))
    assert [context.profile for context in it.fake.contexts] == [1, 0]


def test_a_profile_for_one_video_is_taken_before_a_range_though_its_prompts_differ(
    rig: Callable[..., Rig],
) -> None:
    it = rig(RANGE, {**FIXED, "x": RANGE["x"]})
    it.run(inputs(2))
    assert [context.profile for context in it.fake.contexts] == [1]


def test_shapes_outside_every_profile_name_the_profiles(rig: Callable[..., Rig]) -> None:
    with pytest.raises(EngineError, match=r"no profile contains x \(9, 4\).* has x \(1, 4\) to \(8, 4\)"):
        rig().engine.run(inputs(9))


def test_wrong_dtype_and_device_are_named(rig: Callable[..., Rig]) -> None:
    it = rig()
    with pytest.raises(EngineError, match="'x' is float16"):
        it.engine.run({**inputs(), "x": aligned().half()})
    with pytest.raises(EngineError, match="'cache' is on meta, the engine on cpu"):
        it.engine.run({**inputs(), "cache": aligned().to("meta")})


def test_the_engine_waits_for_the_caller_and_the_caller_for_it(rig: Callable[..., Rig]) -> None:
    it = rig()
    it.run(inputs())
    assert it.stream.order == ["after", "before"]


@pytest.mark.parametrize("graphs", [False, True])
def test_the_caller_waits_for_what_was_asked_before_an_error_too(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """Ctrl-C comes when the enqueue returns: the GPU still reads the inputs and writes the outputs, and PyTorch gives
    their memory away as soon as nobody holds them."""
    it = rig(cuda_graphs=graphs)
    for _ in range(3):
        it.run(inputs())

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeContext, "execute_async_v3", interrupted)
    monkeypatch.setattr(FakeGraph, "launch", interrupted)
    it.stream.order.clear()
    with pytest.raises(KeyboardInterrupt):
        it.engine.run(inputs())
    assert it.stream.order == ["after", "before"]


def test_memory_by_owner(rig: Callable[..., Rig]) -> None:
    it = rig()
    assert it.engine.memory() == {"weights": 100, "scratch": 0, "buffers": 0}  # nothing ran yet
    it.run(inputs())
    assert it.engine.memory() == {"weights": 100, "scratch": 1024, "buffers": 4 * 2 * 4 * 4}
    assert it.scratch.bytes == 1024 + runtime.ALIGNMENT


def test_a_closed_engine_holds_nothing(rig: Callable[..., Rig]) -> None:
    it = rig()
    for _ in range(2):
        it.run(inputs())
    held = [
        weakref.ref(tensor) for context in it.engine._contexts.values() for tensor in context._staged.values()
    ]
    plan = weakref.ref(it.fake)
    it.engine.close()
    it.engine.close()  # the second time there is nothing left to give back
    assert it.engine.memory() == {"weights": 0, "scratch": 0, "buffers": 0}
    assert it.scratch.bytes == 0
    assert it.stream.graphs[0].closed and it.engine.graphs == 0
    assert [tensor() for tensor in held] == [None, None]
    it.stream.graphs.clear()
    it.stream.engine, it.fake = None, None  # what the test itself holds of the plan
    gc.collect()
    assert plan() is None
    with pytest.raises(EngineError, match="is closed"):
        it.engine.run(inputs())


def test_an_engine_that_another_thread_closes_meanwhile_is_closed_once(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both threads saw it open and waited for their turns; the shared scratch memory counts it once."""
    shared = runtime.Scratch(CPU)
    it, other = rig(scratch=shared), rig(scratch=shared)
    other.run(inputs())
    turn = it.stream.turn

    def after_another() -> Any:
        monkeypatch.setattr(it.stream, "turn", turn)
        it.engine.close()
        return turn()

    monkeypatch.setattr(it.stream, "turn", after_another)
    it.engine.close()
    assert shared.bytes
    it = rig(scratch=shared)
    turn = it.stream.turn
    monkeypatch.setattr(it.stream, "turn", after_another)
    with pytest.raises(EngineError, match="is closed"):
        it.engine.run(inputs())


def test_scratch_that_is_not_shared_has_another_name(rig: Callable[..., Rig]) -> None:
    """What is shared counts once over all engines, what is not counts each time."""
    it = rig(share_scratch=False)
    it.engine.run(inputs(2))
    assert it.engine.memory()["own_scratch"] == 1024 and "scratch" not in it.engine.memory()
    it.engine.close()
    assert it.engine.memory() == {"weights": 0, "own_scratch": 0, "buffers": 0}


def test_shared_scratch_stays_while_another_engine_uses_it(rig: Callable[..., Rig]) -> None:
    shared = runtime.Scratch(CPU)
    first, second = rig(scratch=shared), rig(scratch=shared)
    first.run(inputs())
    first.engine.close()
    assert shared.bytes
    second.engine.close()
    assert shared.bytes == 0


def test_nothing_of_the_callers_is_kept(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE's caches, which would otherwise stay allocated beside those of the next video."""
    monkeypatch.setattr(runtime, "STAGED_BYTES", 0)
    it = rig()
    given, written = inputs(), {"left": aligned()}
    it.run(given, written)
    kept = [weakref.ref(tensor) for tensor in (*given.values(), *written.values())]
    del given, written
    assert [tensor() for tensor in kept] == [None, None, None]
    it.fake.refuses = True
    given = inputs()
    kept = [weakref.ref(tensor) for tensor in given.values()]
    with pytest.raises(EngineError, match="refused to run"):
        it.engine.run(given)
    del given
    assert [tensor() for tensor in kept] == [None, None]


def test_large_outputs_are_written_once_and_given_away(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "OWN_OUTPUT_BYTES", 0)
    it = rig()
    first = it.run(inputs())
    expected = {name: tensor.clone() for name, tensor in first.items()}
    assert it.fake.contexts[0].addresses["y"] == first["y"].data_ptr()
    assert it.engine.memory()["buffers"] == 2 * 2 * 4 * 4  # the two inputs alone
    it.run(inputs())
    assert all(torch.equal(first[name], expected[name]) for name in first)


def test_out_of_memory_says_what_was_asked_and_what_was_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, device: Any, **__: Any) -> Tensor:
        if device == "meta":
            return SimpleNamespace(nbytes=3 << 30)  # type: ignore[return-value]
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    with pytest.raises(
        EngineError,
        match=r"scratch memory of 3\.00 GiB was asked for, 1\.00 of 8\.00 GiB are free on NVIDIA H200",
    ):
        runtime.Scratch(CPU).address(3 << 30)


def test_out_of_memory_for_a_copy_names_the_engine(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 3.00 GiB, of which 1.00 GiB is free"
        )

    it = rig()
    monkeypatch.setattr(Tensor, "clone", full)
    with pytest.raises(EngineError, match=r"engine fake_fp32: CUDA out of memory\. Tried to allocate 3"):
        it.engine.run(inputs())


def test_all_work_is_asked_for_on_the_engines_own_gpu(rig: Callable[..., Rig]) -> None:
    """TensorRT and graphs go by the current device: on another one a replay would silently leave the outputs."""
    it, current, seen = rig(), ["cuda:0"], list[tuple[str, str]]()

    @contextmanager
    def on_device() -> Iterator[None]:
        current.append("cuda:1")
        yield
        current.pop()

    def noting(owner: Any, name: str) -> None:
        wrapped = getattr(owner, name)

        def call(*given: Any) -> Any:
            seen.append((name, current[-1]))
            return wrapped(*given)

        setattr(owner, name, call)

    it.stream.on_device = on_device
    for owner, name in ((it.fake, "create_execution_context"), (it.fake, "work"), (it.stream, "capture")):
        noting(owner, name)
    for _ in range(3):
        it.run(inputs())
    for name in ("launch", "close"):
        noting(it.stream.graphs[0], name)
    it.run(inputs())
    it.engine.close()
    assert {name for name, _ in seen} == {"create_execution_context", "work", "capture", "launch", "close"}
    assert {device for _, device in seen} == {"cuda:1"}


def test_descriptions_survive_the_disk(tmp_path: Any) -> None:
    from wan_trt_core.backends.tensorrt.plan import read_description, write_description

    made = replace(description(RANGE, FIXED), unfused=("node_softmax",), precisions={"float16": 3})
    write_description(made, tmp_path)
    assert read_description(tmp_path) == made
    (tmp_path / "engine.json").write_text('{"component": "dit"}')
    with pytest.raises(EngineError, match=r"engine\.json: no engine of the tensorrt backend"):
        read_description(tmp_path)
