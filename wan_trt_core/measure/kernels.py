"""Where a GPU's time goes: the kernels of one call by name, and grouped by what they do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from wan_trt_core.measure.environment import Device

TOP = 20
"""Kernels of each arm that a record lists by name."""

OTHER = "other"

PATTERNS: tuple[tuple[str, str], ...] = (
    # Inductor names a fused kernel after every operator in it; what it does itself stands before them.
    ("pointwise", r"^triton_(poi|red|per)_"),
    # TensorRT's `_gemm_mha_v2`, FlashAttention's `flash_fwd_kernel`, cuDNN's `cudnn_generated_fort_native_sdpa`.
    ("attention", r"mha|flash|sdpa|attention"),
    # Before the products, since a convolution may be an implicit one: `sm80_xmma_fprop_implicit_gemm`.
    ("convolutions", r"conv(?!ert)|fprop|dgrad|implicit|winograd"),
    # cuBLAS names its kernels `nvjet_…`, `…s16816gemm…`, `gemv…` and `splitKreduce_kernel`.
    ("products", r"gemm|gemv|cutlass|nvjet|splitk|triton_tem_|cublas"),
    ("copies", r"memcpy|memset|copy|transpose|reformat|permut|nchwtonhwc|nhwctonchw|resize|padfilter"),
    # Myelin, TensorRT's compiler of fused pointwise work, names its kernels `__myl_…`.
    ("pointwise", r"__myl_|elementwise|norm|silu|gelu|softmax|reduce|triton_"),
)
"""Group and the pattern (any case) of the names in it; the first that is found anywhere in a name counts."""

GROUPS = (*dict.fromkeys(group for group, _ in PATTERNS), OTHER)


@dataclass(frozen=True)
class Kernel:
    """What one kernel came to in a call.

    Attributes:
        ms: milliseconds in all its launches.
    """

    name: str
    ms: float
    count: int


def group_of(name: str) -> str:
    """What a kernel does, by its name: one of :data:`GROUPS`."""
    for group, pattern in PATTERNS:
        if re.search(pattern, name, re.IGNORECASE):
            return group
    return OTHER


def kernels_of(call: Callable[[], object], device: Device) -> tuple[Kernel, ...]:
    """The kernels of one call, the costliest first; none on a CPU.

    The call should be warm. Kernels of a replayed CUDA graph count one by one. Never call this in a process that times
    anything afterwards: PyTorch's profiler stays attached to the driver and slows every later launch down
    (pytorch/pytorch issue 144455), eager code more than a graph.
    """
    if device == "cpu":
        return ()
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        call()
        torch.cuda.synchronize()
    return by_name(profiled.events() or ())


def by_name(events: Iterable[Any]) -> tuple[Kernel, ...]:
    """Add up the profiler's events that ran on the GPU, by name, the costliest first.

    Args:
        events: PyTorch's ``FunctionEvent``.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        # A range that a person or torch.compile named spans kernels that are counted on their own.
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            spent[event.name].append(event.time_range.elapsed_us() / 1000)
    kernels = (Kernel(name, sum(times), len(times)) for name, times in spent.items())
    return tuple(sorted(kernels, key=lambda kernel: -kernel.ms))


def breakdown(kernels: Iterable[Kernel]) -> dict[str, Any]:
    """For a record: ``groups_ms`` by group, ``top`` (name, ms, count) and ``total_ms``."""
    kernels = tuple(kernels)
    groups = dict.fromkeys(GROUPS, 0.0)
    for kernel in kernels:
        groups[group_of(kernel.name)] += kernel.ms
    return {
        "groups_ms": groups,
        "top": [[kernel.name, kernel.ms, kernel.count] for kernel in kernels[:TOP]],
        "total_ms": sum(groups.values()),
    }
