"""Blocks that are alike are traced a few times, and written into the ONNX graph as often as the model has them.

A transformer's blocks make the same nodes of other weights, and a tracer takes a second for each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wan_trt_core.export.errors import BlocksDifferError
from wan_trt_core.export.module_names import MODULE_NAMES, modules_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TRACED_BLOCKS = 3
"""Blocks that are traced: the first has what is made once for all, and the next two, held side by side, show what
differs from one block to the next."""


def with_few_blocks(graph: nn.Module, name: str, inputs: Sequence[Tensor]) -> nn.Module:
    """``graph`` with no more than its first :data:`TRACED_BLOCKS` blocks, whose weights it shares.

    Args:
        name: of the ``ModuleList`` of blocks.
        inputs: of ``forward``; only their shapes and dtypes matter.

    Raises:
        BlocksDifferError: when it has no such list, or does not run it in a plain loop of blocks that do the same.
    """
    from torch import nn

    from wan_trt_core.export.plain_loop import require_plain_loop

    blocks = graph._modules.get(name)
    if not isinstance(blocks, nn.ModuleList):
        raise BlocksDifferError(f"its graph has no ModuleList named {name}")
    few = copy.copy(graph)
    few._modules = {**graph._modules, name: blocks[:TRACED_BLOCKS]}
    if len(blocks) > TRACED_BLOCKS:
        require_plain_loop(graph, few, name, inputs)
    return few


def repeat_blocks(model: Any, graph: nn.Module, name: str) -> None:
    """Write the blocks that :func:`with_few_blocks` left out into the ONNX graph of those that it kept.

    What a block takes is told by what the last two take at the same place: the same value; one of the block before;
    outputs of one node, so many apart; weights of the same name; equal constants.

    Args:
        model: an ``onnx_ir.Model`` as the exporter makes it, changed in place.
        graph: with all blocks, for their weights.
        name: of the ``ModuleList`` of blocks.

    Raises:
        BlocksDifferError: when the last two are not alike in the ONNX graph; it is then of no use.
    """
    count = len(graph.get_submodule(name))  # type: ignore[arg-type]
    if count <= TRACED_BLOCKS:
        return
    tensors = dict(graph.named_parameters(remove_duplicate=False)) | dict(
        graph.named_buffers(remove_duplicate=False)
    )
    _simplify(model, tensors)
    repeated = _Repeated(model.graph, tensors, name)
    made = {value: value for value in repeated.values}
    for index in range(TRACED_BLOCKS, count):
        made = repeated.append(index, made)
    for node, position, value in repeated.leaving:
        node.replace_input_with(position, made[value])


def _simplify(model: Any, weights: Collection[str]) -> None:
    """Fold constants, but no ``weights``: what one was folded into would look like a constant that all blocks share."""
    import onnx_ir.passes
    from onnxscript.optimizer import fold_constants

    def may_fold(node: Any) -> bool | None:
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    common: Any = onnx_ir.passes.common
    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True, should_fold=may_fold)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)


class _Repeated:
    """The last traced block in an ONNX graph, of which copies are made.

    Attributes:
        values: those of its nodes.
        leaving: where other nodes take them: node, position, value.
    """

    def __init__(self, onnx_graph: Any, weights: Mapping[str, Tensor], name: str) -> None:
        self._onnx_graph, self._name, self._own = onnx_graph, name, f"{name}.{TRACED_BLOCKS - 1}"
        self._weights = weights
        self._twins = _nodes_of(onnx_graph, f"{name}.{TRACED_BLOCKS - 2}")
        self._nodes = _nodes_of(onnx_graph, self._own)
        self._end = self._nodes[-1]
        if [_signature(node) for node in self._twins] != [_signature(node) for node in self._nodes]:
            raise BlocksDifferError(
                f"{name}.{TRACED_BLOCKS - 2} and {self._own} have other nodes in the ONNX graph"
            )
        self._next = {  # value of the block before: that of this block
            one: value
            for twin, node in zip(self._twins, self._nodes, strict=True)
            for one, value in zip(twin.outputs, node.outputs, strict=True)
        }
        self.values = set(self._next.values())
        self._first = {value for node in _nodes_of(onnx_graph, f"{name}.0") for value in node.outputs}
        own = {*self._twins, *self._nodes}
        self.leaving = [
            (use.node, use.idx, value) for value in self.values for use in value.uses() if use.node not in own
        ]
        if any(use.node not in own for value in self._next for use in value.uses()):
            raise BlocksDifferError(
                f"what {name}.{TRACED_BLOCKS - 2} computes is used behind the next of {name} too"
            )
        if any(value in self.values or value in self._next for value in onnx_graph.outputs):
            raise BlocksDifferError(f"one of {name} gives an output of the graph itself")
        if any(key.startswith(f"{name}.{TRACED_BLOCKS}.") for key in onnx_graph.initializers):
            raise BlocksDifferError(f"the graph runs more of {name} than it was given")

    def append(self, index: int, before: Mapping[Any, Any]) -> dict[Any, Any]:
        """Put the block ``index`` behind the last one.

        Args:
            before: the value of the block before it for each of :attr:`values`.

        Returns:
            the same of this block.
        """
        import onnx_ir

        made: dict[Any, Any] = {}
        nodes = []
        for twin, node in zip(self._twins, self._nodes, strict=True):
            inputs = [
                made[value]
                if value in made and self._next.get(one) is value
                else self._source(one, value, index, before)
                for one, value in zip(twin.inputs, node.inputs, strict=True)
            ]
            outputs = [
                onnx_ir.Value(name=f"{value.name}.{index}", shape=value.shape, type=value.type)
                for value in node.outputs
            ]
            made.update(zip(node.outputs, outputs, strict=True))
            noted = node.metadata_props.get(MODULE_NAMES, "")
            for end in ("'", "."):
                noted = noted.replace(f"'{self._own}{end}", f"'{self._name}.{index}{end}")
            nodes.append(
                onnx_ir.Node(
                    node.domain,
                    node.op_type,
                    inputs,
                    node.attributes,
                    outputs=outputs,
                    version=node.version,
                    name=f"{node.name}.{index}",
                    metadata_props={MODULE_NAMES: noted},
                )
            )
        self._onnx_graph.insert_after(self._end, nodes)
        self._end = nodes[-1]
        return made

    def _source(self, twin: Any, value: Any, index: int, before: Mapping[Any, Any]) -> Any:
        """What the block ``index`` takes where this one takes ``value`` and the one before it took ``twin``."""
        if value is twin and not (value is not None and value.name.startswith(f"{self._name}.")):
            return value  # but for a weight that two blocks share, which others may have of their own
        if value in self._next and twin in self._first:
            return before[self._next[value]]
        if None not in (twin, value) and value not in self.values:
            producer = value.producer()
            if producer is not None and producer is twin.producer():
                at = value.index() + (value.index() - twin.index()) * (index - TRACED_BLOCKS + 1)
                if 0 <= at < len(producer.outputs):
                    return producer.outputs[at]
            if value.name.startswith(f"{self._own}."):
                return self._weight(f"{self._name}.{index}{value.name.removeprefix(self._own)}")
            if _equal_constants(twin, value):
                return value
        taken = ["nothing" if one is None else one.name for one in (twin, value)]
        raise BlocksDifferError(f"{self._name} take {taken[0]} and {taken[1]} at the same place")

    def _weight(self, key: str) -> Any:
        import onnx_ir
        from onnx_ir.tensor_adapters import TorchTensor

        if key not in self._weights:
            raise BlocksDifferError(f"{key} is neither a parameter nor a buffer")
        if key not in self._onnx_graph.initializers:
            tensor = TorchTensor(self._weights[key].detach(), name=key)
            self._onnx_graph.register_initializer(
                onnx_ir.Value(
                    name=key, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
                )
            )
        return self._onnx_graph.initializers[key]


def _nodes_of(onnx_graph: Any, module: str) -> list[Any]:
    """All nodes from the first to the last that came from a module or its submodules. What optimizers put between them
    has no name of a module."""
    nodes = list(onnx_graph)
    found = [
        position
        for position, node in enumerate(nodes)
        if module in modules_of(node.metadata_props.get(MODULE_NAMES, "[]"))
    ]
    if not found:
        raise BlocksDifferError(f"the ONNX graph has no node of {module}")
    return nodes[found[0] : found[-1] + 1]


def _signature(node: Any) -> tuple[Any, ...]:
    """What has to be the same of two nodes that do the same."""
    attributes = {name: str(attribute.value) for name, attribute in node.attributes.items()}
    return node.domain, node.op_type, len(node.inputs), len(node.outputs), attributes


def _equal_constants(one: Any, other: Any) -> bool:
    import numpy as np

    tensors = one.const_value, other.const_value
    if None in tensors or tensors[0].dtype != tensors[1].dtype:
        return False
    return np.array_equal(tensors[0].numpy(), tensors[1].numpy())
