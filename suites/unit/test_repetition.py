"""Blocks that are alike are traced a few times and repeated: the graph is the one that tracing all of them gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from wan_trt_core.config import ExportSettings, Settings
from wan_trt_core.export import ExportError, export_component, repetition
from wan_trt_core.export.module_names import module_of
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Tensors, TensorSpec
from wan_trt_core.models.components.text_encoder import TextEncoder
from wan_trt_core.models.graphs.dit import DitGraph
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.models.random_weights import RandomCheckpoint

PROFILE = ShapeProfile("test", Sizes(32, 32, 5, 16), Sizes(64, 48, 9, 16), Sizes(64, 80, 13, 24))
SETTINGS = Settings(threads=1, export=ExportSettings(check_range=False))
UNCHECKED = Settings(threads=1, export=ExportSettings(check=False, check_range=False))
WIDTH = 4
TINY = resolve("tiny-wan")
_two = resolve("tiny-wan2.2-ti2v-5b")
OF_FRAMES = replace(
    _two,
    checkpoint=RandomCheckpoint(
        {part: _two.checkpoint.config(part) for part in _two.checkpoint.parts}
        | {"transformer": {**_two.checkpoint.config("transformer"), "num_layers": 4}},
        "",
    ),
)
"""Of four blocks, each of which takes rows of modulation for every frame."""


def computed(path: Path) -> tuple[list[Any], list[str]]:
    """What each node computes of which inputs and weights, in which module, and what each output is: no other name and
    no order."""
    graph = onnx.load(str(path)).graph
    known = {value.name: value.name for value in graph.input}
    for kept in graph.initializer:
        data = numpy_helper.to_array(kept)
        known[kept.name] = hashlib.sha256(
            repr((data.dtype, data.shape)).encode() + data.tobytes()
        ).hexdigest()
    nodes = []
    for node in graph.node:
        takes = [known[name] if name else "" for name in node.input]
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        digest = hashlib.sha256(repr((node.op_type, takes, attributes)).encode()).hexdigest()
        known.update({name: f"{digest} {index}" for index, name in enumerate(node.output)})
        nodes.append((node.op_type, module_of(node), digest))
    return sorted(nodes), [known[value.name] for value in graph.output]


@pytest.mark.parametrize(
    ("model", "precision"),
    [(TINY, "fp32"), (TINY, "fp16"), (OF_FRAMES, "fp32")],
    ids=["tiny-wan", "fp16", "by-frame"],
)
def test_the_transformer_is_the_one_that_tracing_all_blocks_gives(
    model: ResolvedModel,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = []
    for repeated in ("blocks", ""):
        monkeypatch.setattr(DitGraph, "repeated", repeated)
        path = export_component("dit", model, PROFILE, precision, tmp_path / f"by-{repeated}", UNCHECKED).path
        files.append(computed(path))
    few, whole = files
    assert "every block is traced" not in caplog.text
    assert few == whole
    last = model.checkpoint.config("transformer")["num_layers"] - 1
    assert {"blocks.3.attn1.to_q", f"blocks.{last}.attn2.to_out"} <= {module for _, module, _ in few[0]}


class Layer(nn.Module):
    """One of a row of blocks: what it takes are its weights, a row of the scales, and the block before it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        if (
            index < repetition.TRACED_BLOCKS
        ):  # equal in those that are traced, as biases that training left at zero
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return hidden + torch.tanh(self.linear(hidden)) * scale


class Layers(nn.Module):
    repeated: str

    def __init__(self, make: Callable[[int], nn.Module], count: int = 6, *, bare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(make(index) for index in range(count))
        self.scales = nn.Parameter(torch.rand(count, WIDTH))
        self.bare = bare
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scales = self.scales.cos().chunk(self.scales.shape[0])
        for block, scale in zip(self.blocks, scales, strict=False):
            x = block(x, scale)
        return (x if self.bare else x * 2,)


class Row(TextEncoder):
    """A component of a row of blocks, quick to export."""

    name = "row"

    def __init__(
        self,
        make: Callable[[int], nn.Module] = Layer,
        count: int = 6,
        *,
        bare: bool = False,
        repeated: str = "blocks",
        whole: type[Layers] = Layers,
    ) -> None:
        self.layers = whole(make, count, bare=bare)
        self.layers.repeated = repeated

    def inputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", (1, "text_length", WIDTH)),)

    def outputs(self, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
        return (TensorSpec("y", (1, "text_length", WIDTH)),)

    def graph(self, checkpoint: Checkpoint, precision: str, *, block_outputs: bool = False) -> nn.Module:
        return self.layers

    def call_tensors(self, checkpoint: Checkpoint, video: Sizes, *, seed: int = 0) -> dict[str, Tensor]:
        return {
            "x": torch.randn((1, video.text_length, WIDTH), generator=torch.Generator().manual_seed(seed))
        }

    def prepare(self, checkpoint: Checkpoint, precision: str) -> Callable[[Tensors], Tensors]:
        return dict


def products(path: Path) -> list[str]:
    """The modules that the graph's products came from."""
    nodes = onnx.load(str(path)).graph.node
    return [module_of(node) for node in nodes if node.op_type in ("MatMul", "Gemm")]


@pytest.mark.parametrize("count", [1, 3, 4, 12])
def test_every_block_has_its_own_weights(
    count: int, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = Row(count=count)
    path = export_component(
        row, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS
    ).path  # compared with PyTorch
    assert products(path) == [f"blocks.{index}.linear" for index in range(count)]
    assert "every block is traced" not in caplog.text


def test_a_block_with_another_s_weights_is_found(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = repetition._Repeated._weight
    monkeypatch.setattr(
        repetition._Repeated, "_weight", lambda self, key: sound(self, key.replace("blocks.4", "blocks.5"))
    )
    with pytest.raises(ExportError, match="row fp32 at min of test"):
        export_component(Row(), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS)


class Wider(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 4:
            self.linear = nn.Linear(WIDTH, WIDTH, bias=False)


class Sharper(Layer):
    """Differs in a number that its graph has."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.factor = 1.0 if index < 5 else 2.0

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return super().forward(hidden * self.factor, scale)


class Alternating(Layer):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.odd = index % 2

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        left = super().forward(hidden, scale)
        return left.sin() if self.odd else left


class Numbered(Layer):
    """Differs in a constant that no attribute of the module shows."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.step = lambda hidden: hidden * (index + 2)

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return super().forward(self.step(hidden), scale)


class Forgetful(Layer):
    """Has a weight that its graph does not take, as one would who broke it: all of them do."""

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return hidden + torch.tanh(hidden @ self.linear.weight) * scale


class Hooked(Layer):
    """Differs in what was put onto it."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index == 4:
            self.register_forward_hook(lambda module, taken, given: given * 2)


class Buffered(Layer):
    """Has a tensor that no checkpoint keeps, equal in those that are traced."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.register_buffer("step", torch.ones(1) * max(index, 3), persistent=False)

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return super().forward(hidden * self.step, scale)


class Numbering(Layers):
    """Does something by a block's index."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self.scales[0]
        for index, block in enumerate(self.blocks):
            x = block(x, scale)
            if index == 4:
                x = x + 1
        return (x * 2,)


class Counting(Layers):
    """Does something by how many there are."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self.scales[0]
        for block in self.blocks:
            x = block(x, scale)
        return (x / len(self.blocks),)


class Rowing(Layers):
    """Gives a scale to three blocks each."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scales = self.scales.chunk(self.scales.shape[0])
        for index, block in enumerate(self.blocks):
            x = block(x, scales[index // 3])
        return (x * 2,)


class Averaging(Layers):
    """Takes what every block gives."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = self.scales[0]
        given = []
        for block in self.blocks:
            x = block(x, scale)
            given.append(x)
        return (torch.stack(given).mean(0),)


class Tied(Layers):
    """Its first three share a weight, the others have their own."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for block in self.blocks[1:3]:
            block.linear.weight = self.blocks[0].linear.weight


class Wrapped(Layers):
    """Its forward is another's, as a wrapper leaves it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.forward = super().forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(Wider), "blocks.4 does not do what blocks.2 does"),
        (Row(Sharper), "blocks.5 does not do what blocks.2 does"),
        (Row(Alternating), "blocks.3 does not do what blocks.2 does"),
        (Row(Numbered), "blocks.3 does not do what blocks.2 does"),
        (Row(Hooked), "blocks.4 does not do what blocks.2 does"),
        (Row(whole=Rowing), "blocks.3 does not do what blocks.2 does"),
        (Row(whole=Numbering), "something runs between blocks.4 and blocks.5"),
        (Row(whole=Counting), "what runs before or behind blocks depends on how many there are"),
        (Row(whole=Averaging), "what runs before or behind blocks depends on how many there are"),
        (Row(whole=Wrapped), "what runs before or behind blocks depends on how many there are"),
        (Row(bare=True), "one of blocks gives an output of the graph itself"),
        (Row(repeated="layers"), "its graph has no ModuleList named layers"),
    ],
    ids=lambda value: None if isinstance(value, Row) else value.split()[0],
)
def test_blocks_that_are_not_alike_are_all_traced(
    row: Row, why: str, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = export_component(
        row, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS
    ).path  # compared with PyTorch
    assert len(products(path)) == 6
    assert re.search(f"row fp32: every block is traced: {why}", caplog.text)


@pytest.mark.parametrize("row", [Row(Buffered), Row(whole=Tied)], ids=["buffered", "tied"])
def test_each_block_has_what_it_shares_with_none_of_those_that_are_traced(
    row: Row, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_component(row, checkpoint, PROFILE, "fp32", tmp_path, SETTINGS)  # compared with PyTorch
    assert "every block is traced" not in caplog.text


def test_a_weight_that_no_block_takes_is_none_of_the_graph(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = export_component(Row(Forgetful), checkpoint, PROFILE, "fp32", tmp_path, SETTINGS).path
    assert products(path) == [f"blocks.{index}" for index in range(6)]
    assert "every block is traced" not in caplog.text
