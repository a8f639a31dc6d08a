"""The examples run as they stand, on a small model with random weights (`gate_pull_request`: see test_packaging.py)."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import wan_trt_core
from wan_trt_core.engine_cache import EngineCache
from wan_trt_core.pipeline.engines import VAE_DECODER, VAE_ENCODER
from wan_trt_core.pipeline.generate import GenerationError
from wan_trt_core.pipeline.video import VideoError, probe

EXAMPLES = Path(__file__).parents[2] / "examples"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of this file, as a user has."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    small_checkpoint: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run an example with arguments, in an empty folder; returns what it prints."""
    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    monkeypatch.setenv("WAN_TRT_MODEL", str(small_checkpoint))
    monkeypatch.setenv("WAN_TRT_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(path.parent)
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_text_to_video(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny-wan's engines in the user's own cache, where the suites look for them too."""
    monkeypatch.delenv("WAN_TRT_MODEL")
    monkeypatch.delenv("WAN_TRT_CACHE")
    assert "out.mp4: VideoInfo" in run("text_to_video.py", "a small red square moves left", "out.mp4")
    video = probe(Path("out.mp4"))
    assert (video.codec, video.width, video.height, video.frames) == ("h264", 128, 128, 17)


@pytest.mark.parametrize(
    ("script", "before", "after"),
    [("text_to_video", ["red"], []), ("image_to_video", ["no.png", "red"], []), ("long_video", [], ["301"])],
)
def test_where_nothing_can_be_written_is_told_before_any_work(
    run: Run, script: str, before: list[str], after: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_TRT_MODEL", "nothing that could be opened")
    with pytest.raises(VideoError, match=r"/proc/none/x\.mp4: cannot be written"):
        run(f"{script}.py", *before, "/proc/none/x.mp4", *after)


def test_image_to_video(
    run: Run, small_image_checkpoint: Path, engine_cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the engines of the test of ``wan-trt run --image``."""
    Image.new("RGB", (50, 40), "green").save("green.png")
    arguments = ("image_to_video.py", "green.png", "a boat", "out.mp4")
    with pytest.raises(GenerationError, match="text to video: the video begins with no image"):
        run(*arguments)
    monkeypatch.setenv("WAN_TRT_MODEL", str(small_image_checkpoint))
    monkeypatch.setenv("WAN_TRT_CACHE", str(engine_cache_folder))
    monkeypatch.setenv("WAN_TRT_EXPORT__CHECK", "false")  # the suites compare what such engines compute
    assert "out.mp4: VideoInfo" in run(*arguments)
    video = probe(Path("out.mp4"))
    assert (video.codec, video.width, video.height, video.frames) == ("h264", 96, 64, 9)
    made = {entry.identity["component"] for entry in EngineCache(engine_cache_folder).list()}
    assert made >= {"dit", *VAE_ENCODER, *VAE_DECODER}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("text_to_video.py", "a boat", "out.mp4"), {"transformer"}),
        (
            ("image_to_video.py", "green.png", "a boat", "out.mp4"),
            {"transformer", "image_encoder"},
        ),
    ],
)
def test_on_a_gpu_each_part_is_loaded_as_it_should_run_there(
    arguments: tuple[str, ...],
    parts: set[str],
    run: Run,
    small_checkpoint: Path,
    small_image_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no profile is named: ``accelerate`` takes that which serves the model's own video."""
    Image.new("RGB", (50, 40), "green").save("green.png")
    of_image = arguments[0].startswith("image")
    monkeypatch.setenv("WAN_TRT_MODEL", str(small_image_checkpoint if of_image else small_checkpoint))
    monkeypatch.setenv("WAN_TRT_BACKEND", "tensorrt")

    def accelerate(pipe: Any, **options: Any) -> None:
        loaded = {name: part.dtype for name, part in pipe.components.items() if hasattr(part, "dtype")}
        raise Accelerated(loaded, options)

    monkeypatch.setattr(wan_trt_core, "accelerate", accelerate, raising=False)
    with pytest.raises(Accelerated) as accelerated:
        run(*arguments)
    loaded, options = accelerated.value.args
    wanted = {
        "transformer": torch.float16,
        "text_encoder": torch.bfloat16,
        "vae": torch.float32,
        "image_encoder": torch.float32,
    }
    assert loaded == {name: wanted[name] for name in {"vae", "text_encoder", *parts}}
    assert options == {}


class Accelerated(Exception):
    """Enough was seen: the dtypes of the parts, and what else was asked for."""


def test_a_long_video_in_constant_memory(run: Run) -> None:
    printed = run("long_video.py", "long.mp4", "301")
    assert probe(Path("long.mp4")).frames == 301
    held = [int(text) for text in re.findall(r"frames, (\d+) MiB", printed)]
    assert len(held) == 4
    # 200 frames of 64x64 are 9 MiB as the decoder gives them; what is left is x264's own look-ahead
    assert held[-1] - held[1] < 5, printed


def test_a_long_video_is_not_decoded_in_tiles(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_TRT_PIPELINE__VAE_TILE", "64")
    with pytest.raises(
        SystemExit, match=r"pipeline\.vae_tile is set, and tiles are decoded one after the other"
    ):
        run("long_video.py", "long.mp4", "301")


def test_a_custom_component(run: Run) -> None:
    quality = [
        float(text) for text in re.findall(r"([\d.]+) dB to diffusers", run("custom_component/run.py"))
    ]
    assert len(quality) == 3 and min(quality) > 120


def test_every_example_is_run_by_a_test() -> None:
    """Also those that come later."""
    here = Path(__file__).parent
    tests = "".join(
        (here / f"test_{name}.py").read_text() for name in ("examples", "gate_examples", "packaging")
    )
    for path in EXAMPLES.iterdir():
        assert path.name in tests, f"no test runs examples/{path.name}"
