"""ONNX Runtime on a GPU: what its sessions are told, in which order they work, and what is said when none loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from fake_stream import FakeStream
from onnx import TensorProto, helper
from torch import Tensor

from wan_trt_core.backends import onnxruntime_cuda, onnxruntime_tensorrt
from wan_trt_core.backends.base import BackendUnavailable, EngineError, OnnxModel
from wan_trt_core.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from wan_trt_core.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend, loaders_words, why_not
from wan_trt_core.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRtBackend
from wan_trt_core.backends.registry import device_of
from wan_trt_core.config import Settings

SHAPES = {name: {"min": (1, 4), "opt": (2, 4), "max": (8, 4)} for name in ("a", "b")}
CUDA, TENSORRT = OnnxRuntimeCudaBackend(), OnnxRuntimeTensorRtBackend()
OFFERED = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

# What onnxruntime-gpu 1.31.1 writes where CUDA's libraries are not installed.
STDERR = """\
\x1b[1;31m2026-11-21 17:17:01.679632790 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()]\
 /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider&\
 onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library\
 /site/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object\
 file: No such file or directory
\x1b[m
\x1b[0;93m2026-11-21 17:17:01.679666130 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295\
 CreateExecutionProviderFactoryInstance] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*.\x1b[m
the session fell back to CPUExecutionProvider
"""


class Noting:
    """A real session on the CPU that notes with which entries it is run."""

    def __init__(self, session: Any, stream: FakeStream) -> None:
        self.session, self.stream = session, stream
        self.entries: list[dict[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        names = ("disable_synchronize_execution_providers", "gpu_graph_id")
        self.entries.append({name: value for name in names if (value := _entry(options, name))})
        self.stream.order.append("run")
        self.session.run_with_iobinding(binding, options)


def _entry(options: Any, name: str) -> str:
    try:
        return str(options.get_run_config_entry(name))
    except RuntimeError:
        return ""


def settings(**changes: Any) -> Settings:
    return Settings(**{"threads": 1, "cache": Path("unused"), **changes})


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    """``sum = a + b``, with external data of a fixed content beside it."""
    axes = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("rows", 4))
        for name in ("a", "b", "sum")
    }
    node = helper.make_node("Add", ["a", "b"], ["sum"])
    graph = helper.make_graph([node], "g", [axes["a"], axes["b"]], [axes["sum"]])
    path = tmp_path / "small_fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    path.with_name("small_fp32.onnx.data").write_bytes(b"weights")
    return OnnxModel("small", "fp32", path, "0", "test", SHAPES, {}, ("a", "b"), ("sum",))


Rig = tuple[OnnxRuntimeEngine, Noting, FakeStream]


@pytest.fixture
def rig(model: OnnxModel, tmp_path: Path) -> Callable[..., Rig]:
    """An engine of a GPU backend whose session runs on the CPU."""

    def make(backend: OnnxRuntimeBackend = CUDA, **changes: Any) -> Rig:
        chosen, folder = settings(**changes), tmp_path / "engine"
        folder.mkdir()
        OnnxRuntimeBackend().build(model, folder, chosen)
        plain = OnnxRuntimeBackend().load(folder, chosen)
        stream = FakeStream()
        session = Noting(plain._open(), stream)
        engine = backend.engine(plain.description, session, chosen, stream)  # type: ignore[arg-type]
        return engine, session, stream

    return make


def inputs(rows: int = 2) -> dict[str, Tensor]:
    return {"a": torch.randn(rows, 4), "b": torch.randn(rows, 4)}


# running


def test_a_run_is_ordered_with_the_callers_stream_and_waits_for_nothing(rig: Callable[..., Rig]) -> None:
    engine, session, stream = rig()
    given, target = inputs(), torch.empty(2, 4)
    found = engine.run_into(given, {"sum": target})["sum"]
    assert found is target
    assert torch.equal(target, given["a"] + given["b"])
    assert stream.order == ["after", "run", "before"]
    assert session.entries == [{"disable_synchronize_execution_providers": "1"}]
    assert engine.memory()["weights"] == 0


def test_the_caller_waits_for_what_was_asked_before_an_error_too(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU still reads the inputs and writes the outputs, and PyTorch gives their memory away."""
    engine, session, stream = rig()

    def refused(*_: object) -> None:
        raise RuntimeError("not this one")

    monkeypatch.setattr(session, "run_with_iobinding", refused)
    with pytest.raises(EngineError, match="not this one"):
        engine.run(inputs())
    assert stream.order == ["after", "before"]


def test_threads_take_turns_on_the_session_s_stream(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph is recorded of a stream: it would hold what another thread asks of it meanwhile."""
    engine, _, stream = rig()

    @contextmanager
    def turn() -> Iterator[None]:
        stream.order.append("turn")
        yield
        stream.order.append("over")

    monkeypatch.setattr(stream, "turn", turn)
    engine.run(inputs())
    assert stream.order == ["turn", "after", "run", "before", "over"]


def test_a_graph_stands_for_shapes_and_addresses(rig: Callable[..., Rig]) -> None:
    engine, session, _ = rig(onnxruntime={"cuda_graph": True})

    def numbers(given: dict[str, Tensor], target: Tensor, times: int) -> list[str]:
        for _ in range(times):
            engine.run_into(given, {"sum": target})
            assert torch.equal(target, given["a"] + given["b"])
        return [entries["gpu_graph_id"] for entries in session.entries[-times:]]

    first, second, target = inputs(), inputs(), torch.empty(2, 4)
    assert numbers(first, target, 3) == ["-1", "0", "0"], "recorded when it comes again, then replayed"
    assert numbers(second, target, 3) == ["-1", "1", "1"], "other addresses must not replay the first graph"
    assert numbers(first, target, 1) == ["0"]
    more = [(inputs(), torch.empty(2, 4)) for _ in range(onnxruntime_cuda.MAX_GRAPHS)]
    last = [numbers(given, room, 2)[1] for given, room in more]
    assert last[-3:] == [str(onnxruntime_cuda.MAX_GRAPHS - 1), "-1", "-1"], "graphs are bounded"
    assert engine.graphs == onnxruntime_cuda.MAX_GRAPHS
    engine.close()
    assert engine.graphs == 0


def test_a_tensor_elsewhere_is_refused_rather_than_copied(rig: Callable[..., Rig]) -> None:
    engine, _, _ = rig()
    engine._device = torch.device("cuda", 0)
    with pytest.raises(EngineError, match="input 'a' is on cpu, the engine on cuda:0"):
        engine.run(inputs())


def test_shapes_outside_the_engines_range_are_refused(rig: Callable[..., Rig]) -> None:
    engine, session, _ = rig(TENSORRT)
    assert torch.equal(engine.run(given := inputs(8))["sum"], given["a"] + given["b"])
    with pytest.raises(
        EngineError, match=r"'a' has shape \(9, 4\), the engine is built for \(1, 4\) to \(8, 4\)"
    ):
        engine.run(inputs(9))
    assert len(session.entries) == 1
    assert "gpu_graph_id" not in session.entries[0]


def test_tf32_that_cannot_be_switched_off_voids_an_fp32_engine(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, _ = rig(TENSORRT)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert "NVIDIA_TF32_OVERRIDE=0" in engine.problems[0]
    assert TENSORRT.options(settings(), "fp32")["tf32"] is True
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert engine.problems == ()
    assert TENSORRT.options(settings(), "fp32")["tf32"] is False


# sessions


class Sessions:
    """In place of ``onnxruntime.InferenceSession``: notes what is asked, and builds engines as TensorRT's does."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, dict[str, str]]]] = []
        self.engine = "TensorrtExecutionProvider_g_0_sm90.engine"
        self.loads = True

    def __call__(self, path: str, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert enable_fallback == 0, "ONNX Runtime itself must not fall back"
        assert Path(path).is_file()
        self.asked.append(providers)
        told = dict(providers[0][1])
        if self.engine and told.get("trt_engine_cache_enable") == "True":
            Path(told["trt_engine_cache_path"], self.engine).write_bytes(b"engine")
        names = [name for name, _ in providers] if self.loads else []
        return SimpleNamespace(
            get_providers=lambda: [*names, "CPUExecutionProvider"],
            get_inputs=lambda: [],
            get_outputs=lambda: [],
        )


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    fake = Sessions()
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    monkeypatch.setattr(OnnxRuntimeCudaBackend, "require", lambda *_: None)
    monkeypatch.setattr(OnnxRuntimeCudaBackend, "stream", lambda _: FakeStream("cuda:1"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    yield fake


def test_what_the_cuda_provider_is_told(model: OnnxModel, sessions: Sessions, tmp_path: Path) -> None:
    description = {"component": "small", "precision": "fp32", "graph": model.path.name, "weights": 3}
    (tmp_path / "engine.json").write_text(json.dumps(description))
    CUDA.load(tmp_path, settings())
    CUDA.load(
        tmp_path,
        settings(
            perf={"allow_tf32": True}, onnxruntime={"cudnn_conv_algo_search": "heuristic", "cuda_graph": True}
        ),
    )
    (name, plain), (_, chosen) = (asked[0] for asked in sessions.asked)
    assert name == "CUDAExecutionProvider"
    assert plain == {
        "device_id": "1", "user_compute_stream": "7", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE",
        "enable_cuda_graph": "0", "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    assert {key for key in plain if plain[key] != chosen[key]} == {
        "use_tf32", "cudnn_conv_algo_search", "enable_cuda_graph",
    }  # fmt: skip
    assert CUDA.providers(settings(onnxruntime={"cuda_graph": True}))[0][1]["enable_cuda_graph"] == "0"


def test_the_tensorrt_provider_builds_once_and_then_loads(
    model: OnnxModel, sessions: Sessions, tmp_path: Path
) -> None:
    folder, chosen = tmp_path / "engine", settings(cache=tmp_path / "cache", tensorrt={"workspace_gib": 2})
    folder.mkdir()
    facts = TENSORRT.build(model, folder, chosen)
    assert facts["weights"] == len(b"engine")
    assert (folder / "small_fp32.onnx.data").read_bytes() == b"weights"
    engine = TENSORRT.load(folder, chosen)
    assert engine.memory() == {"weights": len(b"engine")}
    assert dict(engine.description.shapes["a"]) == {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}
    built, loaded = sessions.asked
    assert [name for name, _ in loaded] == OFFERED[:2]
    told = loaded[0][1]
    assert told["trt_fp16_enable"] == "False"
    assert (told["trt_profile_min_shapes"], told["trt_profile_max_shapes"]) == ("a:1x4,b:1x4", "a:8x4,b:8x4")
    assert told["trt_max_workspace_size"] == str(2 << 30)
    assert told["user_compute_stream"] == loaded[1][1]["user_compute_stream"] == "7"
    assert told["trt_timing_cache_enable"] == "False"
    timings = Path(built[0][1]["trt_timing_cache_path"])
    assert timings.is_relative_to(tmp_path / "cache")
    assert built[0][1]["trt_timing_cache_enable"] == "True"
    TENSORRT.make(model, engine.description, folder, settings(tensorrt={"timing_cache": False}))
    assert "trt_timing_cache_path" not in sessions.asked[-1][0][1]


def test_an_engine_that_is_built_anew_is_not_loaded(
    model: OnnxModel, sessions: Sessions, tmp_path: Path
) -> None:
    folder, chosen = tmp_path / "engine", settings(cache=tmp_path / "cache")
    folder.mkdir()
    TENSORRT.build(model, folder, chosen)
    before = sorted(folder.iterdir())
    sessions.engine = "TensorrtExecutionProvider_g_0_sm100.engine"
    with pytest.raises(
        EngineError, match=r"TensorRT built \S+sm100.engine instead of loading \S+sm90.engine"
    ):
        TENSORRT.load(folder, chosen)
    assert sorted(folder.iterdir()) == before, "the cache's entry stays as its manifest says"


def test_a_graph_that_tensorrt_leaves_to_others_is_no_engine(
    model: OnnxModel, sessions: Sessions, tmp_path: Path
) -> None:
    sessions.engine = ""
    (tmp_path / "engine").mkdir()
    with pytest.raises(EngineError, match="building engine small_fp32: TensorRT took no part of the graph"):
        TENSORRT.build(model, tmp_path / "engine", settings(cache=tmp_path / "cache"))


@pytest.mark.parametrize("backend", [CUDA, TENSORRT])
def test_a_silent_fallback_is_an_error(
    backend: OnnxRuntimeBackend, model: OnnxModel, sessions: Sessions, tmp_path: Path
) -> None:
    """As ONNX Runtime does where CUDA's libraries do not load: a log line, and a session on the CPU."""
    sessions.loads = False
    (tmp_path / "engine").mkdir()
    message = rf"silent fallback: asked for {backend.provider}.*, ONNX Runtime loaded CPUExecutionProvider"
    with pytest.raises(EngineError, match=message):
        backend.build(model, tmp_path / "engine", settings(cache=tmp_path / "cache"))


# what is said when none loads


def test_they_run_on_a_gpu() -> None:
    assert device_of(Settings(), CUDA.name) == device_of(Settings(), TENSORRT.name) == "cuda"
    assert device_of(Settings(backend="onnxruntime")) == "cpu"


@pytest.mark.parametrize(
    ("backend", "extras"), [(CUDA, r'wan-trt-core\[gpu\]"'), (TENSORRT, r'wan-trt-core\[gpu,tensorrt\]"')]
)
def test_a_build_without_the_provider_says_what_to_install(
    backend: OnnxRuntimeBackend, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendUnavailable, match=f"has no {backend.provider}; it has CPU.*pip install.*{extras}"
    ):
        backend.require(settings())


def test_the_loaders_words_name_the_library_that_is_missing() -> None:
    assert loaders_words(STDERR) == (
        "libonnxruntime_providers_cuda.so: libcublasLt.so.13: cannot open shared object file: No such file or directory"
    )
    assert loaders_words("Traceback …\nRuntimeError: CUDA failure 35\n\n") == "RuntimeError: CUDA failure 35"
    assert loaders_words("") == ""


@pytest.fixture
def fresh() -> Iterator[None]:
    why_not.cache_clear()
    yield
    why_not.cache_clear()


def test_a_provider_in_the_list_is_tried_in_a_process_of_its_own(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has the provider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: OFFERED)
    with pytest.raises(
        BackendUnavailable,
        match=r"CUDAExecutionProvider does not load: .*fell back to CPU.*one major version of CUDA",
    ):
        CUDA.require(settings())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("pass", None),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("import os; os.kill(os.getpid(), 11)", "the process ended with -11"),
    ],
)
def test_a_library_that_hangs_or_crashes_does_not_load(
    fresh: None, monkeypatch: pytest.MonkeyPatch, code: str, reason: str | None
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_TRY", code)
    monkeypatch.setattr(onnxruntime_cuda, "PROBE_TIMEOUT", 1.0)
    assert why_not("onnxruntime-cuda") == reason


def test_a_gpu_that_pytorch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: OFFERED)
    monkeypatch.setattr(onnxruntime_cuda, "why_not", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="onnxruntime-tensorrt backend needs an NVIDIA GPU"):
        TENSORRT.require(settings())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    TENSORRT.require(settings())


def test_tensorrt_versions_are_part_of_the_engines_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_tensorrt, "distribution_versions", lambda *_: {"tensorrt": "10.6"})
    assert TENSORRT.versions()["tensorrt"] == "10.6"
    assert set(CUDA.versions()) < set(TENSORRT.versions())
