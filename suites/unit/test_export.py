"""Exports are exact, dynamic and repeatable; what goes wrong is told with component, tensor and axis."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from diffusers import WanPipeline
from faults import poison, relative
from torch import Tensor, nn

import wan_trt_core
from wan_trt_core.backends.base import OnnxModel
from wan_trt_core.config import ExportSettings, PipelineSettings, Settings
from wan_trt_core.distributions import distribution_versions
from wan_trt_core.export import ExportError, affordable, checks, export_component, exporter, ranges
from wan_trt_core.export.affordable import WEIGHT_BYTES, Cost, Place, affordable_places, call_cost
from wan_trt_core.export.exporter import TRACE_LOGGER
from wan_trt_core.export.module_names import MODULE_NAMES
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Tensors, TensorSpec
from wan_trt_core.models.components import ComponentError, component_names, get_component
from wan_trt_core.models.components.dit import Dit
from wan_trt_core.models.components.text_encoder import TextEncoder
from wan_trt_core.models.graphs.dit import text_rows
from wan_trt_core.models.loaded import LoadedCheckpoint
from wan_trt_core.models.profiles import POINTS, ShapeProfile, Sizes
from wan_trt_core.pipeline.engines import components_run, form_of

NAMES = tuple(name for name in component_names() if name != "dit_2")  # its graph is that of dit
PROFILE = ShapeProfile("test", Sizes(32, 32, 5, 16), Sizes(64, 48, 9, 16), Sizes(64, 80, 13, 24))
ELSEWHERE = Sizes(80, 112, 17, 20)
"""A size that no check of the export has seen."""

SETTINGS = Settings(threads=1)
UNCHECKED = Settings(threads=1, export=ExportSettings(check=False))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxModel]:
    """Exports on demand, each once."""
    made: dict[tuple[str, str, bool], OnnxModel] = {}

    def export(name: str, precision: str = "fp32", block_outputs: bool = False) -> OnnxModel:
        key = (name, precision, block_outputs)
        if key not in made:
            folder = tmp_path_factory.mktemp("onnx")
            made[key] = export_component(
                name, checkpoint, PROFILE, precision, folder, SETTINGS, block_outputs=block_outputs
            )
        return made[key]

    return export


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_activation_of_an_fp16_model_is_recorded(name: str, checkpoint: Checkpoint) -> None:
    component = get_component(name)
    largest = ranges.largest_activations(component, checkpoint, "fp16", PROFILE.min)
    outputs = []
    with torch.no_grad():
        for call in component.calibration_calls(checkpoint, PROFILE.min):
            outputs.append(component.reference_blocks(checkpoint, "fp16")(call))
    for block in component.blocks(checkpoint):
        if outputs[0][block].dtype == torch.float16:
            assert max(float(output[block].abs().max()) for output in outputs) in largest.values(), block
    ranges.require_fp16_range(name, largest, component.precisions)
    assert not any(module._forward_hooks for module in checkpoint.load(component.part, "fp16").modules())


def test_the_export_keeps_the_largest_activation_of_each_layer(
    exported: Callable[..., OnnxModel], checkpoint: Checkpoint
) -> None:
    found = exported("dit", "fp16").largest_activations
    assert found == ranges.largest_activations(get_component("dit"), checkpoint, "fp16", PROFILE.min)
    assert {"blocks.0.attn1.to_k", "blocks.1.ffn.net.2", "proj_out"} <= set(found)
    assert all(0 <= value < ranges.FP16_LIMIT for value in found.values()) and max(found.values()) > 0
    assert exported("dit").largest_activations is None


@pytest.mark.parametrize("name", ["dit", "dit_2"])
def test_the_transformer_is_calibrated_early_amid_and_late(name: str) -> None:
    component = get_component(name)
    model = resolve("tiny-wan2.2-t2v-a14b").checkpoint
    calls = component.calibration_calls(model, PROFILE.min)
    asked = [float(call["timestep"]) for call in calls]
    there_are = component._timesteps(model)  # type: ignore[attr-defined]
    assert asked == [there_are[0], there_are[len(there_are) // 2], there_are[-1]]
    assert asked[0] > asked[1] > asked[2]


def test_a_layer_that_is_largest_at_the_end_of_a_run_is_found(checkpoint: Checkpoint) -> None:
    """Of tiny-wan that is the prediction itself: 3.9 at the first timestep, 13.6 at the last."""
    dit = get_component("dit")
    largest = ranges.largest_activations(dit, checkpoint, "fp16", PROFILE.min)
    with torch.no_grad():
        predicted = [
            float(dit.reference(checkpoint, "fp16")(call)["sample"].abs().max())
            for call in dit.calibration_calls(checkpoint, PROFILE.min)
        ]
    assert largest["proj_out"] == max(predicted) > predicted[0]


@pytest.mark.parametrize(
    ("short_at", "found", "told"),
    [
        ((), {"a": 3.0, "b": 5.0}, ""),
        ((PROFILE.opt,), {"a": 1.0, "b": 5.0}, "no memory to look for its largest activations at opt"),
        ((PROFILE.min, PROFILE.opt), {"a": 0.5}, "at min; the CPU does"),
    ],
)
def test_a_gpu_looks_at_the_size_that_the_engine_is_tuned_for_too_and_leaves_the_cpu_what_it_has_no_memory_for(
    short_at: tuple[Sizes, ...],
    found: dict[str, float],
    told: str,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look(
        _component: Any, _checkpoint: Any, _precision: str, video: Sizes, device: str
    ) -> dict[str, float]:
        if device == "cpu":
            return {"a": 0.5}
        if video in short_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"a": 1.0, "b": 5.0} if video == PROFILE.min else {"a": 3.0, "b": 4.0}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranges, "largest_activations", look)
    asked = get_component("dit"), checkpoint, PROFILE, "fp16", Settings(device="cuda")
    assert exporter._range(*asked, lambda *_: None) == found
    assert told in caplog.text and bool(told) == bool(caplog.text)


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_a_gpu_looked_with_does_not_stay_there(
    in_memory: bool, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that nobody needs any more would take the builder's memory: 28 GB of the 14B."""

    def look(_component: Any, own: Checkpoint, *_: Any) -> dict[str, float]:
        looked_with.append(own.load("transformer", "fp16", "meta"))  # a device that is not the host's
        assert own.load("transformer", "fp16", "meta") is looked_with[-1]
        return {"a": 1.0}

    looked_with: list[nn.Module] = []
    own: Checkpoint = Checkpoint.open(small_checkpoint)
    if in_memory:
        own = LoadedCheckpoint(
            WanPipeline.from_pretrained(small_checkpoint, text_encoder=None, tokenizer=None)
        )
    on_host = own.load("transformer", "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranges, "largest_activations", look)
    monkeypatch.setattr(exporter, "GPU", "meta")
    exporter._range(get_component("dit"), own, PROFILE, "fp16", Settings(device="cuda"), lambda *_: None)
    assert own.load("transformer", "fp16") is on_host
    assert own.load("transformer", "fp16", "meta") is not looked_with[0]
    looked_with = [own.load("transformer", "fp16", "meta")]
    with own.passing("transformer", "meta"):
        assert own.load("transformer", "fp16", "meta") is looked_with[0]
    assert own.load("transformer", "fp16", "meta") is looked_with[0], "what was there before stays"


def test_a_component_without_bf16_has_float32_as_the_way_out() -> None:
    with pytest.raises(ExportError, match=r"vae fp16: conv reaches 40,000; .*: use fp32 \("):
        ranges.require_fp16_range("vae fp16", {"conv": 4e4}, get_component("vae_decoder_next").precisions)


def test_a_range_that_nobody_looked_at_is_not_taken_for_a_good_one() -> None:
    with pytest.raises(ExportError, match="no layer of the stock module puts out FP16"):
        ranges.require_fp16_range("dit fp16", {}, ())


@pytest.fixture
def scaled(small_checkpoint: Path) -> Callable[[float], Checkpoint]:
    """A checkpoint of its own, one layer of which is scaled so that its largest output is near a number."""

    def scale_to(largest: float) -> Checkpoint:
        own = Checkpoint.open(small_checkpoint)
        layer: Any = own.load("transformer", "fp16").get_submodule("blocks.1.ffn.net.2")
        found = ranges.largest_activations(get_component("dit"), own, "fp16", PROFILE.min)
        for weights in (layer.weight, layer.bias):
            weights.mul_(largest / found["blocks.1.ffn.net.2"])
        return own

    return scale_to


@pytest.mark.parametrize(("largest", "said"), [(4e4, "reaches 4"), (1e9, "leaves FP16's range")])
def test_a_model_that_comes_near_the_end_of_fp16_is_refused(
    largest: float, said: str, scaled: Callable[[float], Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError,
        match=rf"dit fp16: blocks\.1\.ffn\.net\.2 {said}.*: use bf16, which has the range of float32, or fp32 \(",
    ):
        export_component("dit", scaled(largest), PROFILE, "fp16", tmp_path, UNCHECKED)
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_whose_caches_would_leave_fp16_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    own = Checkpoint.open(small_checkpoint)
    layer: Any = own.load("vae", "fp32").get_submodule("decoder.conv_in")
    layer.weight.mul_(1e9)
    lean = form_of(
        "vae_decoder_next", PROFILE, "tensorrt", Settings(pipeline=PipelineSettings(vae_lean=True))
    )
    told = r"vae_decoder_next fp32: decoder\.conv_in reaches .*: turn pipeline\.vae_lean off"
    with pytest.raises(ExportError, match=told):
        export_component(lean, own, PROFILE, "fp32", tmp_path, UNCHECKED)
    assert list(tmp_path.iterdir()) == []


def test_the_range_of_fp16_may_be_left_unchecked(
    scaled: Callable[[float], Checkpoint], tmp_path: Path
) -> None:
    forced = Settings(threads=1, export=ExportSettings(check=False, check_range=False))
    assert export_component("dit", scaled(1e9), PROFILE, "fp16", tmp_path, forced).largest_activations is None


def run(model: OnnxModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    return dict(zip((*model.outputs, *model.block_outputs), map(torch.from_numpy, found), strict=True))


@pytest.mark.parametrize(
    "name",
    [  # the suites run the encoder's exports at three sizes
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("vae_encoder") else name
        for name in NAMES
    ],
)
def test_an_export_equals_diffusers_at_a_size_it_was_never_checked_at(
    name: str, exported: Callable[..., OnnxModel], checkpoint: Checkpoint
) -> None:
    component, model = get_component(name), exported(name)
    call = component.call_tensors(checkpoint, ELSEWHERE, seed=5)
    found = run(model, component.prepare(checkpoint, "fp32")(call))
    for key, expected in component.reference(checkpoint, "fp32")(call).items():
        assert found[key].equal(expected) or relative(found[key], expected) < 1e-5, key


def test_a_half_precision_dit_keeps_60_db(exported: Callable[..., OnnxModel], checkpoint: Checkpoint) -> None:
    component, model = get_component("dit"), exported("dit", "fp16")
    call = component.call_tensors(checkpoint, PROFILE.opt, seed=5)
    found = run(model, component.prepare(checkpoint, "fp16")(call))["sample"]
    expected = component.reference(checkpoint, "fp32")(call)["sample"]
    assert found.dtype == torch.float16
    rms = (found.double() - expected.double()).pow(2).mean().sqrt()
    assert 20 * math.log10(float(expected.max() - expected.min()) / float(rms)) > 60


def test_a_bf16_dit_is_compared_in_float32(
    exported: Callable[..., OnnxModel], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """ONNX Runtime computes nothing in BF16 on a CPU, so a copy of every node and weight runs in float32."""
    component, model = get_component("dit"), exported("dit", "bf16")
    call = component.call_tensors(checkpoint, ELSEWHERE, seed=5)
    inputs = {name: tensor.float() for name, tensor in component.prepare(checkpoint, "bf16")(call).items()}
    wide = checks.without_bf16(model.path, tmp_path)
    found = run(replace(model, path=wide), inputs)["sample"]
    rounded = component.reference(checkpoint, "bf16")(call)["sample"]
    assert relative(found, rounded) < 3e-2  # eight bits
    types = {value.type.tensor_type.elem_type for value in onnx.load(str(model.path)).graph.value_info}
    assert onnx.TensorProto.BFLOAT16 in types and onnx.TensorProto.FLOAT in types  # with its islands


def types_of(graph: onnx.GraphProto, kind: str) -> list[int]:
    """What the nodes of one operator compute in, in order."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    return [types[node.output[0]] for node in graph.node if node.op_type == kind]


def test_attention_in_bf16_is_exported_and_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    component = Dit().with_self_attention("bf16")
    model = export_component(component, checkpoint, PROFILE, "fp16", tmp_path, SETTINGS)
    computed_in = partial(types_of, onnx.load(str(model.path)).graph)
    half, bf16, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    layers = checkpoint.config("transformer")["num_layers"]
    assert computed_in("Softmax") == [bf16, half] * layers, "of the video to itself, and to the prompt"
    assert computed_in("MatMul") == [bf16, bf16, half, half] * layers
    assert computed_in("Gemm") == [full] * 2 + [half] * (10 * layers + 1), (
        "the prompt's embedding comes first"
    )


def test_centred_attention_is_exported_and_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    component = Dit().with_self_attention("centred")
    model = export_component(component, checkpoint, PROFILE, "fp16", tmp_path, SETTINGS)
    assert not component.has_bf16("fp16")
    computed_in = partial(types_of, onnx.load(str(model.path)).graph)
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    layers = checkpoint.config("transformer")["num_layers"]
    assert computed_in("ReduceMean") == [full] * (4 + 1) * layers, (
        "queries' and keys' of both attentions, and the values' of the video's"
    )
    assert computed_in("MatMul") == [half] * 4 * layers
    joined = [kind for kind in computed_in("Concat") if kind != onnx.TensorProto.INT64]  # those are shapes
    assert joined == [half] * 2 * layers, "queries and keys, rotated"


def test_a_float32_export_is_not_copied_to_be_compared(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention of a long video is in BF16 in a graph in FP16 alone; the copy would be of all weights."""
    monkeypatch.setattr(checks, "without_bf16", lambda path, folder: pytest.fail("copied"))
    export_component(Dit().with_self_attention("bf16"), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS)


def test_a_wrong_bf16_export_is_found(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    optimize = exporter._optimize

    def wrong(model: Any) -> None:
        optimize(model)
        product = next(node for node in model.graph.all_nodes() if node.op_type == "Gemm")
        product.attributes["alpha"] = onnx_ir.AttrFloat32("alpha", 1.01)

    monkeypatch.setattr(exporter, "_optimize", wrong)
    with pytest.raises(ExportError, match=r"dit bf16 at min of test: sample differs from PyTorch"):
        export_component("dit", checkpoint, PROFILE, "bf16", tmp_path, SETTINGS)


def test_block_outputs_are_the_reference_s(
    exported: Callable[..., OnnxModel], checkpoint: Checkpoint
) -> None:
    component = get_component("text_encoder")
    model = exported("text_encoder", block_outputs=True)
    assert model.block_outputs == component.blocks(checkpoint) == ("block.0",)
    call = component.call_tensors(checkpoint, PROFILE.opt)
    found = run(model, component.prepare(checkpoint, "fp32")(call))
    for key, expected in component.reference_blocks(checkpoint, "fp32")(call).items():
        assert relative(found[key], expected) < 1e-5


def test_the_model_is_described(exported: Callable[..., OnnxModel], checkpoint: Checkpoint) -> None:
    model = exported("dit")
    assert model.path.name == "dit_fp32.onnx"
    assert sorted(file.name for file in model.path.parent.iterdir()) == [
        "dit_fp32.onnx",
        "dit_fp32.onnx.data",
    ]
    assert (model.component, model.precision, model.profile) == ("dit", "fp32", "test")
    assert model.inputs == tuple(spec.name for spec in get_component("dit").inputs(checkpoint))
    assert model.outputs == ("sample",)
    assert model.shapes["hidden_states"] == {
        "min": (1, 16, 2, 4, 4), "opt": (1, 16, 3, 8, 6), "max": (1, 16, 4, 8, 10),
    }  # fmt: skip
    assert model.shapes["encoder_hidden_states"]["max"] == (1, 24, 32)


def operator_counts(model: OnnxModel) -> Counter[str]:
    """How often each operator is in a graph; one outside the standard domain with its domain."""
    nodes = onnx.load(str(model.path), load_external_data=False).graph.node
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vae_decoder_first", {"Reshape": 5, "Transpose": 5, "Expand": 2}),
        ("vae_decoder_next", {"Reshape": 11, "Transpose": 7}),
        ("vae_encoder_first", {"Reshape": 5, "Transpose": 5}),
        ("vae_encoder_next", {"Reshape": 5, "Transpose": 5}),
    ],
)
def test_nothing_of_wan22_s_vae_is_in_wan21_s(
    name: str, expected: dict[str, int], exported: Callable[..., OnnxModel]
) -> None:
    """Its shortcuts and patches are made of these: to move values about is what costs time and memory."""
    counts = operator_counts(exported(name))
    moving = ("Reshape", "Transpose", "Expand", "ReduceMean")
    assert {operator: counts[operator] for operator in moving if operator in counts} == expected


def test_operators_are_of_the_standard_domain(exported: Callable[..., OnnxModel]) -> None:
    counts = operator_counts(exported("dit"))
    assert counts["Softmax"] == 2 * 3  # self- and cross-attention of three blocks
    assert "ScatterND" not in counts
    assert all("::" not in name for name in counts)


def test_an_engine_for_one_size_takes_its_videos_with_every_prompt(
    exported: Callable[..., OnnxModel],
) -> None:
    model, length = exported("dit"), PROFILE.opt.text_length
    of_video = {name for name, shapes in model.opt_shapes.items() if len({*shapes.values()}) == 1}
    assert {*model.inputs} - of_video == {"encoder_hidden_states", "text_scores"}
    least, tuned, most = (model.opt_shapes["text_scores"][point][0] for point in POINTS)
    assert (least, tuned, most) == (text_rows(length, 0), text_rows(length, 0), length)
    for name in of_video:
        assert model.opt_shapes[name]["opt"] == model.shapes[name]["opt"]


RECORDED = {"torch": "2.15.0", "onnx": "1.23.2", "onnxscript": "0.7.2", "diffusers": "0.42.1"}
TEXT_TO_VIDEO = "8634ae4be227ceeb8bbbfdac4182b22b7a40d205a45955fad7a61a27b589469b"


def test_the_graph_of_text_to_video_is_the_one_that_was_measured(
    exported: Callable[..., OnnxModel],
) -> None:
    """Every node, its attributes and the shapes of all weights: flags of other variants are to leave no trace in what
    is measured. Who changes this graph on purpose writes its new hash here, and measures again."""
    if distribution_versions(*RECORDED) != RECORDED:
        pytest.skip(f"recorded with {RECORDED}; other exporters write other graphs")
    graph = onnx.load(str(exported("dit").path), load_external_data=False).graph
    told = [node.SerializeToString(deterministic=True) for node in graph.node]
    told += [repr((kept.name, kept.data_type, *kept.dims)).encode() for kept in graph.initializer]
    told += [value.SerializeToString(deterministic=True) for value in (*graph.input, *graph.output)]
    assert hashlib.sha256(b"".join(told)).hexdigest() == TEXT_TO_VIDEO


@pytest.mark.slow  # a process of its own imports everything anew
def test_an_export_repeats_to_the_byte(
    exported: Callable[..., OnnxModel], small_checkpoint: Path, tmp_path: Path
) -> None:
    script = (
        "from pathlib import Path; from wan_trt_core.config import Settings;"
        "from wan_trt_core.export import export_component;"
        "from wan_trt_core.models.checkpoint import Checkpoint;"
        "from wan_trt_core.models.profiles import ShapeProfile, Sizes;"
        f"checkpoint = Checkpoint.open({str(small_checkpoint)!r}); profile = {PROFILE!r};"
        "settings = Settings(threads=1); folder = Path('elsewhere');"
        "print(export_component('text_encoder', checkpoint, profile, 'fp32', folder, settings).sha256)"
    )
    package = str(Path(wan_trt_core.__file__).parents[1])
    printed = subprocess.run(
        [sys.executable, "-c", script],
        check=True, timeout=120, capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join((package, *sys.path))},
    )  # fmt: skip
    assert printed.stdout.strip() == exported("text_encoder").sha256


@pytest.mark.parametrize("name", ["dit", "vae_decoder_first"])
def test_the_model_names_its_modules_and_nothing_of_this_machine(
    name: str, exported: Callable[..., OnnxModel]
) -> None:
    model = exported(name)
    data = model.path.read_bytes()
    for trace in (str(Path(wan_trt_core.__file__).parents[1]), ".py", "0x7f", "stack_trace"):
        assert trace.encode() not in data, trace
    nodes = onnx.load(str(model.path), load_external_data=False).graph.node
    kept = [prop for node in nodes for prop in node.metadata_props]
    assert {prop.key for prop in kept} == {MODULE_NAMES}
    assert any("blocks.1" in prop.value or "up_blocks.1" in prop.value for prop in kept)


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.function(x) * self.weight,)


class Toy(TextEncoder):
    """A component that applies one function, quick to export."""

    name = "toy"

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        self.function = function

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", (1, "text_length", 4)),)

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("y", (1, "text_length", 4)),)

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        return _Apply(self.function)

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> dict[str, Tensor]:
        return {"x": torch.randn((1, video.text_length, 4), generator=torch.Generator().manual_seed(seed))}

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        return dict


def refuse(toy: Toy, checkpoint: Checkpoint, folder: Path, match: str) -> ExportError:
    """The error that exporting ends with, and nothing left behind."""
    with pytest.raises(ExportError, match=match) as caught:
        export_component(toy, checkpoint, PROFILE, "fp32", folder, SETTINGS)
    assert not list(folder.iterdir()), "something was left behind"
    return caught.value


def test_a_sound_toy_is_exported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    phases: list[tuple[str, float]] = []
    model = export_component(
        Toy(), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS, progress=lambda *told: phases.append(told)
    )
    x = torch.randn(1, 33, 4)
    assert relative(run(model, {"x": x})["y"], torch.tanh(x)) < 1e-6
    fractions = [fraction for _, fraction in phases]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


class Listening(logging.Handler):
    """Keeps what is logged, as pytest does with what it shows when a test fails."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("function", [torch.tanh, torch.special.bessel_j0], ids=["sound", "fails"])
def test_torchs_records_of_a_trace_reach_no_other_handler(
    function: Callable[[Tensor], Tensor], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    logger, listening = logging.getLogger(TRACE_LOGGER), Listening()
    before = [*logger.handlers, listening]
    logger.addHandler(listening)
    try:
        with contextlib.suppress(ExportError):
            export_component(Toy(function), checkpoint, PROFILE, "fp32", tmp_path, UNCHECKED)
        assert listening.records == []
        assert {*logger.handlers} >= {handler for handler in before if not is_torchs(handler)}
        torch.export.export(_Apply(function), (torch.ones(1, 2, 4),), strict=False)
        assert listening.records, "torch logs nothing of a trace any more: nothing needs to be kept away"
    finally:
        logger.removeHandler(listening)


def is_torchs(handler: logging.Handler) -> bool:
    """Torch's own handler takes itself away where no TORCH_TRACE is set."""
    return type(handler).__module__.startswith("torch.")


def test_the_weights_decide_the_hash(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, plain = Toy(), Toy.graph
    hashes = [export_component(toy, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).sha256]

    def heavier(*args: Any, **kwargs: Any) -> nn.Module:
        module: Any = plain(*args, **kwargs)
        module.weight.data[0] = 1.0001
        return module

    hashes.append(export_component(toy, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).sha256)
    monkeypatch.setattr(Toy, "graph", heavier)
    hashes.append(export_component(toy, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_specialised_output_axis_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    refuse(
        Toy(lambda x: x[:, :1] + torch.zeros(1, 16, 1)),
        checkpoint,
        tmp_path,
        r"toy fp32: axis 1 of y is 16, declared is 'text_length': the export fixed the size",
    )


@pytest.mark.parametrize("axis", ["height*width", "2*height*width", "tokens"])
def test_an_input_s_axis_that_is_no_axis_of_its_own_is_an_error(
    axis: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "inputs", lambda *_: (TensorSpec("x", (1, axis, 4)),))
    monkeypatch.setattr(Toy, "sizes", lambda *_: {"height": 4, "width": 6})
    refuse(
        Toy(),
        checkpoint,
        tmp_path,
        rf"toy fp32: axis 1 of the input x is '{re.escape(axis)}', expected one of height, width, or a number times one"
        r" \('2\*height'\): give a product of two a name of its own in the component's sizes; where the graph computes"
        r" with another input that has them apart, pass them apart here too",
    )


class Rotated(Toy):
    """Latents times a table that has a row for each of their tokens, or the tokens' own axes."""

    axes: tuple[str, ...] = ("tokens",)

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", ("frames", "height", "width", 4)), TensorSpec("cos", (*self.axes, 4)))

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("y", ("frames*height*width", 4)),)

    def sizes(self, video: Sizes) -> dict[str, int]:
        frames, height, width = video.latent_frames, video.latent_height, video.latent_width
        return {"frames": frames, "height": height, "width": width, "tokens": frames * height * width}

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        class Graph(nn.Module):
            def forward(self, x: Tensor, cos: Tensor) -> tuple[Tensor, ...]:
                return (x.flatten(0, 2) * cos.reshape(-1, 4),)

        return Graph()

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> dict[str, Tensor]:
        sizes = self.sizes(video)
        return {spec.name: torch.ones(spec.shape(sizes)) for spec in self.inputs(checkpoint)}


def test_an_input_that_meets_a_product_of_another_s_axes_is_passed_with_its_axes_apart(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """As one name of its own the product is found out, and as the product it is refused: the message leads out."""
    refuse(
        Rotated(),
        checkpoint,
        tmp_path,
        r"axis 0 of cos is '\w+\*\w+\*\w+', declared is 'tokens', because .*: pass it with an axis for each of"
        " frames, height, width, and flatten them in the graph",
    )
    apart = Rotated()
    apart.axes = ("frames", "height", "width")
    assert export_component(apart, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).inputs == ("x", "cos")


def test_an_axis_that_cannot_be_dynamic_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    refuse(
        Toy(lambda x: x.view(1, 16, 4)),
        checkpoint,
        tmp_path,
        r"(?s)toy fp32: tracing with torch\.export failed: .*text_length",
    )


def test_a_failing_graph_is_named_and_chained(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    error = refuse(
        Toy(fail), checkpoint, tmp_path, r"toy fp32: tracing .* failed: RuntimeError: no such kernel"
    )
    assert isinstance(error.__cause__, RuntimeError)


def test_an_operator_that_onnx_lacks_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    toy = Toy(lambda x: torch.special.bessel_j0(x))
    refuse(toy, checkpoint, tmp_path, r"(?s)toy fp32: converting to ONNX opset 20 failed: .*bessel_j0")


def test_an_output_with_nan_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    refuse(
        Toy(lambda x: torch.log(x - x - 1)),
        checkpoint,
        tmp_path,
        r"at min of test: y has 64 values of 64 that are NaN or infinite, in PyTorch and so in the model",
    )


def test_the_comparison_may_be_left_out(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy(lambda x: torch.log(x - x - 1))
    export_component(toy, checkpoint, PROFILE, "fp32", tmp_path, UNCHECKED)
    assert "was not compared with PyTorch" in caplog.text


def left_out(caplog: pytest.LogCaptureFixture) -> str:
    """The line about sizes that were left out, of which there is one at most."""
    lines = [line for line in caplog.messages if "is compared with PyTorch" in line]
    assert len(lines) <= 1
    return lines[0] if lines else ""


@pytest.mark.parametrize("name", NAMES)
def test_tiny_wan_is_compared_at_all_points_by_default(name: str, caplog: pytest.LogCaptureFixture) -> None:
    component, model = get_component(name), resolve("tiny-wan")
    profile, graph = model.profile(), component.graph(model.checkpoint, "fp32")
    asked = component, model.checkpoint, graph, profile, "fp32"
    places = affordable_places(*asked, SETTINGS.export.check_tflop)
    assert places == affordable_places(*asked, None)
    sizes = {tuple(component.sizes_at(profile, point).values()) for point in POINTS}
    assert len(places) == len(sizes)
    assert not left_out(caplog)


def test_the_export_says_at_which_points_it_was_compared(exported: Callable[..., OnnxModel]) -> None:
    assert exported("dit").compared == POINTS
    assert exported("text_encoder").compared == ("min", "max")  # opt has the same prompt as min


LARGE = ShapeProfile("large", Sizes(128, 128, 9, 64), Sizes(128, 160, 13, 64), Sizes(160, 160, 13, 64))


@pytest.fixture(scope="module")
def places_of_dit(checkpoint: Checkpoint) -> Callable[[float | None], list[Place]]:
    """Those at which a DiT is compared up to so many TFLOP."""
    graph = Dit().graph(checkpoint, "fp16")
    return partial(affordable_places, Dit(), checkpoint, graph, LARGE, "fp16")


@pytest.fixture(scope="module")
def costs_of_dit(
    checkpoint: Checkpoint, places_of_dit: Callable[[float | None], list[Place]]
) -> dict[str, Cost]:
    graph, inputs = Dit().graph(checkpoint, "fp16"), Dit().inputs(checkpoint)

    def costs(tflop: float | None) -> dict[str, Cost]:
        return {place.name: call_cost(graph, inputs, place.shapes, "fp16") for place in places_of_dit(tflop)}

    points = costs(None)
    return {**points, **costs(0.99 * points["min"].tflop)}


class _Deciding(nn.Module):
    """Traced with a value that is not known before; nothing can be counted of it."""

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return given[0] * given[1].sum().item()


def test_what_cannot_be_counted_is_compared_at_the_smallest_point(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Dit(), checkpoint, _Deciding(), LARGE, "fp16"
    assert [place.name for place in affordable_places(*asked, 1.0)] == ["min"]
    assert "at min of large alone: what a call takes cannot be counted: DataDependent" in caplog.text
    assert [place.name for place in affordable_places(*asked, None)] == ["min", "opt", "max"]


def test_attention_of_pytorch_counts_with_its_scores() -> None:
    class Attention(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(rows, rows, rows)

    rows = {"x": (1, 2, 500, 16)}
    cost = call_cost(Attention(), (TensorSpec("x", (1, 2, "rows", 16)),), rows, "fp32")
    assert cost.tflop == 2 * 2 * 2 * 500 * 500 * 16 / 1e12
    assert cost.memory >= 2 * 4 * 2 * 500 * 500


def test_what_a_call_takes_is_counted() -> None:
    layer = nn.Linear(64, 32, bias=False)
    spec, rows = TensorSpec("x", ("rows", 64)), {"x": (10, 64)}
    cost = call_cost(layer, (spec,), rows, "fp32")
    assert cost.tflop == 2 * 10 * 64 * 32 / 1e12
    least = WEIGHT_BYTES * 64 * 32 + 4 * 10 * 32
    assert least <= cost.memory <= least + 4 * 64 * 32  # a view of the weights may count
    # half precision is computed in float32
    assert call_cost(layer.half(), (spec,), rows, "fp16") == cost
    # attention's scores are there at once, and their softmax
    attention = _Apply(lambda x: torch.softmax(x @ x.mT, -1) @ x)
    spec = TensorSpec("x", (1, "rows", 4))
    scores = call_cost(attention, (spec,), {"x": (1, 50_000, 4)}, "fp32").memory
    assert 2 <= scores / (4 * 50_000**2) < 2.1


@pytest.mark.parametrize(
    ("limit", "names"),
    [("max", POINTS), ("opt", ("min", "opt")), ("min", ("min",)), ("64x96, 5 frames", ("64x96, 5 frames",))],
)
@pytest.mark.parametrize("short_of", ["work", "memory"])
def test_what_takes_too_much_is_left_out_and_told(
    short_of: str,
    limit: str,
    names: tuple[str, ...],
    places_of_dit: Callable[[float | None], list[Place]],
    costs_of_dit: dict[str, Cost],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost, tflop = costs_of_dit[limit], 1.0
    if short_of == "work":
        tflop = cost.tflop
    else:
        monkeypatch.setattr(affordable, "free_memory_bytes", lambda: cost.memory)
    assert tuple(place.name for place in places_of_dit(tflop)) == names
    line = left_out(caplog)
    assert bool(line) == (names != POINTS)
    if line:
        missing = [point for point in POINTS if point not in names]
        assert f"at {' and '.join(names)}, not at {' and '.join(missing)} of large" in line
        assert f"at {missing[0]} a call takes {costs_of_dit[missing[0]]}; allowed are {tflop:g} TFLOP" in line
        assert "export.check_tflop; null compares at all" in line


def test_where_nothing_is_affordable_nothing_is_compared_and_that_is_told(
    places_of_dit: Callable[[float | None], list[Place]], caplog: pytest.LogCaptureFixture
) -> None:
    assert places_of_dit(1e-9) == []
    assert "at no size, not at min and opt and max of large" in left_out(caplog)


def test_without_a_limit_all_is_compared_whatever_is_free(
    places_of_dit: Callable[[float | None], list[Place]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affordable, "free_memory_bytes", lambda: 0)
    assert tuple(place.name for place in places_of_dit(None)) == POINTS


def test_a_large_model_is_compared_at_a_size_unlike_that_it_was_traced_with(
    places_of_dit: Callable[[float | None], list[Place]], costs_of_dit: dict[str, Cost]
) -> None:
    (smaller,) = places_of_dit(costs_of_dit["64x96, 5 frames"].tflop)
    traced, sizes = Dit().sizes(exporter.TRACED), Dit().sizes(smaller.video)
    assert all(sizes[axis] != traced[axis] for axis in traced)


@pytest.mark.parametrize(
    "name", [name if name == "dit" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_component_is_compared_at_the_smaller_size(
    name: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affordable, "call_cost", lambda _graph, _inputs, shapes, _precision: cost(shapes))
    seen, compare = list[str](), checks.compare

    def cost(shapes: dict[str, tuple[int, ...]]) -> Cost:
        component = get_component(name)
        sizes = component.sizes(Sizes(96, 64, 5, 32))
        return Cost(
            float(shapes != {spec.name: spec.shape(sizes) for spec in component.inputs(checkpoint)}), 0
        )

    def comparing(what: str, *args: Any) -> dict[str, checks.Difference]:
        seen.append(what)
        return compare(what, *args)

    monkeypatch.setattr(checks, "compare", comparing)
    settings = Settings(threads=1, export=ExportSettings(check_tflop=0.5))
    model = export_component(name, checkpoint, LARGE, "fp32", tmp_path, settings)
    assert model.compared == ("64x96, 5 frames",)
    assert seen == [f"{name} fp32 at 64x96, 5 frames"]


def broken(program: Any) -> None:
    """Half of what the last product of a graph is multiplied by."""
    weights = [value for value in program.graph.initializers.values() if value.name.endswith("weight")]
    last = weights[-1]
    last.const_value = onnx_ir.tensor(last.const_value.numpy() / 2, name=last.name)


def test_a_broken_export_of_tiny_wan_is_found_at_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_optimize", broken)
    model = resolve("tiny-wan")
    with pytest.raises(ExportError, match=r"dit fp32 at min of 128p-17f: sample differs from PyTorch by"):
        export_component("dit", model, model.profile(), "fp32", tmp_path, Settings(threads=1))


def test_a_broken_export_is_found_at_the_smaller_size(
    checkpoint: Checkpoint, costs_of_dit: dict[str, Cost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_optimize", broken)
    tflop = costs_of_dit["64x96, 5 frames"].tflop
    settings = Settings(threads=1, export=ExportSettings(check_tflop=tflop))
    with pytest.raises(ExportError, match="dit fp16 at 64x96, 5 frames: sample differs from PyTorch by"):
        export_component("dit", checkpoint, LARGE, "fp16", tmp_path, settings)


def test_nothing_is_opened_where_nothing_is_compared(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affordable, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(checks, "open_session", lambda *_: pytest.fail("opened"))
    assert export_component(Toy(), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).compared == ()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_prompt_is_encoded_once_and_before_the_memory_is_needed(
    precision: str,
    exported: Callable[..., OnnxModel],
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What encodes it is the largest part of Wan 1.3B: it is neither beside a transformer whose range is looked at, nor
    beside what ONNX Runtime holds."""
    own, done, made = Checkpoint.open(small_checkpoint), list[str](), exported("dit", precision).path
    fresh, open_session = own.fresh, checks.open_session

    def noted(part: str, *given: Any) -> Any:
        done.append(part)
        return fresh(part, *given)

    def opened(*given: Any) -> Any:
        done.append("session")
        return open_session(*given)

    def written(*given: Any) -> None:
        (path,) = (each for each in given if isinstance(each, Path))
        for file in made.parent.iterdir():
            shutil.copy(file, path.parent)

    monkeypatch.setattr(own, "fresh", noted)
    monkeypatch.setattr(checks, "open_session", opened)
    monkeypatch.setattr(exporter, "_write_onnx", written)
    found = export_component("dit", own, PROFILE, precision, tmp_path, SETTINGS)
    assert found.compared == ("min", "opt", "max")
    parts = ["text_encoder", "transformer"]
    assert done == [*(parts if precision == "fp16" else reversed(parts)), "session"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_told_and_leaves_nothing(
    wrapped: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: Any, destination: Path, **_: Any) -> None:
        Path(destination).write_bytes(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))
        except OSError as error:
            if wrapped:
                raise RuntimeError("could not serialise") from error
            raise

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save)
    error = refuse(Toy(), checkpoint, tmp_path, r"toy fp32: the disk is full .*--wan-cache")
    assert error.__cause__ is not None


def test_a_folder_that_cannot_be_made_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ExportError, match=r"cannot write to .*file/below"):
        export_component(Toy(), checkpoint, PROFILE, "fp32", file / "below", SETTINGS)


@pytest.mark.parametrize("phase", ["trace", "convert", "optimize", "check", "compare at max"])
def test_an_interrupted_export_leaves_nothing(phase: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def interrupt(told: str, _: float) -> None:
        if told.endswith(phase):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_component(Toy(), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_missing_precision_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="it has fp32, fp16"):
        export_component("dit", checkpoint, PROFILE, "int4", tmp_path, SETTINGS)


def test_nan_among_the_weights_is_found(exported: Callable[..., OnnxModel], checkpoint: Checkpoint) -> None:
    component = get_component("dit")
    graph = component.graph(checkpoint, "fp32")
    poison(graph)
    tensors = component.prepare(checkpoint, "fp32")(component.call_tensors(checkpoint, PROFILE.min))
    differences = checks.compare("dit", checks.open_session(exported("dit").path, 1), graph, tensors)
    with pytest.raises(ExportError, match=r"sample has .* NaN or infinite, in PyTorch and so in the model"):
        checks.judge("dit", differences, 1e-4)


def test_another_graph_is_beyond_the_tolerance(
    exported: Callable[..., OnnxModel], checkpoint: Checkpoint
) -> None:
    component = get_component("text_encoder")
    graph: Any = component.graph(checkpoint, "fp32")
    session = checks.open_session(exported("text_encoder").path, 1)
    tensors = component.prepare(checkpoint, "fp32")(component.call_tensors(checkpoint, PROFILE.opt))
    checks.judge("same", checks.compare("same", session, graph, tensors), 1e-4)
    graph.final_norm.weight = nn.Parameter(graph.final_norm.weight * 1.0005, requires_grad=False)
    with pytest.raises(
        ExportError, match=r"other: last_hidden_state differs .* [0-9.]+e-04 .*allowed is 1e-04"
    ):
        checks.judge("other", checks.compare("other", session, graph, tensors), 1e-4)


def saved(tmp_path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Path:
    """A model that adds its first input to itself, with the given names and axes."""
    values = [
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)
            for name, axes in side.items()
        ]
        for side in (inputs, outputs)
    ]
    node = onnx.helper.make_node("Add", [next(iter(inputs))] * 2, [next(iter(outputs))])
    graph = onnx.helper.make_graph([node], "g", *values)
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


SPEC = TensorSpec("x", (1, "2*height", "frames"))
RESULT = TensorSpec("y", (1, "2*height", "frames"))


def test_the_declared_interface_is_accepted(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": [1, "2*height", "frames"]}, {"y": [1, "height*2", "frames"]})
    checks.check_interface("m", path, [SPEC], [RESULT])


@pytest.mark.parametrize(
    ("found", "same"), [("8*frames - 7", True), ("8*frames", False), ("8*frames - 6", False)]
)
def test_an_output_s_axis_may_be_what_the_exporter_writes(found: str, same: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": [1, "2*height", "frames"]}, {"y": [1, "2*height", found]})
    with nullcontext() if same else pytest.raises(ExportError, match=rf"axis 2 of y is '{re.escape(found)}'"):
        checks.check_interface("m", path, [SPEC], [TensorSpec("y", (1, "2*height", "8*frames - 7"))])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([1, 8, "frames"], r"axis 1 of x is 8, declared is '2\*height': the export fixed"),
        ([1, "height", "frames"], r"axis 1 of x is 'height', declared is '2\*height'$"),
        ([1, "4*height", "frames"], r"axis 1 of x is '4\*height'"),
        ([1, "2*height", "s7"], "axis 2 of x is 's7', declared is 'frames'"),
        (["batch", "2*height", "frames"], "axis 0 of x is 'batch', declared is 1"),
        ([1, "2*height"], "x has 2 axes"),
    ],
)
def test_another_shape_is_named(axes: list[Any], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": axes}, {"y": [1, "2*height", "frames"]})
    with pytest.raises(ExportError, match=message):
        checks.check_interface("m", path, [SPEC], [RESULT])


def test_another_output_shape_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": [1, "2*height", "frames"]}, {"y": [1, "2*height", 9]})
    with pytest.raises(ExportError, match="axis 2 of y is 9, declared is 'frames': the export fixed"):
        checks.check_interface("m", path, [SPEC], [RESULT])


def test_another_name_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"z": [1, "2*height", "frames"]}, {"y": [1, "2*height", "frames"]})
    with pytest.raises(ExportError, match=r"the exported inputs are \['z'\], declared are \['x'\]"):
        checks.check_interface("m", path, [SPEC], [RESULT])


def test_an_invalid_model_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": [1, 2]}, {"y": [1, 3]})
    with pytest.raises(onnx.shape_inference.InferenceError):
        checks.check_model(path)
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "Adf"
    onnx.save(model, str(path))
    with pytest.raises(onnx.checker.ValidationError):
        checks.check_model(path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": torch.float64}, r"toy fp32: `prepare` gives x as torch\.float64, declared is torch\.float32"),
        ({"z": torch.float32}, r"toy fp32: `prepare` gives \['z'\], declared are \['x'\]"),
    ],
)
def test_a_prepared_input_that_is_not_the_declared_one_is_named(
    given: dict[str, torch.dtype],
    said: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ((name, dtype),) = given.items()
    monkeypatch.setattr(Toy, "prepare", lambda *_: lambda call: {name: call["x"].to(dtype)})
    refuse(Toy(), checkpoint, tmp_path, said)


def test_prepared_inputs_reach_the_graph_by_their_names() -> None:
    y, x = torch.zeros(1), torch.ones(1)
    specs = (TensorSpec("x", (1,)), TensorSpec("y", (1,)))
    assert list(checks.in_order("m", specs, {"y": y, "x": x}, "fp32").items()) == [("x", x), ("y", y)]


def test_tensors_grow_to_a_shape() -> None:
    tensor = torch.arange(6).reshape(2, 3)
    assert checks.grown(tensor, (2, 3)).equal(tensor)
    assert checks.grown(tensor, (3, 5)).tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]]


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], checks.Difference(0.0, 2)),
        ([0.0, 0.0], [0.0, 0.0], checks.Difference(0.0, 2)),
        ([0.0, 1.0], [0.0, 0.0], checks.Difference(math.inf, 2)),
        ([3.0, 4.5], [3.0, 4.0], checks.Difference(0.1, 2)),
        ([math.nan, 1.0], [0.0, 1.0], checks.Difference(math.inf, 2, bad=1)),
        ([0.0, 1.0], [0.0, math.inf], checks.Difference(math.inf, 2, bad_reference=1)),
    ],
)
def test_differences(got: list[float], want: list[float], expected: checks.Difference) -> None:
    assert checks._difference(numpy.array(want), numpy.array(got)) == expected


def test_values_that_only_onnxruntime_makes_infinite_are_told() -> None:
    with pytest.raises(ExportError, match=r"y has 3 values of 9 .* in ONNX Runtime, not in PyTorch"):
        checks.judge("m", {"y": checks.Difference(math.inf, 9, bad=3)}, 1e-4)


@pytest.mark.slow
def test_what_tiny_wan_needs_for_a_video_is_exported_within_a_minute(
    tiny_wan_folder: Path, tmp_path: Path
) -> None:
    model = resolve("tiny-wan", tiny_wan_folder)
    names = (*components_run("pipeline", model.checkpoint), "text_encoder")
    started = time.perf_counter()
    for name in names:
        export_component(name, model, model.profile(), "fp32", tmp_path, Settings(threads=2))
    assert time.perf_counter() - started < 60, "on two idle cores this takes about 45 s"
    assert len(list(tmp_path.iterdir())) == 2 * len(names)
