"""Where the time goes: the kernels of one call by name, and grouped by what they do.

On a GPU these are its kernels, and beside them the layers of TensorRT's engines by what they do, dtype and PyTorch
module. On a CPU they are PyTorch's operators, and the nodes of ONNX Runtime's graph by operator and module, those of
repeated blocks together: ``Gemm blocks.*.attn1.to_q``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Any

from wan_trt_core.measure.environment import Device

TOP = 50
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
    ("products", r"gemm|gemv|cutlass|nvjet|splitk|triton_tem_|cublas|^aten::\w*(mm|linear|matmul)"),
    (
        "copies",
        r"memcpy|memset|copy|transpose|reformat|permut|nchwtonhwc|nhwctonchw|resize|padfilter|^aten::cat$",
    ),
    # Myelin, TensorRT's compiler of fused pointwise work, names its kernels `__myl_…`.
    ("pointwise", r"__myl_|elementwise|norm|silu|gelu|softmax|reduce|triton_|^aten::"),
)
"""Group and the pattern (any case) of the names in it; the first that is found anywhere in a name counts."""

OPERATORS: dict[str, str] = {
    **dict.fromkeys(("Gemm", "MatMul", "FusedMatMul", "FusedGemm", "MatMulNBits"), "products"),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), "attention"),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"), "convolutions"),
    **dict.fromkeys(
        ("Concat", "Expand", "Gather", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Resize", "Slice", "Split",
         "Squeeze", "Tile", "Transpose", "Unsqueeze", "Identity"), "copies",
    ),
}  # fmt: skip
"""What ONNX operators do; all others are pointwise, or nearly so (norms, softmax, reductions)."""

NODE = "node "
"""Begins the name of what ran in ONNX Runtime: operator and module follow."""

COMPUTING = ("products", "convolutions", "attention")
"""Groups that do the bulk of the arithmetic: their precision decides speed and accuracy."""

LAYER = "layer "
"""Begins the name of a layer of TensorRT: group, dtype and module follow."""

UNKNOWN = "-"
"""A dtype that TensorRT's inspector does not tell."""

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
    if name.startswith(NODE):
        return OPERATORS.get(name.split()[1], "pointwise")
    if name.startswith(LAYER):
        return name.split()[1]
    for group, pattern in PATTERNS:
        if re.search(pattern, name, re.IGNORECASE):
            return group
    return OTHER


def kernels_of(call: Callable[[], object], device: Device) -> tuple[Kernel, ...]:
    """The kernels of one call, the costliest first; on a CPU the operators of PyTorch.

    The call should be warm. Kernels of a replayed CUDA graph count one by one. Never call this in a process that times
    anything afterwards: PyTorch's profiler stays attached to the driver and slows every later launch down
    (pytorch/pytorch issue 144455), eager code more than a graph.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device == "cpu":
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
            call()
        return operators(profiled.events() or ())
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
    return _costliest_first(spent)


def operators(events: Iterable[Any]) -> tuple[Kernel, ...]:
    """Add up PyTorch's operators by name, each without the time of those that it calls, the costliest first.

    Args:
        events: PyTorch's ``FunctionEvent``.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.name.startswith("aten::"):
            spent[event.name].append(event.self_cpu_time_total / 1000)
    return _costliest_first(spent)


def nodes(
    events: Sequence[Mapping[str, Any]], modules: Mapping[str, str], calls: int
) -> list[tuple[Kernel, ...]]:
    """The nodes of each of several equal calls of an engine by operator and module, the costliest first.

    Args:
        events: of ONNX Runtime's profile.
        modules: PyTorch module by the name of a node; what is not in it stands by its operator alone.
        calls: how many were watched, in each of which the engine may have run more than once.
    """
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    runs = len(starts) // calls  # in each call
    spent: list[defaultdict[str, list[float]]] = [defaultdict(list) for _ in range(calls)]
    for event in events:
        if runs and event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            module = in_all_blocks(modules.get(event["name"].removesuffix("_kernel_time"), ""))
            name = f"{NODE}{event['args']['op_name']} {module}".strip()
            call = (bisect_right(starts, event["ts"]) - 1) // runs
            spent[call][name].append(event["dur"] / 1000)
    return [_costliest_first(each) for each in spent]


def layers(times: Iterable[tuple[str, float]], names: Mapping[str, str]) -> tuple[Kernel, ...]:
    """Add up the times of an engine's layers by what :func:`layer_name` calls them, the costliest first.

    Args:
        times: name and milliseconds of every layer that ran.
        names: of the layers that the inspector tells of; others count as ``other``, by their own name.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for layer, ms in times:
        spent[names.get(layer) or f"{LAYER}{group_of(layer)} {UNKNOWN}"].append(ms)
    return _costliest_first(spent)


def layer_name(told: Sequence[str], dtype: str, modules: Iterable[str]) -> str:
    """What a layer of TensorRT is called here: ``layer products float16 blocks.*.attn1.to_q``.

    Args:
        told: what says what it does (kernel, kind, name), the most telling first.
        modules: that its operations came from; that which holds them all counts. What is fused to a product is at most
            as deep as the product itself, and costs little beside it, so that there the deepest count.
    """
    group = next((group for group in map(group_of, told) if group != OTHER), OTHER)
    parts = [in_all_blocks(module).split(".") for module in modules]
    if group in COMPUTING:
        parts = [part for part in parts if len(part) == max(map(len, parts))]
    common = takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False))
    return f"{LAYER}{group} {dtype or UNKNOWN} {'.'.join(same[0] for same in common)}".strip()


def place_of(name: str) -> tuple[str, str]:
    """The dtype and the PyTorch module in the name of a node or layer; empty where it has none."""
    if name.startswith(LAYER):
        _, _, dtype, *module = name.split(maxsplit=3)
        return dtype.replace(UNKNOWN, ""), "".join(module)
    return "", "".join(name.split(maxsplit=2)[2:]) if name.startswith(NODE) else ""


def in_all_blocks(module: str) -> str:
    """The module's name, those of repeated blocks alike: ``blocks.*.attn1``."""
    return re.sub(r"\.\d+", ".*", module)


def together(parts: Iterable[Iterable[Kernel]]) -> tuple[Kernel, ...]:
    """What several engines ran in one call, those of a name added up, the costliest first."""

    def added(same: list[Kernel]) -> Kernel:
        return Kernel(same[0].name, sum(each.ms for each in same), sum(each.count for each in same))

    return _merged(parts, added)


def typical(calls: Iterable[Iterable[Kernel]]) -> tuple[Kernel, ...]:
    """The median of each kernel over equal calls, the costliest first."""
    return _merged(calls, lambda same: Kernel(same[0].name, median(each.ms for each in same), same[-1].count))


def _merged(
    sources: Iterable[Iterable[Kernel]], merge: Callable[[list[Kernel]], Kernel]
) -> tuple[Kernel, ...]:
    found: defaultdict[str, list[Kernel]] = defaultdict(list)
    for kernels in sources:
        for kernel in kernels:
            found[kernel.name].append(kernel)
    return tuple(sorted(map(merge, found.values()), key=lambda kernel: -kernel.ms))


def _costliest_first(spent: Mapping[str, Sequence[float]]) -> tuple[Kernel, ...]:
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
