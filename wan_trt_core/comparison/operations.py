"""Which operation of a block broke: the values inside the block's ONNX graph beside all that PyTorch computes there.

The graph of an engine is not diffusers' own: it is rewritten for speed, and no table says which of its nodes does what
which line of diffusers does. But where both compute the same thing the same numbers appear on both sides, in some
layout. So the block's nodes run on the *reference's* block inputs (what went wrong before is gone), every operation of
stock diffusers is watched, and a value of the graph agrees if its numbers, sorted, are those of some tensor there.
The first operation that went wrong is the first from which no value that agrees can be reached any more: a value that
has no equal in PyTorch because it is computed another way (a factor moved elsewhere, a fused norm) is healthy if what
follows from it agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from wan_trt_core.export.checks import widen_bf16
from wan_trt_core.export.module_names import module_of
from wan_trt_core.models.component import Tensors

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_VIEWS = {"Unsqueeze": "Squeeze", "Squeeze": "Unsqueeze", "Identity": "Identity"}
"""Operations that may stand between a value and the output that shows it, and what undoes them."""

_DECOMPOSED = ("native_layer_norm", "native_group_norm", "_fused_rms_norm")
"""Operations of PyTorch that a graph may hold in pieces, to be looked into."""


@dataclass(frozen=True)
class Operation:
    """The first operation whose output differs.

    Attributes:
        node: its name in the ONNX graph.
        op: its ONNX operator.
        module: the PyTorch module that it was exported from.
        error: relative L2 distance to the nearest tensor in PyTorch, both sorted.
        factor: how many times the nearest tensor in PyTorch its input is, where that is not once: it may be meant (a
            factor that is computed elsewhere), or be the fault itself.
    """

    node: str
    op: str
    module: str
    error: float
    factor: float = 1.0

    def describe(self) -> str:
        """For the failure message."""
        where = f"{self.op} {self.node}" + (f" of {self.module}" if self.module else "")
        scaled = "" if self.factor == 1.0 else f"; its input is PyTorch's times {self.factor:.4g}"
        return f"{where} (relative L2 {self.error:.1e} to the nearest value in PyTorch{scaled})"


@dataclass
class Value:
    """The numbers of one tensor of the graph, and the nearest that was seen in PyTorch.

    Attributes:
        numbers: sorted, of length one, float64.
        size: their L2 norm before.
        error: relative L2 distance to the nearest tensor.
        shape_error: the same with both of length one, which forgives a factor.
        factor: of this tensor to the nearest one in that sense.
    """

    numbers: Tensor
    size: float
    error: float = math.inf
    shape_error: float = math.inf
    factor: float = 1.0

    @classmethod
    def of(cls, tensor: Tensor) -> Value | None:
        """None where there is nothing to compare: no real numbers, a single one, or zeros."""
        if not tensor.is_floating_point() or tensor.numel() < 2:
            return None
        numbers = tensor.detach().double().flatten().sort().values
        size = float(numbers.norm())
        return None if size == 0.0 else cls(numbers / size, size)

    def meet(self, other: Value) -> None:
        """Take note of a tensor in PyTorch, of as many numbers."""
        near = (self.numbers - other.numbers).norm()
        shape_error, ratio = float(near), self.size / other.size
        # |a - b| of two vectors from the distance of their directions and the ratio of their lengths
        error = math.sqrt((ratio - 1.0) ** 2 + ratio * shape_error**2)
        self.error = min(self.error, error if error == error else math.inf)
        if shape_error < self.shape_error:
            self.shape_error, self.factor = shape_error, ratio


@dataclass(frozen=True)
class BlockGraph:
    """The nodes from the outputs of earlier blocks to one block's own, in order of computation.

    Attributes:
        model: an ONNX model of these nodes alone; it gives out every value in :attr:`values`.
        inputs: what it reads: graph inputs and outputs of earlier blocks.
        values: what the nodes compute from those on the way to the block's output, by the node that does.
    """

    model: ModelProto
    inputs: tuple[str, ...]
    values: Mapping[str, NodeProto]
    output: str


def first_operation(
    graph: Path,
    block: str,
    earlier: Sequence[str],
    fed: Tensors,
    reference: Callable[[], object],
    limits: Sequence[float],
    modules: Mapping[str, str],
) -> Operation | None:
    """The first operation of a block that computes what PyTorch does not, or none.

    Args:
        graph: an ONNX file, or one that ONNX Runtime has optimised, that gives out the outputs of all blocks.
        earlier: the blocks before.
        fed: the graph's inputs and the reference's outputs of ``earlier``.
        reference: runs stock diffusers on the same inputs.
        limits: see :func:`find_operation`.
        modules: PyTorch module by the name of a value, see :func:`modules_of`.
    """
    part = block_graph(graph, block, earlier)
    device = next(
        iter(fed.values())
    ).device  # PyTorch's, to which it is quicker to bring the few than the many
    values = {name: Value.of(tensor.to(device)) for name, tensor in _run(part, fed).items()}
    _meet(reference, [value for value in values.values() if value is not None])
    return find_operation(part, values, limits, modules)


def find_operation(
    part: BlockGraph, values: Mapping[str, Value | None], limits: Sequence[float], modules: Mapping[str, str]
) -> Operation | None:
    """The first value from which none that agrees is reached; where a factor explains all, the first with it.

    Args:
        limits: relative L2 distances within which a value agrees, tried one after the other: a small error may drown
            further on (in a softmax, in a residual sum) and come out again. Beyond the last it is no rounding.
    """
    judged = {name: value for name, value in values.items() if value is not None}
    tolerance = limits[-1]
    for limit in limits:
        for measure in ("shape_error", "error"):
            agree = {name for name, value in judged.items() if getattr(value, measure) <= limit}
            lost = [name for name in _lost(part.values, agree) if name in judged]
            if lost and not judged[lost[0]].error <= tolerance:
                return _operation(lost[0], part.values[lost[0]], judged, tolerance, modules)
    return None


def _operation(
    name: str, node: NodeProto, judged: Mapping[str, Value], tolerance: float, modules: Mapping[str, str]
) -> Operation:
    before = [judged[each] for each in node.input if each in judged]
    scaled = [value.factor for value in before if value.error > tolerance >= value.shape_error]
    factor = scaled[0] if scaled else 1.0
    return Operation(node.name, node.op_type, modules.get(name, ""), judged[name].error, factor)


def _lost(values: Mapping[str, NodeProto], agree: Collection[str]) -> list[str]:
    """The values, in order, from which none that agrees is reached, themselves among them."""
    healthy = set(agree)
    for name, node in reversed(tuple(values.items())):
        if name in healthy:
            healthy.update(node.input)
    return [name for name in values if name not in healthy]


def nodes_of(graph: Path) -> Sequence[NodeProto]:
    """The nodes of a model, in their order; its weights are not read."""
    import onnx

    nodes: Sequence[NodeProto] = onnx.load(str(graph), load_external_data=False).graph.node
    return nodes


def modules_of(nodes: Sequence[NodeProto]) -> dict[str, str]:
    """The PyTorch module of every value that the nodes of an exported model give out, by name."""
    return {name: module for node in nodes for module in (module_of(node),) for name in node.output}


def block_graph(graph: Path, block: str, earlier: Sequence[str]) -> BlockGraph:
    """Cut one block out of a model that gives out the outputs of all blocks.

    Raises:
        KeyError: when the model has no such output.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    whole, makers = model.graph, {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in whole.initializer}
    given = {value.name: value for value in (*whole.input, *whole.output) if value.name not in constants}
    for node in _undone(makers, earlier):
        makers[node.output[0]] = node
    sources = {value.name for value in whole.input} | set(earlier)
    order: list[NodeProto] = []
    needed: dict[str, None] = {}
    _walk(given[block].name, makers, sources, order, needed)

    inputs = tuple(name for name in needed if name in given and name in sources)
    depends = set(inputs)
    for node in order:
        if depends & set(node.input):
            depends.update(node.output)
    values = {name: node for node in order for name in node.output if name in depends and name in needed} or {
        block: makers[block]
    }
    kept = [constants[name] for name in needed if name in constants]
    for tensor in kept:
        if onnx.external_data_helper.uses_external_data(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(graph.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    cut = onnx.helper.make_graph(
        order,
        f"{whole.name} {block}",
        [given[name] for name in inputs],
        [given[name] if name in given else onnx.ValueInfoProto(name=name) for name in values],
        kept,
    )
    made = onnx.helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
    return BlockGraph(made, inputs, values, block)


def _undone(makers: Mapping[str, NodeProto], earlier: Sequence[str]) -> Iterator[NodeProto]:
    """Nodes that make the value which a block's output shows out of that output."""
    import onnx

    for name in earlier:
        maker = makers[name]
        if (undo := _VIEWS.get(maker.op_type)) is not None:
            taken = [name, *maker.input[1:]]
            yield onnx.helper.make_node(undo, taken, [maker.input[0]], name=f"undo_{maker.name}")


def _walk(
    name: str,
    makers: Mapping[str, NodeProto],
    sources: Collection[str],
    order: list[NodeProto],
    needed: dict[str, None],
) -> None:
    """Collect the nodes that a value needs, each after those that it needs itself (without recursion: graphs are
    deeper than Python's stack)."""
    stack, done = [(name, False)], set[int]()
    while stack:
        current, ready = stack.pop()
        needed.setdefault(current)
        node = None if current in sources else makers.get(current)
        if node is None or id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
            continue
        stack.append((current, True))
        stack.extend((each, False) for each in reversed(node.input) if each)


def _run(part: BlockGraph, fed: Tensors) -> Tensors:
    """The values of a block on the CPU, none of ONNX Runtime's optimisations applied (any more); what is BF16, of which
    it has nothing there, in float32."""
    import onnxruntime

    widen_bf16(part.model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        part.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    types = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
    read = {node.name: fed[node.name].cpu().to(types[node.type]).numpy() for node in session.get_inputs()}
    found = session.run(list(part.values), read)
    return {name: torch.as_tensor(array) for name, array in zip(part.values, found, strict=True)}


def _meet(reference: Callable[[], object], values: Sequence[Value]) -> None:
    """Let every value of the graph meet all that PyTorch computes while ``reference`` runs."""
    by_size: dict[tuple[torch.device, int], list[Value]] = {}
    for value in values:
        by_size.setdefault((value.numbers.device, value.numbers.numel()), []).append(value)

    def see(tensor: Tensor) -> None:
        alike = by_size.get((tensor.device, tensor.numel()))
        if alike and (seen := Value.of(tensor)) is not None:
            for value in alike:
                value.meet(seen)

    with sdpa_kernel(SDPBackend.MATH), _Watch(see):
        reference()


class _Watch(TorchDispatchMode):
    """Shows the outputs of all operations that PyTorch runs, those within some of them as well."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode hands these over whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if func.overloadpacket.__name__ in _DECOMPOSED:
            from torch._decomp import decomposition_table

            with self:
                decomposition_table[func](*args, **kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result
