"""NVIDIA's parser and builder take every graph of tiny-wan: found on a CPU, before a GPU refuses one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tensorrt_wheels import install, run_script

from wan_trt_core.backends.tensorrt.builder import PRODUCTS, _Graph
from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.components import components_of
from wan_trt_core.pipeline.engines import exported_model

SCRIPT = Path(__file__).parent / "tensorrt_rtx.py"
WHEELS = ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116")

GRAPHS = (
    ("dit", "fp16"),
    ("dit", "fp32"),
    ("dit", "bf16"),
    ("vae_decoder_first", "fp32"),
    ("vae_decoder_next", "fp32"),
    ("vae_encoder_first", "fp32"),
    ("vae_encoder_next", "fp32"),
    ("text_encoder", "fp32"),
)


@pytest.fixture(scope="module")
def rtx(request: pytest.FixtureRequest) -> Path:
    return install(Path(request.config.cache.mkdir("tensorrt-rtx")), *WHEELS)


def built(models: list[dict[str, Any]], rtx: Path) -> list[dict[str, Any]]:
    told = run_script(SCRIPT, path=rtx, given=json.dumps(models, default=str))
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def test_every_graph_of_tiny_wan_is_parsed_and_built(rtx: Path, tiny_wan_folder: Path) -> None:
    """The graphs come from the user's own cache, where the suites look for them as well."""
    settings = load_settings(environ={}).settings
    model = resolve("tiny-wan", tiny_wan_folder)
    graphs = [
        exported_model(name, model, model.profile(), precision, "tensorrt", settings)
        for name, precision in GRAPHS
    ]
    assert {name for name, _ in GRAPHS} == set(components_of(model.checkpoint)), (
        "a component that is not built here"
    )
    results = built([asdict(graph) for graph in graphs], rtx)
    assert [result["model"] for result in results] == [graph.path.name for graph in graphs]
    for result in results:
        assert "error" not in result, result
        assert result["plan"] > 100_000
        assert result["phases"] > 10 and result["rising"]


def test_every_form_of_self_attention_is_built(rtx: Path, tiny_wan_folder: Path) -> None:
    model, graphs = resolve("tiny-wan", tiny_wan_folder), []
    for form in ("plain", "centred", "bf16"):
        settings = load_settings(environ={}, overrides={"tensorrt.self_attention": form}).settings
        graphs.append(exported_model("dit", model, model.profile(), "fp16", "tensorrt", settings))
    assert len({graph.sha256 for graph in graphs}) == 3
    for result in built([asdict(graph) for graph in graphs], rtx):
        assert "error" not in result, result
        assert result["plan"] > 100_000


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_layer_is_to_be_computed_in_the_precision_of_its_weights(
    precision: str, tiny_wan_folder: Path
) -> None:
    """So that an engine is not refused for a layer that a half-precision graph has in float32, or the reverse."""
    import onnx

    settings, model = load_settings(environ={}).settings, resolve("tiny-wan", tiny_wan_folder)
    path = exported_model("dit", model, model.profile(), precision, "tensorrt", settings).path
    graph = onnx.load(str(path), load_external_data=False).graph
    named = {"FLOAT": "float32"}
    words = {number: named.get(name, name.lower()) for name, number in onnx.TensorProto.DataType.items()}
    weights = {value.name: words[value.data_type] for value in graph.initializer}
    stored = {
        node.name: weights[node.input[1]]
        for node in graph.node
        if node.op_type in PRODUCTS and node.input[1] in weights
    }
    planned = _Graph(path).products
    assert {name: planned[name] for name in stored} == stored
    assert len(stored) > 80 and len(set(stored.values())) == (1 if precision == "fp32" else 2)


def test_the_graph_that_explains_a_failure_is_built_too(rtx: Path, tiny_wan_folder: Path) -> None:
    """With every block's output, as ``wan-trt explain parity`` asks of an engine."""
    settings, model = load_settings(environ={}).settings, resolve("tiny-wan", tiny_wan_folder)
    graph = exported_model("dit", model, model.profile(), "fp16", "tensorrt", settings, block_outputs=True)
    (result,) = built([asdict(graph)], rtx)
    assert "error" not in result, result
    assert result["plan"] > 100_000
    assert len(graph.block_outputs) > model.checkpoint.config("transformer")["num_layers"]


def test_no_graph_pads_an_image_before_a_convolution(tiny_wan_folder: Path) -> None:
    """TensorRT-RTX takes that; TensorRT 10.6 fails where it fuses the two ("Cannot add shapes of unequal rank")."""
    import onnx

    settings = load_settings(environ={}).settings
    model = resolve("tiny-wan", tiny_wan_folder)
    for name in (name for name, precision in GRAPHS if name.startswith("vae") and precision == "fp32"):
        path = exported_model(name, model, model.profile(), "fp32", "tensorrt", settings).path
        nodes = onnx.load(str(path), load_external_data=False).graph.node
        padded = {output for node in nodes if node.op_type == "Pad" for output in node.output}
        convolved = {node.input[0] for node in nodes if node.op_type == "Conv"}
        assert convolved and not padded & convolved, name


def test_a_graph_that_the_parser_refuses_names_node_and_module(rtx: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    path = tmp_path / "dit_fp32.onnx"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    node = helper.make_node("Det", ["x"], ["y"], name="node_det")
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'blocks.0', 'blocks.0.odd', 'det']"
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    model = {
        "component": "dit", "precision": "fp32", "path": str(path), "sha256": "", "profile": "p", "shapes": {},
        "opt_shapes": {}, "inputs": ["x"], "outputs": ["y"],
    }  # fmt: skip
    (result,) = built([model], rtx)
    assert "node 'node_det' (Det), from blocks.0.odd" in result["error"]
