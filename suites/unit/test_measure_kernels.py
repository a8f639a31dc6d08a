"""Kernels by name and by what they do, from made-up profiles, and the process that they are found in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wan_trt_core.backends.tensorrt.verification import Layer
from wan_trt_core.comparison.profiling import LAYER_CALLS, in_process, layers_of
from wan_trt_core.measure.kernels import (
    GROUPS,
    TOP,
    Kernel,
    breakdown,
    by_name,
    group_of,
    kernels_of,
    layer_name,
    layers,
    nodes,
    together,
    typical,
)

NAMES = {
    "_gemm_mha_v2_0x1a2b": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128": "attention",
    "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128>>": "attention",
    "fmha_v2_flash_attention_fp16_64_128_S_128_sm90_kernel": "attention",
    "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckcrs_nhwc_tilesize128x64x32": "convolutions",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_128x64>": "convolutions",
    "void implicit_convolve_sgemm<float, float, 1024, 5>": "convolutions",
    "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x256x64_warpgroupsize2": "products",
    "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_bias_TNT": "products",
    "ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn": "products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>": "products",
    "Memcpy DtoD (Device -> Device)": "copies",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copies",
    "void cudnn::ops::nchwToNhwcKernel<float, float>": "copies",
    "__myl_MulSumAddRsqMulMul_myl0_12": "pointwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "pointwise",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float>": "pointwise",
    "triton_poi_fused_convolution_copy_silu_3": "pointwise",
    "void convertTensor_kernel<float, __half>": "other",
    "kernel": "other",
    "node Gemm blocks.*.attn1.to_q": "products",
    "node Softmax mid_block.attention": "pointwise",
    "node Conv up_blocks.*.resnets.*": "convolutions",
    "node Reshape": "copies",
    "layer attention float16 blocks.*.attn1": "attention",
    "layer other -": "other",
    "aten::addmm": "products",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::mkldnn_convolution": "convolutions",
    "aten::copy_": "copies",
    "aten::mul": "pointwise",
}


@pytest.mark.parametrize(("name", "group"), NAMES.items())
def test_group(name: str, group: str) -> None:
    assert group_of(name) == group


def event(name: str, us: float, device: str = "CUDA", annotation: bool = False) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        is_user_annotation=annotation,
        time_range=SimpleNamespace(elapsed_us=lambda: us),
    )


def test_events_of_the_gpu_are_added_up_by_name() -> None:
    events = [
        event("gemm", 1000.0),
        event("mha", 2500.0),
        event("gemm", 500.0),
        event("cudaLaunchKernel", 9000.0, device="CPU"),
        event("Torch-Compiled Region", 9000.0, annotation=True),  # spans the kernels in it
    ]
    assert by_name(events) == (Kernel("mha", 2.5, 1), Kernel("gemm", 1.5, 2))


def test_the_types_of_the_profiler_have_what_is_read_of_them() -> None:
    from torch._C._autograd import DeviceType
    from torch.autograd.profiler_util import FunctionEvent

    kernel = FunctionEvent(0, "gemm", 0, 10, 1510, device_type=DeviceType.CUDA)
    region = FunctionEvent(0, "region", 0, 10, 1510, device_type=DeviceType.CUDA, is_user_annotation=True)
    launch = FunctionEvent(0, "launch", 0, 10, 1510)
    assert by_name([kernel, region, launch]) == (Kernel("gemm", 1.5, 1),)


def test_breakdown() -> None:
    kernels = [Kernel(f"gemm_{index}", 2.0, 3) for index in range(TOP + 5)] + [Kernel("mha", 1.0, 1)]
    found = breakdown(kernels)
    assert tuple(found["groups_ms"]) == GROUPS
    assert found["groups_ms"]["products"] == 2.0 * (TOP + 5)
    assert found["groups_ms"]["attention"] == 1.0
    assert found["groups_ms"]["copies"] == 0.0
    assert found["total_ms"] == 2.0 * (TOP + 5) + 1.0
    assert found["top"] == [[f"gemm_{index}", 2.0, 3] for index in range(TOP)]


def test_on_a_cpu_the_operators_of_pytorch_are_told() -> None:
    weight = torch.ones(64, 64)
    kernels = {kernel.name: kernel for kernel in kernels_of(lambda: (weight @ weight).relu().relu(), "cpu")}
    assert (kernels["aten::mm"].count, kernels["aten::relu"].count) == (1, 2)
    assert kernels["aten::mm"].ms > 0


def node(name: str, op: str, ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}


def test_the_nodes_of_each_call_are_added_up_by_operator_and_module() -> None:
    """Two calls that run the engine twice each; the nodes of repeated blocks are one."""
    events = []
    for run, start in enumerate((0, 100, 200, 300)):
        events += [
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 90},
            {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": start, "dur": 90},
            node("linear_1", "Gemm", start + 10, 1000 + run),
            node("linear_2", "Gemm", start + 20, 2000),
            node("view", "Reshape", start + 30, 1),
        ]
    modules = {"linear_1": "blocks.0.ffn_in", "linear_2": "blocks.1.ffn_in", "view": ""}
    first, last = nodes(events, modules, 2)
    assert last == (
        Kernel("node Gemm blocks.*.ffn_in", pytest.approx(6.005), 4),
        Kernel("node Reshape", pytest.approx(0.002), 2),
    )
    assert first[0].ms == pytest.approx(6.001)


def test_several_engines_in_one_call_and_several_calls() -> None:
    conv, other = Kernel("conv", 2.0, 1), Kernel("gemm", 1.0, 1)
    assert together([[conv, other], [conv]]) == (Kernel("conv", 4.0, 2), other)
    calls = [[Kernel("gemm", ms, 1)] for ms in (1.0, 30.0, 2.0)]
    assert typical(calls) == (Kernel("gemm", 2.0, 1),)


def answers(number: int) -> dict[str, Any]:
    return {"number": number, "pid": os.getpid()}


def breaks() -> dict[str, Any]:
    raise RuntimeError("CUPTI said no")


def dies() -> dict[str, Any]:
    os._exit(7)


def hangs() -> dict[str, Any]:
    time.sleep(600)
    return {}


def test_work_in_a_process_of_its_own() -> None:
    answer = in_process(answers, 3)
    assert answer["number"] == 3
    assert answer["pid"] != os.getpid()


def profiles() -> dict[str, Any]:
    return {"kernels": len(kernels_of(lambda: torch.ones(8).sum(), "cpu"))}


def test_the_profiler_says_nothing_in_there(capfd: pytest.CaptureFixture[str]) -> None:
    """A failing perf test shows what its process wrote: dozens of lines that start and stop the profiler."""
    assert in_process(profiles)["kernels"] > 0
    assert capfd.readouterr().err == ""
    assert "KINETO_LOG_LEVEL" not in os.environ


@pytest.mark.parametrize(
    ("work", "timeout", "error"),
    [
        (breaks, 60.0, "RuntimeError: CUPTI said no"),
        (dies, 60.0, "the process died with exit code 7"),
        (hangs, 0.1, "no answer within 0.1 s"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_whatever_happens_in_there_is_told(work: Any, timeout: float, error: str) -> None:
    started = time.monotonic()
    assert in_process(work, timeout=timeout) == {"error": error}
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("told", "dtype", "modules", "name"),
    [
        (("", "kgen", "_gemm_mha_v2_myl0_7"), "float16", ["blocks.3.attn1"], "layer attention float16 blocks.*.attn1"),
        (("sm90_xmma_gemm_f16", "gemm", "node_linear_myl0_1"), "float16", ["blocks.0.ffn_in", "blocks.0"],
         "layer products float16 blocks.*.ffn_in"),
        (("", "gemm", "node_linear_1_myl0_1"), "float16", ["blocks.0.attn1.to_q", "blocks.0.attn1.to_k"],
         "layer products float16 blocks.*.attn1"),
        (("", "Reformat", "Reformatting CopyNode for Input Tensor 0 to node_conv3d_5"), "float32", [],
         "layer copies float32"),
        (("__myl_MulAdd", "kgen", "x"), "float32", ["blocks.3.attn2", "blocks.4.attn1"],
         "layer pointwise float32 blocks.*"),
        (("__myl_MulAdd", "kgen", "x"), "", ["blocks.3.attn1", "proj_out"], "layer pointwise -"),
        (("", "NoOp", "what"), "", [], "layer other -"),
    ],
)  # fmt: skip
def test_a_layer_is_called_by_what_it_does_and_where_it_is_from(
    told: tuple[str, ...], dtype: str, modules: list[str], name: str
) -> None:
    assert layer_name(told, dtype, modules) == name


def test_layers_of_a_name_are_added_up_and_unknown_ones_stay() -> None:
    names = {"a": "layer products float16 blocks.*", "b": "layer products float16 blocks.*"}
    assert layers([("a", 1.0), ("b", 2.0), ("__myl_new", 4.0)], names) == (
        Kernel("layer pointwise -", 4.0, 1),
        Kernel("layer products float16 blocks.*", 3.0, 2),
    )


def test_tensorrts_layers_are_told_with_their_modules() -> None:
    """Two engines of a decode: each call is told apart, and what is of one name is added up over both."""
    times: dict[str, list[tuple[str, float]]] = {"first": [], "next": []}
    layer = Layer(
        "conv_1", "CaskConvolution", ("node_conv",), "float32", tactic="sm80_xmma_fprop_implicit_gemm"
    )

    @contextmanager
    def profiled(name: str) -> Iterator[list[tuple[str, float]]]:
        yield times[name]

    def call() -> None:
        times["first"].append(("conv_1", 1.0))
        times["next"] += [("conv_1", 2.0), ("conv_1", 2.0), ("Reformat_7", 0.5)]

    engines: Any = {
        name: (
            SimpleNamespace(layers=lambda: (layer,), profiled=partial(profiled, name)),
            SimpleNamespace(modules=lambda: {"node_conv": "up_blocks.1.resnets.0"}),
        )
        for name in times
    }
    expected = (
        Kernel("layer convolutions float32 up_blocks.*.resnets.*", 5.0, 3),
        Kernel("layer copies -", 0.5, 1),
    )
    assert layers_of(call, engines) == [expected] * LAYER_CALLS
