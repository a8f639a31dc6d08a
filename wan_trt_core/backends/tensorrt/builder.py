"""From a checked ONNX model to a TensorRT plan."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from wan_trt_core.backends.base import EngineError, OnnxModel, Progress, TensorInfo
from wan_trt_core.backends.tensorrt.api import (
    layer_report,
    limit_tactics,
    message_log,
    reasons,
    strongly_typed_network,
    tensorrt,
)
from wan_trt_core.backends.tensorrt.cuda import free_memory
from wan_trt_core.backends.tensorrt.plan import LAYERS, Description, Shapes, tf32, write_description
from wan_trt_core.backends.tensorrt.progress import Phases, interruptible, monitor
from wan_trt_core.backends.tensorrt.verification import (
    Layer,
    computed_in,
    layers_of,
    unfused_attentions,
    unplanned_precisions,
    untold_products,
)
from wan_trt_core.export.module_names import module_of
from wan_trt_core.gates.formatting import GIB

if TYPE_CHECKING:
    from wan_trt_core.config import Settings

SLOW_SECONDS = 300.0
"""A build that takes longer is told how to be shorter: those of the 1.3B take 20 to 90 on an H200."""

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Nodes whose precision decides speed and accuracy: each must be computed in the dtype that it has in the graph."""

FUSABLE = ("float16", "bfloat16")
FUSABLE_HEAD = 256
"""What TensorRT has fused attention kernels for: dtypes, and the widest head. The VAE's attention has one head of all
its channels (384), and float32 attention is always computed in pieces."""

_log = logging.getLogger(__name__)


def build_plan(
    model: OnnxModel, folder: Path, settings: Settings, timing_cache: Path, progress: Progress | None
) -> dict[str, Any]:
    """Build a plan into ``folder`` and describe it there; returns the facts of its manifest.

    Args:
        timing_cache: file of the kernels' timings, shared by all builds for this GPU.

    Raises:
        EngineError: when the parser refuses the model (it names the node and the PyTorch module), or nothing
            can be built.
        ConfigError: for a setting that this TensorRT does not have.
        KeyboardInterrupt, SystemExit: of a signal, after the builder has stopped.
    """
    trt, log, started = tensorrt(), message_log(), time.perf_counter()
    builder = trt.Builder(log)
    if settings.tensorrt.builder_threads is not None:
        builder.max_threads = settings.tensorrt.builder_threads
    network = strongly_typed_network(builder)
    graph = _Graph(model.path)
    _parse(trt, network, log, model, graph)
    phases = Phases(progress or (lambda phase, fraction: None))
    config = builder.create_builder_config()
    config.progress_monitor = monitor(phases)
    _configure(trt, config, settings, model.precision)
    profiles = _add_profiles(builder, config, model, settings)
    with _timing_cache(config, timing_cache, settings), _told_if_slow(model, settings):
        plan = interruptible(lambda: builder.build_serialized_network(network, config), phases)
    if plan is None:
        raise EngineError(
            f"building engine {model.component}_{model.precision}: {reasons(log)};"
            f" its ONNX file has {_size(model.path) / GIB:.2f} GiB, {free_memory()}"
        )
    seconds = time.perf_counter() - started
    name = f"{model.component}_{model.precision}.trt"
    (folder / name).write_bytes(plan)
    layers, scratch = _inspect(trt, log, plan, folder, profiles[0])
    description = _describe(model, name, graph, profiles, layers, scratch)
    write_description(description, folder)
    for problem in description.problems:
        _log.warning("%s", problem)
    for note in description.notes:
        _log.info("%s", note)
    return {
        "build_seconds": seconds,
        "build_phases": phases.seconds,
        "weights": (folder / name).stat().st_size,
        "scratch": scratch,
        "layers": len(layers),
        "attentions": description.attentions,
        "unfused": list(description.unfused),
        "unfusable": list(description.unfusable),
        "products": description.products,
        "unplanned": list(description.unplanned),
        "untold_products": list(description.untold),
        "precisions": dict(description.precisions or {}),
    }


def _size(path: Path) -> int:
    """Bytes of an ONNX file and of its external data."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


class _Graph:
    """The ONNX graph without its weights: names of axes, attentions, and the module behind a node."""

    def __init__(self, path: Path) -> None:
        import onnx

        graph = onnx.load(str(path), load_external_data=False).graph
        self._types = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        self.inputs = {value.name: self._info(value) for value in graph.input}
        self.outputs = {value.name: self._info(value) for value in graph.output}
        self.nodes = list(graph.node)
        self.tensors = {
            value.name: self._info(value) for value in (*graph.value_info, *graph.input, *graph.output)
        }
        makers = {output: node for node in self.nodes for output in node.output}
        self.products = {
            node.name: self._multiplied(node, [makers.get(name) for name in node.input[:2]])
            for node in self.nodes
            if node.op_type in PRODUCTS and node.output[0] in self.tensors
        }
        why_not = {
            node.name: self._why_not_fusable(node, _scored_by(node, makers))
            for node in self.nodes
            if node.op_type == "Softmax"
        }
        self.fusable = tuple(name for name, why in why_not.items() if not why)
        self.unfusable = tuple(f"{name} ({why})" for name, why in why_not.items() if why)

    def module_of(self, node: str) -> str:
        """The PyTorch module that a node came from, as ``blocks.3.attn1``; empty where it is not known."""
        found = next((each for each in self.nodes if each.name == node), None)
        return module_of(found) if found is not None else ""

    def _multiplied(self, product: Any, makers: Sequence[Any | None]) -> str:
        """The dtype of a product's factors.

        Of a matrix product of casts to float32 that before them, for it asks for float32 sums only; one of a cast and
        of float32 weights is in float32, and so is a convolution of casts, as ONNX has none in BF16.
        """
        made = self.tensors[product.output[0]].dtype
        casts = [self.tensors.get(maker.input[0]) for maker in makers if maker and maker.op_type == "Cast"]
        if product.op_type == "Conv" or made != "float32" or len(casts) < 2:
            return made
        given = casts[0]
        return given.dtype if given is not None and given.dtype in FUSABLE else made

    def _why_not_fusable(self, softmax: Any, product: Any | None) -> str:
        """Why TensorRT has no fused kernel for the attention of a softmax, with the product that feeds it.

        Empty where it has one. Something may be added to the scores between the two.
        """
        query = self.tensors.get(product.input[0]) if product is not None else None
        head = query.shape[-1] if query is not None else None
        made = self.tensors.get(softmax.output[0])
        if made is None or made.dtype not in FUSABLE:
            return made.dtype if made is not None else "of a dtype that the graph does not tell"
        return f"a head of {head}" if isinstance(head, int) and head > FUSABLE_HEAD else ""

    def _info(self, value: Any) -> TensorInfo:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        dtype = {"float": "float32", "double": "float64"}.get(name := self._types[tensor.elem_type], name)
        return TensorInfo(dtype, shape)


def _scored_by(softmax: Any, makers: Mapping[str, Any]) -> Any | None:
    """The node that the scores of an attention come from."""
    maker = makers.get(softmax.input[0])
    return makers.get(maker.input[0]) if maker is not None and maker.op_type == "Add" else maker


def _parse(trt: Any, network: Any, log: Any, model: OnnxModel, graph: _Graph) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model.path)):
        return
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        module = graph.module_of(error.node_name())
        where = f"node {error.node_name()!r} ({error.node_operator()})" + (
            f", from {module}" if module else ""
        )
        told.append(f"{where}: {error.desc()}")
    raise EngineError(f"TensorRT's parser refuses {model.path}: {'; '.join(told) or reasons(log)}")


def _configure(trt: Any, config: Any, settings: Settings, precision: str) -> None:
    chosen = settings.tensorrt
    config.builder_optimization_level = chosen.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if chosen.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(chosen.workspace_gib * GIB))
    if chosen.max_tactics is not None:
        limit_tactics(config, chosen.max_tactics)
    if tf32(settings, precision):
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if chosen.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def _add_profiles(builder: Any, config: Any, model: OnnxModel, settings: Settings) -> tuple[Shapes, ...]:
    profiles = []
    for kind in settings.tensorrt.profiles:
        named = model.opt_shapes if kind == "fixed" else model.shapes
        shapes: Shapes = {
            name: (points["min"], points["opt"], points["max"]) for name, points in named.items()
        }
        profile = builder.create_optimization_profile()
        for name, triple in shapes.items():
            profile.set_shape(name, *triple)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the {kind} profile of {model.component}: {dict(shapes)}")
        profiles.append(shapes)
    return tuple(profiles)


@contextmanager
def _told_if_slow(model: OnnxModel, settings: Settings) -> Iterator[None]:
    """Say once what makes a build shorter, where one takes long and tries all kernels."""
    told = threading.Timer(
        SLOW_SECONDS,
        _log.warning,
        (
            "engine %s_%s: in the builder for %.0f minutes by now. tensorrt.max_tactics=16 times the likeliest kernels"
            " alone, tensorrt.workspace_gib=8 none that need more scratch memory; Ctrl-C keeps what was timed",
            *(model.component, model.precision, SLOW_SECONDS / 60),
        ),
    )
    if settings.tensorrt.max_tactics is None:
        told.start()
    try:
        yield
    finally:
        told.cancel()


@contextmanager
def _timing_cache(config: Any, path: Path, settings: Settings) -> Iterator[None]:
    """Lend the build the timings of earlier ones, and keep what it adds, also where it is interrupted: the next goes on
    from there.

    Builds run side by side; each reads what is there and writes the union of it and its own, under a lock.
    """
    if not settings.tensorrt.timing_cache:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=settings.engine_lock_timeout)
    with lock:
        stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another driver
        _log.warning("%s: TensorRT refuses these timings; they are measured anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    try:
        yield
    finally:
        with lock:
            latest = path.read_bytes() if path.is_file() else b""
            others = config.create_timing_cache(latest) if latest and latest != stored else None
            if others is not None:
                config.get_timing_cache().combine(others, False)
            written = path.with_suffix(".new")
            written.write_bytes(config.get_timing_cache().serialize())
            written.replace(path)


def _inspect(
    trt: Any, log: Any, plan: Any, folder: Path, profile: Shapes
) -> tuple[tuple[Layer, ...], int | None]:
    """Write ``layers.json``; the engine is loaded for it, which proves at once that it can be.

    Returns:
        the layers, and the bytes of scratch memory at the shapes that a profile is tuned for, where TensorRT tells.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"the built plan does not load: {reasons(log)};"
            f" the plan has {memoryview(plan).nbytes / GIB:.2f} GiB, {free_memory()}"
        )
    report = layer_report(engine)
    (folder / LAYERS).write_text(report)
    return layers_of(report), _scratch(trt, engine, profile)


def _scratch(trt: Any, engine: Any, profile: Shapes) -> int | None:
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None or not all(
        context.set_input_shape(name, tuned) for name, (_, tuned, _) in profile.items()
    ):
        return None  # it will run elsewhere, or says then why not
    return int(context.update_device_memory_size_for_shapes()) or None


def _describe(
    model: OnnxModel,
    plan: str,
    graph: _Graph,
    profiles: tuple[Shapes, ...],
    layers: tuple[Layer, ...],
    scratch: int | None,
) -> Description:
    inputs: Mapping[str, TensorInfo] = {name: graph.inputs[name] for name in model.inputs}
    outputs = {name: graph.outputs[name] for name in (*model.outputs, *model.block_outputs)}
    return Description(
        component=model.component,
        precision=model.precision,
        plan=plan,
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
        attentions=len(graph.fusable),
        unfused=unfused_attentions(layers, graph.fusable),
        unfusable=graph.unfusable,
        unplanned=unplanned_precisions(layers, graph.products),
        precisions=computed_in(layers),
        products=len(graph.products),
        untold=untold_products(layers, graph.products),
        scratch=scratch or 0,
    )
