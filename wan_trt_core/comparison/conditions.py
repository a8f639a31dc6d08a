"""The conditions under which both arms run: they are set once, recorded for each arm, and must be equal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wan_trt_core.config import Settings
from wan_trt_core.measure.timing import DeviceMoment, HostMoment, Moment


@contextmanager
def equal_conditions(settings: Settings) -> Iterator[None]:
    """No gradients, one thread count, TF32 and cuDNN autotuning as the settings say; restored afterwards.

    ``no_grad``, as diffusers' pipelines have it, and not inference mode, whose tensors do not count their changes:
    whether a prompt is still the one that was looked at could then be told only by reading it again, which waits for
    the device.

    TF32 is the same for the reference and the candidate: a speed-up that comes from a coarser number format in one
    arm only would be no speed-up. Where nobody says what it is, PyTorch's own switches stay as they are, by default on
    for convolutions, and engines are built as that default is
    (:func:`~wan_trt_core.pipeline.engines.of_component`).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        with _products(settings.perf.allow_tf32, cudnn_benchmark=False), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Meanwhile float32 is float32, whatever the settings allow."""
    with _products(False, cudnn_benchmark=torch.backends.cudnn.benchmark):
        yield


def snapshot() -> dict[str, Any]:
    """What decides the speed and the rounding of PyTorch in this process right now."""
    return {
        "threads": torch.get_num_threads(),
        "inference_mode": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
    }


@contextmanager
def _products(tf32: bool | None, *, cudnn_benchmark: bool) -> Iterator[None]:
    """How matrix products and convolutions compute meanwhile; without ``tf32`` as they do."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    if tf32 is not None:
        matmul.allow_tf32, cudnn.allow_tf32 = tf32, tf32
    cudnn.benchmark = cudnn_benchmark
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def mark() -> Moment:
    """Now: where a GPU is at work, when it has done what it was asked for so far."""
    if _gpu_in_use():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return DeviceMoment(event)
    return HostMoment(time.perf_counter())


def synchronize() -> None:
    """Wait for the device: a host clock read before this would time the launch, not the work."""
    if _gpu_in_use():
        torch.cuda.synchronize()


def _gpu_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
