"""Video files: what was written can be read, and nothing half-written is ever left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from wan_trt_core.pipeline import video
from wan_trt_core.pipeline.video import (
    VideoError,
    VideoInfo,
    check_target,
    probe,
    write_long_video,
    write_video,
)


def clip(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A white bar that moves over a coloured gradient."""
    x = np.linspace(0, 1, width, dtype=np.float32)
    images = np.zeros((frames, height, width, 3), np.float32)
    images[..., 0] = x
    images[..., 2] = 1 - x
    for index in range(frames):
        images[index, 4:12, 4 * index : 4 * index + 8] = 1
    return images


def decoded(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]) / 255


@pytest.mark.parametrize("fps", [8, 16, 23.976])
def test_what_was_written_is_read_back(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "new folder" / "clip.mp4"
    info = write_video(path, clip(), fps)
    assert info == probe(path)
    assert (info.codec, info.width, info.height, info.frames) == ("h264", 48, 32, 9)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert np.abs(decoded(path) - clip()).mean() < 0.03
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_it_plays_everywhere_and_starts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, clip(), 8)
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert path.stat().st_mode & 0o044


def test_frames_that_come_some_at_a_time_are_the_same_file(tmp_path: Path) -> None:
    whole, steps = tmp_path / "whole.mp4", tmp_path / "steps.mp4"
    write_video(whole, clip(), 8)
    assert write_long_video(steps, (clip()[first : first + 4] for first in (0, 4, 8)), 8) == probe(whole)
    assert steps.read_bytes() == whole.read_bytes()


def test_a_long_video_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def steps(then: Any) -> Iterator[Any]:
        yield clip(4)
        if isinstance(then, BaseException):
            raise then
        yield then

    for then, error in ((KeyboardInterrupt(), KeyboardInterrupt), (clip(4, 16), VideoError)):
        with pytest.raises(error):
            write_long_video(tmp_path / "clip.mp4", steps(then), 8)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(VideoError, match="no frame"):
        write_long_video(tmp_path / "clip.mp4", (), 8)


def test_uint8_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, (clip() * 255).round().astype(np.uint8), 8)
    assert np.abs(decoded(path) - clip()).mean() < 0.03


def test_an_image_is_kept_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "50%d.png"
    frame = (clip()[3] * 255).round().astype(np.uint8)
    video.write_image(path, frame)
    with av.open(str(path)) as container:
        assert (next(container.decode(video=0)).to_ndarray(format="rgb24") == frame).all()
    assert [file.name for file in path.parent.iterdir()] == ["50%d.png"]
    with pytest.raises(VideoError, match="cannot be written"):
        video.write_image(path / "below a file.png", frame)


def stopped_at(monkeypatch: pytest.MonkeyPatch, image: int, error: BaseException) -> None:
    """Makes the encoding of one image, counted from 0, raise."""
    real, count = av.VideoFrame.from_ndarray, iter(range(100))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(count) == image:
            raise error
        return real(*args, **kwargs)

    class Frame:
        from_ndarray = staticmethod(interrupted)

    monkeypatch.setattr(av, "VideoFrame", Frame)


def test_frames_are_kept_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "frames"
    video.write_frames(folder, clip())
    images = sorted(folder.iterdir())
    assert [image.name for image in images] == [f"{number:04d}.png" for number in range(1, 10)]
    expected = (clip() * 255).round().astype(np.uint8)
    assert (np.stack([decoded(image)[0] * 255 for image in images]).round() == expected).all()


def test_frames_go_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "0001.png").write_text("somebody's")
    for folder, message in (
        (Path("/proc/frames"), "cannot be written"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "frames", "cannot be written"),
        (tmp_path / "full", "is not empty; .* name another folder"),
    ):
        with pytest.raises(VideoError, match=message):
            video.check_frames_target(folder)
        with pytest.raises(VideoError, match=message):
            video.write_frames(folder, clip())
    assert (tmp_path / "full" / "0001.png").read_text() == "somebody's"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["encode", "move"])
def test_an_interrupted_set_of_frames_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    """Neither while they are made nor while they are put in place, which is one file after the other."""
    if where == "encode":
        stopped_at(monkeypatch, 5, error)
    else:
        real = os.replace

        def stop(source: Path, target: Path) -> None:
            real(source, target)
            if target == tmp_path / "frames" / "0005.png":
                raise error

        monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else VideoError):
        video.write_frames(tmp_path / "frames", clip())
    assert list((tmp_path / "frames").iterdir()) == []


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    assert write_video(tmp_path / "clip.mp4", clip(1), 8).frames == 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (clip(height=31), "48x31 pixels; H.264 .* even width and height"),
        (clip(width=47), "47x32 pixels"),
        (clip()[0], r"shape \(32, 48, 3\), expected \(frames, height, width, 3\)"),
        (clip()[..., :2], "expected"),
        (clip(0), "expected"),
        (clip().astype(np.int64), "frames are int64"),
        (np.where(clip() > 0.9, np.nan, clip()), "not finite"),
        (np.where(clip() > 0.9, np.inf, clip()), "not finite"),
    ],
)
def test_frames_that_are_no_video_are_refused(tmp_path: Path, frames: Any, message: str) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(VideoError, match=message):
        write_video(path, frames, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_a_rate_must_be_positive(tmp_path: Path, fps: float) -> None:
    with pytest.raises(VideoError, match="fps must be positive"):
        write_video(tmp_path / "clip.mp4", clip(), fps)


def test_an_unwritable_path_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path, message in (
        (tmp_path / "file" / "clip.mp4", "cannot be written"),
        (Path("/proc/clip.mp4"), "clip.mp4: cannot be written: No such file or directory$"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "clip.avi", r"must end in \.mp4"),
    ):
        with pytest.raises(VideoError, match=message):
            check_target(path)
        with pytest.raises(VideoError, match=message):
            write_video(path, clip(), 8)
    check_target(tmp_path / "made" / "clip.mp4")
    monkeypatch.setattr("wan_trt_core.pipeline.video.CODEC", "libx263")
    with pytest.raises(
        VideoError, match=r"clip.mp4: cannot be written: no encoder of H.264 \(libx263\).*pip install"
    ):
        check_target(tmp_path / "made" / "clip.mp4")
    assert (tmp_path / "made").is_dir()
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, clip(3), 8)
    before = path.read_bytes()
    stopped_at(monkeypatch, 5, error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else VideoError):
        write_video(path, clip(), 8)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_that_lost_frames_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "probe", lambda path: VideoInfo("h264", 48, 32, 8, 8.0))
    with pytest.raises(VideoError, match=r"frames=8.*expected width, height, frames \(48, 32, 9\)"):
        write_video(tmp_path / "clip.mp4", clip(), 8)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_is_not_probed(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot be read as a video"):
        probe(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=r"missing\.mp4: cannot be read"):
        probe(tmp_path / "missing.mp4")
