"""Attention in slices: the same video, and no matrix of all scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from wan_trt_core.config import PipelineSettings, Settings
from wan_trt_core.models.catalogue import GenerationDefaults, resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.footprint import _Live
from wan_trt_core.pipeline.assembly import placed
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.slicing import with_sliced_attention

VIDEO = GenerationDefaults(96, 96, 5, num_inference_steps=1, guidance_scale=1, max_sequence_length=16, fps=8)
TOKENS = 2 * 6 * 6
QUERIES = 16


class Shapes(TorchDispatchMode):
    """The shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.seen.add(tuple(made.shape))
        return made


def run(checkpoint: Checkpoint, queries: int | None) -> tuple[np.ndarray[Any, Any], set[tuple[int, ...]]]:
    """Without a fused kernel, as on devices and for sizes that have none."""
    settings = Settings(device="cpu", pipeline=PipelineSettings(attention_slicing=queries))
    pipe = placed(checkpoint, {}, "cpu", settings)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Shapes() as shapes:
        video = generate(pipe, "red", VIDEO).frames
    return video, shapes.seen


def test_the_scores_of_all_queries_never_exist_at_once(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    expected, whole = run(checkpoint, None)
    found, sliced = run(checkpoint, QUERIES)
    assert np.abs(found - expected).max() < 1e-5

    def scores(shapes: set[tuple[int, ...]], keys: int) -> set[int]:
        return {shape[-2] for shape in shapes if len(shape) > 2 and shape[-1] == keys and shape[-2] > 3}

    pixels = 12 * 12  # of a latent frame, in the VAE's attention
    for keys in (TOKENS, pixels):
        assert keys in scores(whole, keys)
        assert keys not in scores(sliced, keys) and QUERIES in scores(sliced, keys)
    assert checkpoint.load("transformer").forward.__name__ == "forward"
    again, shapes = run(checkpoint, None)  # the shared modules are as they were
    assert np.array_equal(again, expected) and shapes == whole


def test_where_no_fused_kernel_runs_the_scores_are_what_is_saved() -> None:
    """The 1.3B at 480x832 and 17 frames, counted from shapes: 7,800 tokens, 12 heads, half precision."""
    module: Any = resolve("wan2.1-t2v-1.3b", layers=1).checkpoint.load("transformer", "fp16", "meta")
    half = {"dtype": torch.float16, "device": "meta"}
    inputs = torch.empty(1, 16, 5, 60, 104, **half), torch.empty(1, device="meta")
    states = torch.empty(1, 512, 4096, **half)

    def peak(transformer: Any) -> int:
        live = _Live(module)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), live:
            transformer(*inputs, states)
        return live.peak

    scores = 12 * 7800**2 * 2
    saved = peak(module) - peak(with_sliced_attention(module, 1024))
    assert saved > scores * (1 - 1024 / 7800)
