"""Checks on an exported model: its interface, its validity, and that it computes what PyTorch does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.export.errors import ExportError
from wan_trt_core.models.component import TensorSpec

if TYPE_CHECKING:
    import numpy
    from onnx import ModelProto, ValueInfoProto
    from onnxruntime import InferenceSession
    from torch import Tensor, nn


@dataclass(frozen=True)
class Difference:
    """How far ONNX Runtime's output is from PyTorch's.

    Attributes:
        relative: L2 norm of the difference over that of PyTorch's output; infinite if only the latter is 0.
        bad: values of ONNX Runtime's output that are no finite numbers.
        bad_reference: the same in PyTorch's.
    """

    relative: float
    size: int
    bad: int = 0
    bad_reference: int = 0


def check_interface(
    what: str,
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    extra: Sequence[str] = (),
) -> None:
    """Compare names and symbolic shapes with the declared ones.

    An exporter that finds an axis constant writes its size instead of its name, and says nothing.

    Args:
        what: the model's name in messages.
        extra: names of outputs beyond the declared ones, whose shapes are free.

    Raises:
        ExportError: naming the tensor, the axis, what was declared and what was found.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    for kind, values, specs, more in (
        ("inputs", graph.input, inputs, ()),
        ("outputs", graph.output, outputs, extra),
    ):
        found = [value.name for value in values]
        declared = [*(spec.name for spec in specs), *more]
        if found != declared:
            raise ExportError(f"{what}: the exported {kind} are {found}, declared are {declared}")
        for value, spec in zip(values, specs, strict=False):
            _check_axes(what, value, spec, is_input=kind == "inputs")


def _check_axes(what: str, value: ValueInfoProto, spec: TensorSpec, *, is_input: bool) -> None:
    axes = [
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param
        for axis in value.type.tensor_type.shape.dim
    ]
    if len(axes) != len(spec.axes):
        raise ExportError(f"{what}: {spec.name} has {len(axes)} axes {axes}, declared are {list(spec.axes)}")
    for index, (found, declared) in enumerate(zip(axes, spec.axes, strict=True)):
        if _factors(found) != _factors(declared):
            raise ExportError(
                f"{what}: axis {index} of {spec.name} is {found!r}, declared is {declared!r}"
                + _why(found, declared, is_input=is_input)
            )


def _why(found: int | str, declared: int | str, *, is_input: bool) -> str:
    """What made another axis of a declared one, where that is known, and what to do."""
    if not isinstance(declared, str):
        return ""
    if isinstance(found, int):
        return ": the export fixed the size of a dynamic axis"
    _, names = _factors(found)
    if not is_input or len(names) < 2:
        return ""
    # no other declaration helps: an input's axis is one symbol of the tracer's, and this one is several
    return (
        ", because the graph computes with it what is so long by another input's axes: pass it with an axis for each of"
        f" {', '.join(names)}, and flatten them in the graph"
    )


def _factors(axis: int | str) -> tuple[int, tuple[str, ...]]:
    """An axis expression as a number and its names in order, so that ``2*h`` equals ``h*2``."""
    if isinstance(axis, int):
        return axis, ()
    parts = [part.strip() for part in axis.split("*")]
    return math.prod(int(part) for part in parts if part.isdigit()), tuple(
        sorted(part for part in parts if not part.isdigit())
    )


def check_model(path: Path) -> None:
    """Let ``onnx`` check the model and infer all shapes strictly.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: when it does not hold together.
    """
    import onnx

    onnx.checker.check_model(str(path))
    onnx.shape_inference.infer_shapes(
        onnx.load(str(path), load_external_data=False), check_type=True, strict_mode=True, data_prop=True
    )


def without_bf16(path: Path, folder: Path) -> Path:
    """A copy of the model with float32 wherever it has BF16, which ONNX Runtime computes nothing in on a CPU.

    Every node and every weight is there, so that what the export made of the graph can be compared all the same.
    """
    import onnx

    model = onnx.load(str(path))
    widen_bf16(model)
    wide = folder / f"float32_{path.name}"
    onnx.save(model, str(wide), save_as_external_data=True, location=f"{wide.name}.data")
    return wide


def widen_bf16(model: ModelProto) -> None:
    """Make float32 of all that is BF16 in a model whose weights are loaded."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def open_session(path: Path, threads: int | None) -> InferenceSession:
    """A session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # it runs in turn with PyTorch: threads that spin while they wait would take the cores from it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_order(
    what: str, specs: Sequence[TensorSpec], tensors: Mapping[str, Tensor], precision: str
) -> dict[str, Tensor]:
    """What a component prepares, in the order of its declared inputs: the graph takes them by their places.

    Raises:
        ExportError: for names other than the declared ones, or naming the first input of another dtype.
    """
    if set(tensors) != {spec.name for spec in specs}:
        raise ExportError(
            f"{what}: `prepare` gives {list(tensors)}, declared are {[spec.name for spec in specs]}"
        )
    for spec in specs:
        found, expected = tensors[spec.name].dtype, spec.torch_dtype(precision)
        if found != expected:
            raise ExportError(f"{what}: `prepare` gives {spec.name} as {found}, declared is {expected}")
    return {spec.name: tensors[spec.name] for spec in specs}


def grown(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor repeated along its axes and cut to a shape.

    Real inputs are made once, at the smallest size: making a video's VAE caches anew for every size would
    take longer than all the rest. A graph is a function of its inputs, whatever they show.
    """
    times = [math.ceil(wanted / size) for wanted, size in zip(shape, tensor.shape, strict=True)]
    return tensor.repeat(times)[tuple(slice(wanted) for wanted in shape)].contiguous()


def compare(
    what: str, session: InferenceSession, graph: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, Difference]:
    """Run the same inputs through ONNX Runtime and through the graph in PyTorch.

    Raises:
        ExportError: when an output's shape differs.
    """
    import torch

    with torch.inference_mode():
        expected = graph(*tensors.values())
    found = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    names = [output.name for output in session.get_outputs()]
    differences = {}
    for name, want, got in zip(names, expected, found, strict=True):
        if tuple(want.shape) != got.shape:
            raise ExportError(
                f"{what}: {name} is {got.shape} in ONNX Runtime, {tuple(want.shape)} in PyTorch"
            )
        differences[name] = _difference(want.numpy(), got)
    return differences


def _difference(want: numpy.ndarray[Any, Any], got: numpy.ndarray[Any, Any]) -> Difference:
    import numpy

    want, got = want.astype(numpy.float64), got.astype(numpy.float64)
    bad, bad_reference = (int(numpy.count_nonzero(~numpy.isfinite(values))) for values in (got, want))
    if bad or bad_reference:
        return Difference(math.inf, got.size, bad, bad_reference)
    distance, length = float(numpy.linalg.norm(got - want)), float(numpy.linalg.norm(want))
    if length == 0.0:
        return Difference(0.0 if distance == 0.0 else math.inf, got.size)
    return Difference(distance / length, got.size)


def judge(what: str, differences: Mapping[str, Difference], tolerance: float) -> None:
    """Raise unless every output is finite and within the tolerance.

    Raises:
        ExportError: naming the first output that is not.
    """
    for name, difference in differences.items():
        if difference.bad or difference.bad_reference:
            where = (
                "PyTorch and so in the model" if difference.bad_reference else "ONNX Runtime, not in PyTorch"
            )
            bad = max(difference.bad, difference.bad_reference)
            raise ExportError(
                f"{what}: {name} has {bad} values of {difference.size}"
                f" that are NaN or infinite, in {where}. Check the weights, or export in a wider precision"
            )
        if difference.relative > tolerance:
            raise ExportError(
                f"{what}: {name} differs from PyTorch by {difference.relative:.2e} (relative L2),"
                f" allowed is {tolerance:.0e}"
            )
