"""Video files (H.264 in MP4) and their frames one by one (PNG), through PyAV."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CODEC = "libx264"
QUALITY = "18"
"""x264's constant rate factor: 18 is held to be visually lossless."""


class VideoError(ValueError):
    """A video file cannot be written or read; the message names the file and what is wrong."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds; ``width`` and ``height`` in pixels, ``fps`` in frames a second."""

    codec: str
    width: int
    height: int
    frames: int
    fps: float


def check_target(path: Path) -> None:
    """Make sure, before any work is spent on it, that a video can be written there. Makes the folder.

    Raises:
        VideoError: when the name does not end in ``.mp4``, is a folder, or the folder cannot be written to, or no
            encoder is installed.
    """
    if path.suffix.lower() != ".mp4":
        raise VideoError(f"{path}: videos are written as MP4, so the name must end in .mp4")
    if path.is_dir():
        raise VideoError(f"{path}: is a folder")
    _require_writable(path, path.parent)
    try:
        check_encoder()
    except VideoError as error:
        raise VideoError(f"{path}: cannot be written: {error}") from error


def check_encoder() -> None:
    """Make sure that there is an encoder of H.264.

    Raises:
        VideoError: with how to get one.
    """
    try:
        from av import Codec

        Codec(CODEC, "w")
    except (ImportError, ValueError) as error:  # the latter is PyAV's of a codec that it was built without
        raise VideoError(
            f"no encoder of H.264 ({CODEC}): {error!r}; PyAV's own wheels have it: pip install --force-reinstall av"
        ) from error


def check_frames_target(folder: Path) -> None:
    """Make sure, before any work is spent on it, that frames can be written there. Makes the folder.

    Raises:
        VideoError: when it is a file, or cannot be written to, or holds anything, which frames would mix with.
    """
    if folder.is_file():
        raise VideoError(f"{folder}: is a file, and frames are written into a folder")
    _require_writable(folder, folder)
    if any(folder.iterdir()):
        raise VideoError(f"{folder}: is not empty; frames go into a folder of their own: name another folder")


def write_video(path: Path, frames: np.ndarray[Any, np.dtype[Any]], fps: float) -> VideoInfo:
    """Write a video as H.264 (yuv420p, so that every player shows it) and read back what was written.

    The file appears when it is complete; an interrupted or failed write leaves nothing, and what was there.

    Args:
        frames: (frames, height, width, 3), float in [0, 1] or uint8; height and width even.
        fps: frames a second.

    Raises:
        VideoError: for frames of another shape or type, odd sizes, values that are not finite, a rate that is
            not positive, a path that cannot be written, or a file that does not hold what went in.
    """
    return write_long_video(path, (frames,), fps)


def write_long_video(path: Path, steps: Iterable[np.ndarray[Any, np.dtype[Any]]], fps: float) -> VideoInfo:
    """As :func:`write_video`, of frames that come some at a time, and are never held together.

    Args:
        steps: each some of the frames, all of one size.

    Raises:
        VideoError: as :func:`write_video`, and where a step is of another size. An error of making a step leaves no
            file either.
    """
    if not fps > 0:
        raise VideoError(f"{path}: fps must be positive, not {fps}")
    check_target(path)
    with _temporary(path) as partial:
        expected = _encode(path, partial, steps, Fraction(fps).limit_denominator(1001))
        info = probe(partial)
        if (info.width, info.height, info.frames) != expected:
            raise VideoError(f"{path}: holds {info}, expected width, height, frames {expected}")
        os.replace(partial, path)
    return info


def write_frames(folder: Path, frames: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Write every frame of a video as PNG, ``0001.png`` and on, into an empty folder, which is made.

    They appear when all are complete; an interrupted or failed write leaves none.

    Args:
        frames: (frames, height, width, 3), float in [0, 1] or uint8.

    Raises:
        VideoError: for frames of another shape or type, values that are not finite, or as
            :func:`check_frames_target`.
    """
    pixels = _pixels(folder, frames)
    check_frames_target(folder)
    names = [f"{number:04d}.png" for number in range(1, len(pixels) + 1)]
    partial = folder / f".{os.getpid()}.part"  # inside: the folder may be a file system of its own
    try:
        for name, image in zip(names, pixels, strict=True):
            write_image(partial / name, image)
        for name in names:
            os.replace(partial / name, folder / name)
    except BaseException as error:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise VideoError(f"{folder}: cannot be written: {error}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_image(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Write one frame (height, width, 3) of uint8 as PNG, bit for bit. Makes the folder.

    Raises:
        VideoError: when it cannot be written.
    """
    import av

    try:
        encoder: Any = av.CodecContext.create("png", "w")
        encoder.height, encoder.width = pixels.shape[:2]
        encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
        image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as partial:
            partial.write_bytes(b"".join(map(bytes, [*encoder.encode(image), *encoder.encode()])))
            os.replace(partial, path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be written: {error}") from error


def probe(path: Path) -> VideoInfo:
    """What a video file holds, every frame decoded.

    Raises:
        VideoError: when there is no such file, or it is no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
            rate = float(stream.average_rate or 0)
            return VideoInfo(stream.codec_context.name, stream.width, stream.height, frames, rate)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video: {error}") from error


def _pixels(path: Path, frames: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import numpy as np

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] < 1:
        raise VideoError(f"{path}: frames have shape {frames.shape}, expected (frames, height, width, 3)")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise VideoError(f"{path}: frames are {frames.dtype}, expected float in [0, 1] or uint8")
    if not np.isfinite(frames).all():
        raise VideoError(f"{path}: the video holds values that are not finite, so it was not written")
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def _require_writable(path: Path, folder: Path) -> None:
    """Make the folder that ``path`` is written into.

    Raises:
        VideoError: when it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VideoError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name in the same folder for the file in the making; it is gone afterwards."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _encode(
    path: Path, partial: Path, steps: Iterable[np.ndarray[Any, np.dtype[Any]]], rate: Fraction
) -> tuple[int, int, int]:
    """Write ``partial``, which is to become ``path``; returns width, height and number of the frames."""
    import av

    stream: Any = None
    height = width = count = 0
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            for frames in steps:
                pixels = _pixels(path, frames)
                if stream is None:
                    _, height, width, _ = pixels.shape
                    if height % 2 or width % 2:
                        raise VideoError(
                            f"{path}: {width}x{height} pixels; H.264 (yuv420p) needs even width and height"
                        )
                    stream = container.add_stream(CODEC, rate=rate, options={"crf": QUALITY})
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                if pixels.shape[1:3] != (height, width):
                    raise VideoError(
                        f"{path}: frames of {pixels.shape[2]}x{pixels.shape[1]} pixels behind {width}x{height}"
                    )
                for image in pixels:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                count += len(pixels)
            if stream is None:
                raise VideoError(f"{path}: there is no frame to write")
            container.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be written: {error}") from error
    return width, height, count
