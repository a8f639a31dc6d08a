"""Run the whole backend on TensorRT's real classes without TensorRT: a script for ``test_tensorrt_api``.

Every object that TensorRT would make is a :class:`Checked` one: it does nothing, but refuses each attribute that its
class does not have, each property that cannot be set, and each call that no signature of the method takes. What the
backend makes of a class of TensorRT's, for TensorRT to call, must have exactly its methods. What a build tells TensorRT
of the settings is held against what they say.
"""

from __future__ import annotations

import inspect
import logging
import mmap
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import tensorrt_bindings as bindings
import torch

USED: set[str] = set()
"""Every attribute that the backend asked for, as ``Builder.create_network``."""

CALLS: list[tuple[str, tuple[Any, ...]]] = []
"""Every call that was made and every property that was set, in order, with what was given."""

NO_SETTINGS = {
    *("Builder.create_builder_config", "Builder.create_optimization_profile"),
    *("Builder.build_serialized_network", "IBuilderConfig.add_optimization_profile"),
    *("IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache"),
    *("IBuilderConfig.get_timing_cache", "IBuilderConfig.progress_monitor"),
}
"""Of what a builder and its config are told: all that does not decide how an engine is built."""

_BUFFER = (bytes, bytearray, mmap.mmap)
_PRIMITIVES = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
    "buffer": _BUFFER,  # in TensorRT 10
    "typing_extensions.Buffer": _BUFFER,
}


class Checked:
    """Stands for an object of one of TensorRT's classes.

    Args:
        kind: the class.
        answers: what its methods return and its properties hold; a method answers True otherwise.
    """

    def __init__(self, kind: type, **answers: Any) -> None:
        self.__dict__.update(_kind=kind, _answers=answers, _set={})

    def __getattr__(self, name: str) -> Any:
        member = _member(self._kind, name)
        answer = self._set.get(name, self._answers.get(name, True))
        if isinstance(member, property):
            return answer

        def call(*given: Any, **named: Any) -> Any:
            CALLS.append((f"{self._kind.__name__}.{name}", (*given, *named.values())))
            _check_call(f"{self._kind.__name__}.{name}", member.__doc__ or "", given, named)
            return answer(*given) if isinstance(answer, Answer) else answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = _member(self._kind, name)
        assert isinstance(member, property) and member.fset, f"{self._kind.__name__}.{name} cannot be set"
        _check_callbacks(value)
        CALLS.append((f"{self._kind.__name__}.{name}", (value,)))
        self._set[name] = value


class Answer:
    """An answer that depends on the call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *given: Any) -> Any:
        return self._function(*given)


def _member(kind: type, name: str) -> Any:
    assert hasattr(kind, name), f"{kind.__name__} has no {name}"
    USED.add(f"{kind.__name__}.{name}")
    return getattr(kind, name)


def _made(kind: type, make: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor of a class, checked as a call, that gives what ``make`` does."""

    def construct(*given: Any, **named: Any) -> Any:
        USED.add(f"{kind.__name__}.__init__")
        _check_call(f"{kind.__name__}.__init__", kind.__init__.__doc__ or "", given, named)
        return make(*given, **named)

    return construct


def _check_callbacks(value: Any) -> None:
    """What TensorRT is to call must override every method of its class, with as many arguments, and have no other."""
    kind = type(value)
    base = next((each for each in kind.__mro__ if each in vars(bindings).values()), None)
    if base in (None, kind):
        return
    called = {
        name: re.findall(rf"{name}\((self: [^\n]*)\) -> ", member.__doc__ or "")
        for name, member in inspect.getmembers(base, callable)
        if not name.startswith("_") and not isinstance(member, type)
    }
    ours = {name: each for name, each in vars(kind).items() if callable(each) and not name.startswith("_")}
    assert ours.keys() == called.keys(), (
        f"{base.__name__} has {sorted(called)}, {kind.__name__} {sorted(ours)}"
    )
    for name, signatures in called.items():
        USED.add(f"{base.__name__}.{name}")
        takes = len(inspect.signature(ours[name]).parameters)
        assert takes in [len(_parameters(each)) for each in signatures], (
            f"{base.__name__}.{name} of {signatures}"
        )


def _check_call(what: str, documentation: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    for value in (*given, *named.values()):
        _check_callbacks(value)
    signatures = re.findall(rf"{what.split('.')[1]}\((self: [^\n]*)\) -> ", documentation)
    assert signatures, f"{what} documents no signature"
    assert any(_takes(each, given, named) for each in signatures), (
        f"{what}{given}{named or ''} fits none of {signatures}"
    )


def _takes(signature: str, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    parameters = _parameters(signature)[1:]
    names = [name for name, _ in parameters]
    required = [name for name, kind in parameters if "=" not in kind]
    passed = names[: len(given)] + list(named)
    if len(given) > len(names) or set(passed) - set(names) or set(required) - set(passed):
        return False
    kinds = {name: kind.split("=")[0].strip() for name, kind in parameters}
    values = dict(zip(names, given, strict=False)) | named
    return all(_is_of(value, kinds[name]) for name, value in values.items())


def _parameters(signature: str) -> list[list[str]]:
    return [part.split(":", 1) for part in re.split(r", (?=\w+:)", signature)]


def _is_of(value: Any, kind: str) -> bool:
    """Whether a value is of the type that a signature names; a tuple is taken for dimensions."""
    found: Any = bindings
    for part in kind.rpartition("tensorrt.")[2].split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return isinstance(value, _PRIMITIVES.get(kind, object))
    if isinstance(value, Checked):
        return issubclass(value._kind, found)
    return isinstance(value, (found, tuple) if found is bindings.Dims else found)


def fake_tensorrt(report: str, build: Callable[[], bytes]) -> ModuleType:
    """A module ``tensorrt`` with the bindings' own enums and base classes, and :class:`Checked` objects.

    Args:
        report: of the engine inspector.
        build: what building an engine does and gives.
    """
    engine = checked_engine(report)
    cache = Checked(bindings.ITimingCache, serialize=b"timings")
    config = Checked(
        bindings.IBuilderConfig, create_timing_cache=cache, get_timing_cache=cache, add_optimization_profile=0
    )
    builder = Checked(
        bindings.Builder,
        create_network=Checked(bindings.INetworkDefinition),
        create_builder_config=config,
        create_optimization_profile=Checked(bindings.IOptimizationProfile),
        build_serialized_network=Answer(lambda network, config: build()),
    )
    module = ModuleType("tensorrt")
    module.__dict__.update(
        {name: getattr(bindings, name) for name in dir(bindings) if not name.startswith("__")}
    )
    module.__dict__.update(
        __version__=bindings.__version__,
        Builder=_made(bindings.Builder, lambda log: builder),
        OnnxParser=_made(bindings.OnnxParser, lambda network, log: parser_of(network)),
        Runtime=_made(
            bindings.Runtime, lambda log: Checked(bindings.Runtime, deserialize_cuda_engine=engine)
        ),
    )
    return module


def parser_of(network: Any) -> Checked:
    error = Checked(
        bindings.ParserError, desc="not supported", node_name="node_attention", node_operator="Softmax"
    )
    return Checked(bindings.OnnxParser, parse_from_file=Answer(PARSES), num_errors=1, get_error=error)


PARSES: Callable[[str], bool] = lambda path: "refused" not in path  # noqa: E731


def checked_engine(report: str) -> Checked:
    context = Checked(
        bindings.IExecutionContext,
        infer_shapes=[],
        update_device_memory_size_for_shapes=512,
        get_tensor_shape=(2, 4),
    )
    inspector = Checked(bindings.EngineInspector, get_engine_information=report)
    return Checked(
        bindings.ICudaEngine,
        create_execution_context=context,
        create_engine_inspector=inspector,
        device_memory_size_v2=512,
        streamable_weights_size=8,
    )


def check_settings(build: Callable[[str, dict[str, Any]], None]) -> None:
    """A builder is told what the settings say, and nothing beside it.

    Args:
        build: makes an engine in a precision, with the settings that differ from their defaults.
    """
    from wan_trt_core.config import ConfigError

    strongly_typed = 1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    always = {
        ("Builder.create_network", (strongly_typed,)),
        ("IBuilderConfig.profiling_verbosity", (bindings.ProfilingVerbosity.DETAILED,)),
    }
    by_default = {
        ("IBuilderConfig.builder_optimization_level", (3,)),
        ("IBuilderConfig.clear_flag", (bindings.BuilderFlag.TF32,)),
    }
    chosen = {
        "tensorrt.builder_threads": 4,
        "tensorrt.optimization_level": 5,
        "tensorrt.workspace_gib": 1.5,
        "tensorrt.weight_streaming": True,
        "perf.allow_tf32": True,
    }
    by_choice = {
        ("Builder.max_threads", (4,)),
        ("IBuilderConfig.builder_optimization_level", (5,)),
        ("IBuilderConfig.set_memory_pool_limit", (bindings.MemoryPoolType.WORKSPACE, 3 << 29)),
        ("IBuilderConfig.set_flag", (bindings.BuilderFlag.WEIGHT_STREAMING,)),
        ("IBuilderConfig.set_flag", (bindings.BuilderFlag.TF32,)),
    }

    def check(precision: str, given: dict[str, Any], told: set[tuple[str, tuple[Any, ...]]]) -> None:
        CALLS.clear()
        build(precision, given)
        calls = {call for call in CALLS if call[0].startswith(("Builder.", "IBuilderConfig."))}
        found = {call for call in calls if call[0] not in NO_SETTINGS}
        assert found == always | told, f"{precision} with {given}: {found ^ (always | told)}"

    check("fp32", {}, by_default)
    check("fp16", {"perf.allow_tf32": True}, by_default)  # it has no product that could use TF32
    check("fp32", chosen, by_choice)
    try:
        check("fp16", {"tensorrt.max_tactics": 16}, by_default | {("IBuilderConfig.max_num_tactics", (16,))})
    except ConfigError as error:
        assert not hasattr(bindings.IBuilderConfig, "max_num_tactics"), error
        assert "tensorrt.max_tactics needs TensorRT 10.4" in str(error), error


def write_attention(path: Path, dtype: int, rows_out: str) -> None:
    """``softmax(x) @ y`` over a dynamic number of rows, with the notes that PyTorch's exporter leaves.

    Args:
        rows_out: name of the output's first axis: that of the input is ``rows``.
    """
    import onnx
    from onnx import helper

    named = {"x": "rows", "p": "rows", "out": rows_out}
    rows = [helper.make_tensor_value_info(name, dtype, [axis, 4]) for name, axis in named.items()]
    weights = helper.make_tensor("y", dtype, [4, 4], [1.0] * 16)
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], name="node_attention", axis=-1),
        helper.make_node("MatMul", ["p", "y"], ["out"], name="node_product"),
    ]
    entry = nodes[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'blocks.3', 'blocks.3.attn1', 'softmax_3']"
    graph = helper.make_graph(nodes, "attention", rows[:1], rows[2:], [weights], value_info=rows[1:2])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))


class Told(logging.Handler):
    """The texts that a logger tells a user."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger(logger).addHandler(self)
        logging.getLogger(logger).setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Stream:
    device = torch.device("cpu")
    handle = 7

    def turn(self) -> Any:
        return nullcontext()

    def after_caller(self) -> None: ...
    def before_caller(self) -> None: ...
    def synchronize(self) -> None: ...
    def capture(self, work: Callable[[], bool]) -> Any:
        assert work()
        return SimpleNamespace(launch=lambda: None, close=lambda: None)


def main() -> None:
    from onnx import TensorProto

    from wan_trt_core.backends.base import EngineError, OnnxModel
    from wan_trt_core.backends.tensorrt import api, backend, builder, runtime
    from wan_trt_core.backends.tensorrt.plan import LAYERS, read_description
    from wan_trt_core.config import load_settings

    given = {
        "tensorrt.profiles": ["fixed", "range"],
        "tensorrt.workspace_gib": 1.0,
        "tensorrt.builder_threads": 4,
        "tensorrt.weight_streaming": True,
    }
    settings = load_settings(overrides=given, environ={}).settings
    folder = Path(tempfile.mkdtemp())

    def build() -> bytes:
        (folder / "gpu.timing").write_bytes(f"of another build, {len(builds)}".encode())
        builds.append("built")
        return b"the plan"

    builds: list[str] = []
    sys.modules["tensorrt"] = fake_tensorrt('{"Layers": []}', build)
    shapes = {"x": {"min": (1, 4), "opt": (2, 4), "max": (8, 4)}}
    opt_shapes = {"x": {"min": (2, 4), "opt": (2, 4), "max": (4, 4)}}

    def model(name: str, precision: str = "fp16", rows_out: str = "rows") -> OnnxModel:
        path = folder / f"{name}_{precision}.onnx"
        write_attention(path, TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT, rows_out)
        return OnnxModel(name, precision, path, "", "p", shapes, opt_shapes, ("x",), ("out",))

    def build_with(precision: str, chosen: dict[str, Any]) -> None:
        settings = load_settings(overrides=chosen, environ={}).settings
        builder.build_plan(model("attention", precision), folder, settings, folder / "gpu.timing", None)

    check_settings(build_with)
    told_user = Told("wan_trt_core")
    for _ in range(2):  # the second finds timings, and both, when they end, those of a build beside them
        facts = builder.build_plan(model("attention"), folder, settings, folder / "gpu.timing", None)
    assert facts["unfused"] == ["node_attention"], facts
    assert facts["build_seconds"] > 0 and facts["weights"] == len(b"the plan"), facts
    assert facts["scratch"] == 512, facts
    assert (facts["products"], facts["untold_products"]) == (1, ["node_product"]), facts
    noted = "engine attention_fp16: the inspector tells the precision of 0 of 1 products, not of node_product"
    assert noted in told_user.texts, told_user.texts
    assert "engine attention_fp16: 1 of 1 attentions were not fused: node_attention" in told_user.texts
    assert (folder / LAYERS).read_text() == '{"Layers": []}'
    description = read_description(folder)
    assert description.inputs["x"].dtype == description.outputs["out"].dtype == "float16", description
    assert description.inputs["x"].shape == ("rows", 4), description
    made = [profile["x"] for profile in description.profiles]
    assert made == [((2, 4), (2, 4), (4, 4)), ((1, 4), (2, 4), (8, 4))], description
    asked = [given for name, given in CALLS if name == "IOptimizationProfile.set_shape"]
    assert asked[-2:] == [("x", *points) for points in made], asked
    assert (folder / "attention_fp16.trt").read_bytes() == b"the plan"
    wide = builder.build_plan(model("attention", "fp32"), folder, settings, folder / "gpu.timing", None)
    assert (wide["attentions"], wide["unfused"]) == (0, []), wide  # there are no fused kernels for float32
    pieces = "engine attention_fp32: no fused kernel takes 1 attentions: node_attention (float32)"
    assert pieces in told_user.texts, told_user.texts
    assert wide["unfusable"] == ["node_attention (float32)"] == [*read_description(folder).unfusable], wide
    try:
        builder.build_plan(model("refused"), folder, settings, folder / "gpu.timing", None)
    except EngineError as error:
        assert "node 'node_attention' (Softmax), from blocks.3.attn1: not supported" in str(error), error
    else:
        raise AssertionError("a model that the parser refuses was built")

    torch.cuda.current_device = lambda: 0
    for name, stub in (
        ("require_cuda", lambda: None), ("_shared", lambda _: (Stream(), runtime.Scratch(Stream.device))),
    ):  # fmt: skip
        setattr(backend, name, stub)
    engine = backend.TensorRtBackend().load(folder, settings)
    for _ in range(3):
        engine.run({"x": torch.zeros(2, 4)})
    assert engine.graphs == 1 and engine.memory()["scratch"] == 512
    with engine.profiled() as times:
        engine.run({"x": torch.zeros(2, 4)})
    assert times == [] and engine.layers() == ()
    told: list[tuple[str, float]] = []
    api.layer_clock(lambda name, ms: told.append((name, ms))).report_layer_time("layer", 0.5)
    assert told == [("layer", 0.5)]
    engine.close()
    builder.build_plan(model("chosen", rows_out="found"), folder, settings, folder / "gpu.timing", None)
    engine = backend.TensorRtBackend().load(
        folder, settings
    )  # whose output has a size that only TensorRT knows
    assert engine.run({"x": torch.zeros(2, 4, dtype=torch.float16)})["out"].shape == (2, 4)
    engine.close()
    print(bindings.__version__, *sorted(USED), sep="\n")


if __name__ == "__main__":
    main()
