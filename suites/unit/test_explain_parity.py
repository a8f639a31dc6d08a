"""The operation that broke is named: faults in one block's ONNX graph, and whole runs with a fault in the export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from test_comparison import case_of, settings_with
from torch import nn

from wan_trt_core.cases import Case
from wan_trt_core.comparison import explain_case, targets
from wan_trt_core.comparison.blocks import find_divergence, limits
from wan_trt_core.comparison.conditions import equal_conditions, snapshot, without_tf32
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.operations import Operation, first_operation, modules_of, nodes_of
from wan_trt_core.comparison.parity import explanations_of
from wan_trt_core.comparison.targets import Target, target_of
from wan_trt_core.config import Settings, TensorRtSettings
from wan_trt_core.models.components import get_component
from wan_trt_core.pipeline.engines import exported_model
from wan_trt_core.records import Measurement

BLOCK = "blocks.1"


@pytest.fixture(scope="module")
def settings(small_checkpoint: Path, engine_cache_folder: Path) -> Settings:
    return settings_with(engine_cache_folder, small_checkpoint)


@dataclass
class Exported:
    """A healthy DiT in ONNX, and what finds an operation in a changed copy of it."""

    path: Path
    target: Target
    precision: str = "fp32"

    def first(self, folder: Path, fault: Callable[[ModelProto], None], block: str) -> Operation | None:
        model = onnx.load(str(self.path))
        fault(model)
        onnx.save(model, str(folder / "changed.onnx"))
        component, checkpoint = get_component("dit"), self.target.model.checkpoint
        blocks = component.blocks(checkpoint)
        with torch.inference_mode():
            call = component.in_full(checkpoint, component.call_tensors(checkpoint, self.target.profile.min))
            reference = component.reference_blocks(checkpoint, "fp32")
            return first_operation(
                folder / "changed.onnx",
                block,
                blocks[: blocks.index(block)],
                component.prepare(checkpoint, self.precision)(call) | reference(call),
                lambda: reference(call),
                limits(self.precision),
                modules_of(nodes_of(self.path)),
            )


@pytest.fixture(scope="module")
def exported(settings: Settings) -> Exported:
    target = target_of(case_of("dit", settings), Context(settings))
    model = exported_model(
        "dit", target.model, target.profile, "fp32", "onnxruntime", settings, block_outputs=True
    )
    return Exported(model.path, target)


@pytest.fixture(scope="module", params=["fp16 bf16", "bf16 auto", "fp16 centred"])
def for_tensorrt(request: pytest.FixtureRequest, settings: Settings) -> Exported:
    """As TensorRT gets it: FP16 with self-attention in BF16, all in BF16, FP16 with centred values."""
    precision, form = request.param.split()
    case = case_of("dit", settings).model_copy(update={"backend": "tensorrt", "precision": precision})
    chosen = settings.model_copy(update={"tensorrt": TensorRtSettings(self_attention=form)})
    target = target_of(case, Context(chosen))
    return Exported(target.graph("dit", block_outputs=True).runs, target, precision)


def nodes(model: ModelProto, module: str, op: str) -> list[NodeProto]:
    """The nodes of one operator that were exported from one module, in order."""
    found = []
    for node in model.graph.node:
        scopes = [name for entry in node.metadata_props for name in entry.value.split("'") if name[:1] == "b"]
        if node.op_type == op and module in scopes and not [name for name in scopes if name > f"{module}."]:
            found.append(node)
    return found


def weight(name: str, change: Callable[[Any], Any]) -> Callable[[ModelProto], None]:
    """A fault in one weight."""

    def fault(model: ModelProto) -> None:
        (tensor,) = (each for each in model.graph.initializer if each.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(array).astype(array.dtype), name))

    return fault


def noisy(array: Any) -> Any:
    return array + 0.01 * array.std() * numpy.random.default_rng(0).standard_normal(array.shape)


def with_nan(array: Any) -> Any:
    return numpy.where(numpy.arange(array.size).reshape(array.shape) == 0, numpy.nan, array)


def wrong_eps(model: ModelProto) -> None:
    node = nodes(model, f"{BLOCK}.attn1", "Add")[0]
    model.graph.initializer.append(numpy_helper.from_array(numpy.array(1e-2, numpy.float32), "wrong"))
    node.input[1] = "wrong"


def exact_gelu(model: ModelProto) -> None:
    (node,) = nodes(model, BLOCK, "Gelu")
    del node.attribute[:]


def keys_for_values(model: ModelProto) -> None:
    """The values of the cross-attention are made of the wrong tokens."""
    (node,) = nodes(model, f"{BLOCK}.attn2.to_v", "Gemm")
    (right,) = nodes(model, f"{BLOCK}.attn2.to_q", "Gemm")
    node.input[1] = right.input[1]


FAULTS = {
    "eps": (wrong_eps, "Add", "attn1"),
    "weight": (weight(f"{BLOCK}.attn1.to_q.weight", noisy), "Gemm", "attn1.to_q"),
    "bias": (weight(f"{BLOCK}.attn2.to_k.bias", noisy), "Gemm", "attn2.to_k"),
    "norm of k, drowned in the softmax": (weight(f"{BLOCK}.attn1.norm_k", noisy), "Mul", "attn1"),
    "norm2": (weight(f"{BLOCK}.norm2_weight", noisy), "LayerNormalization", ""),
    "heads": (
        weight(f"{BLOCK}.attn1.to_out.weight", lambda array: numpy.roll(array, 32, axis=1)),
        "Gemm",
        "attn1.to_out",
    ),
    "nan": (weight(f"{BLOCK}.ffn_out.bias", with_nan), "Gemm", "ffn_out"),
    "gelu": (exact_gelu, "Gelu", ""),
    "another weight": (keys_for_values, "Gemm", "attn2.to_v"),
}


@pytest.mark.parametrize(("fault", "op", "module"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(
    fault: Callable[[ModelProto], None], op: str, module: str, exported: Exported, tmp_path: Path
) -> None:
    found = exported.first(tmp_path, fault, BLOCK)
    assert found is not None
    assert (found.op, found.module) == (op, f"{BLOCK}.{module}".rstrip(".")), found.describe()
    assert f"{op} {found.node} of {BLOCK}" in found.describe()


def test_a_factor_is_told_where_it_comes_in(exported: Exported, tmp_path: Path) -> None:
    """What scales all scores shows in the softmax first; that its input is PyTorch's but for a factor is said."""
    fault = weight(f"{BLOCK}.attn1.norm_q", lambda array: array * 4)
    found = exported.first(tmp_path, fault, BLOCK)
    assert found is not None
    assert (found.op, found.factor) == ("Softmax", pytest.approx(4.0, rel=1e-4))
    assert "its input is PyTorch's times 4" in found.describe()


@pytest.mark.parametrize("block", ["patch_embedding", "text_embedder", "blocks.0", "blocks.2", "proj_out"])
def test_a_healthy_block_has_none(block: str, exported: Exported, tmp_path: Path) -> None:
    """A fault elsewhere is no fault here: every block starts from the reference's own inputs."""
    assert exported.first(tmp_path, weight(f"{BLOCK}.attn1.to_q.weight", noisy), block) is None


def test_operations_are_looked_for_with_a_prompt_without_padding(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of that the graph leaves nothing out, whose equal would be looked for in vain."""
    given: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(targets, "first_operation", lambda *all_of_it: given.append(all_of_it[3]))
    exported.target.operation("dit", BLOCK)
    ((states, scores),) = ((made["encoder_hidden_states"], made["text_scores"]) for made in given)
    assert bool(states.any(-1).all()) and not bool(scores.any())
    assert states.shape[1] == len(scores) == exported.target.profile.min.text_length


def test_what_tensorrt_gets_is_looked_into_on_the_cpu(for_tensorrt: Exported, tmp_path: Path) -> None:
    """Of operations in BF16 ONNX Runtime has none there."""
    fault, op, module = FAULTS["another weight"]
    assert for_tensorrt.first(tmp_path, fault, "blocks.0") is None
    found = for_tensorrt.first(tmp_path, fault, BLOCK)
    assert found is not None
    assert (found.op, found.module) == (op, f"{BLOCK}.{module}"), found.describe()


@pytest.mark.parametrize(
    ("for_tensorrt", "layer", "told"),
    [("fp16 bf16", "attn2.to_out", "attn2"), ("fp16 centred", "attn1.to_out", "attn1.to_out")],
    indirect=["for_tensorrt"],
)
def test_a_fault_behind_values_less_their_mean_is_told_of_their_attention(
    for_tensorrt: Exported, layer: str, told: str, tmp_path: Path
) -> None:
    """From there to where the mean is back nothing has its equal in PyTorch: of the prompt's that is behind the next
    product."""
    fault = weight(f"{BLOCK}.{layer}.weight", lambda array: numpy.roll(array, 32, axis=1))
    found = for_tensorrt.first(tmp_path, fault, BLOCK)
    assert found is not None
    assert found.module == f"{BLOCK}.{told}", found.describe()


def faulty_eps(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the export of the case's component has another epsilon in one attention."""
    component = get_component(case.component)
    stock = component.graph

    def graph(*args: Any, **kwargs: Any) -> nn.Module:
        made: Any = stock(*args, **kwargs)
        made.blocks[1].attn1.eps = 1e-2
        return made

    monkeypatch.setattr(component, "graph", graph)


def test_a_failing_case_names_block_and_operation_first_and_then_the_blocks_around(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with(tmp_path / "cache", small_checkpoint)
    case = case_of("dit", settings)
    faulty_eps(case, monkeypatch)
    context = Context(settings)
    block, operation, heading, *rows = explain_case(case, "parity", context, Measurement(metrics={}))
    assert block.startswith(f"dit: first diverging block: {BLOCK} (relative L2 ")
    # ONNX Runtime has made one node of the whole norm
    assert "first operation: SimplifiedLayerNormalization node_mul_" in operation
    assert f"of {BLOCK}.attn1 (" in operation and operation.endswith("in the graph that ONNX Runtime runs")
    assert "growth" in heading
    assert [row[2:].split()[0] for row in rows] == [
        "text_embedder",
        "blocks.0",
        BLOCK,
        "blocks.2",
        "proj_out",
    ]
    assert [row for row in rows if row.startswith(">")] == [rows[2]]

    def unknown(*_: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(Target, "operation", unknown)
    (found,) = explanations_of(case, context)
    assert found.divergence.first == BLOCK  # which is told all the same
    assert found.operation_text == "first operation not found out: RuntimeError: no room"


def test_without_a_way_into_the_engine_the_onnx_graph_is_named(settings: Settings) -> None:
    case = case_of("dit", settings).model_copy(update={"backend": "tensorrt"})
    graph = target_of(case, Context(settings)).looked_into()
    assert graph == "the ONNX graph, run on the CPU; what tensorrt made of it cannot be looked into"


def test_float32_is_float32_where_operations_are_compared(settings: Settings) -> None:
    """The graph runs on a CPU, which has no TF32: where the settings allow it every product would differ."""
    perf = settings.perf.model_copy(update={"allow_tf32": True})
    with equal_conditions(settings.model_copy(update={"perf": perf})):
        with without_tf32():
            assert not (snapshot()["matmul_tf32"] or snapshot()["cudnn_tf32"])
        assert snapshot()["matmul_tf32"] and snapshot()["cudnn_tf32"]


@pytest.mark.parametrize("given", [None, True, False])
def test_pytorch_s_switches_stay_as_they_are_unless_tf32_is_given(
    settings: Settings, given: bool | None
) -> None:
    before = snapshot()
    perf = settings.perf.model_copy(update={"allow_tf32": given})
    with equal_conditions(settings.model_copy(update={"perf": perf})):
        found = {name: snapshot()[name] for name in ("matmul_tf32", "cudnn_tf32")}
    assert found == {name: before[name] if given is None else given for name in found}
    assert before["cudnn_tf32"] and not before["matmul_tf32"], (
        "PyTorch's own default, which engines are built by"
    )
    assert snapshot() == before


def test_the_table_shows_growth() -> None:
    reference = {name: torch.ones(4) for name in ("a", "b", "c")}
    errors = {"a": 1e-6, "b": 2e-6, "c": 1e-3}
    candidate = {name: torch.ones(4) * (1 + error) for name, error in errors.items()}
    divergence = find_divergence(reference, candidate, 1e-4)
    assert divergence.growth()[0] is None
    assert divergence.growth()[1:] == pytest.approx((2.0, 500.0), rel=0.1)
    heading, *rows = divergence.table()
    assert heading.split() == ["block", "relative", "L2", "PSNR", "(dB)", "growth"]
    assert rows[2].split()[:4] == [">", "c", "1.0e-03", "60.0"]
    assert len(divergence.table(around=0)) == 2
    same = find_divergence(reference, reference, 1e-4)
    assert same.growth() == (None, None, None)
    assert all(len(line) <= 80 for line in same.table())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_block_that_overflows_is_named(broken: float) -> None:
    candidate = torch.tensor([1.0, broken, 1.0, 1.0])
    divergence = find_divergence(
        {"a": torch.ones(4), "b": torch.ones(4)}, {"a": torch.ones(4), "b": candidate}, 1e-2
    )
    assert divergence.first == "b"
    assert divergence.table()[-1].split() == [">", "b", str(broken), "nan"]
    assert divergence.describe().startswith(f"first diverging block: b (relative L2 {broken}, after")
