"""Reference and candidate side by side: healthy cases pass, and every injected fault is caught and placed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_device import MIB, FakeDevice, FakeNvml
from faults import drop_block, negate_angles, permute_caches, poison, scale_block, swap_heads
from host_memory import touch
from test_measure_clocks import HARDWARE, POWER_CAP, Gpu
from torch import nn

import wan_trt_core
from wan_trt_core.backends.base import BackendUnavailable, EngineError
from wan_trt_core.backends.torch_compile import TorchCompileBackend
from wan_trt_core.cases import Case, Limit, MemoryGate
from wan_trt_core.comparison import explain_case, measure_case, memory, parity, perf, targets
from wan_trt_core.comparison.blocks import NOISE, find_divergence
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.memory import measure_growth, measure_peak
from wan_trt_core.comparison.perf import sample_time, time_target
from wan_trt_core.comparison.profiling import profile
from wan_trt_core.comparison.targets import Arm, Outputs, Target, target_of
from wan_trt_core.config import MemorySettings, PerfSettings, PipelineSettings, Settings, load_settings
from wan_trt_core.gates import judge
from wan_trt_core.gates.bands import BaselineEntry, BaselineMetric, Tolerance
from wan_trt_core.gates.memory import judge_step_growth
from wan_trt_core.gates.verdict import Reason, Verdict, decide
from wan_trt_core.measure.clocks import ClockWatch
from wan_trt_core.measure.device_memory import DeviceMemory
from wan_trt_core.measure.memory_events import MemoryRecord
from wan_trt_core.models.components import ComponentError, get_component
from wan_trt_core.models.graphs.dit import Modulation
from wan_trt_core.pipeline import engines
from wan_trt_core.pipeline.acceleration import originals
from wan_trt_core.records import Interrupted, Measurement, Metric

PROFILE = "64p-9f"


def settings_with(cache: Path, checkpoint: Path) -> Settings:
    given = {"cache": str(cache), "checkpoint": str(checkpoint), "export.check": False}
    return load_settings(overrides=given, environ={}).settings


@pytest.fixture
def settings(small_checkpoint: Path, tmp_path: Path) -> Settings:
    """A cache of its own: an engine with an injected fault must never reach another test."""
    return settings_with(tmp_path / "cache", small_checkpoint)


@pytest.fixture(scope="module")
def healthy(small_checkpoint: Path, engine_cache_folder: Path) -> Settings:
    """Settings of the tests that inject nothing, and may share their engines."""
    return settings_with(engine_cache_folder, small_checkpoint)


@pytest.fixture(params=["modules", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def faulty(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the tests that put a fault into a component's graph: PyTorch runs that very graph, or ONNX Runtime
    does, for which it is exported twice. Operations are looked for in ONNX alone, see ``test_explain_parity.py``."""
    if request.param == "modules":
        request.getfixturevalue("on_modules")
        monkeypatch.setattr(Target, "operation", lambda *_: None)
    return settings


def case_of(component: str, settings: Settings, **fields: Any) -> Case:
    video = component == "pipeline"
    floor = {"video.psnr_db" if video else "psnr_db": {"min": 90.0, "reason": "float32"}}
    row = {
        "id": f"small-{component}", "model": str(settings.checkpoint), "component": component, "profile": PROFILE,
        "precision": "fp32", "backend": "onnxruntime", "parity": {"limits": floor}, "perf": {"parity": floor},
        "memory": {"growth": {"max": 65536, "reason": "allocator noise"}}, **fields,
    }  # fmt: skip
    return Case.model_validate(row)


def test_parity_at_max_is_that_of_a_prompt_which_needs_all_rows(healthy: Settings) -> None:
    target = target_of(case_of("dit", healthy), Context(healthy))
    prepare = target.component("dit").prepare(target.model.checkpoint, "fp32")
    rows = {point: len(prepare(call)["text_scores"]) for point, call in target.parity_inputs()}
    assert rows["opt"] < rows["max"] == target.profile.max.text_length


def verdict_of(
    case: Case, suite: Any, measurement: Measurement, baseline: BaselineEntry | None = None
) -> Any:
    checks = judge(
        case, suite, measurement, baseline, bands_for_hardware=baseline is not None, require_bands=False
    )
    return decide(checks)


def test_a_gpu_is_timed_in_longer_runs_unless_the_settings_say() -> None:
    assert sample_time(PerfSettings(), "cuda") > sample_time(PerfSettings(), "cpu") > 0
    assert sample_time(PerfSettings(min_sample_time=0), "cuda") == 0


COMPARED = (
    "dit", "vae_decoder_next", "vae_decoder", "text_encoder", "pipeline",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("vae_encoder_first", "vae_encoder_next", "vae_encoder")),
)  # fmt: skip
"""Those that are slow here the suite has a case of its own for."""


@pytest.mark.parametrize("component", COMPARED)
def test_a_healthy_case_passes(component: str, healthy: Settings) -> None:
    case = case_of(component, healthy)
    measurement = measure_case(case, "parity", Context(healthy))
    assert verdict_of(case, "parity", measurement).verdict is Verdict.PASS


def test_a_pipeline_is_compared_along_its_whole_trajectory(healthy: Settings, tmp_path: Path) -> None:
    case = case_of("pipeline", healthy, steps=3)
    measurement = measure_case(case, "parity", Context(healthy, tmp_path))
    assert len(measurement.metrics["latents.psnr_db"].samples) == 3
    shown = measurement.facts["frames"]
    assert shown["of"] == 9 and shown["left_out"] == ""
    assert all((tmp_path / path).is_file() for path in (*shown["videos"].values(), *shown["stills"].values()))


@pytest.mark.parametrize("fault", [drop_block, poison, swap_heads, scale_block])
def test_a_fault_in_one_block_fails_and_names_the_block(
    fault: Callable[[Any], None], faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = get_component("dit")
    stock = component.graph

    def broken(*args: Any, **kwargs: Any) -> nn.Module:
        graph = stock(*args, **kwargs)
        fault(graph)
        return graph

    monkeypatch.setattr(component, "graph", broken)
    case = case_of("dit", faulty)
    measurement = measure_case(case, "parity", Context(faulty))
    check = verdict_of(case, "parity", measurement)
    assert check.verdict is Verdict.FAIL
    assert check.reason is (Reason.NON_FINITE if fault is poison else Reason.BEYOND_LIMIT)
    assert "first diverging block: blocks.1 " in explain_case(case, "parity", Context(faulty), measurement)[0]


def test_negated_rope_angles_fail_from_the_first_block_on(
    faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wan_trt_core.models.graphs import dit

    tables = dit.rope_tables

    monkeypatch.setattr(dit, "rope_tables", lambda *args: negate_angles(tables(*args)))
    case = case_of("dit", faulty)
    measurement = measure_case(case, "parity", Context(faulty))
    assert verdict_of(case, "parity", measurement).verdict is Verdict.FAIL
    assert "first diverging block: blocks.0 " in explain_case(case, "parity", Context(faulty), measurement)[0]


@pytest.mark.parametrize(
    ("half", "diverges"), [("vae_decoder", "mid_block"), ("vae_encoder", "down_blocks.0")]
)
def test_permuted_caches_fail(
    half: str, diverges: str, faulty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step alone and in a whole video, which runs the same engine."""
    from wan_trt_core.models.graphs.vae_decoder import VaeDecoderGraph
    from wan_trt_core.models.graphs.vae_encoder import VaeEncoderGraph

    graph: Any = VaeDecoderGraph if "decoder" in half else VaeEncoderGraph
    stock = graph.forward

    def permuted(self: Any, given: torch.Tensor, *taken: torch.Tensor) -> Any:
        return stock(self, given, *(taken and permute_caches(taken)))

    monkeypatch.setattr(graph, "forward", permuted)
    for component in (f"{half}_next", half):
        case = case_of(component, faulty)
        measurement = measure_case(case, "parity", Context(faulty))
        assert verdict_of(case, "parity", measurement).verdict is Verdict.FAIL
        notes = explain_case(case, "parity", Context(faulty), measurement)
        assert any(f"{half}_next: first diverging block: {diverges}" in note for note in notes)


def test_without_a_compiler_torch_compile_is_not_measured(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Inductor would fail in the middle of the first call, with pages of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    case = case_of("dit", healthy, backend="torch-compile")
    with pytest.raises(BackendUnavailable, match=r"C\+\+ compiler"):
        measure_case(case, "parity", Context(healthy))


def test_divergence_is_found_where_it_starts() -> None:
    reference = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    broken = {"a": torch.ones(4), "b": torch.tensor([1.0, 1.0, 1.0, 1.1]), "c": torch.zeros(4)}
    assert find_divergence(reference, reference, 1e-4).first is None
    assert find_divergence(reference, broken, 1e-4).first == "b"
    with pytest.raises(KeyError):
        find_divergence(reference, {"a": torch.ones(4)}, 1e-4)


@pytest.mark.parametrize(
    ("errors", "first"),
    [
        # measured on the fp16 DiT of tiny-wan: healthy, and with one block's output or weights off by 1 %
        ([3.5e-4, 5.3e-4, 5.3e-4, 6.7e-4, 5.3e-4, 1.1e-3], None),
        ([3.5e-4, 5.3e-4, 9.6e-3, 8.7e-3, 3.3e-3, 7.9e-3], "blocks.2"),
        ([3.5e-4, 5.3e-4, 2.7e-3, 1.8e-3, 6.8e-4, 1.5e-3], "blocks.2"),
        ([1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 9.9e-3, 9.9e-3], None),  # rounding that adds up
    ],
)
def test_a_jump_under_the_noise_of_half_precision_is_found(errors: list[float], first: str | None) -> None:
    reference = {f"blocks.{index}": torch.ones(4) for index in range(len(errors))}
    candidate = {f"blocks.{index}": torch.ones(4) * (1 + error) for index, error in enumerate(errors)}
    assert find_divergence(reference, candidate, NOISE["fp16"]).first == first


class FakeTarget:
    """Two arms on a clock of their own: each call takes exactly as long as told."""

    fps = 8.0
    steps = 4
    device = "cpu"

    def __init__(self, reference_s: float, candidate_s: float) -> None:
        self.now = 0.0
        self.calls = 0
        self.outputs = Outputs({"sample": torch.ones(2, 2)})
        self.reference = Arm(lambda _: self._take(reference_s))
        self.candidate = Arm(lambda _: self._take(candidate_s))
        self.others = {"torch-compile": 1.3, "no-cuda-graphs": 1.1}
        self.left: list[str] = []
        self.built = False

    def build(self) -> None:
        assert not self.calls, "no arm takes memory of a GPU that builds"
        self.built = True

    def clock(self) -> float:
        return self.now

    def inputs(self, point: str = "opt") -> None:
        return None

    def facts(self) -> dict[str, Any]:
        return {"engines": self.calls}  # what an engine holds is known once it ran

    def problems(self) -> dict[Reason, str]:
        return {}

    @contextmanager
    def beside(self, name: str) -> Iterator[Arm]:
        if name not in self.others:
            raise BackendUnavailable(f"{name} needs a C++ compiler")
        yield Arm(lambda _: self._take(self.others[name]))
        self.left.append(name)

    def compiled(self) -> dict[str, str]:
        return {"transformer": "repeated blocks"}

    def _take(self, seconds: float) -> Outputs:
        self.calls += 1
        self.now += seconds * (1 + 0.002 * (self.calls % 3))  # a little noise, the same in every run
        return self.outputs


def timed(target: FakeTarget, *also: str, watch: ClockWatch | None = None, **changes: Any) -> Measurement:
    perf = PerfSettings(**{"time_budget": 1000.0, **changes})
    target_: Any = target
    quality = frozenset({"psnr_db"})
    return time_target(target_, 1.5, perf, quality, also=also, watch=watch, clock=target.clock)


@pytest.fixture
def perf_case() -> Case:
    band = {"rel": 0.05, "reason": "a clock without noise"}
    return Case.model_validate(
        {
            "id": "fake", "model": "fake", "component": "dit", "profile": "p", "precision": "fp32",
            "backend": "onnxruntime",
            "perf": {
                "parity": {"psnr_db": {"min": 90.0, "reason": "x"}},
                "bands": {"reference_time": band, "candidate_time": band},
            },
            "memory": {"growth": {"max": 65536, "reason": "allocator noise"}},
        }
    )  # fmt: skip


@pytest.fixture
def perf_baseline() -> BaselineEntry:
    tolerance = Tolerance(0.05, 0.0, "a clock without noise")
    return BaselineEntry(
        {
            "reference_time": BaselineMetric(2.0, "s", "lower", tolerance),
            "candidate_time": BaselineMetric(1.0, "s", "lower", tolerance),
        }
    )


def test_a_fast_candidate_passes_and_stops_at_the_first_look(
    perf_case: Case, perf_baseline: BaselineEntry
) -> None:
    measurement = timed(FakeTarget(2.0, 1.0))
    assert verdict_of(perf_case, "perf", measurement, perf_baseline).verdict is Verdict.PASS
    assert measurement.facts["pairs"] == PerfSettings().min_pairs


def test_a_band_on_the_speedup_goes_on_until_it_is_known_well_enough() -> None:
    perf = PerfSettings(time_budget=1000.0)
    pairs = []
    for precision in (None, 0.004, 1e-9):
        target: Any = FakeTarget(2.0, 1.0)
        measurement = time_target(target, 1.5, perf, frozenset(), precision=precision, clock=target.clock)
        pairs.append(measurement.facts["pairs"])
    assert perf.min_pairs == pairs[0] < pairs[1] < pairs[2] == perf.max_pairs


@pytest.mark.parametrize(
    ("reference_s", "candidate_s", "expected"),
    [
        (2.0, 1.1, (Verdict.FAIL, Reason.WORSE_THAN_BAND, "candidate_time")),
        (2.2, 1.0, (Verdict.INCONCLUSIVE, Reason.REFERENCE_SLOWER, "reference_time")),
    ],
    ids=["candidate 10 % slower", "reference 10 % slower"],
)
def test_a_slow_down_of_ten_percent_is_caught_by_its_band(
    reference_s: float,
    candidate_s: float,
    expected: tuple[Verdict, Reason, str],
    perf_case: Case,
    perf_baseline: BaselineEntry,
) -> None:
    """The ratio alone lets both pass: it is 1.8 in the one, and better than ever in the other."""
    measurement = timed(FakeTarget(reference_s, candidate_s))
    check = verdict_of(perf_case, "perf", measurement, perf_baseline)
    assert (check.verdict, check.reason, check.metric) == expected


def test_a_candidate_that_loses_its_lead_fails_the_gate(perf_case: Case) -> None:
    check = verdict_of(perf_case, "perf", timed(FakeTarget(1.45, 1.0)))
    assert (check.verdict, check.reason) == (Verdict.FAIL, Reason.INTERVAL_BELOW_THRESHOLD)


def test_the_end_of_the_budget_is_inconclusive(perf_case: Case) -> None:
    measurement = timed(FakeTarget(1.5, 1.0), time_budget=20.0)
    check = verdict_of(perf_case, "perf", measurement)
    assert check.verdict is Verdict.INCONCLUSIVE
    assert measurement.facts["stopped_by"] == "time_budget"


@pytest.mark.parametrize(("of_case", "expected"), [(None, 20.0), (5.0, 20.0), (60.0, 60.0)])
def test_a_case_of_long_calls_may_have_a_larger_budget(
    of_case: float | None, expected: float, perf_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perf_case.perf is not None
    gate = perf_case.perf.model_copy(update={"time_budget": of_case})
    settings = load_settings(overrides={"perf.time_budget": 20.0, "perf.kernels": False}, environ={}).settings
    given, target = list[float](), FakeTarget(2.0, 1.0)
    monkeypatch.setattr(perf, "target_of", lambda *_: target)
    monkeypatch.setattr(
        perf, "time_target", lambda target, gate, perf, *_, **__: given.append(perf.time_budget)
    )
    perf.measure(perf_case.model_copy(update={"perf": gate}), Context(settings))
    assert given == [expected] and target.built


def test_the_error_over_that_of_stock_diffusers_in_the_same_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stock diffusers in half precision is 0.1 from the reference, the engine 0.3 at the largest shape alone."""
    found = {"min": 0.15, "opt": 0.2, "max": 0.3}
    limit = {"max": 2.0, "reason": "x"}
    case = Case.model_validate(
        {
            "id": "fake", "model": "fake", "component": "dit", "profile": "p", "precision": "fp16",
            "reference_precision": "fp32", "backend": "onnxruntime", "parity": {"limits": {"error_over_stock": limit}},
        }
    )  # fmt: skip

    def outputs(offset: float) -> Arm:
        return Arm(lambda _: Outputs({"sample": torch.full((2, 2), 1.0 + offset)}))

    def target_of(given: Case, _: Context) -> Any:
        return SimpleNamespace(
            reference=outputs(0.0 if given.reference_precision == "fp32" else 0.1),
            candidate=Arm(lambda offset: outputs(offset).call({})),
            parity_inputs=found.items,
            build=lambda: None,
            fps=16.0,
            facts=dict,
            problems=dict,
        )

    monkeypatch.setattr(parity, "target_of", target_of)
    measurement = parity.measure(case, Context(load_settings(environ={}).settings))
    metric = measurement.metrics["error_over_stock"]
    assert metric.value == pytest.approx(3.0, rel=1e-5) and "1.0e-01" in metric.detail
    check = verdict_of(case, "parity", measurement)
    assert (check.verdict, check.metric) == (Verdict.FAIL, "error_over_stock")
    assert "3x > 2x (worst at max; min 1.5x, opt 2x, max 3x; stock" in check.message
    assert "worst at max; min 0.15, opt 0.2, max 0.3" in measurement.metrics["relative_l2"].detail


def test_work_done_once_a_prompt_counts_by_its_share_of_a_step(perf_case: Case) -> None:
    target = FakeTarget(2.0, 1.0)
    target.candidate = replace(target.candidate, once=lambda: target._take(4.0))
    measurement = timed(target)
    assert measurement.metrics["candidate_time"].value == pytest.approx(1.0 + 4.0 / target.steps, rel=0.01)
    assert verdict_of(perf_case, "perf", measurement).verdict is Verdict.FAIL


def test_a_fallback_to_pytorch_is_invalid(perf_case: Case) -> None:
    target, stock = FakeTarget(2.0, 1.0), nn.Linear(1, 1)
    fast = target.candidate.call

    def falls_back(inputs: Any) -> Outputs:
        stock(torch.ones(1, 1))
        return fast(inputs)

    target.candidate = Arm(falls_back, forbidden=lambda: {"transformer": stock})
    check = verdict_of(perf_case, "perf", timed(target))
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.FALLBACK_TO_PYTORCH)
    assert "transformer" in check.message


@pytest.mark.parametrize("looks", ["originals of the pipeline", "modules of the target"])
def test_an_accelerated_pipeline_that_falls_back_is_invalid(
    looks: str, perf_case: Case, healthy: Settings, on_modules: None
) -> None:
    """A suite of one's own, whose candidate is what ``wan_trt_core.accelerate`` made."""
    whole: Any = target_of(case_of("pipeline", healthy), Context(healthy))
    pipe = whole.model.checkpoint.pipeline()
    pipe.set_progress_bar_config(disable=True)
    served = whole.profile.opt
    settings = healthy.model_copy(update={"on_missing_shape": "torch"})
    wan_trt_core.accelerate(pipe, whole.profile, settings=settings)
    watched: dict[str, Callable[[], Any]] = {
        "originals of the pipeline": lambda: originals(pipe),
        "modules of the target": whole.stock_modules,
    }

    def verdict(height: int) -> Any:
        target = FakeTarget(2.0, 1.0)
        fast = target.candidate.call

        def generates(inputs: Any) -> Outputs:
            if target.calls < 2:
                size = {"height": height, "width": served.width, "num_frames": served.frames}
                text = {"prompt": "red", "max_sequence_length": served.text_length}
                pipe(**text, **size, num_inference_steps=1, guidance_scale=1.0)
            return fast(inputs)

        target.candidate = Arm(generates, forbidden=watched[looks])
        return verdict_of(perf_case, "perf", timed(target))

    assert verdict(served.height).reason is not Reason.FALLBACK_TO_PYTORCH
    check = verdict(served.height + 16)
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.FALLBACK_TO_PYTORCH)
    assert "transformer, vae" in check.message


def test_different_settings_of_the_arms_are_invalid(perf_case: Case) -> None:
    target = FakeTarget(2.0, 1.0)
    fast = target.candidate.call

    def with_tf32(inputs: Any) -> Outputs:
        torch.backends.cudnn.allow_tf32 = not before
        return fast(inputs)

    def reference(inputs: Any) -> Outputs:
        torch.backends.cudnn.allow_tf32 = before
        return slow(inputs)

    before, slow = torch.backends.cudnn.allow_tf32, target.reference.call
    target.candidate, target.reference = Arm(with_tf32), Arm(reference)
    try:
        check = verdict_of(perf_case, "perf", timed(target))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.SETTINGS_DIFFER)
    assert "cudnn_tf32" in check.message


@pytest.mark.parametrize("suite", ["parity", "perf", "memory"])
def test_an_engine_that_is_not_as_planned_voids_every_suite(
    suite: str, healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wan_trt_core.backends.onnxruntime import OnnxRuntimeEngine

    problems = property(lambda self: ("an attention was not fused: node_softmax",))
    monkeypatch.setattr(OnnxRuntimeEngine, "problems", problems)
    case = case_of("dit", healthy)
    quick = {
        "perf": PerfSettings(kernels=False, min_sample_time=0),
        "memory": FEW,
    }
    healthy = healthy.model_copy(update=quick)
    if suite == "memory":  # in this process, where the engine is the one with the problem
        measurement = memory.measure_here(case, healthy)
    else:
        measurement = measure_case(case, suite, Context(healthy))
    check = verdict_of(case, suite, measurement)
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.ENGINE_NOT_AS_PLANNED)
    assert "node_softmax" in check.message


def test_what_a_case_names_is_timed_beside_its_gate(perf_case: Case) -> None:
    target = FakeTarget(2.0, 1.0)
    measurement = timed(target, "torch-compile", "no-cuda-graphs", also_pairs=4)
    assert measurement.metrics["compile_speedup"].value == pytest.approx(1.3, rel=0.01)
    assert measurement.metrics["graph_gain"].value == pytest.approx(1.1, rel=0.01)
    assert "interval" in measurement.metrics["graph_gain"].detail
    assert measurement.facts["engines"] > 2 * len(measurement.series["reference_s"])
    assert target.left == ["torch-compile", "no-cuda-graphs"]  # each is released before the next
    for name in ("torch_compile", "torch_compile_candidate", "no_cuda_graphs", "no_cuda_graphs_candidate"):
        assert len(measurement.series[f"{name}_s"]) == 4
    assert measurement.facts["compiled"] == {"transformer": "repeated blocks"}
    assert verdict_of(perf_case, "perf", measurement).verdict is Verdict.PASS


def test_a_backend_without_cuda_graphs_is_not_timed_without_them(
    perf_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same case, with the default backend and with ``--wan-backend tensorrt``."""
    asked: list[Any] = []
    monkeypatch.setattr(perf, "target_of", lambda case, context: FakeTarget(2.0, 1.0))
    monkeypatch.setattr(perf, "time_target", lambda *_, **named: asked.append(named["also"]))
    assert perf_case.perf is not None
    gate = perf_case.perf.model_copy(update={"also": ("no-cuda-graphs",)})
    quick = load_settings(overrides={"perf.kernels": False}, environ={}).settings
    for backend in ("onnxruntime", "tensorrt"):
        perf.measure(perf_case.model_copy(update={"perf": gate, "backend": backend}), Context(quick))
    assert asked == [(), ("no-cuda-graphs",)]


def test_what_cannot_be_timed_beside_the_gate_says_why_and_leaves_the_gate_alone(perf_case: Case) -> None:
    target = FakeTarget(2.0, 1.0)
    del target.others["torch-compile"]
    measurement = timed(target, "torch-compile", "no-cuda-graphs")
    assert measurement.metrics["compile_speedup"].value is None
    assert measurement.metrics["compile_speedup"].detail == "torch-compile needs a C++ compiler"
    assert measurement.metrics["graph_gain"].value == pytest.approx(1.1, rel=0.01)
    assert "compiled" not in measurement.facts
    assert verdict_of(perf_case, "perf", measurement).verdict is Verdict.PASS


def test_the_kernels_are_looked_for_in_another_process_that_makes_both_arms_itself(healthy: Settings) -> None:
    """Here they run on a CPU: nodes of ONNX Runtime by module beside PyTorch's operators."""
    answer = profile(case_of("dit", healthy), healthy)
    assert "error" not in answer, answer
    found = {name: count for name, _, count in answer["top"]}
    assert found["node Gemm blocks.*.attn1.to_q"] == 3, found  # one in each block of one call
    assert answer["groups_ms"]["products"] > 0
    assert any(name == "aten::addmm" for name, *_ in answer["reference"]["top"])
    assert answer["reference"]["groups_ms"]["attention"] > 0


def test_an_interrupt_while_the_kernels_are_looked_for_does_not_cost_the_times(
    perf_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    timed_pairs = timed(FakeTarget(2.0, 1.0))
    monkeypatch.setattr(perf, "target_of", lambda case, context: FakeTarget(2.0, 1.0))
    monkeypatch.setattr(perf, "time_target", lambda *_, **__: timed_pairs)
    monkeypatch.setattr(perf, "profile", interrupted)
    settings = load_settings(overrides={"perf.kernels": True}, environ={}).settings
    with pytest.raises(Interrupted) as found:
        perf.measure(perf_case.model_copy(update={"backend": "onnxruntime"}), Context(settings))
    assert found.value.measurement.metrics == timed_pairs.metrics
    assert found.value.measurement.facts["kernels"] == {"error": "interrupted"}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (HARDWARE, (Verdict.INVALID, Reason.THROTTLED)),
        (POWER_CAP, (Verdict.PASS, Reason.INTERVAL_ABOVE_THRESHOLD)),
    ],
    ids=["hardware slowdown", "power cap"],
)
def test_a_gpu_that_was_slowed_down_is_invalid_and_one_at_its_power_cap_is_not(
    mask: int, expected: tuple[Verdict, Reason], perf_case: Case
) -> None:
    watch = ClockWatch("cuda", gpu=(Gpu(mask), object()), counters=dict)
    measurement = timed(FakeTarget(2.0, 1.0), watch=watch)
    check = verdict_of(perf_case, "perf", measurement)
    assert (check.verdict, check.reason) == expected
    assert measurement.facts["clocks"]["reasons"]


def test_a_gpu_that_nothing_is_known_of_does_not_pass(perf_case: Case) -> None:
    """Without NVML a GPU that throttles would pass."""
    watch = ClockWatch("cuda", gpu=(None, None), counters=dict)
    check = verdict_of(perf_case, "perf", timed(FakeTarget(2.0, 1.0), watch=watch))
    assert (check.verdict, check.reason) == (Verdict.MISSING, Reason.NOT_MEASURED)
    assert "pip install nvidia-ml-py" in check.message


def test_a_cpu_slowed_by_heat_is_invalid(perf_case: Case) -> None:
    readings = iter([{"cpu0 thermal throttling": 1}, {"cpu0 thermal throttling": 2}])
    measurement = timed(FakeTarget(2.0, 1.0), watch=ClockWatch("cpu", counters=lambda: next(readings)))
    check = verdict_of(perf_case, "perf", measurement)
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.THROTTLED)
    assert "cpu0 thermal throttling" in check.message


def test_torch_compile_beside_the_gate_shares_the_reference_s_weights(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[nn.Module] = []

    def wrap(self: Any, module: nn.Module, settings: Settings) -> nn.Module:
        wrapped.append(module)
        return module

    monkeypatch.setattr(TorchCompileBackend, "wrap", wrap)
    monkeypatch.setattr(TorchCompileBackend, "require", lambda self, settings: None)
    case = case_of("dit", healthy, precision="fp16", reference_precision="fp32")
    context = Context(healthy)
    target = target_of(case, context)
    inputs = target.inputs()
    with target.beside("torch-compile") as arm:
        found = arm.call(inputs)
    expected = target.reference.call(inputs)
    assert wrapped == [context.model(case).checkpoint.load("transformer", "fp32", "cpu")]
    torch.testing.assert_close(found.tensors, expected.tensors)
    assert target.compiled() == {"transformer": "repeated blocks"}


@pytest.mark.parametrize(
    ("component", "precision", "parts"),
    [
        ("dit", "fp32", ["transformer"]),
        ("vae_decoder", "fp32", ["vae"]),
        ("vae_encoder", "fp32", ["vae"]),
        ("vae_encoder_next", "fp32", ["vae"]),
        ("pipeline", {"dit": "bf16", "vae": "fp32"}, ["transformer", "vae"]),
    ],
)
def test_a_candidate_s_fallback_is_looked_for_in_the_modules_that_the_reference_runs(
    component: str, precision: Any, parts: list[str], healthy: Settings, on_modules: None
) -> None:
    target = target_of(
        case_of(component, healthy, precision="fp32", reference_precision=precision), Context(healthy)
    )
    with torch.inference_mode(), target.candidate.watched() as ran:
        target.reference.call(target.inputs())
    assert sorted(set(ran)) == parts


def test_a_fault_that_no_operation_shows_is_told_with_the_size_that_was_looked_at(
    healthy: Settings, on_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = get_component("dit")
    prepare = component.prepare

    def prepares(*args: Any) -> Callable[[Any], Any]:
        """RoPE tables that are wrong at more than the latent frames of the profile's min."""
        stock = prepare(*args)

        def run(call: Any) -> Any:
            given = stock(call)
            cos = given["rope_cos"].clone()
            cos[2:] = cos[2:] * 0.9
            return {**given, "rope_cos": cos}

        return run

    monkeypatch.setattr(component, "prepare", prepares)
    monkeypatch.setattr(Target, "operation", lambda *_: None)
    lines = parity.explain(case_of("dit", healthy), Context(healthy))
    assert "dit: first diverging block: blocks.0" in lines[0]
    assert (
        "no operation of blocks.0 differs by more than rounding at the profile's min in the graph" in lines[1]
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("of its own", r"dit: its reference never runs blocks\.0 of the transformer.*would not be seen"),
        (
            "misspelt",
            r"dit: the transformer has no submodule 'block\.0', which it names as `inside`; .*blocks",
        ),
    ],
)
def test_a_reference_in_which_a_fallback_would_not_be_seen_is_refused(
    fault: str, said: str, healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = get_component("dit")
    if fault == "misspelt":
        monkeypatch.setattr(type(component), "inside", "block.0")
    else:  # another module than the checkpoint's, which the candidate is watched for
        monkeypatch.setattr(component, "reference", lambda *_: lambda call: {"sample": call["hidden_states"]})
    target = target_of(case_of("dit", healthy), Context(healthy))
    with torch.inference_mode(), pytest.raises(ComponentError, match=said):
        target.reference.call(target.inputs("min"))


@pytest.mark.parametrize("suite", ["parity", "perf"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda found: {"sample": found["sample"]},
            r"vae_decoder_first: its reference gives \{sample\} and the component declares \{cache_out_00, .*sample\};",
        ),
        (
            lambda found: {"smaple" if name == "sample" else name: value for name, value in found.items()},
            r"gives \{cache_out_00, .*, smaple\} and the component declares \{cache_out_00, .*, sample\}; let",
        ),
    ],
    ids=["forgotten", "misspelt"],
)
def test_a_reference_that_does_not_give_the_declared_outputs_is_refused(
    suite: Any,
    change: Callable[[Any], Any],
    said: str,
    healthy: Settings,
    on_modules: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it forgets would be compared with nothing, and the case would pass."""
    component = get_component("vae_decoder_first")
    stock = component.reference

    def reference(*given: Any) -> Callable[[Any], Any]:
        run = stock(*given)
        return lambda call: change(run(call))

    monkeypatch.setattr(component, "reference", reference)
    with pytest.raises(ComponentError, match=said):
        measure_case(case_of("vae_decoder_first", healthy), suite, Context(healthy))


def test_a_component_without_blocks_says_so_and_builds_nothing(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_component("dit"), "blocks", lambda checkpoint: ())
    monkeypatch.setattr(Target, "engine", lambda *_, **__: pytest.fail("an engine is built for no block"))
    (found,) = parity.explanations_of(case_of("dit", healthy), Context(healthy))
    assert found.divergence.table() == ()
    assert parity.explain(case_of("dit", healthy), Context(healthy)) == found.describe()
    assert found.describe() == (
        "dit: the component names no blocks, so where it leaves the reference is not known; let its `blocks` name what"
        " its graph computes on the way",
    )


def test_on_a_gpu_a_case_finds_nothing_of_cases_with_other_engines(healthy: Settings) -> None:
    closed: list[str] = []

    def loads(context: Context, name: str) -> None:
        context.engines._engines[(name,)] = SimpleNamespace(close=lambda: closed.append(name))  # type: ignore[assignment]

    on_gpu = Context(healthy.model_copy(update={"device": "cuda"}))
    first, tf32, other = (
        case_of("dit", healthy, **changes) for changes in ({}, {"tf32": True}, {"model": "tiny-wan"})
    )
    loads(on_gpu.under(first), "first")
    on_gpu.model(first)
    on_gpu.under(first)
    assert not closed
    twin = on_gpu.under(tf32)
    assert twin is not on_gpu and closed == ["first"]
    assert list(twin._models) == [(first.model, None, False)]  # its modules serve both
    loads(twin, "tf32")
    own = on_gpu.under(tf32.model_copy(update={"settings": {"pipeline.vae_tile": 64}}))
    assert own is not twin and closed == ["first", "tf32"]
    assert (own.settings.pipeline.vae_tile, own.settings.perf.allow_tf32) == (64, True)
    assert not (twin.settings.pipeline.vae_tile or on_gpu.settings.pipeline.vae_tile)
    loads(own, "tiles")
    on_gpu.under(other)
    assert closed == ["first", "tf32", "tiles"] and not on_gpu._models
    on_cpu = Context(healthy)
    loads(on_cpu.under(first), "kept")
    on_cpu.under(other)
    assert "kept" not in closed


def test_every_call_that_is_timed_computes_its_modulation(
    healthy: Settings, on_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As stock diffusers does in each: all of them start from the same tensors, and with what is kept of the first they
    would gain what no video does."""
    computed: list[int] = []
    compute = Modulation.__call__
    monkeypatch.setattr(Modulation, "__call__", lambda *at, **by: computed.append(1) or compute(*at, **by))
    target = target_of(case_of("dit", healthy), Context(healthy))
    inputs = target.inputs()
    outputs = [target.candidate.call(inputs).tensors["sample"] for _ in range(3)]
    assert len(computed) == 3
    assert all(map(torch.equal, outputs, outputs[1:]))


def test_without_cuda_graphs_the_loaded_engine_runs_and_takes_turns_with_itself(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ONNX Runtime's engine in the place of TensorRT's: a second one would hold the weights twice."""
    from wan_trt_core.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine

    loads, switched, runs = [], [], list[bool]()
    load, run = OnnxRuntimeBackend.load, OnnxRuntimeEngine.run

    @contextmanager
    def without_graphs(self: Any) -> Iterator[None]:
        switched.append(self)
        yield
        switched.pop()

    monkeypatch.setattr(OnnxRuntimeBackend, "load", lambda *given: loads.append(1) or load(*given))
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda *given: runs.append(bool(switched)) or run(*given))
    monkeypatch.setattr(OnnxRuntimeEngine, "without_graphs", without_graphs)
    target = target_of(case_of("dit", healthy), Context(healthy))
    inputs = target.inputs()
    expected = target.candidate.call(inputs)
    with target.beside("no-cuda-graphs") as arm:
        torch.testing.assert_close(arm.call(inputs).tensors, expected.tensors)
        target.candidate.call(inputs)
        arm.call(inputs)
    target.candidate.call(inputs)  # the case's own engine is still there
    assert runs == [False, True, False, True, False]
    assert len(loads) == 1


def test_where_cuda_graphs_are_off_nothing_is_timed_without_them(healthy: Settings) -> None:
    """Two equal arms would look like graphs that gain nothing."""
    off = load_settings(overrides={"tensorrt.cuda_graphs": False}, environ={}).settings
    case = case_of("dit", healthy).model_copy(update={"backend": "tensorrt"})
    with (
        pytest.raises(BackendUnavailable, match=r"tensorrt\.cuda_graphs is false"),
        target_of(case, Context(off)).beside("no-cuda-graphs"),
    ):
        pass


def test_a_wrong_timed_output_is_invalid(perf_case: Case) -> None:
    target = FakeTarget(2.0, 1.0)
    fast = target.candidate.call
    target.candidate = Arm(lambda inputs: (fast(inputs), Outputs({"sample": torch.full((2, 2), 1.01)}))[1])
    check = verdict_of(perf_case, "perf", timed(target))
    assert (check.verdict, check.reason) == (Verdict.INVALID, Reason.OUTPUTS_DIFFER)


def test_a_leak_is_caught(perf_case: Case, healthy: Settings) -> None:
    leaked: list[torch.Tensor] = []

    def hold() -> None:
        torch.ones(1 << 18).sum()

    def leak() -> None:
        leaked.append(torch.ones(1 << 18))

    holding = Measurement(metrics=measure_growth(hold, healthy))
    leaking = Measurement(metrics=measure_growth(leak, healthy))
    assert verdict_of(perf_case, "memory", holding).verdict is Verdict.PASS
    check = verdict_of(perf_case, "memory", leaking)
    assert (check.verdict, check.reason) == (Verdict.FAIL, Reason.GROWTH)
    assert check.value == pytest.approx(1 << 20, rel=0.2)


@pytest.mark.parametrize("told", [True, False])
def test_a_leak_of_an_engine_is_caught_and_named(
    told: bool, healthy: Settings, on_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers are real memory, which the process' own book sees; only where it tells of them are they its own."""
    buffers: list[Any] = []
    load = engines.load_engine

    def leaking(*args: Any, **given: Any) -> Any:
        engine: Any = load(*args, **given)
        run, memory = engine.run, engine.memory
        engine.run = lambda inputs: (buffers.append(touch(1)), run(inputs))[1]
        engine.memory = lambda: memory() | ({"buffers": MIB * len(buffers)} if told else {})
        return engine

    monkeypatch.setattr(engines, "load_engine", leaking)
    for other in ("peak", "release"):
        monkeypatch.setattr(memory, f"measure_{other}", lambda *_: {})
    case = case_of("dit", healthy)
    measurement = memory.measure_here(case, healthy.model_copy(update={"memory": FEW}))
    check = verdict_of(case, "memory", measurement)
    assert (check.verdict, check.reason, check.metric) == (Verdict.FAIL, Reason.GROWTH, "growth")
    owner = "; most of it in dit.engine_buffers, which grew by 4 MiB" if told else "(allocator noise)"
    assert check.message.endswith(owner)


def test_memory_is_measured_in_a_process_of_its_own(healthy: Settings) -> None:
    case = case_of("dit", healthy)
    measurement = measure_case(case, "memory", Context(healthy))
    assert verdict_of(case, "memory", measurement).verdict is Verdict.PASS
    assert measurement.metrics["engine_weights"].value
    assert len(measurement.metrics["growth"].samples) == healthy.memory.runs


def on(device: FakeDevice, nvml: FakeNvml | None = None) -> DeviceMemory:
    return DeviceMemory(device, nvml or FakeNvml(device), object())


FEW = MemorySettings(runs=5, warmup=1)
"""Enough where memory is a made-up device's, which does not waver."""


def test_a_leak_of_tensors_on_the_device_is_caught_to_the_byte(perf_case: Case, healthy: Settings) -> None:
    device = FakeDevice()

    def hold() -> None:
        device.take(8 * MIB)
        device.drop(8 * MIB)

    def leak() -> None:
        hold()
        device.take(512)  # the allocator's smallest piece, and far less than the case allows a CPU

    for call, verdict in ((hold, Verdict.PASS), (leak, Verdict.FAIL)):
        metrics = measure_growth(call, healthy.model_copy(update={"memory": FEW}), on(device))
        assert "resident_set_growth" in metrics
        check = verdict_of(perf_case, "memory", Measurement(metrics=metrics))
        assert (check.verdict, check.metric) == (verdict, "growth")
    assert check.value == 512


@pytest.mark.parametrize(("leaked", "verdict"), [(0, "pass"), (MIB // 10, "pass"), (3 * MIB // 2, "fail")])
def test_a_leak_outside_of_pytorch_is_caught(
    leaked: int, verdict: str, perf_case: Case, healthy: Settings
) -> None:
    """A CUDA graph or a context of TensorRT's for each run, of which PyTorch's allocator knows nothing."""
    device = FakeDevice()

    def leak() -> None:
        device.outside += leaked

    metrics = measure_growth(leak, healthy, on(device))
    assert metrics["growth"].value == 0
    checks = judge(
        perf_case, "memory", Measurement(metrics=metrics), None, bands_for_hardware=False, require_bands=False
    )
    assert {check.metric: check.verdict for check in checks} == {"growth": "pass", "device_growth": verdict}


def test_peaks_on_a_device_are_after_warm_up(healthy: Settings) -> None:
    device, runs = FakeDevice(), 0

    def call() -> None:
        nonlocal runs
        runs += 1
        size = (900 if runs == 1 else 100) * MIB  # the first run tries kernels
        device.take(size)
        device.drop(size)

    metrics = measure_peak(call, healthy, on(device))
    assert runs == healthy.memory.warmup + 1
    assert metrics["device_peak_allocated"].value == 100 * MIB
    assert metrics["device_used"].value == 600 * MIB  # what the first run's peak left cached was given back
    assert metrics["resident_set_peak"].value


@pytest.mark.parametrize(
    ("fault", "kept", "failed"),
    [
        ("none", (0, 0, 0), set()),
        ("a tensor a step", (512, 0, 0), {"step_growth"}),
        ("a graph a step", (0, 2 * MIB, 0), {"device_step_growth"}),
        ("a context for all steps", (0, 0, 2048 * MIB), {"device_unattributed"}),
    ],
)
def test_growth_over_the_steps_of_a_video_is_caught(
    fault: str,
    kept: tuple[int, int, int],
    failed: set[str],
    healthy: Settings,
    monkeypatch: pytest.MonkeyPatch,
    on_modules: None,
) -> None:
    """What a step keeps is given back when the video is done, and so no growth over runs."""
    tensor, graph, context = kept
    device, generate = FakeDevice(), targets.generate

    def leaking(*args: Any, keep_latents: bool, **keywords: Any) -> Any:
        assert not keep_latents, "a caller who keeps them is no leak"
        steps = 0

        def on_step(done: int, total: int) -> None:
            nonlocal steps
            steps = done
            device.take(tensor)
            device.outside += graph + (context if done == 1 else -context if done == total else 0)

        found = generate(*args, keep_latents=keep_latents, **{**keywords, "on_step": on_step})
        device.drop(steps * tensor)
        device.outside -= steps * graph
        return found

    monkeypatch.setattr(targets, "generate", leaking)
    monkeypatch.setattr(memory, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(memory, "current_device_memory", lambda in_use: on(device))
    flat = {"growth": Metric(value=0.0, unit="B", better="lower")}
    for other in ("peak", "stages", "growth", "release"):  # each has its own test
        monkeypatch.setattr(memory, f"measure_{other}", lambda *_, **__: flat)
    monkeypatch.setattr(memory, "settle", lambda: None)
    case = case_of("pipeline", healthy, steps=2)
    measurement = memory.measure_here(case, healthy)
    assert len(measurement.metrics["step_growth"].samples) == memory.STEPS - 1
    checks = judge(case, "memory", measurement, None, bands_for_hardware=False, require_bands=False)
    assert {check.metric for check in checks if check.verdict is not Verdict.PASS} == failed


def test_growth_over_steps_on_a_cpu(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(case_of("pipeline", healthy, steps=2), Context(healthy))
    arm, asked = target.candidate, memory.inputs_of(target, "min")
    arm.call(asked)
    leaked: list[torch.Tensor] = []

    def held() -> dict[str, int]:
        return {"engine_weights": 7, "dit.engine_buffers": sum(kept.nbytes for kept in leaked)}

    limit: Limit = MemoryGate.model_fields["step_growth"].default
    for size, verdict in ((0, Verdict.PASS), (1 << 16, Verdict.FAIL)):
        monkeypatch.setattr(target, "_on_step", lambda *_, size=size: leaked.append(torch.ones(size)))
        metric = memory.measure_step_growth(arm, asked, held=held)["step_growth"]
        check = judge_step_growth("step_growth", limit, metric)
        assert check.verdict is verdict
    assert metric.value == pytest.approx(4 << 16, rel=0.1)
    assert check.message.endswith("; most of it in dit.engine_buffers, which grew by 2.5 MiB")


@pytest.mark.parametrize(("kept", "verdict"), [(0, "pass"), (2048 * MIB, "fail")])
def test_device_memory_that_nobody_accounts_for_is_caught(
    kept: int, verdict: str, healthy: Settings, monkeypatch: pytest.MonkeyPatch, on_modules: None
) -> None:
    """As a context or graph of another run's that something keeps; what PyTorch only caches has an owner."""
    device = FakeDevice()
    device.take(4096 * MIB)
    device.drop(4096 * MIB)
    monkeypatch.setattr(memory, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(memory, "current_device_memory", lambda in_use: on(device))
    monkeypatch.setattr(device, "empty_cache", lambda: None)
    device.outside += kept
    case = case_of("vae_decoder", healthy)
    measurement = memory.measure_here(case, healthy.model_copy(update={"memory": FEW}))
    weights = measurement.metrics["engine_weights"].value or 0
    assert measurement.metrics["device_unattributed"].value == 500 * MIB + kept - weights
    checks = judge(case, "memory", measurement, None, bands_for_hardware=False, require_bands=False)
    assert {check.metric: check.verdict for check in checks}["device_unattributed"] == verdict


@pytest.mark.parametrize(
    ("component", "takes", "gives"),
    [("vae_decoder", "latents", "sample"), ("vae_encoder", "sample", "latents")],
)
def test_a_case_on_a_device_says_who_holds_what(
    component: str,
    takes: str,
    gives: str,
    healthy: Settings,
    monkeypatch: pytest.MonkeyPatch,
    on_modules: None,
) -> None:
    device = FakeDevice()
    monkeypatch.setattr(memory, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(memory, "current_device_memory", lambda in_use: on(device))
    case = case_of(component, healthy)
    measurement = memory.measure_here(case, healthy.model_copy(update={"memory": FEW}))
    values = {name: metric.value for name, metric in measurement.metrics.items()}
    both = [values[f"{component}_{name}.engine_weights"] for name in ("first", "next")]
    assert values["engine_weights"] == sum(filter(None, both))
    assert values["device_unattributed"] == values["device_used"] - values["engine_weights"]
    target = memory.target_of(case, Context(healthy))
    left = target.engine(f"{component}_first").run({takes: target.inputs()[:, :, :1]})
    left.pop(gives)
    assert values["engine_caches"] == 2 * sum(cache.nbytes for cache in left.values())
    assert measurement.metrics["engine_caches"].deterministic
    assert not measurement.metrics["device_unattributed"].deterministic


def test_the_caches_of_a_tiled_decode_are_those_of_a_tile(on_modules: None) -> None:
    whole = Settings(device="cpu")
    tiles = whole.model_copy(update={"pipeline": PipelineSettings(vae_tile=64)})
    case = case_of("vae_decoder", whole, model="tiny-wan", profile="128p-17f")
    held = [target_of(case, Context(each)).engine_bytes()["engine_caches"] for each in (whole, tiles)]
    assert held[0] == (128 / 64) ** 2 * held[1]


def test_a_first_video_is_recorded_even_where_memory_runs_out(
    healthy: Settings, tmp_path: Path, on_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = healthy.model_copy(update={"pipeline": PipelineSettings(vae_frames_per_step=2)})
    target = target_of(case_of("pipeline", lean, steps=2), Context(lean))
    memory._recorded(tmp_path / "whole.json", None, target, "candidate")
    record = MemoryRecord.read(tmp_path / "whole.json")
    stages = {event.stage for event in record.events}
    assert {"load", "text_encode", "denoise", "decode"} <= stages and record.failure is None
    assert (record.run["case"], record.run["num_inference_steps"]) == ("small-pipeline", 2)
    assert record.run["settings"] == {"pipeline.vae_frames_per_step": 2}, "which advice leaves out"

    def decode(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("wan_trt_core.pipeline.parts.EngineVAE.decode", decode)
    target = target_of(case_of("pipeline", healthy, steps=2), Context(healthy))
    with pytest.raises(RuntimeError):
        memory._recorded(tmp_path / "cut.json", None, target, "candidate")
    failure = MemoryRecord.read(tmp_path / "cut.json").failure
    assert failure and (failure.stage, failure.asked) == ("decode 1", 2 << 30) and failure.held


def test_the_stages_of_a_whole_video_have_their_peaks(healthy: Settings) -> None:
    case = case_of("pipeline", healthy).model_copy(update={"steps": 2})
    target = memory.target_of(case, Context(healthy))
    found = memory.measure_stages(target.candidate, target.inputs("min"))
    assert {name.partition(".")[0] for name in found} == {"text_encode", "denoise", "decode", "postprocess"}
    assert all(name.endswith(".resident_set_peak") and metric.unit == "B" for name, metric in found.items())
    assert all((metric.value or 0) > 100 * MIB for metric in found.values())
    whole = memory.measure_stages(target.reference, target.inputs("min"))
    assert set(whole) == set(found)
    assert (
        memory.measure_stages(memory.target_of(case_of("dit", healthy), Context(healthy)).candidate, None)
        == {}
    )


def test_scratch_memory_that_engines_share_counts_once(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = memory.target_of(case_of("pipeline", healthy), Context(healthy))
    engines = {
        name: SimpleNamespace(memory=lambda size=size: {"weights": size, "scratch": 10 * size})
        for name, size in (("dit", 3), ("vae_decoder_first", 1), ("vae_decoder_next", 2))
    }
    monkeypatch.setattr(target, "_loaded", lambda: engines)
    held = target.engine_bytes()
    assert (held["engine_weights"], held["engine_scratch"]) == (6, 30)
    assert held["vae_decoder_next.engine_scratch"] == 20


def test_the_reference_is_measured_beside_the_candidate(healthy: Settings) -> None:
    gate = {
        "growth": {"max": 65536, "reason": "allocator noise"},
        "reference": True,
        "limits": {"peak_over_reference": {"max": 1e-3, "reason": "out of reach"}},
    }
    case = case_of("dit", healthy, memory=gate)
    measurement = measure_case(case, "memory", Context(healthy))
    ours, theirs, ratio = (
        measurement.metrics[name].value
        for name in ("resident_set_peak", "reference_resident_set_peak", "peak_over_reference")
    )
    assert ours and theirs and ratio == ours / theirs
    check = verdict_of(case, "memory", measurement)
    assert (check.verdict, check.metric) == (Verdict.FAIL, "peak_over_reference")


def test_a_gpu_is_left_to_the_process_that_measures(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What parity left loaded here is closed first, or both would have to fit."""
    context, closed = Context(healthy.model_copy(update={"device": "cuda"})), []
    engine: Any = SimpleNamespace(close=lambda: closed.append("before"))
    context.engines._engines[("dit",)] = engine
    monkeypatch.setattr(memory, "in_fresh_process", lambda *_: closed.append("measured"))
    memory.measure(case_of("dit", healthy), context)
    assert closed == ["before", "measured"]


def test_a_ratio_to_nothing_is_not_computed() -> None:
    def used(value: float) -> Measurement:
        return Measurement(metrics={"device_used": Metric(value=value, unit="B", better="lower")})

    ratio = memory.beside_reference(used(5.0), used(0.0)).metrics["peak_over_reference"]
    assert ratio.value is None and "0.0 in the reference" in ratio.detail
    assert memory.beside_reference(used(5.0), used(4.0)).metrics["peak_over_reference"].value == 1.25


def test_a_gpu_is_measured_in_a_process_that_is_no_fork() -> None:
    """Importing diffusers asks CUDA for its devices, and from then on CUDA refuses to start in a fork."""
    assert memory._context("cuda").get_start_method() == "spawn"


def test_an_arm_that_does_not_fit_is_an_error(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_here", does_not_fit)
    with pytest.raises(EngineError, match=r"memory of small-dit: the candidate does not fit: .* 2\.00 GiB"):
        measure_case(case_of("dit", healthy), "memory", Context(healthy))


def does_not_fit(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_dying_measuring_process_is_an_error(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the system runs out of memory and kills it."""
    monkeypatch.setattr(memory, "measure_here", die)
    with pytest.raises(EngineError, match="candidate's measuring process died"):
        measure_case(case_of("dit", healthy), "memory", Context(healthy))


def test_an_interrupted_measurement_ends_at_once(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the signal reaches this process alone, as from a CI runner; in a terminal the other one gets it too."""
    case, context = case_of("dit", healthy), Context(healthy)
    target_of(case, context).build()
    monkeypatch.setattr(memory, "measure_here", outlast)
    start = time.monotonic()
    interrupt = threading.Timer(2.0, os.kill, [os.getpid(), signal.SIGINT])
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt.start()
            measure_case(case, "memory", context)
    finally:
        interrupt.cancel()  # a measurement that failed at once leaves it to interrupt the next test
    assert time.monotonic() - start < OUTLAST / 2


OUTLAST = 40.0


def outlast(*_: Any, **__: Any) -> None:
    time.sleep(OUTLAST)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_worst_prefers_what_could_not_be_computed() -> None:
    from wan_trt_core.comparison.parity import worst

    def metric(value: float | None) -> dict[str, Metric]:
        return {"psnr_db": Metric(value=value, unit="dB", better="higher")}

    assert worst({"a": metric(90.0), "b": metric(60.0)})["psnr_db"].value == 60.0
    assert worst({"a": metric(90.0), "b": metric(None)})["psnr_db"].value is None
    nan = worst({"a": metric(float("nan")), "b": metric(1.0)})["psnr_db"].value
    assert nan is not None and nan != nan
    assert worst({"a": metric(90.0), "b": metric(60.0)})["psnr_db"].detail == "worst at b"
    points = {"min": metric(float("inf")), "opt": metric(float("nan")), "max": metric(None)}
    detail = worst(points, listed=True)["psnr_db"].detail
    assert detail == "worst at max; min inf dB, opt nan dB, max not measured"
    assert Limit(min=1.0, reason="x").min == 1.0
