"""TensorRT's Python API: the one place that imports it and knows how its versions differ.

Everything here exists from 10.3 to 11.4 unless a function says otherwise; differences are found by asking for the
attribute, never by comparing version numbers.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.config import ConfigError

LOGGER_LEVEL = "TRT_LOGGER_LEVEL"
"""Environment variable: the least severe of TensorRT's own messages that is logged, whatever ``log.level`` is. Unset,
those from ``WARNING`` on are, as far as ``log.level`` lets them through."""

_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}

# TensorRT's name, PyTorch's name
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@cache
def tensorrt() -> Any:
    """The module ``tensorrt``.

    Raises:
        BackendUnavailable: when it is not installed or its libraries do not load; with what to install.
    """
    try:
        import tensorrt as module
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"the tensorrt backend needs TensorRT 10.3 or later, which does not import here: {error};"
            ' pip install "wan-trt-core[gpu,tensorrt]"'
        ) from error
    missing = [name for name in ("IProgressMonitor", "OnnxParser") if not hasattr(module, name)]
    if missing or not hasattr(module.ICudaEngine, "device_memory_size_v2"):
        raise BackendUnavailable(
            f"TensorRT {module.__version__} is too old: the tensorrt backend needs 10.3 or later;"
            ' pip install --upgrade "tensorrt>=10.3"'
        )
    return module


def dtype_name(dtype: Any) -> str:
    """PyTorch's name of one of TensorRT's dtypes, as ``float16``.

    Raises:
        KeyError: for a type that PyTorch cannot exchange (INT4, FP4).
    """
    return _DTYPES[dtype.name]


def strongly_typed_network(builder: Any) -> Any:
    """A network whose precisions are those of the ONNX graph.

    The flag is needed on 10.x, where a network without it is silently built in whatever precision is fastest; on
    11.x every network is strongly typed and the flag does nothing.
    """
    flag = tensorrt().NetworkDefinitionCreationFlag.STRONGLY_TYPED
    return builder.create_network(1 << int(flag))


def limit_tactics(config: Any, most: int) -> None:
    """Let an ``IBuilderConfig`` time at most so many kernels for one layer.

    Raises:
        ConfigError: before TensorRT 10.4, which cannot be told.
    """
    trt = tensorrt()
    if not hasattr(trt.IBuilderConfig, "max_num_tactics"):
        raise ConfigError(f"tensorrt.max_tactics needs TensorRT 10.4 or later, not {trt.__version__}")
    config.max_num_tactics = most


def layer_report(engine: Any) -> str:
    """What the inspector tells of every layer of an ``ICudaEngine``, as JSON."""
    return str(
        engine.create_engine_inspector().get_engine_information(tensorrt().LayerInformationFormat.JSON)
    )


def layer_clock(tell: Callable[[str, float], None]) -> Any:
    """A profiler for an execution context: once a call has ended it calls ``tell`` with the name and the milliseconds
    of each layer, in the order in which they ran."""
    trt = tensorrt()

    class LayerClock(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            tell(layer_name, ms)

    return LayerClock()


def message_log() -> Any:
    """A logger for TensorRT that passes its messages on to :mod:`logging` and keeps the last errors.

    Its ``errors`` holds the texts of the last messages of severity ERROR or worse: TensorRT's calls answer with
    None or False and tell why only there.

    Raises:
        ConfigError: when ``$TRT_LOGGER_LEVEL`` is none of TensorRT's levels.
    """
    trt = tensorrt()
    named = os.environ.get(LOGGER_LEVEL, "").upper()
    if named and named not in _LEVELS:
        raise ConfigError(f"{LOGGER_LEVEL} is {named!r}; it is one of {', '.join(_LEVELS)}")
    target = logging.getLogger("wan_trt_core.tensorrt")
    target.setLevel(_LEVELS.get(named, logging.NOTSET))

    class MessageLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)
            self.least = _LEVELS[named or "WARNING"]

        def log(self, severity: Any, message: str) -> None:
            level = _LEVELS[severity.name]
            if level >= logging.ERROR:
                self.errors.append(message.strip())
            if level >= self.least:
                target.log(level, "%s", message.strip())

    return MessageLog()


def reasons(log: Any) -> str:
    """What TensorRT said went wrong, for an error message."""
    return "; ".join(log.errors) or "it gave no reason"
