"""The backends: which there are, and that ONNX Runtime computes what PyTorch does or says why not."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from wan_trt_core.backends import registry, torch_compile
from wan_trt_core.backends._tensors import check_inputs, output_shape
from wan_trt_core.backends.base import (
    BackendUnavailable,
    Engine,
    EngineBackend,
    EngineError,
    ModuleBackend,
    OnnxModel,
    TensorInfo,
)
from wan_trt_core.backends.onnxruntime import DESCRIPTION, OnnxRuntimeBackend, OnnxRuntimeEngine
from wan_trt_core.backends.registry import UnknownBackend, backend_names, get_backend
from wan_trt_core.config import Settings, TorchCompileSettings, of_suites

BACKEND = OnnxRuntimeBackend()
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
WEIGHTS = 3 * 8 * 9 + 8 + 8 * 8 + 8
"""Numbers that :class:`Small` holds."""


class Small(nn.Module):
    """An image and a scale to tokens and a larger image: fixed, dynamic and product axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 8)

    def forward(self, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.conv(image).flatten(2).transpose(1, 2)
        mixed = torch.softmax(self.linear(tokens) @ tokens.transpose(1, 2), dim=-1) @ tokens
        tall = nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
        return nn.functional.gelu(mixed) * scale, tall


def settings(**changes: Any) -> Settings:
    return Settings(threads=1, cache=Path("unused"), **changes)


def described(path: Path, precision: str = "fp32") -> OnnxModel:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return OnnxModel("small", precision, path, digest, "test", {}, {}, ("image", "scale"), ("tokens", "tall"))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    precision = request.param
    module = Small().eval().to(DTYPES[precision])
    path = tmp_path_factory.mktemp("onnx") / f"small_{precision}.onnx"
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    image = torch.zeros(1, 3, 10, 7, dtype=DTYPES[precision])
    scale = torch.ones(1, 1, 8, dtype=DTYPES[precision])
    torch.onnx.export(
        module,
        (image, scale),
        path,
        dynamo=True,
        opset_version=20,
        verbose=False,
        input_names=["image", "scale"],
        output_names=["tokens", "tall"],
        dynamic_shapes=({2: height, 3: width}, {}),
    )
    return described(path, precision)


@pytest.fixture(scope="module")
def built(exported: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("engine")
    return folder, BACKEND.build(exported, folder, settings()), exported.precision


@pytest.fixture
def engine(built: tuple[Path, dict[str, Any], str]) -> Iterator[OnnxRuntimeEngine]:
    engine = BACKEND.load(built[0], settings())
    yield engine
    engine.close()


def inputs(engine: Engine, height: int = 6, width: int = 5, seed: int = 0) -> dict[str, Tensor]:
    dtype = getattr(torch, engine.inputs["image"].dtype)
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(1, 3, height, width, generator=generator).to(dtype),
        "scale": torch.randn(1, 1, 8, generator=generator).to(dtype),
    }


def expected(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        tokens, tall = Small().eval().to(given["image"].dtype)(**given)
    return tokens, tall


def assert_right(found: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    tokens, tall = expected(given)
    tolerance = 1e-5 if tokens.dtype == torch.float32 else 1e-2
    assert list(found) == ["tokens", "tall"]
    torch.testing.assert_close(found["tokens"], tokens, rtol=tolerance, atol=tolerance)
    assert torch.equal(found["tall"], tall)


# registry


def test_the_backends_are_the_modules_of_the_folder() -> None:
    assert {"onnxruntime", "torch", "torch-compile"} <= set(backend_names())
    assert not {"base", "registry", "torch_compile", "_tensors"} & set(backend_names())
    for name in ("onnxruntime", "torch", "torch-compile"):
        assert get_backend(name).name == name


def test_an_unknown_backend_is_told_what_there_is() -> None:
    with pytest.raises(
        UnknownBackend, match=r"no backend 'torch_compile'; there are .*onnxruntime, .*torch-compile"
    ):
        get_backend("torch_compile")


def test_a_backend_is_one_module_or_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast_thing.py").write_text("")
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert backend_names() == ("fast-thing", "tensorrt")


def test_where_a_backend_runs_is_what_it_says_itself() -> None:
    assert {name: registry.runs_on(name) for name in backend_names()} == {
        name: get_backend(name).runs_on for name in backend_names()
    }


@pytest.mark.parametrize(
    ("installed", "gpu", "device", "expected", "why"),
    [
        (True, True, "auto", "tensorrt", "TensorRT is installed, and PyTorch sees a CUDA device"),
        (True, True, "cuda", "tensorrt", "TensorRT is installed, and PyTorch sees a CUDA device"),
        (True, True, "cpu", "onnxruntime", "the setting device is cpu"),
        (False, True, "auto", "onnxruntime", "TensorRT is not installed"),
        (True, False, "auto", "onnxruntime", "PyTorch sees no CUDA device"),
    ],
)
def test_where_none_is_named_it_is_tensorrt_on_a_gpu(
    installed: bool,
    gpu: bool,
    device: str,
    expected: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    given = settings(device=device)
    with caplog.at_level("INFO"):
        assert registry.with_backend(given).backend == expected
    assert [record.getMessage() for record in caplog.records] == [f"backend {expected}: {why}"]
    assert registry.device_of(given) == registry.device_of(given, expected)
    caplog.clear()
    named = settings(device=device, backend="torch")
    assert registry.with_backend(named) is named and not caplog.text
    # the suites, whose cases name theirs, are the same on every machine
    assert of_suites(given).backend == "onnxruntime" and of_suites(named).backend == "torch"


def test_naming_the_backends_imports_none_and_nothing_is_shadowed() -> None:
    code = """
import sys
from wan_trt_core.backends.registry import backend_names, get_backend
backend_names()
assert not {"torch", "onnxruntime"} & set(sys.modules), "naming the backends imported one"
for name in ("torch", "torch-compile", "onnxruntime"):
    get_backend(name).versions()
import onnxruntime, torch
assert hasattr(torch, "Tensor") and hasattr(onnxruntime, "InferenceSession")
assert sys.modules["wan_trt_core.backends.torch"] is not torch
assert sys.modules["wan_trt_core.backends.onnxruntime"] is not onnxruntime
assert not [path for path in sys.path if path.endswith("backends")]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


# build


def test_build_leaves_the_optimised_graph_under_its_name(built: tuple[Path, dict[str, Any], str]) -> None:
    folder, facts, precision = built
    graph = onnx.load(folder / f"small_{precision}.onnx")
    assert facts["weights"] == sum(
        onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.graph.initializer
    )
    assert facts["build_seconds"] > 0
    assert json.loads((folder / DESCRIPTION).read_text())["graph"] == f"small_{precision}.onnx"


def test_weights_are_counted_exactly(exported: OnnxModel, tmp_path: Path) -> None:
    plain = settings(onnxruntime={"graph_optimization_level": "disabled"})
    facts = BACKEND.build(exported, tmp_path, plain)
    assert facts["weights"] >= WEIGHTS * (4 if exported.precision == "fp32" else 2)
    constants = onnx.load(tmp_path / exported.path.name).graph.initializer
    assert facts["weights"] == sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in constants)
    assert BACKEND.load(tmp_path, plain).memory() == {"weights": facts["weights"]}


def test_large_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (64, 64), [0.5] * 4096)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 64))],
        [weight],
    )
    path = tmp_path / "big_fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    folder = tmp_path / "engine"
    folder.mkdir()
    BACKEND.build(described(path), folder, settings())
    assert (folder / "big_fp32.onnx.data").stat().st_size >= 4096 * 4
    assert (folder / "big_fp32.onnx").stat().st_size < 4096
    moved = folder.rename(tmp_path / "moved")  # as the cache does
    engine = BACKEND.load(moved, settings())
    assert engine.memory() == {"weights": 4096 * 4}
    assert engine.run({"x": torch.ones(1, 64)})["y"].sum() == 64 * 32


def test_build_tells_its_progress(exported: OnnxModel, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    BACKEND.build(exported, tmp_path, settings(), lambda phase, fraction: seen.append((phase, fraction)))
    assert seen[0] == ("optimise", 0.0)
    assert seen[-1] == ("optimise", 1.0)


def test_a_model_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken_fp32.onnx"
    path.write_bytes(b"no model")
    (tmp_path / "engine").mkdir()
    with pytest.raises(
        EngineError, match=r"building engine small_fp32: ONNX Runtime refuses .*broken_fp32\.onnx"
    ):
        BACKEND.build(described(path), tmp_path / "engine", settings())


def test_a_failed_write_fails_the_build(exported: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / exported.path.name).mkdir()  # where the graph is to be written
    with pytest.raises(EngineError, match="building engine small"):
        BACKEND.build(exported, tmp_path, settings())


# load


def test_a_truncated_engine_does_not_load(exported: OnnxModel, tmp_path: Path) -> None:
    BACKEND.build(exported, tmp_path, settings())
    graph = tmp_path / exported.path.name
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    with pytest.raises(EngineError, match="loading engine small"):
        BACKEND.load(tmp_path, settings())


def test_a_folder_without_an_engine_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.json: no engine of the onnxruntime backend"):
        BACKEND.load(tmp_path, settings())


def test_thread_settings_reach_the_session(built: tuple[Path, dict[str, Any], str]) -> None:
    engine = BACKEND.load(built[0], settings(onnxruntime={"allow_spinning": False}))
    options = engine._open().get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    both = BACKEND.load(built[0], Settings(threads=None))._open().get_session_options()
    assert both.intra_op_num_threads == torch.get_num_threads()


def test_without_onnx_runtime_the_backend_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"pip install .*wan-trt-core\[cpu\]"):
        BACKEND.require(settings())


# run


@pytest.mark.parametrize(("height", "width"), [(6, 5), (10, 7), (2, 2)])
def test_it_computes_what_pytorch_does(engine: OnnxRuntimeEngine, height: int, width: int) -> None:
    given = inputs(engine, height, width)
    assert_right(engine.run(given), given)


def test_declared_interface(engine: OnnxRuntimeEngine) -> None:
    dtype = engine.inputs["image"].dtype
    assert engine.inputs["scale"] == TensorInfo(dtype, (1, 1, 8))
    assert engine.inputs["image"].shape[:2] == (1, 3)
    assert list(engine.outputs) == ["tokens", "tall"]


def test_outputs_are_the_callers_to_keep(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    kept = engine.run(given)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    engine.run(inputs(engine, seed=1))
    engine.close()
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_inputs_are_not_modified_and_may_have_gaps(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine, 6, 5)
    wide = torch.zeros(1, 3, 6, 10, dtype=given["image"].dtype)
    wide[..., ::2] = given["image"]
    before = wide.clone()
    assert_right(engine.run({"image": wide[..., ::2], "scale": given["scale"]}), given)
    assert torch.equal(wide, before)


def test_the_order_of_the_inputs_does_not_matter(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    assert_right(engine.run(dict(reversed(given.items()))), given)


def test_run_into_writes_where_it_is_told(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    tall = torch.full_like(expected(given)[1], 7)
    results = engine.run_into(given, {"tall": tall})
    assert results["tall"] is tall
    assert_right(results, given)


def test_run_into_refuses_what_it_cannot_write_to(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    dtype = given["image"].dtype
    shape = (1, 3, 12, 10)
    refused: dict[str, tuple[dict[str, Tensor], str]] = {
        "unknown": ({"no": torch.empty(1)}, "no output 'no'; it returns tokens, tall"),
        "dtype": ({"tall": torch.empty(shape, dtype=torch.int64)}, "output 'tall' is int64"),
        "rank": ({"tall": torch.empty(12, 10, dtype=dtype)}, "output 'tall' has shape"),
        "shape": ({"tall": torch.empty(1, 3, 12, 9, dtype=dtype)}, r"expected \(1, 3, 12, 10\)"),
        "gaps": ({"tall": torch.empty(1, 3, 12, 20, dtype=dtype)[..., ::2]}, "'tall' is not contiguous"),
    }
    for outputs, message in refused.values():
        with pytest.raises(EngineError, match=message):
            engine.run_into(given, outputs)
    shared = torch.zeros(1, 3, 12, 10, dtype=dtype)
    given["image"] = shared.flatten()[: 3 * 6 * 5].view(1, 3, 6, 5)
    with pytest.raises(EngineError, match="output 'tall' shares its memory with input 'image'"):
        engine.run_into(given, {"tall": shared})


def test_wrong_inputs_are_named(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    image, scale = given["image"], given["scale"]
    refused: list[tuple[dict[str, Tensor], str]] = [
        ({"image": image}, "input 'scale' is missing; it takes image, scale"),
        ({**given, "more": scale}, "there is no input 'more'; it takes image, scale"),
        ({**given, "scale": scale.double()}, "input 'scale' is float64, expected float(32|16)"),
        ({**given, "scale": scale[0]}, r"input 'scale' has shape \(1, 8\), expected 3 axes: \(1, 1, 8\)"),
        ({**given, "scale": scale[..., :7]}, r"input 'scale' has shape \(1, 1, 7\): axis 2 must be 8"),
        ({**given, "image": image[:, :2]}, r"input 'image' has shape \(1, 2, 6, 5\): axis 1 must be 3"),
    ]
    for wrong, message in refused:
        with pytest.raises(EngineError, match=message) as caught:
            engine.run(wrong)
        assert str(caught.value).startswith("engine small_fp")


DERIVED = {"x": TensorInfo("float32", (1, "2*rows", "?")), "table": TensorInfo("float32", ("rows", "cols"))}


def test_derived_axes_are_solved_and_checked() -> None:
    """``rows`` is known from the table, so that ``2*rows`` is checked, whichever comes first."""
    given = {"x": torch.zeros(1, 6, 9), "table": torch.zeros(3, 5)}
    assert check_inputs("engine", DERIVED, given) == {"rows": 3, "cols": 5}
    with pytest.raises(EngineError, match=r"input 'x' has shape \(1, 8, 9\): axis 1 must be 6 \(2\*rows"):
        check_inputs("engine", DERIVED, {**given, "x": torch.zeros(1, 8, 9)})
    alone = {"x": DERIVED["x"]}
    assert check_inputs("engine", alone, {"x": given["x"]}) == {"rows": 3}
    with pytest.raises(EngineError, match="axis 1 must be 6"):
        check_inputs("engine", alone, {"x": torch.zeros(1, 7, 9)})


def test_the_shape_of_an_output() -> None:
    sizes = {"rows": 3, "cols": 5}
    assert output_shape(TensorInfo("float32", (1, "4*rows", "rows*cols")), sizes) == (1, 12, 15)
    assert output_shape(TensorInfo("float32", (1, "Max(1, rows)")), sizes) is None
    assert output_shape(TensorInfo("float32", ("?",)), sizes) is None


def test_a_tensor_on_another_device_is_named(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    with pytest.raises(EngineError, match="input 'image' is on meta, the engine on cpu"):
        engine.run({**given, "image": given["image"].to("meta")})


def test_a_closed_engine_says_so(engine: OnnxRuntimeEngine) -> None:
    given = inputs(engine)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"engine small_fp\d\d is closed"):
        engine.run(given)


def _hand_made(
    tmp_path: Path, node: onnx.NodeProto, ins: dict[str, Any], outs: dict[str, Any]
) -> OnnxRuntimeEngine:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in ins.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outs.items()],
    )
    path = tmp_path / "small_fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    folder = tmp_path / "engine"
    folder.mkdir()
    BACKEND.build(described(path), folder, settings())
    return BACKEND.load(folder, settings())


def test_an_output_whose_size_depends_on_the_data(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["where"])
    ins, outs = {"x": (TensorProto.FLOAT, (None,))}, {"where": (TensorProto.INT64, (1, None))}
    engine = _hand_made(tmp_path, node, ins, outs)
    found = engine.run({"x": torch.tensor([0.0, 2.0, 0.0, 3.0])})["where"]
    again = engine.run({"x": torch.tensor([4.0])})["where"]
    engine.close()
    assert found.tolist() == [[1, 3]]
    assert again.tolist() == [[0]]


def test_axes_that_two_inputs_share_must_agree(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["a", "b"], ["sum"])
    kind = TensorProto.FLOAT
    ins = {"a": (kind, (1, "width")), "b": (kind, (1, "width"))}
    engine = _hand_made(tmp_path, node, ins, {"sum": (kind, (1, "width"))})
    with pytest.raises(
        EngineError, match=r"input 'b' has shape \(1, 1\): axis 1 must be 4 \(width, by input 'a'\)"
    ):
        engine.run({"a": torch.ones(1, 4), "b": torch.ones(1, 1)})  # ONNX Runtime alone would broadcast it


def test_what_onnx_runtime_refuses_in_a_run_is_an_engine_error(tmp_path: Path) -> None:
    kind = TensorProto.FLOAT
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    engine = _hand_made(
        tmp_path, node, {"a": (kind, ("x", "y")), "b": (kind, ("z", "w"))}, {"c": (kind, ("x", "w"))}
    )
    with pytest.raises(EngineError, match=r"engine small_fp32: ONNX Runtime: .*MatMul"):
        engine.run({"a": torch.ones(2, 3), "b": torch.ones(4, 5)})


# identity


def test_options_and_versions_are_json() -> None:
    options = BACKEND.options(settings(), "fp32")
    assert json.loads(json.dumps(options)) == options
    assert options == {"graph_optimization_level": "all", "provider": "CPUExecutionProvider"}
    assert options != BACKEND.options(settings(onnxruntime={"graph_optimization_level": "basic"}), "fp32")
    assert BACKEND.versions() in (
        {"onnxruntime": onnxruntime.__version__},
        {"onnxruntime-gpu": onnxruntime.__version__},
    )


def test_only_level_all_ties_an_engine_to_this_cpu() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert capability in BACKEND.device(settings())
    portable = BACKEND.device(settings(onnxruntime={"graph_optimization_level": "extended"}))
    assert capability not in portable
    assert portable.startswith("cpu ")


# an engine that brings no run_into of its own


class Doubling(Engine):
    def __init__(self) -> None:
        self.inputs = {"x": TensorInfo("float32", ("n",))}
        self.outputs = {"y": TensorInfo("float32", ("n",)), "z": TensorInfo("float32", ("n",))}

    def run(self, inputs: Any) -> dict[str, Tensor]:
        return {"y": inputs["x"] * 2, "z": inputs["x"] * 3}

    def memory(self) -> dict[str, int]:
        return {}


def test_the_default_run_into_copies() -> None:
    target = torch.zeros(2)
    results = Doubling().run_into({"x": torch.ones(2)}, {"y": target})
    assert results["y"] is target
    assert target.tolist() == [2, 2]
    assert results["z"].tolist() == [3, 3]
    with pytest.raises(EngineError, match="no output 'q'; there are y, z"):
        Doubling().run_into({"x": torch.ones(2)}, {"q": target})


# torch and torch-compile


def test_torch_runs_the_module_itself() -> None:
    backend = get_backend("torch")
    assert isinstance(backend, ModuleBackend)
    assert not isinstance(backend, EngineBackend)
    backend.require(settings(device="cpu"))
    module = nn.Linear(2, 2)
    assert backend.wrap(module, settings()) is module
    assert backend.versions()["torch"]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("torch", "torch-compile"):
        with pytest.raises(BackendUnavailable, match="sees no CUDA device"):
            get_backend(name).require(settings(device="cuda"))


def test_torch_compile_without_a_compiler_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        BackendUnavailable, match=r"needs a working C\+\+ compiler.*g\+\+: not found.*python3-dev"
    ):
        get_backend("torch-compile").require(settings(device="cpu"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'fatal error: Python.h: No such file' >&2; exit 1", r"exits with 1 \(fatal error: Python.h"),
        ("exit 3", "exits with 3"),
        ("sleep 30", "timed out"),
    ],
)
def test_a_compiler_that_does_not_compile_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(torch_compile, "PROBE_TIMEOUT", 1.0)
    with pytest.raises(BackendUnavailable, match=message):
        get_backend("torch-compile").require(settings(device="cpu"))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def test_torch_compile_compiles_what_a_vae_runs() -> None:
    backend = get_backend("torch-compile")
    assert isinstance(backend, ModuleBackend)
    vae = Vae()
    originals = vae.encoder, vae.decoder
    twin = backend.wrap(vae, settings())
    assert (vae.encoder, vae.decoder) == originals
    assert isinstance(twin, Vae)
    for half, original in zip((twin.encoder, twin.decoder), originals, strict=True):
        assert isinstance(half, torch._dynamo.OptimizedModule)
        assert half._orig_mod is original
    assert isinstance(backend.wrap(nn.Linear(2, 2), settings()), torch._dynamo.OptimizedModule)


def test_torch_compile_compiles_each_case_for_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself PyTorch answers a module's second size with code for all of them, and compiles no third."""
    compiled = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=note))
    module = nn.Linear(2, 2)
    for tokens in (3, 4, 5):
        get_backend("torch-compile").wrap(module, settings())(torch.ones(tokens, 2))  # type: ignore[attr-defined]
    assert len(compiled) == 3


def test_torch_compile_of_repeated_blocks_only_leaves_the_original_alone() -> None:
    from diffusers import WanTransformer3DModel

    backend = get_backend("torch-compile")
    assert isinstance(backend, torch_compile.TorchCompileBackend)
    stock = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=8, text_dim=8, freq_dim=8
    )
    twin = backend.wrap(stock, settings())
    assert isinstance(twin, WanTransformer3DModel)
    compiled = [block._compiled_call_impl is not None for block in twin.blocks]
    assert compiled == [True, True]
    assert [block._compiled_call_impl for block in stock.blocks] == [None, None]
    assert twin._compiled_call_impl is None
    ours, theirs = dict(twin.named_parameters()), dict(stock.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(parameter is theirs[name] for name, parameter in ours.items())
    whole = settings(torch_compile=TorchCompileSettings(regional=False))
    assert isinstance(backend.wrap(stock, whole), torch._dynamo.OptimizedModule)
    assert backend.scope(stock, settings()) == "repeated blocks"
    assert backend.scope(stock, whole) == "whole module"


def test_torch_compile_of_a_module_that_names_no_repeated_blocks_is_of_all_that_runs() -> None:
    """By default too: a VAE's two halves, a text encoder whole."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    backend = get_backend("torch-compile")
    assert isinstance(backend, torch_compile.TorchCompileBackend)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False]
    )
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    assert backend.scope(vae, settings()) == "encoder and decoder"
    twin: Any = backend.wrap(vae, settings())
    assert all(isinstance(half, torch._dynamo.OptimizedModule) for half in (twin.encoder, twin.decoder))
    for module in (encoder, nn.Linear(2, 2)):
        assert backend.scope(module, settings()) == "whole module"
        assert isinstance(backend.wrap(module, settings()), torch._dynamo.OptimizedModule)


@pytest.mark.slow
def test_torch_compile_computes_what_eager_does() -> None:
    backend = get_backend("torch-compile")
    assert isinstance(backend, ModuleBackend)
    try:
        backend.require(settings(device="cpu"))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(backend.wrap(module, settings())(x), module(x))
