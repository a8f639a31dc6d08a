"""A video's way off a GPU in an accelerated pipeline: diffusers' own values, without its copies."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.video_processor import VideoProcessor
from module_engine import Loads

import wan_trt_core
from wan_trt_core.config import Settings
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.pipeline.stages import stages, through
from wan_trt_core.pipeline.video_processor import StagedVideoProcessor

SMALL = Sizes(32, 32, 5, 16)
PROFILE = ShapeProfile("tiny", SMALL, SMALL, SMALL)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, and so does what is computed from it; notes what leaves it, and how."""

    is_cuda = True  # type: ignore[assignment]
    left: list[tuple[str, Any]]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function.__name__
        if name in ("cpu", "numpy", "to"):
            cls.left.append((name, None))
        if name == "copy_":
            to, source = args
            straight = source.is_contiguous() and to.is_contiguous() and source.dtype == to.dtype
            cls.left.append((name if straight else f"{name} through a copy", to))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The memory that is page-locked, were there a GPU."""
    asked: list[torch.Tensor] = []

    def empty(*size: Any, pin_memory: bool = False, make: Callable[..., Any] = torch.empty, **kw: Any) -> Any:
        made = make(*size, **kw)
        if pin_memory:
            asked.append(made)
        return made

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(OnGpu, "left", [], raising=False)
    return asked


@pytest.fixture
def pipe(small_checkpoint: Path) -> Any:
    pipe = WanPipeline.from_pretrained(small_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def decoded(batch: int = 1, dtype: torch.dtype = torch.float32) -> Any:
    """A video of 5 frames as a VAE's decoder leaves it, some of it beyond [-1, 1]."""
    return torch.randn((batch, 3, 5, 16, 24), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_video_leaves_a_gpu_frame_by_frame_with_diffusers_own_values(
    dtype: torch.dtype, batch: int, normalized: bool, pinned: list[torch.Tensor]
) -> None:
    own = VideoProcessor(vae_scale_factor=8, do_normalize=normalized)
    expected = own.postprocess_video(decoded(batch, dtype), output_type="np")
    found = StagedVideoProcessor(own).postprocess_video(decoded(batch, dtype).as_subclass(OnGpu), "np")
    assert found.shape == (batch, 5, 16, 24, 3) and found.dtype == expected.dtype == np.float32
    assert np.array_equal(found, expected)
    (buffer,) = pinned
    assert buffer.shape == (batch, 16, 24, 3), "of one frame"
    assert [how for how, _ in OnGpu.left] == ["copy_"] * 5 and all(to is buffer for _, to in OnGpu.left)
    assert found.flags.owndata and found.flags.c_contiguous
    assert not np.shares_memory(found, buffer.numpy())


def test_the_host_holds_a_video_once() -> None:
    """NumPy tells tracemalloc what memory it takes."""
    processor = StagedVideoProcessor(VideoProcessor(vae_scale_factor=8))
    video = torch.zeros((1, 3, 5, 256, 256)).as_subclass(OnGpu)
    tracemalloc.start()
    try:
        found = processor.postprocess_video(video)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.nbytes <= most < 1.1 * found.nbytes


@pytest.mark.parametrize(
    "asked",
    [
        {"output_type": "pt"},
        {"output_type": "pil"},
        {"output_type": "np", "do_denormalize": [True, False, True, False, True]},
    ],
)
def test_whatever_else_is_asked_for_is_diffusers_own(
    asked: dict[str, Any], pinned: list[torch.Tensor]
) -> None:
    own = VideoProcessor(vae_scale_factor=8)
    for video in (decoded(), decoded().as_subclass(OnGpu)):
        found = StagedVideoProcessor(own).postprocess_video(video, **asked)
        expected = own.postprocess_video(decoded(), **asked)
        assert type(found) is type(expected) or asked["output_type"] == "pt"
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert not pinned
    with pytest.raises(ValueError, match="latent does not exist"):
        StagedVideoProcessor(own).postprocess_video(decoded(), "latent")


def test_on_a_cpu_a_video_goes_diffusers_own_way(pinned: list[torch.Tensor]) -> None:
    own = VideoProcessor(vae_scale_factor=8)
    found = StagedVideoProcessor(own).postprocess_video(decoded())
    assert np.array_equal(found, own.postprocess_video(decoded())) and not pinned


def test_an_accelerated_pipeline_s_video_is_staged_until_it_is_restored(
    pipe: Any, settings: Settings, loads: Loads, pinned: list[torch.Tensor]
) -> None:
    own = pipe.video_processor

    def video() -> tuple[Any, str]:
        began: list[str] = []

        def decode(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
            return [original(*args, **keywords)[0].as_subclass(OnGpu)]

        with through(pipe.vae, "decode", decode), stages(pipe, lambda stage, _: began.append(stage)):
            frames = pipe(
                "a circle", height=32, width=32, num_frames=5, num_inference_steps=1, max_sequence_length=16,
                generator=torch.Generator().manual_seed(5),
            ).frames  # fmt: skip
        return frames, began[-1]

    for _ in range(2):  # accelerating anew begins with restoring
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    processor = pipe.video_processor
    assert type(processor) is StagedVideoProcessor and processor.config == own.config
    staged, stage = video()
    assert (len(pinned), stage) == (1, "postprocess")
    pipe.video_processor = own
    assert np.array_equal(staged, video()[0]) and len(pinned) == 1
    pipe.video_processor = processor
    for _ in range(2):
        wan_trt_core.restore(pipe)
        assert pipe.video_processor is own


class Inverted(VideoProcessor):  # type: ignore[misc]
    @staticmethod
    def denormalize(images: Any) -> Any:
        return 1 - VideoProcessor.denormalize(images)


def test_a_processor_of_the_user_s_own_is_left_alone(pipe: Any, settings: Settings, loads: Loads) -> None:
    pipe.video_processor = inverted = Inverted(vae_scale_factor=8)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert pipe.video_processor is inverted
    wan_trt_core.restore(pipe)
    assert pipe.video_processor is inverted


def test_a_processor_that_is_set_later_stays(pipe: Any, settings: Settings, loads: Loads) -> None:
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    pipe.video_processor = later = VideoProcessor(vae_scale_factor=8, do_normalize=False)
    wan_trt_core.restore(pipe)
    assert pipe.video_processor is later


def test_methods_that_a_user_put_on_a_processor_stay() -> None:
    own = VideoProcessor(vae_scale_factor=8)
    own.denormalize = Inverted.denormalize
    staged = StagedVideoProcessor(own)
    assert not hasattr(own, "own"), "the user's is as it was"
    expected = own.postprocess_video(decoded())
    assert np.array_equal(staged.postprocess_video(decoded().as_subclass(OnGpu)), expected)
    own.postprocess_video = lambda *_, **__: "mine"
    assert StagedVideoProcessor(own).postprocess_video(decoded().as_subclass(OnGpu)) == "mine"
