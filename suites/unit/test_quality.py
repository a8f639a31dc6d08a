"""How close two tensors or videos are."""

from __future__ import annotations

import math
import socket
from typing import Any

import numpy as np
import pytest
import torch

from wan_trt_core.measure.quality import (
    PSNR_CAP_DB,
    TENSOR_METRICS,
    lpips_metric,
    tensor_metrics,
    video_metrics,
)

RNG = np.random.default_rng(0)


def values(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """A soft square that moves: (frames, height, width, 3) in [0, 1]."""
    y, x = np.mgrid[0:64, 0:64] / 64
    frames = [np.exp(-40 * ((x - 0.3 - 0.05 * t) ** 2 + (y - 0.5) ** 2)) for t in range(5)]
    return np.stack(frames)[..., None] * np.array([0.9, 0.4, 0.2]) + 0.05


def test_identical_tensors() -> None:
    x = torch.randn(2, 16, 3)
    assert values(tensor_metrics(x, x.clone())) == {
        "max_abs_error": 0.0,
        "relative_l2": 0.0,
        "cosine": 1.0,
        "psnr_db": PSNR_CAP_DB,
        "non_finite": 0.0,
    }
    assert set(tensor_metrics(x, x)) == set(TENSOR_METRICS)


def test_known_difference() -> None:
    found = values(tensor_metrics(np.array([3.0, -4.0]), np.array([3.0, -3.0])))
    assert found["max_abs_error"] == 1.0
    assert found["relative_l2"] == pytest.approx(1 / 5)
    assert found["cosine"] == pytest.approx((9 + 12) / (5 * math.sqrt(18)))
    assert found["psnr_db"] == pytest.approx(20 * math.log10(4 / math.sqrt(1 / 2)))


def test_half_precision_is_compared_in_double() -> None:
    x = torch.randn(1000, dtype=torch.float32)
    found = values(tensor_metrics(x, x.bfloat16()))
    assert 50 < found["psnr_db"] < 70
    assert 1e-4 < found["relative_l2"] < 1e-2


def test_tensor_of_zeros() -> None:
    zeros, ones = np.zeros(4), np.ones(4)
    assert values(tensor_metrics(zeros, zeros))["psnr_db"] == PSNR_CAP_DB
    found = values(tensor_metrics(zeros, ones))
    assert found["relative_l2"] == math.inf
    assert found["psnr_db"] == -PSNR_CAP_DB


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_elements_are_counted_and_spoil_everything(bad: float) -> None:
    x = np.ones(10)
    y = x.copy()
    y[3] = bad
    metrics = tensor_metrics(x, y)
    assert metrics["non_finite"].value == 1
    assert "candidate" in metrics["non_finite"].detail
    assert all(math.isnan(metrics[name].value or 0) for name in ("psnr_db", "relative_l2", "cosine"))
    assert "reference" in tensor_metrics(y, x)["non_finite"].detail


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        tensor_metrics(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="nothing to compare"):
        tensor_metrics(np.ones(0), np.ones(0))


def test_identical_videos(video: np.ndarray) -> None:
    found = values(video_metrics(video, video, {"psnr_db", "ssim"}))
    assert found["psnr_db"] == found["psnr_db_mean"] == PSNR_CAP_DB
    assert found["ssim"] == found["ssim_mean"] == pytest.approx(1.0)
    assert "cvvdp_jod" not in found


def test_worst_frame_and_mean_differ(video: np.ndarray) -> None:
    worse = video.copy()
    worse[2] = np.clip(worse[2] + 0.1, 0, 1)
    metrics = video_metrics(video, worse)
    found = values(metrics)
    assert found["psnr_db"] == pytest.approx(20, abs=0.5)
    assert found["psnr_db_mean"] == pytest.approx((4 * PSNR_CAP_DB + 20) / 5, abs=0.5)
    assert found["ssim"] < found["ssim_mean"] < 1
    assert len(metrics["psnr_db"].samples) == 5


def test_color_video_vdp_works_offline_and_falls_with_the_error(
    video: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no connection may be opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    noise = RNG.normal(size=video.shape)
    same, near, far = (
        video_metrics(video, np.clip(video + scale * noise, 0, 1), {"cvvdp_jod"})["cvvdp_jod"]
        for scale in (0.0, 0.02, 0.2)
    )
    assert same.value == pytest.approx(10.0)
    assert same.unit == "JOD"
    assert 10 > (near.value or 0) > (far.value or 0)


def test_non_finite_video(video: np.ndarray) -> None:
    broken = video.copy()
    broken[1, 2, 3, 0] = math.nan
    metrics = video_metrics(video, broken, {"ssim", "cvvdp_jod"})
    assert metrics["non_finite"].value == 1
    assert all(math.isnan(metrics[name].value or 0) for name in ("psnr_db", "ssim", "cvvdp_jod"))


def test_video_must_be_one(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames, height, width, 3"):
        video_metrics(video[0], video[0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        video_metrics(video, video * 255)
    with pytest.raises(ValueError, match="jodd"):
        video_metrics(video, video, {"jodd"})


def test_lpips_without_its_backbone_says_so(
    video: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric = video_metrics(video, video)["lpips"]
    assert metric.value is None
    assert "torch hub" in metric.detail


def test_lpips_code_path_with_a_random_backbone(video: np.ndarray) -> None:
    noisy = np.clip(video + 0.2 * RNG.normal(size=video.shape), 0, 1)
    same = lpips_metric(video, video, random_backbone=True)
    other = lpips_metric(video, noisy, random_backbone=True)
    assert same.value == 0
    assert (other.value or 0) > 0
    assert len(other.samples) == len(video)


def test_frames_too_small_are_not_passed_over() -> None:
    tiny = np.zeros((2, 4, 4, 3))
    assert video_metrics(tiny, tiny)["ssim"].value is None
    assert lpips_metric(tiny, tiny, random_backbone=True).value is None
