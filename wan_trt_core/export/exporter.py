"""One component to one checked ONNX model: ``{component}_{precision}.onnx`` and its external data.

The same weights, component, versions and settings give the same bytes: everything that names this machine
(paths in stack traces, source lines) is removed. The name of the module that each node came from is kept, so
that a backend's error can be told in terms of the model.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.backends.base import OnnxModel, Progress
from wan_trt_core.causes import disk_full, first_cause
from wan_trt_core.export.errors import ExportError
from wan_trt_core.export.module_names import MODULE_NAMES
from wan_trt_core.hashing import files_sha256
from wan_trt_core.models.catalogue import ResolvedModel
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Component, TensorSpec
from wan_trt_core.models.components import get_component, require_architecture, require_precision
from wan_trt_core.models.profiles import POINTS, ShapeProfile, Sizes

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram

    from wan_trt_core.config import Settings

logger = logging.getLogger(__name__)

GPU = "cuda"
"""Where the range is looked at, if there is one."""

TRACE_LOGGER = "torch.__trace"
"""Where torch reports every step of a trace, for the file that the variable TORCH_TRACE names."""

MOST_TOLD = 600
"""Characters of an error that an :class:`ExportError` repeats."""

TRACED = Sizes(height=64, width=96, frames=9, text_length=16)
"""The video the graph is traced with: any whose axes are not one, which the tracer takes for a constant."""


def export_component(
    component: Component | str,
    model: ResolvedModel | Checkpoint,
    profile: ShapeProfile,
    precision: str,
    folder: Path,
    settings: Settings,
    *,
    block_outputs: bool = False,
    progress: Progress | None = None,
) -> OnnxModel:
    """Export a component and check what came out.

    The names and symbolic shapes of inputs and outputs must be the declared ones, ``onnx`` must accept the
    model and infer its shapes, and (``settings.export.check``) ONNX Runtime must compute what PyTorch does at
    the profile's min, opt and max, as far as ``settings.export.check_tflop`` and the free memory allow; at a smaller
    video where they do not even allow min. Before all that (``settings.export.check_range``) no activation of the
    stock module may come near the end of FP16 where that is asked for, be it for a decoder's caches only.

    Args:
        folder: where the two files go; nothing is left there unless everything succeeded.
        block_outputs: also give out the intermediate tensors that :meth:`Component.blocks` names.

    Raises:
        ExportError: when the exporter fails, a check fails, or the disk is full.
        ComponentError: when the component has no such precision, or the checkpoint is not of its kind.
        CheckpointError: when the weights cannot be loaded.
    """
    component = get_component(component) if isinstance(component, str) else component
    checkpoint = model.checkpoint if isinstance(model, ResolvedModel) else model
    report = _reporter(f"export {component.name} {precision}", progress)
    name = f"{component.name}_{precision}.onnx"
    require_architecture(component, checkpoint)
    require_precision(component, precision)
    blocks = component.blocks(checkpoint) if block_outputs else ()
    largest = _range(component, checkpoint, profile, precision, settings, report)
    graph = component.graph(checkpoint, precision, block_outputs=block_outputs)

    with (
        _on_disk(component, precision, folder),
        _temporary_folder(folder) as temporary,
    ):
        path = temporary / name
        _write_onnx(component, checkpoint, graph, precision, path, settings.export.opset, blocks, report)
        compared = _check(component, checkpoint, graph, profile, precision, path, settings, blocks, report)
        files = sorted(temporary.iterdir())
        sha256 = files_sha256(files)
        for file in files:
            os.replace(file, folder / file.name)
    report("done", 1.0)
    return OnnxModel(
        component=component.name,
        precision=precision,
        path=folder / name,
        sha256=sha256,
        profile=profile.name,
        shapes=profile_shapes(component, checkpoint, profile),
        opt_shapes=profile_shapes(component, checkpoint, profile.opt_alone()),
        inputs=tuple(spec.name for spec in component.inputs(checkpoint)),
        outputs=tuple(spec.name for spec in component.outputs(checkpoint)),
        block_outputs=blocks,
        largest_activations=largest,
        compared=compared,
    )


def profile_shapes(
    component: Component, checkpoint: Checkpoint, profile: ShapeProfile
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every input at the profile's ``min``, ``opt`` and ``max``."""
    return {
        spec.name: {point: spec.shape(component.sizes_at(profile, point)) for point in POINTS}
        for spec in component.inputs(checkpoint)
    }


def _range(
    component: Component,
    checkpoint: Checkpoint,
    profile: ShapeProfile,
    precision: str,
    settings: Settings,
    report: Progress,
) -> dict[str, float] | None:
    """The largest activation of each layer, at the profile's min and, where a GPU computes it, at its opt.

    The largest of a model depends little on the size of its video (``docs/engines.md``), but seldom outliers of single
    layers do, and on a GPU the size that the engine is tuned for costs seconds. What a GPU has no memory for a CPU
    computes at min, and nothing is left on the GPU, where the engine is built next.
    """
    import torch

    from wan_trt_core.export import ranges

    caches = any(spec.dtype == "float16" for spec in component.outputs(checkpoint))  # in every precision
    if (precision != "fp16" and not caches) or not settings.export.check_range:
        return None
    report("range", 0.0)
    on_gpu = torch.cuda.is_available() and settings.device != "cpu"
    what, asked = f"{component.name} {precision}", (component, checkpoint, precision)
    largest: dict[str, float] | None = None
    with _explained(component, precision, "looking for its largest activations"):
        if on_gpu:
            with checkpoint.passing(component.part, GPU):
                try:
                    largest = ranges.largest_activations(*asked, profile.min, GPU)
                    at_opt = ranges.largest_activations(*asked, profile.opt, GPU)
                except torch.OutOfMemoryError:
                    instead = "min; the CPU does" if largest is None else "opt; at min it did"
                    logger.warning(
                        "%s: the GPU has no memory to look for its largest activations at %s", what, instead
                    )
                else:
                    largest = {name: max(value, at_opt.get(name, 0.0)) for name, value in largest.items()}
        if largest is None:
            largest = ranges.largest_activations(*asked, profile.min, "cpu")
    ranges.require_fp16_range(what, largest, component.precisions, caches_only=precision != "fp16")
    return largest


def _write_onnx(
    component: Component,
    checkpoint: Checkpoint,
    graph: nn.Module,
    precision: str,
    path: Path,
    opset: int,
    blocks: tuple[str, ...],
    report: Progress,
) -> None:
    from wan_trt_core.export.repetition import repeat_blocks, with_few_blocks

    what, program = (component, checkpoint, precision, opset, blocks, report), None
    # blocks with outputs of their own are not alike
    repeated = "" if blocks else getattr(graph, "repeated", "")
    if repeated:
        try:
            with _explained(component, precision, f"looking at {repeated}"):
                few = with_few_blocks(graph, repeated, _traced_inputs(component, checkpoint, precision))
            program = _converted(few, *what)
            with _explained(component, precision, f"repeating {repeated}"):
                repeat_blocks(program.model, graph, repeated)
        except ExportError as error:  # whatever it is, the export of all of them says it or has it not
            logger.warning("%s %s: every block is traced: %s", component.name, precision, error)
            program = None
    program = program or _converted(graph, *what)
    report("optimize", 0.7)
    with _explained(component, precision, "optimizing the ONNX graph"):
        _optimize(program.model)
        _strip_metadata(program.model)
    with _explained(component, precision, "writing the ONNX model"):
        program.save(path, external_data=True)


def _converted(
    graph: nn.Module,
    component: Component,
    checkpoint: Checkpoint,
    precision: str,
    opset: int,
    blocks: tuple[str, ...],
    report: Progress,
) -> ONNXProgram:
    """The graph as ONNX, with the names of its inputs, outputs and axes; nothing else is done to it."""
    import torch

    inputs, outputs = component.inputs(checkpoint), component.outputs(checkpoint)
    axes = {name: torch.export.Dim(name, min=1) for name in component.sizes(TRACED)}
    shapes: list[Any] = [_dynamic(f"{component.name} {precision}", spec, axes) for spec in inputs]
    tensors = _traced_inputs(component, checkpoint, precision)

    report("trace", 0.0)
    with (
        torch.no_grad(),
        _trace_records_only_for_torch(),
        _explained(component, precision, "tracing with torch.export"),
    ):
        # traced apart, an axis that cannot be dynamic is an error; torch.onnx.export would fix its size
        program = torch.export.export(
            graph, tuple(tensors), dynamic_shapes=_as_signature(graph, shapes), strict=False
        )
    report("convert", 0.3)
    with (
        _no_future_warnings(),
        _trace_records_only_for_torch(),
        _explained(component, precision, f"converting to ONNX opset {opset}"),
    ):
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            input_names=[spec.name for spec in inputs],
            output_names=[*(spec.name for spec in outputs), *blocks],
        )
        assert converted is not None
        converted.rename_axes(_axis_names(converted.model, inputs))
    return converted


def _check(
    component: Component,
    checkpoint: Checkpoint,
    graph: nn.Module,
    profile: ShapeProfile,
    precision: str,
    path: Path,
    settings: Settings,
    blocks: tuple[str, ...],
    report: Progress,
) -> tuple[str, ...]:
    """Check the model on disk; the sizes at which it was compared with PyTorch."""
    from wan_trt_core.export import checks
    from wan_trt_core.export.affordable import affordable_places

    report("check", 0.8)
    what = f"{component.name} {precision}"
    checks.check_interface(what, path, component.inputs(checkpoint), component.outputs(checkpoint), blocks)
    with _explained(component, precision, "checking the model with onnx"):
        checks.check_model(path)
    if not settings.export.check:
        logger.warning("%s was not compared with PyTorch: export.check is off", what)
        return ()
    tolerance = settings.export.fp16_tolerance if precision == "fp16" else settings.export.fp32_tolerance
    with _explained(component, precision, "counting what comparing it takes"):
        places = affordable_places(
            component, checkpoint, graph, profile, precision, settings.export.check_tflop
        )
    if not places:
        return ()
    prepare = component.prepare(checkpoint, precision)
    # before the session is there: what encodes the prompt goes again
    with _explained(component, precision, "preparing its inputs"):
        tensors = prepare(component.call_tensors(checkpoint, places[0].video))
    with (
        _explained(component, precision, "running the model with ONNX Runtime"),
        _temporary_folder(path.parent) as temporary,
    ):
        runs = checks.without_bf16(path, temporary) if component.has_bf16(precision) else path
        session = checks.open_session(runs, settings.threads)
    tensors = checks.in_order(what, component.inputs(checkpoint), tensors, precision)
    if precision == "bf16":  # with the same rounded weights
        graph = copy.deepcopy(graph).float()
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    for index, place in enumerate(places):
        report(f"compare at {place.name}", 0.85 + 0.05 * index)
        where = f"{what} at {place}"
        with _explained(component, precision, f"running it at {place}"):
            grown = {name: checks.grown(tensor, place.shapes[name]) for name, tensor in tensors.items()}
            differences = checks.compare(where, session, graph, grown)
        checks.judge(where, differences, tolerance)
    return tuple(place.name for place in places)


def _dynamic(what: str, spec: TensorSpec, axes: Mapping[str, Any]) -> dict[int, Any]:
    """The tracer's symbol of each axis that has one. It has none for a product of two."""
    dynamic = {}
    for index, axis in enumerate(spec.axes):
        if isinstance(axis, str):
            factor, _, name = axis.rpartition("*")
            if name not in axes or not (factor or "1").isdigit():
                raise ExportError(
                    f"{what}: axis {index} of the input {spec.name} is {axis!r}, expected one of {', '.join(axes)}, or"
                    f" a number times one ('2*{next(iter(axes), 'height')}'): give a product of two a name of its own"
                    " in the component's sizes; where the graph computes with another input that has them apart, pass"
                    " them apart here too and flatten them in the graph"
                )
            dynamic[index] = int(factor) * axes[name] if factor else axes[name]
    return dynamic


def _as_signature(graph: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """The inputs' shapes, nested as ``torch.export`` wants them: what ``*args`` takes is one tuple."""
    import inspect

    kinds = [parameter.kind for parameter in inspect.signature(graph.forward).parameters.values()]
    named = sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds)
    return (*shapes[:named], tuple(shapes[named:])) if shapes[named:] else tuple(shapes)


def _traced_inputs(component: Component, checkpoint: Checkpoint, precision: str) -> list[Tensor]:
    import torch

    sizes = component.sizes(TRACED)
    return [
        torch.zeros(spec.shape(sizes), dtype=spec.torch_dtype(precision))
        for spec in component.inputs(checkpoint)
    ]


def _axis_names(model: Any, inputs: tuple[TensorSpec, ...]) -> dict[Any, str]:
    """The tracer's own symbols (``s33``) to the names of the axes they stand for."""
    names = {}
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        for found, axis in zip(value.shape, spec.axes, strict=True):
            if isinstance(axis, str) and not isinstance(found, int):
                factor, _, name = axis.rpartition("*")
                found_factor, _, symbol = str(found.value).rpartition("*")
                if found_factor == factor:
                    names[symbol] = name
    return names


def _optimize(model: Any) -> None:
    """Fold constants, merge what is the same, drop what nothing uses.

    Of the rewriter's rules, which ``ONNXProgram.optimize`` applies besides, only those that find something here: one of
    the others searches the whole graph again at every node: 26 seconds for a transformer of 30 layers.
    """
    import onnx_ir.passes
    from onnx_ir.passes import Sequential
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    common: Any = onnx_ir.passes.common
    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    Sequential(
        RewritePass([rules.materialize_reshape_shape_rule, rules.collapse_slice_rule]),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)


def _strip_metadata(model: Any) -> None:
    """Remove what differs between machines and runs. Keeps the modules that each node came from."""
    model.metadata_props.clear()
    model.doc_string = None
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph.all_nodes():
            kept = node.metadata_props.get(MODULE_NAMES)
            node.metadata_props.clear()
            if kept is not None:
                node.metadata_props[MODULE_NAMES] = kept
            node.doc_string = None
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: Any) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    if value.const_value is not None:
        value.const_value.metadata_props.clear()
        value.const_value.doc_string = None


def _reporter(what: str, progress: Progress | None) -> Callable[[str, float], None]:
    def report(phase: str, fraction: float) -> None:
        logger.debug("%s: %s", what, phase)
        if progress is not None:
            progress(f"{what}: {phase}", fraction)

    return report


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        yield Path(temporary)


@contextmanager
def _no_future_warnings() -> Iterator[None]:
    """The exporter of some versions warns of its own use of torch; nobody who exports can act on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _trace_records_only_for_torch() -> Iterator[None]:
    """Take every handler but torch's own off :data:`TRACE_LOGGER` for a while.

    Torch keeps this logger at DEBUG and puts a record together for whoever listens. pytest 9 listens to each logger
    that does not propagate, and would show the records of an export, hundreds, with a test that fails.
    """
    log = logging.getLogger(TRACE_LOGGER)
    others = [handler for handler in log.handlers if type(handler).__module__.partition(".")[0] != "torch"]
    for handler in others:
        log.removeHandler(handler)
    try:
        yield
    finally:
        for handler in others:
            log.addHandler(handler)


@contextmanager
def _explained(component: Component, precision: str, doing: str) -> Iterator[None]:
    """Turn any failure of the exporter into an error that names the component and the stage."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # tracing runs the model, and the exporter raises every kind of error
        if disk_full(error):
            raise _disk_error(component, precision, doing) from error
        raise ExportError(f"{component.name} {precision}: {doing} failed: {_cause(error)}") from error


@contextmanager
def _on_disk(component: Component, precision: str, folder: Path) -> Iterator[None]:
    """Tell a full disk from other trouble with the files in ``folder``."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise _disk_error(component, precision, f"writing to {folder}") from error
        raise ExportError(f"{component.name} {precision}: cannot write to {folder}: {error}") from error


def _disk_error(component: Component, precision: str, doing: str) -> ExportError:
    return ExportError(
        f"{component.name} {precision}: the disk is full (while {doing}). Nothing was left behind: free some"
        " space, or set another cache folder with --wan-cache"
    )


def _cause(error: BaseException) -> str:
    """What the exporter's own error was raised for: it wraps the first one in advice on reporting bugs."""
    first = first_cause(error)
    text = f"{type(first).__name__}: {first}".strip()
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]} …"
