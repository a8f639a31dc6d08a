"""Videos that were compared, kept beside the report: reference, candidate, and their difference made visible."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.comparison.targets import Outputs
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.pipeline.video import VideoError, write_image, write_video

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FOLDER = "videos"
"""Where they are in the report's folder."""

KEPT_BYTES = 32 * 2**20
"""What the three videos of a case may take together. The noise of untrained weights hardly compresses: in such a case
the frames that differ most are kept alone."""

MAX_GAIN = 256
"""At most by so much a difference is amplified: one of a step of 8 bits is then white."""

_VISIBLE = 1 / 8
"""How bright (1 is white) about the root mean square of the difference is made."""


def keep_frames(
    report: Path | None, name: str, reference: Outputs, candidate: Outputs, fps: float
) -> dict[str, Any]:
    """Write the videos of both arms and the absolute difference of their frames, and of each the worst frame as PNG.

    Values that are not finite are shown black. What cannot be written voids no measurement: the facts say why.

    Args:
        report: the report's folder; without one nothing is kept.
        name: what the files' names begin with.
        reference: outputs whose video, if there is one, has the candidate's shape.

    Returns:
        For the facts of the measurement: ``frames``, with paths relative to ``report`` in ``stills`` and ``videos``,
        ``frame`` (the one with the lowest PSNR, counted from 1) ``of`` so many, the ``gain`` of the difference, and
        why videos were ``left_out``. Nothing where there is no video or no report.
    """
    import numpy as np

    if report is None or reference.video is None:
        return {}
    pairs = [tuple(map(_shown, pair)) for pair in zip(reference.video, candidate.video, strict=True)]
    errors = [float(np.square(b - a).mean()) for a, b in pairs]
    worst, gain = int(np.argmax(errors)), _gain(math.sqrt(sum(errors) / len(errors)))
    arms = {
        "reference": np.stack([_pixels(a) for a, _ in pairs]),
        "candidate": np.stack([_pixels(b) for _, b in pairs]),
        "difference": np.stack([_pixels(np.abs(b - a) * gain) for a, b in pairs]),
    }
    stem = re.sub(r"[^\w.-]+", "-", name)
    videos = {arm: f"{FOLDER}/{stem}-{arm}.mp4" for arm in arms}
    stills = {arm: f"{FOLDER}/{stem}-{arm}.png" for arm in arms}
    kept = {"frame": worst + 1, "of": len(errors), "gain": gain, "stills": {}, "videos": {}, "left_out": ""}
    try:
        for arm, path in stills.items():
            write_image(report / path, arms[arm][worst])
        kept["stills"] = stills
        size = 0
        for arm, path in videos.items():
            write_video(report / path, arms[arm], fps)
            size += (report / path).stat().st_size
            if size > KEPT_BYTES:  # noise takes long to write, so the next ones are not
                raise VideoError(
                    f"they take over {quantity(size, 'B')}, more than {quantity(KEPT_BYTES, 'B')}"
                )
        kept["videos"] = videos
    except (VideoError, OSError, ImportError) as error:
        kept["left_out"] = str(error)
        for path in videos.values():  # one of an earlier run must not be taken for this one's
            with suppress(OSError):
                (report / path).unlink()
    return {"frames": kept}


def _gain(rms: float) -> int:
    """The power of two that makes a difference visible; it says how far apart the arms are, too."""
    return 2 ** round(math.log2(min(max(_VISIBLE / rms, 1), MAX_GAIN))) if rms else MAX_GAIN


def _shown(frame: Any) -> Any:
    import numpy as np

    return np.nan_to_num(frame, nan=0, posinf=0, neginf=0).clip(0, 1)


def _pixels(frame: Any) -> Pixels:
    import numpy as np

    pixels: Pixels = (frame.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels
