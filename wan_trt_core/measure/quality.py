"""How close a candidate's output is to the reference's: tensors and videos."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wan_trt_core.records import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PSNR_CAP_DB = 200.0
"""PSNR of identical outputs, which is infinite and JSON has no infinity; float64 ends near 320 dB."""

VIDEO_METRICS = ("psnr_db", "psnr_db_mean", "ssim", "ssim_mean", "cvvdp_jod", "lpips")
TENSOR_METRICS = ("max_abs_error", "relative_l2", "cosine", "psnr_db", "non_finite")

CVVDP_DISPLAY = "standard_fhd"
"""The display that ColorVideoVDP assumes: 24 inch, 1920x1080, 200 cd/m2, seen from 0.6 m."""

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""File that torchvision keeps AlexNet's weights under in the torch hub's folder."""

LPIPS_REMEDY = (
    "python -c 'import torchvision; torchvision.models.alexnet(weights=\"DEFAULT\")'   (with a network)"
)
"""What puts it there."""


def tensor_metrics(reference: Any, candidate: Any) -> dict[str, Metric]:
    """Compare two tensors (torch or numpy, any equal shape and dtype) in float64.

    Returns:
        ``max_abs_error``; ``relative_l2``, ``||c - r|| / ||r||``; ``cosine``, of the flattened tensors;
        ``psnr_db``, ``20 log10(peak / rms(c - r))`` with ``peak = max |r|``, at most :data:`PSNR_CAP_DB`;
        ``non_finite``, the number of NaN or infinite elements in either. Where that is not zero, the others
        are NaN, which no gate lets pass.

    Raises:
        ValueError: when the shapes differ or there are no elements.
    """
    r, c = _array(reference), _array(candidate)
    _same_shape(r, c)
    metrics = {"non_finite": _non_finite(r, c)}
    if metrics["non_finite"].value:
        nan = math.nan
        return metrics | _tensor(nan, nan, nan, nan, detail=metrics["non_finite"].detail)
    return metrics | _finite_tensor_metrics(r.ravel(), c.ravel())


def video_metrics(
    reference: Any, candidate: Any, required: Collection[str] = (), *, frames_per_second: float = 16.0
) -> dict[str, Metric]:
    """Compare two videos (frames, height, width, 3) of floats in [0, 1].

    Args:
        reference: the video of the reference arm.
        candidate: the video of the candidate.
        required: metrics that the case needs. PSNR and SSIM are always computed, ``lpips`` wherever the
            weights of its backbone are found, ``cvvdp_jod`` (seconds on a CPU) only when required.
        frames_per_second: of the video; ColorVideoVDP sees time. Wan's own rate is 16.

    Returns:
        ``psnr_db`` and ``ssim`` of the worst frame, ``psnr_db_mean`` and ``ssim_mean`` over the frames;
        ``cvvdp_jod`` (10 is identical); ``lpips``, mean over the frames; ``non_finite`` as for tensors. A
        metric that could not be computed has the value ``None`` and says why.

    Raises:
        ValueError: when the shapes differ or are no video, values leave [0, 1], or a required metric is
            unknown.
    """
    unknown = sorted(set(required) - set(VIDEO_METRICS) - {"non_finite"})
    if unknown:
        raise ValueError(
            f"no video metric is called {', '.join(unknown)}; there are {', '.join(VIDEO_METRICS)}"
        )
    r, c = _array(reference), _array(candidate)
    _same_shape(r, c)
    if r.ndim != 4 or r.shape[-1] != 3:
        raise ValueError(f"a video is (frames, height, width, 3), got {r.shape}")
    metrics = {"non_finite": _non_finite(r, c)}
    if metrics["non_finite"].value:
        detail = metrics["non_finite"].detail
        names = [name for name in VIDEO_METRICS if name in required or name[:4] in ("psnr", "ssim")]
        return metrics | {name: _metric(name, math.nan, detail=detail) for name in names}
    for name, video in (("reference", r), ("candidate", c)):
        if video.min() < 0 or video.max() > 1:
            raise ValueError(
                f"the {name} video holds values from {video.min():g} to {video.max():g}, not in [0, 1]"
            )
    metrics |= _frame_metrics(r, c)
    if "cvvdp_jod" in required:
        metrics["cvvdp_jod"] = _metric("cvvdp_jod", _cvvdp(r, c, frames_per_second))
    metrics["lpips"] = lpips_metric(r, c)
    return metrics


def lpips_metric(reference: Any, candidate: Any, *, random_backbone: bool = False) -> Metric:
    """LPIPS (AlexNet, mean over the frames) of two videos (frames, height, width, 3) in [0, 1].

    Its backbone comes from the torch hub and is never downloaded here: without it the value is ``None``.

    Args:
        reference: the video of the reference arm.
        candidate: the video of the candidate.
        random_backbone: use an untrained backbone (a test of this code, no measure of quality).
    """
    import torch

    if not random_backbone:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
        if not weights.is_file():
            where = f"the backbone's weights are not in the torch hub folder (checkpoints/{LPIPS_BACKBONE})"
            return _metric("lpips", None, detail=f"{where}: {LPIPS_REMEDY}")
    if min(reference.shape[1:3]) < 32:
        return _metric(
            "lpips", None, detail=f"AlexNet needs frames of at least 32x32, got {reference.shape[1:3]}"
        )
    network = _lpips_network(random_backbone)
    with torch.inference_mode():
        r, c = (_array_to_torch(video).permute(0, 3, 1, 2) for video in (reference, candidate))
        frames = [float(network(a[None], b[None], normalize=True)) for a, b in zip(r, c, strict=True)]
    return _metric("lpips", sum(frames) / len(frames), samples=tuple(frames))


def _finite_tensor_metrics(r: NDArray[np.float64], c: NDArray[np.float64]) -> dict[str, Metric]:
    import numpy as np

    error = c - r
    norm_r, norm_c, norm_e = (float(np.linalg.norm(x)) for x in (r, c, error))
    if norm_e == 0:
        return _tensor(0.0, 0.0, 1.0, PSNR_CAP_DB)
    relative = norm_e / norm_r if norm_r else math.inf
    cosine = float(np.dot(r / norm_r, c / norm_c)) if norm_r and norm_c else 0.0
    peak, rms = float(np.abs(r).max()), norm_e / math.sqrt(r.size)
    return _tensor(float(np.abs(error).max()), relative, cosine, _psnr(peak, rms))


def _frame_metrics(r: NDArray[np.float64], c: NDArray[np.float64]) -> dict[str, Metric]:
    from skimage.metrics import structural_similarity

    psnr = tuple(_psnr(1.0, math.sqrt(((b - a) ** 2).mean())) for a, b in zip(r, c, strict=True))
    if min(r.shape[1:3]) < 7:
        detail = f"SSIM's window needs frames of at least 7x7, got {r.shape[1:3]}"
        ssim = {name: _metric(name, None, detail=detail) for name in ("ssim", "ssim_mean")}
    else:
        similarity: Callable[..., Any] = structural_similarity
        frames = tuple(
            float(similarity(a, b, data_range=1.0, channel_axis=-1)) for a, b in zip(r, c, strict=True)
        )
        ssim = {
            "ssim": _metric("ssim", min(frames), samples=frames),
            "ssim_mean": _metric("ssim_mean", sum(frames) / len(frames)),
        }
    return {
        "psnr_db": _metric("psnr_db", min(psnr), samples=psnr),
        "psnr_db_mean": _metric("psnr_db_mean", sum(psnr) / len(psnr)),
    } | ssim


def _cvvdp(r: NDArray[np.float64], c: NDArray[np.float64], frames_per_second: float) -> float:
    import torch

    with torch.inference_mode():
        quality, _ = _cvvdp_network().predict(
            _array_to_torch(c), _array_to_torch(r), dim_order="FHWC", frames_per_second=frames_per_second
        )
    return float(quality)


@lru_cache(maxsize=1)
def _cvvdp_network() -> Any:
    """Its parameters come with the package; it opens no connection."""
    import torch

    with warnings.catch_warnings():  # of its own source code, when Python compiles it for the first time
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        import pycvvdp

    return pycvvdp.cvvdp(display_name=CVVDP_DISPLAY, device=torch.device("cpu"), quiet=True)


@lru_cache(maxsize=2)
def _lpips_network(random_backbone: bool) -> Any:
    import warnings

    import lpips
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lpips calls torchvision by a deprecated argument
        torch.manual_seed(0)
        return lpips.LPIPS(net="alex", pnet_rand=random_backbone, verbose=False)


def _psnr(peak: float, rms: float) -> float:
    if rms == 0:
        return PSNR_CAP_DB
    if peak == 0:
        return -PSNR_CAP_DB
    return min(20 * math.log10(peak / rms), PSNR_CAP_DB)


def _array(data: Any) -> NDArray[np.float64]:
    """As float64 in numpy, whatever dtype and device it has."""
    import numpy as np

    if hasattr(data, "detach"):
        data = data.detach().to("cpu").double().numpy()
    return np.asarray(data, dtype=np.float64)


def _array_to_torch(video: Any) -> Any:
    import torch

    return torch.as_tensor(video, dtype=torch.float32)


def _same_shape(r: NDArray[np.float64], c: NDArray[np.float64]) -> None:
    if r.shape != c.shape:
        raise ValueError(f"the reference has shape {r.shape}, the candidate {c.shape}")
    if r.size == 0:
        raise ValueError(f"nothing to compare: shape {r.shape}")


def _non_finite(r: NDArray[np.float64], c: NDArray[np.float64]) -> Metric:
    import numpy as np

    counts = {name: int((~np.isfinite(x)).sum()) for name, x in (("reference", r), ("candidate", c))}
    where = ", ".join(f"{count} of {r.size} in the {name}" for name, count in counts.items() if count)
    return Metric(value=float(sum(counts.values())), unit="", better="lower", detail=where)


def _tensor(
    largest: float, relative: float, cosine: float, psnr: float, detail: str = ""
) -> dict[str, Metric]:
    return {
        "max_abs_error": Metric(value=largest, unit="", better="lower", detail=detail),
        "relative_l2": Metric(value=relative, unit="", better="lower", detail=detail),
        "cosine": Metric(value=cosine, unit="", better="higher", detail=detail),
        "psnr_db": Metric(value=psnr, unit="dB", better="higher", detail=detail),
    }


def _metric(name: str, value: float | None, *, samples: tuple[float, ...] = (), detail: str = "") -> Metric:
    unit = {"psnr": "dB", "cvvd": "JOD"}.get(name[:4], "")
    better: Literal["higher", "lower"] = "lower" if name == "lpips" else "higher"
    return Metric(value=value, unit=unit, better=better, samples=samples, detail=detail)
