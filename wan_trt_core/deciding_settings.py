"""Settings that decide what a baseline's numbers are of: which they are, and where two runs differ in them.

A run under other such settings measures another engine or another way to run it, so its numbers say nothing about a
baseline made without. The baseline's provenance keeps those that are not the defaults. What the case sets for itself is
part of the case, and a changed default is a change of the code like any other: the bands judge both.

Every setting is in one of the two tables here, with the reason; a test holds them to be whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from wan_trt_core.backends.registry import own_names
from wan_trt_core.config import Settings, of_suites

_ONNX_RUNTIME_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")
_ONNX_RUNTIME = ("onnxruntime", *_ONNX_RUNTIME_GPU)
_TENSORRT = ("tensorrt",)
_EXPORTED = (*_ONNX_RUNTIME, *_TENSORRT)
_BUILT_BY_TENSORRT = ("tensorrt", "onnxruntime-tensorrt")
_EVERY: tuple[str, ...] = ()

DECIDING: Mapping[str, tuple[tuple[str, ...], str]] = {
    "threads": (_EVERY, "both arms' work on the CPU, and the scratch memory of each thread"),
    "export.opset": (_EXPORTED, "other operators are another graph"),
    "onnxruntime.graph_optimization_level": (("onnxruntime", "onnxruntime-cuda"), "another graph"),
    "onnxruntime.allow_spinning": (_ONNX_RUNTIME, "how fast operators follow each other"),
    "onnxruntime.cudnn_conv_algo_search": (_ONNX_RUNTIME_GPU, "other kernels, with other scratch memory"),
    "onnxruntime.cuda_graph": (("onnxruntime-cuda",), "launches and the memory that graphs hold"),
    "tensorrt.profiles": (_TENSORRT, "other kernels, tuned for other shapes"),
    "tensorrt.workspace_gib": (_BUILT_BY_TENSORRT, "which kernels may be chosen"),
    "tensorrt.optimization_level": (_BUILT_BY_TENSORRT, "which kernels are tried"),
    "tensorrt.max_tactics": (_TENSORRT, "which kernels are tried"),
    "tensorrt.limited_components": (_BUILT_BY_TENSORRT, "which engines these two decide"),
    "tensorrt.self_attention": (_TENSORRT, "another graph, with other rounding"),
    "tensorrt.weight_streaming": (_TENSORRT, "another engine"),
    "tensorrt.weight_streaming_budget_gib": (_TENSORRT, "how many weights come over the bus in each call"),
    "tensorrt.share_scratch": (_TENSORRT, "memory"),
    "tensorrt.cuda_graphs": (_TENSORRT, "launches and the memory that graphs hold"),
    "tensorrt.max_graphs": (_TENSORRT, "what is recorded again, and memory"),
    "pipeline.text_encoder_device": (_EVERY, "where a stage runs"),
    "pipeline.offload": (_EVERY, "transfers in each video, and memory"),
    "pipeline.vae_tile": (_EVERY, "another decode, in both arms"),
    "pipeline.vae_frames_per_step": (_EXPORTED, "another graph"),
    "pipeline.vae_lean": (_EXPORTED, "another graph, with other rounding"),
    "pipeline.attention_slicing": (_EVERY, "other kernels, of whatever stays in PyTorch"),
    "torch_compile.mode": (("torch-compile",), "other kernels"),
    "torch_compile.regional": (("torch-compile",), "what is compiled into one"),
    "perf.allow_tf32": (_EVERY, "float32 products of both arms: their speed and rounding"),
}
"""By key: the backends whose numbers it decides, all where none is named, and what it changes of them."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "pipeline.text_encoder_device": ("pipeline",),
    "pipeline.offload": ("pipeline",),
    "pipeline.vae_tile": ("pipeline", "vae"),
    "pipeline.vae_frames_per_step": ("pipeline", "vae"),
    "pipeline.vae_lean": ("pipeline", "vae"),
    "pipeline.attention_slicing": ("pipeline", "dit"),
}
"""Of those that do nothing to some components, by key: how the names of the others begin."""

NOT_DECIDING: Mapping[str, str] = {
    "model": "a baseline is of a model",
    "checkpoint": "the provenance says whether the weights are trained; which file has them is no speed",
    "backend": "has a key of its own in the provenance",
    "profile": "has a key of its own in the provenance",
    "device": "a baseline is of one device: its hardware key",
    "cache": "a folder",
    "baselines": "a folder",
    "report": "a folder",
    "strict_improvements": "how a number is judged",
    "on_missing_shape": "of wan-trt accelerate, which the suites do not run",
    "engine_lock_timeout": "how long is waited, before anything is measured",
    "export.check": "looks at the graph, and changes nothing of it",
    "export.check_tflop": "how much of the graph is looked at",
    "export.check_range": "looks at the graph, and changes nothing of it",
    "export.fp32_tolerance": "of that look",
    "export.fp16_tolerance": "of that look",
    "tensorrt.builder_threads": "how long a build takes",
    "tensorrt.timing_cache": "how long a build takes",
    "perf.time_budget": "how well a number is known, not what it is of; the gate says where it is not known well",
    "perf.min_pairs": "the same",
    "perf.max_pairs": "the same",
    "perf.confidence": "the same",
    "perf.warmup": "the same",
    "perf.warmup_time": "the same",
    "perf.min_sample_time": "the same",
    "perf.noise_pairs": "the same",
    "perf.also_pairs": "the same",
    "perf.kernels": "a profile in a process of its own",
    "memory.runs": "over how many runs growth is looked for",
    "memory.warmup": "how many runs settle before the one that counts",
    "memory.budget": "what does not fit in it fails; it does not change what the candidate asks for",
    "log.level": "a log",
    "log.file": "a log",
}
"""By key: why a run with another value measures the same."""

DEFAULTS: Mapping[str, Any] = {
    key: value for key, value in of_suites(Settings()).flat().items() if key in DECIDING
}
"""Of the suites, which make the baselines."""


def deciding(
    settings: Mapping[str, Any], component: str, backends: Collection[str], own: Collection[str] = ()
) -> dict[str, Any]:
    """Of a run's settings those that decide its numbers and are not the defaults; none for what a record lacks.

    Args:
        settings: by dotted key, as :meth:`~wan_trt_core.config.Settings.flat` and a run's record have them.
        component: of the case.
        backends: whose numbers are asked about; any setting may decide those of another package's.
        own: the keys that the case sets for itself.
    """
    unknown = not set(backends) <= set(own_names())
    return {
        key: settings[key]
        for key, (of, _) in DECIDING.items()
        if key in settings
        and key not in own
        and settings[key] != DEFAULTS[key]
        and component.startswith(PARTS.get(key, ("",)))
        and (not of or unknown or not set(of).isdisjoint(backends))
    }


def differing(one: Mapping[str, Any], another: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two of :func:`deciding` differ: both values, by key. What one does not name is at its default."""
    values = {
        key: tuple(found.get(key, DEFAULTS.get(key)) for found in (one, another))
        for key in sorted({*one, *another})
    }
    return {key: (old, new) for key, (old, new) in values.items() if old != new}


def in_words(settings: Mapping[str, Any]) -> str:
    """``tensorrt.self_attention=centred, threads=2``; empty for the defaults."""
    return ", ".join(f"{key}={_spelt(value)}" for key, value in sorted(settings.items()))


def changed_in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What :func:`differing` found: ``tensorrt.self_attention: auto → centred``."""
    return ", ".join(f"{key}: {_spelt(old)} → {_spelt(new)}" for key, (old, new) in changed.items())


def _spelt(value: Any) -> str:
    """As the environment takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
