"""What surrounds TensorRT's builder: its progress, stopping it, and the check of what it built."""

from __future__ import annotations

import functools
import json
import logging
import mmap
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from fake_stream import FakeStream

from wan_trt_core.backends.base import BackendUnavailable, EngineError, OnnxModel
from wan_trt_core.backends.registry import device_of, get_backend
from wan_trt_core.backends.tensorrt import api, backend, builder, runtime
from wan_trt_core.backends.tensorrt.builder import _Graph
from wan_trt_core.backends.tensorrt.plan import Description, write_description
from wan_trt_core.backends.tensorrt.progress import Phases, interruptible
from wan_trt_core.backends.tensorrt.verification import (
    computed_in,
    layers_of,
    unfused_attentions,
    unplanned_precisions,
    untold_products,
)
from wan_trt_core.config import ConfigError, LogSettings, Settings, load_settings, with_values
from wan_trt_core.engine_cache import EngineCache
from wan_trt_core.logs import logging_to

FUSED = {
    "Name": "_gemm_mha_v2_myl0_7",
    "LayerType": "kgen",
    "Metadata": "[ONNX Layer: node_matmul_1]\x1f[ONNX Layer: node_softmax]\x1f[ONNX Layer: node_matmul]",
    "Outputs": [{"Name": "a", "Dimensions": [1, 12, 7800, 128], "Format/Datatype": "Half"}],
}
GEMM = {
    "Name": "node_linear_myl3_1",
    "LayerType": "gemm",
    "Metadata": "[ONNX Layer: node_linear]\x1e[ONNX Layer: node_gelu]",
    "Inputs": [{"Name": "x", "Format/Datatype": "Half"}, {"Name": "alpha", "Format/Datatype": "Float"}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
}
APART = {
    "Name": "__myl_MaxSubExpSumDivMul_myl0_9",
    "LayerType": "kgen",
    "Metadata": "[ONNX Layer: node_softmax_1]",
    "Outputs": [{"Name": "b", "Format": "Row major linear", "Datatype": "FP32"}],
}


def report(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": []})


class TestVerification:
    def test_fused_attentions_are_recognised(self) -> None:
        assert unfused_attentions(layers_of(report(FUSED)), ["node_softmax"]) == ()

    def test_an_attention_in_pieces_is_named_with_its_layer(self) -> None:
        found = unfused_attentions(layers_of(report(FUSED, APART)), ["node_softmax", "node_softmax_1"])
        assert found == ("node_softmax_1 (in layer __myl_MaxSubExpSumDivMul_myl0_9)",)

    def test_an_attention_that_no_layer_tells_of_is_not_taken_for_fused(self) -> None:
        """A report without details must not pass: layers are then plain names."""
        assert unfused_attentions(layers_of(report("layer 1", "layer 2")), ["node_softmax"]) == (
            "node_softmax",
        )

    def test_products_in_the_precision_of_the_graph_pass(self) -> None:
        """A cast may be fused to a product, on either side."""
        widened = {**GEMM, "Outputs": [{"Name": "b", "Format/Datatype": "Float"}]}
        gate = {"Name": "gate", "Format/Datatype": "Float"}
        gated = {**widened, "Inputs": [gate, *GEMM["Inputs"]]}  # as H200's __myl_FcCasMulAdd
        tables = [{"Format/Datatype": "Float"}, {"Format/Datatype": "Half"}]
        rotated = {**widened, "Inputs": tables[:1], "Outputs": tables}  # and cast what other layers take
        for entry in (GEMM, widened, gated, rotated):
            assert unplanned_precisions(layers_of(report(entry)), {"node_linear": "float16"}) == ()

    def test_a_product_in_another_precision_is_named_with_its_layer(self) -> None:
        wide = {**GEMM, "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [{"Format/Datatype": "Float"}]}
        planned = {"node_linear": "float16", "node_elsewhere": "float16"}
        assert unplanned_precisions(layers_of(report(wide)), planned) == (
            "node_linear is float16 in the graph, and float32 to float32 in layer node_linear_myl3_1",
        )

    @pytest.mark.parametrize("told", ["BFloat16", "Row major linear BF16 format"])
    def test_bf16_is_not_taken_for_float32(self, told: str) -> None:
        entry = {**GEMM, "Inputs": [{"Format/Datatype": told}], "Outputs": [{"Format/Datatype": told}]}
        assert unplanned_precisions(layers_of(report(entry)), {"node_linear": "bfloat16"}) == ()

    def test_casts_to_float32_around_a_product_ask_for_its_sums_alone(self, tmp_path: Path) -> None:
        import onnx
        from onnx import TensorProto, helper

        float16, float32 = TensorProto.FLOAT16, TensorProto.FLOAT
        nodes = [
            helper.make_node("Cast", ["x"], ["wide"], "cast", to=float32),
            helper.make_node("MatMul", ["wide", "wide"], ["sums"], "widened"),
            helper.make_node("MatMul", ["sums", "sums"], ["y"], "plain"),
            helper.make_node("Conv", ["wide", "wide"], ["z"], "convolved"),
            helper.make_node("Gemm", ["wide", "weight", "bias"], ["v"], "of float32 weights"),
        ]
        values = [
            helper.make_tensor_value_info(name, float32, [2, 2]) for name in ("wide", "sums", "y", "z", "v")
        ]
        taken = helper.make_tensor_value_info("x", float16, [2, 2])
        graph = helper.make_graph(nodes, "g", [taken], values[2:], value_info=values[:2])
        onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
        assert _Graph(tmp_path / "m.onnx").products == {
            "widened": "float16",
            "plain": "float32",
            "convolved": "float32",
            "of float32 weights": "float32",
        }

    def test_a_cast_from_bf16_to_half_before_a_product_asks_for_nothing(self, tmp_path: Path) -> None:
        """What attention in BF16 gives goes into the next linear layer in FP16."""
        import onnx
        from onnx import TensorProto, helper

        cast = helper.make_node("Cast", ["x"], ["half"], "cast", to=TensorProto.FLOAT16)
        product = helper.make_node("MatMul", ["half", "half"], ["y"], "product")
        taken = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2, 2])
        half, made = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 2]) for name in ("half", "y")
        )
        graph = helper.make_graph([cast, product], "g", [taken], [made], value_info=[half])
        onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
        assert _Graph(tmp_path / "m.onnx").products == {"product": "float16"}

    @pytest.mark.parametrize(
        ("dtype", "head", "why"),
        [
            ("FLOAT16", 128, ""),
            ("BFLOAT16", 256, ""),
            ("FLOAT16", 384, "a head of 384"),  # the VAE's
            ("FLOAT", 128, "float32"),
        ],
    )
    def test_an_attention_that_has_no_fused_kernel_is_told_with_why(
        self, dtype: str, head: int, why: str, tmp_path: Path
    ) -> None:
        """The product is seen through what is added to the scores."""
        import onnx
        from onnx import TensorProto, helper

        nodes = [
            helper.make_node("MatMul", ["query", "key"], ["scores"], "product"),
            helper.make_node("Add", ["scores", "added"], ["sums"], "sum"),
            helper.make_node("Softmax", ["sums"], ["y"], "softmax"),
        ]
        shapes = {
            "query": [8, head],
            "key": [head, 4],
            "added": [4],
            "scores": [8, 4],
            "sums": [8, 4],
            "y": [8, 4],
        }
        kind = getattr(TensorProto, dtype)
        values = [helper.make_tensor_value_info(name, kind, of) for name, of in shapes.items()]
        graph = helper.make_graph(nodes, "g", values[:3], values[5:], value_info=values[3:5])
        onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
        found = _Graph(tmp_path / "m.onnx")
        assert found.fusable == (() if why else ("softmax",))
        assert found.unfusable == ((f"softmax ({why})",) if why else ())

    def test_a_report_that_tells_of_no_product_proves_nothing(self) -> None:
        found = unplanned_precisions(layers_of(report("layer 1")), {"node_linear": "float16"})
        assert found == ("no layer of the inspector's report tells of any product",)

    def test_products_that_no_layer_tells_of_are_named(self) -> None:
        """One that is told of does not speak for the others, nor does a layer without dtypes."""
        silent = {"Name": "layer", "Metadata": "[ONNX Layer: node_silent]"}
        planned = dict.fromkeys(("node_linear", "node_silent", "node_elsewhere"), "float16")
        layers = layers_of(report(GEMM, silent))
        assert unplanned_precisions(layers, planned) == ()
        assert untold_products(layers, planned) == ("node_silent", "node_elsewhere")
        assert untold_products(layers, {"node_linear": "float16"}) == ()

    def test_how_many_products_were_checked_is_noted_and_no_problem(self) -> None:
        made = Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 0, products=9, untold=tuple("abcde"))
        said = "engine dit_fp16: the inspector tells the precision of"
        assert made.notes == (f"{said} 4 of 9 products, not of a, b, c and 2 more",)
        assert replace(made, untold=()).notes == (f"{said} 9 of 9 products",)
        assert replace(made, products=0, untold=()).notes == () == made.problems

    def test_attentions_that_no_kernel_fuses_are_noted_with_why_and_no_problem(self) -> None:
        why = ("softmax (a head of 384)",)
        made = Description("vae_decoder_next", "fp16", "vae.trt", {}, {}, (), 0, unfusable=why)
        assert made.notes == (
            "engine vae_decoder_next_fp16: no fused kernel takes 1 attentions: softmax (a head of 384)",
        )
        assert made.problems == ()

    def test_the_first_few_stand_for_all(self) -> None:
        made = Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 8, tuple("abcde"), ("p",))
        assert made.problems == (
            "engine dit_fp16: 5 of 8 attentions were not fused: a, b, c and 2 more",
            "engine dit_fp16: 1 products are not computed in the graph's precision: p",
        )
        assert replace(made, unfused=(), unplanned=()).problems == ()

    def test_dtypes_of_both_styles_of_report(self) -> None:
        assert computed_in(layers_of(report(FUSED, APART))) == {"float16": 1, "float32": 1}


class TestMessages:
    """TensorRT's own messages, and ``$TRT_LOGGER_LEVEL``."""

    SAID = ("VERBOSE", "INFO", "WARNING", "ERROR")

    @pytest.fixture(autouse=True)
    def _own_logger(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        logger = type("ILogger", (), {"__init__": lambda self: None})
        monkeypatch.setattr(api, "tensorrt", lambda: SimpleNamespace(ILogger=logger))
        monkeypatch.delenv("TRT_LOGGER_LEVEL", raising=False)
        yield
        logging.getLogger("wan_trt_core.tensorrt").setLevel(logging.NOTSET)

    def logged(self, caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
        with logging_to(LogSettings(level=level), terminal=False):  # type: ignore[arg-type]
            log = api.message_log()
            for severity in self.SAID:
                log.log(SimpleNamespace(name=severity), f"{severity.lower()}\n")
        assert api.reasons(log) == "error"
        return [record.message for record in caplog.records]

    def test_warnings_are_logged_unless_the_log_is_for_errors(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.logged(caplog, "debug") == ["warning", "error"]
        caplog.clear()
        assert self.logged(caplog, "error") == ["error"]

    def test_the_environment_decides_whatever_the_level_of_the_log(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("TRT_LOGGER_LEVEL", "verbose")
        assert self.logged(caplog, "warning") == ["verbose", "info", "warning", "error"]
        caplog.clear()
        monkeypatch.setenv("TRT_LOGGER_LEVEL", "ERROR")
        assert self.logged(caplog, "debug") == ["error"]

    def test_a_level_that_tensorrt_does_not_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRT_LOGGER_LEVEL", "loud")
        with pytest.raises(ConfigError, match="TRT_LOGGER_LEVEL is 'LOUD'; it is one of INTERNAL_ERROR"):
            api.message_log()


class TestProgress:
    def test_nested_phases_make_one_rising_fraction(self) -> None:
        told: list[float] = []
        phases = Phases(lambda name, fraction: told.append(fraction))
        phases.start("build", None, 2)
        phases.step("build", 0)
        phases.start("tactics", "build", 10)
        for step in range(10):
            phases.step("tactics", step)
        phases.finish("tactics")
        phases.step("build", 1)
        assert told == sorted(told)
        assert told[:3] == [0.0, 0.5, 0.5]
        assert 0.7 < told[7] < 0.9 and told[-1] == 1.0

    def test_each_phase_has_its_seconds(self) -> None:
        phases = Phases(lambda name, fraction: None)
        phases.start("build", None, 2)
        for _ in range(2):
            phases.start("tactics", "build", 1)
            time.sleep(0.02)
            phases.finish("tactics")
        phases.finish("build")
        assert list(phases.seconds) == ["tactics", "build"]
        assert 0.04 <= phases.seconds["tactics"] <= phases.seconds["build"]

    def test_a_cancelled_build_is_asked_to_stop(self) -> None:
        phases = Phases(lambda name, fraction: None)
        phases.start("build", None, 2)
        assert phases.step("build", 0)
        phases.cancelled = True
        assert not phases.step("build", 1)


class TestInterrupt:
    def test_results_and_errors_come_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 8 << 30))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
        phases = Phases(lambda name, fraction: None)
        assert interruptible(lambda: 7, phases) == 7

        def fail() -> None:
            raise RuntimeError("no kernel")

        with pytest.raises(
            EngineError, match=r"builder failed: no kernel; 1\.00 of 8\.00 GiB are free on NVIDIA"
        ):
            interruptible(fail, phases)

    def test_the_builder_works_on_the_callers_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has a thread of its own, and a new thread begins on the first GPU of the machine."""
        here = threading.local()

        @contextmanager
        def device(index: int) -> Iterator[None]:
            here.gpu = index
            yield

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(here, "gpu", 0))
        monkeypatch.setattr(torch.cuda, "device", device)
        with device(1):
            assert interruptible(torch.cuda.current_device, Phases(lambda name, fraction: None)) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_the_builder_and_then_the_caller(self, number: signal.Signals) -> None:
        """As a process of its own: a signal goes to a main thread. The command line ends on SIGTERM as on Ctrl-C."""
        script = (
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
            "from wan_trt_core.backends.tensorrt.progress import Phases, interruptible\n"
            "phases = Phases(lambda name, fraction: None)\n"
            "def build():\n"
            "    print('building', flush=True)\n"
            "    while phases.step('build', 0): time.sleep(0.01)\n"
            "    print('builder stopped', flush=True)\n"
            "try:\n"
            "    interruptible(build, phases)\n"
            "except (KeyboardInterrupt, SystemExit):\n"
            "    print('interrupted', flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        try:
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
        assert out == "builder stopped\ninterrupted\n"


class TestAvailability:
    def test_without_tensorrt_it_says_which_extra_to_install(self) -> None:
        with pytest.raises(BackendUnavailable, match=r'pip install "wan-trt-core\[gpu,tensorrt\]"'):
            get_backend("tensorrt").require(Settings())

    def test_it_runs_on_a_gpu_whatever_the_settings_name(self) -> None:
        assert device_of(Settings(), "tensorrt") == "cuda"
        assert device_of(Settings(), "onnxruntime") == "cpu"
        assert device_of(Settings(backend="tensorrt")) == "cuda"


def test_timings_of_kernels_are_kept_for_the_next_build(tmp_path: Path) -> None:
    """Two builds side by side: neither loses what the other measured; nor does one that a timeout ends."""
    from wan_trt_core.backends.tensorrt.builder import _timing_cache

    class Cache:
        def __init__(self, timings: bytes) -> None:
            self.timings = set(timings.split())

        def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
            self.timings |= other.timings
            return True

        def serialize(self) -> bytes:
            return b" ".join(sorted(self.timings))

    class Config:
        def create_timing_cache(self, stored: bytes) -> Cache:
            return Cache(stored)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> Cache:
            return self.cache

    path, both = tmp_path / "gpu.timing", threading.Barrier(2)

    def build(kernel: bytes) -> None:
        config = Config()
        with _timing_cache(config, path, Settings()):
            both.wait()
            config.cache.timings.add(kernel)
            time.sleep(0.01)

    threads = [threading.Thread(target=build, args=(kernel,)) for kernel in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"one two"
    config = Config()
    with pytest.raises(KeyboardInterrupt), _timing_cache(config, path, Settings()):
        config.cache.timings.add(b"three")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one three two"
    assert not path.with_suffix(".new").exists()


@pytest.mark.parametrize("refused_by", ["create_timing_cache", "set_timing_cache"])
def test_timings_that_tensorrt_refuses_are_measured_anew(
    refused_by: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged ones are no cache at all, those of another driver are not taken: a build must not end with either."""
    from wan_trt_core.backends.tensorrt.builder import _timing_cache

    taken: list[Any] = []

    def create(stored: bytes) -> Any:
        refused = refused_by == "create_timing_cache" and stored
        return None if refused else SimpleNamespace(stored=stored, serialize=lambda: b"new")

    def take(cache: Any, ignore_mismatch: bool) -> bool:
        if cache.stored:
            return False
        taken.append(cache)
        return True

    config = SimpleNamespace(
        create_timing_cache=create,
        set_timing_cache=take,
        get_timing_cache=lambda: taken[0] if taken else None,
    )
    (tmp_path / "gpu.timing").write_bytes(b"useless")
    with _timing_cache(config, tmp_path / "gpu.timing", Settings()):
        pass
    assert (tmp_path / "gpu.timing").read_bytes() == b"new"
    assert "TensorRT refuses these timings" in caplog.text


def test_a_plan_that_tensorrt_refuses_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another version, for another GPU, or cut off: TensorRT answers with nothing and says why in its log."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    trt = SimpleNamespace(__version__="10.6.0", Runtime=lambda log: runtime)
    said = "The engine plan file is not compatible with this version of TensorRT"
    monkeypatch.setattr(backend, "tensorrt", lambda: trt)
    monkeypatch.setattr(backend, "require_cuda", lambda: None)
    monkeypatch.setattr(backend, "message_log", lambda: SimpleNamespace(errors=[said]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 8 << 30))
    write_description(Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 0), tmp_path)
    with pytest.raises(EngineError, match="its plan cannot be read"):
        backend.TensorRtBackend().load(tmp_path, Settings())
    (tmp_path / "dit_fp16.trt").touch()
    with pytest.raises(EngineError, match=r"its plan cannot be read: .*empty"):
        backend.TensorRtBackend().load(tmp_path, Settings())
    (tmp_path / "dit_fp16.trt").write_bytes(b"of another version")
    with pytest.raises(
        EngineError, match=rf"dit_fp16: TensorRT 10.6.0 refuses .* NVIDIA H200: {said}; .* 1.00 of 8"
    ):
        backend.TensorRtBackend().load(tmp_path, Settings())


@pytest.mark.parametrize("built", [None, b"a plan"], ids=["in the builder", "when the plan is loaded"])
def test_out_of_memory_in_a_build_says_what_was_asked_and_what_was_free_and_leaves_nothing(
    built: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT answers with nothing, and says in its log what it could not have."""
    import onnx
    from onnx import TensorProto, helper

    taken, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["rows", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], "softmax")], "g", [taken], [made])
    onnx.save(helper.make_model(graph), str(tmp_path / "dit_fp16.onnx"))
    (tmp_path / "dit_fp16.onnx.data").write_bytes(bytes(1 << 20))
    shapes = {"x": {"min": (1, 4), "opt": (2, 4), "max": (8, 4)}}
    model = OnnxModel("dit", "fp16", tmp_path / "dit_fp16.onnx", "", "p", shapes, shapes, ("x",), ("y",))
    said = "Requested amount of GPU memory (8589934592 bytes) could not be allocated"
    trt = MagicMock()
    trt.Builder().build_serialized_network.return_value = built
    trt.Builder().create_builder_config().add_optimization_profile.return_value = 0
    trt.Runtime().deserialize_cuda_engine.return_value = None
    monkeypatch.setattr(builder, "tensorrt", lambda: trt)
    monkeypatch.setattr(
        api, "tensorrt", lambda: MagicMock(NetworkDefinitionCreationFlag=MagicMock(STRONGLY_TYPED=1))
    )
    monkeypatch.setattr(builder, "message_log", lambda: SimpleNamespace(errors=[said]))
    monkeypatch.setattr(builder, "monitor", lambda phases: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 30, 8 << 30))
    monkeypatch.setattr(builder, "GIB", 1 << 20)  # so that a small file has a size to tell
    cache, settings = EngineCache(tmp_path / "cache"), Settings(tensorrt={"timing_cache": False})

    def make(folder: Path) -> dict[str, Any]:
        return builder.build_plan(model, folder, settings, tmp_path / "gpu.timing", None)

    what = "building engine dit_fp16" if built is None else "the built plan does not load"
    size = "its ONNX file has 1.00 GiB" if built is None else "the plan has 0.00 GiB"
    free = "1.00 of 8.00 GiB are free on NVIDIA H200"
    with pytest.raises(EngineError, match=re.escape(f"{what}: {said}; {size}, {free}")):
        cache.get_or_make("engines", {"component": "dit"}, make)
    assert cache.list() == () and not list((tmp_path / "cache").rglob("*.trt*"))
    assert not any(path.is_file() for path in (tmp_path / "cache" / "tmp").rglob("*"))


def test_a_plan_is_mapped_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy would be as large as the weights, in host memory."""
    seen: list[tuple[bytes, weakref.ref[mmap.mmap]]] = []

    def deserialize(plan: mmap.mmap) -> Any:
        assert isinstance(plan, mmap.mmap)
        seen.append((plan[:], weakref.ref(plan)))
        return SimpleNamespace()

    trt = SimpleNamespace(Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=deserialize))
    monkeypatch.setattr(backend, "tensorrt", lambda: trt)
    monkeypatch.setattr(backend, "require_cuda", lambda: None)
    monkeypatch.setattr(backend, "message_log", lambda: SimpleNamespace(errors=[]))
    monkeypatch.setattr(backend, "_shared", lambda device: (FakeStream(device), runtime.Scratch(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    write_description(Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 0), tmp_path)
    (tmp_path / "dit_fp16.trt").write_bytes(b"the plan")
    engine = backend.TensorRtBackend().load(tmp_path, Settings())
    ((given, mapping),) = seen
    assert given == b"the plan" and engine.memory()["weights"] == len(given)
    assert mapping() is None


def test_engines_are_loaded_onto_the_current_gpu_and_share_its_stream_and_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each engine of a pipeline would hold scratch memory of its own, or all of them work on the first GPU."""
    trt = SimpleNamespace(Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda _: object()))
    monkeypatch.setattr(backend, "tensorrt", lambda: trt)
    monkeypatch.setattr(backend, "require_cuda", lambda: None)
    monkeypatch.setattr(backend, "message_log", lambda: None)
    # as in a new process, whose streams are no others than these
    monkeypatch.setattr(backend, "_shared", functools.cache(backend._shared.__wrapped__))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    write_description(Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 0), tmp_path)
    (tmp_path / "dit_fp16.trt").write_bytes(b"the plan")

    def load(gpu: int, **chosen: Any) -> runtime.TensorRtEngine:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
        engine = backend.TensorRtBackend().load(tmp_path, Settings(tensorrt=chosen))
        assert str(engine.device) == str(engine._scratch._device) == f"cuda:{gpu}"
        return engine

    first, second, elsewhere, apart = load(1), load(1), load(0), load(1, share_scratch=False)
    assert first._scratch is second._scratch
    assert first._stream is second._stream is apart._stream
    assert len({id(each._scratch) for each in (first, elsewhere, apart)}) == 3
    assert first._stream is not elsewhere._stream


def test_tf32_is_of_no_consequence_in_half_precision() -> None:
    """So one engine serves the cases that allow it and those that do not."""
    settings = load_settings(overrides={"perf.allow_tf32": True}, environ={}).settings
    told = {
        precision: backend.TensorRtBackend().options(settings, precision)["tf32"]
        for precision in ("fp32", "fp16")
    }
    assert told == {"fp32": True, "fp16": False}


def test_versions_are_those_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """By them `wan-trt engines prune --unused` tells what nothing here will ask for again: no other names."""
    monkeypatch.setattr(backend, "tensorrt", lambda: SimpleNamespace(__version__="10.6.0"))
    installed = {"tensorrt": "10.6.0.post1", "cuda-python": "13.0"}
    monkeypatch.setattr(
        backend, "distribution_versions", lambda *names: {n: installed[n] for n in names if n in installed}
    )
    assert backend.TensorRtBackend().versions() == installed
    assert backend.TensorRtBackend().built_by() == {"tensorrt": "10.6.0.post1"}, "cuda-python builds nothing"
    installed.clear()
    assert backend.TensorRtBackend().versions() == {"tensorrt": "10.6.0"}


@pytest.mark.parametrize(("budget", "kept"), [(None, 64), (0.0, 0), (32 / builder.GIB, 32), (1.0, 64)])
def test_the_budget_of_streamed_weights_is_set_when_an_engine_is_loaded(
    budget: float | None, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's own default is no promise, more than there is an error, and a refusal told in its log alone."""
    plan = SimpleNamespace(streamable_weights_size=64, weight_streaming_budget_v2=-1)
    trt = SimpleNamespace(Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda _: plan))
    monkeypatch.setattr(backend, "tensorrt", lambda: trt)
    monkeypatch.setattr(backend, "require_cuda", lambda: None)
    monkeypatch.setattr(backend, "message_log", lambda: SimpleNamespace(errors=["no room"]))
    monkeypatch.setattr(backend, "_shared", lambda device: (FakeStream(device), runtime.Scratch(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    write_description(Description("dit", "fp16", "dit_fp16.trt", {}, {}, (), 0), tmp_path)
    (tmp_path / "dit_fp16.trt").write_bytes(bytes(100))
    chosen = {"weight_streaming": True, "weight_streaming_budget_gib": budget}
    engine = backend.TensorRtBackend().load(tmp_path, Settings(tensorrt=chosen))
    assert plan.weight_streaming_budget_v2 == kept
    assert engine.memory()["weights"] == 100 - 64 + kept
    stuck = {
        "streamable_weights_size": 64,
        "weight_streaming_budget_v2": property(lambda _: 1, lambda *_: None),
    }
    plan = type("Stuck", (), stuck)()
    monkeypatch.setattr(backend, "free_memory", lambda: "1 GiB is free")
    with pytest.raises(EngineError, match=r"dit_fp16: .* do not stay on the GPU .*: no room; 1 GiB is free"):
        backend.TensorRtBackend().load(tmp_path, Settings(tensorrt=chosen))


def test_one_build_at_a_time_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder chooses kernels by their time, which another build beside it would spoil."""
    gpus = [SimpleNamespace(name="NVIDIA H200", uuid=uuid, major=9, minor=0) for uuid in ("one", "two")]
    for gpu in gpus:
        gpu.multi_processor_count = 132
    monkeypatch.setattr(backend, "tensorrt", lambda: SimpleNamespace(__version__="10.6.0"))
    monkeypatch.setattr(backend, "require_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[0])
    settings = Settings(cache=tmp_path, engine_lock_timeout=0.01)
    build = backend.TensorRtBackend().build

    def nested(*_: Any) -> dict[str, Any]:
        monkeypatch.setattr(builder, "build_plan", lambda *_: {"built": True})
        with pytest.raises(EngineError, match="another process has been building an engine on this GPU"):
            build(model, tmp_path, settings)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[1])
        return build(model, tmp_path, settings)

    model: Any = None
    monkeypatch.setattr(builder, "build_plan", nested)
    assert build(model, tmp_path, settings) == {"built": True}


def test_a_build_that_takes_long_says_what_makes_it_shorter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = OnnxModel("vae_decoder_next", "fp32", Path("graph.onnx"), "", "p", {}, {}, (), ())
    few = with_values(Settings(), {"tensorrt.max_tactics": 16})
    for settings, seconds, told in ((Settings(), 0.0, True), (Settings(), 60.0, False), (few, 0.0, False)):
        caplog.clear()
        monkeypatch.setattr(builder, "SLOW_SECONDS", seconds)
        with builder._told_if_slow(model, settings):
            time.sleep(0.05)
        assert ("vae_decoder_next_fp32" in caplog.text and "tensorrt.max_tactics=16" in caplog.text) is told
