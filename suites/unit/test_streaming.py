"""The streaming VAE: equal to diffusers on the whole video, in memory that does not grow with its length."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import wan22
from module_engine import component_engine
from torch import Tensor

from wan_trt_core.backends.base import Engine, EngineError, TensorInfo
from wan_trt_core.config import ExportSettings, Settings
from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.graphs import vae_reference
from wan_trt_core.models.vae_caches import CacheSpec
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.streaming import StreamingDecoder, StreamingEncoder

HEIGHT, WIDTH = 4, 6


class Counting(Engine):
    """Stands for a VAE decoder's step: the frames show the sum of all latents so far, kept in two caches."""

    def __init__(self, *, first: bool, dtype: str = "float32", caches: tuple[str, ...] = ("a", "b")) -> None:
        cache = TensorInfo(dtype, (1, 2, 2, "height", "width"))
        frames = 1 if first else 4
        taken = {} if first else {f"cache_{name}": cache for name in caches}
        self.inputs = {"latents": TensorInfo(dtype, (1, 16, 1, "height", "width")), **taken}
        self.outputs = {
            "sample": TensorInfo(dtype, (1, 3, frames, "8*height", "8*width")),
            **{f"out_{name}": cache for name in caches},
        }
        self.frames = frames
        self.read: list[tuple[int, ...]] = []
        self.written: list[tuple[int, ...]] = []
        self._made: dict[int, weakref.ref[Tensor]] = {}

    @property
    def alive(self) -> set[int]:
        """Ids of the tensors that came out of this engine and are still referred to."""
        return {key for key, made in self._made.items() if made() is not None}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.run_into(inputs, {})

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert set(inputs) == set(self.inputs)
        latents = inputs["latents"]
        assert latents.shape[2] == 1
        caches = [tensor for name, tensor in inputs.items() if name != "latents"]
        self.read.append(tuple(tensor.data_ptr() for tensor in caches))
        results = {"sample": latents.new_zeros(1, 3, self.frames, 8 * latents.shape[3], 8 * latents.shape[4])}
        for index, name in enumerate(name for name in self.outputs if name != "sample"):
            before = caches[index] if index < len(caches) else torch.zeros(1)
            cache = outputs.get(name)
            if cache is None:
                cache = latents.new_zeros(1, 2, 2, *latents.shape[3:])
            cache.copy_(before + latents.mean() * (index + 1))
            results[name] = cache
        self.written.append(tuple(tensor.data_ptr() for name, tensor in results.items() if name != "sample"))
        results["sample"] += results["out_a"].flatten()[0]
        self._made.update({id(tensor): weakref.ref(tensor) for tensor in results.values()})
        return results

    def memory(self) -> dict[str, int]:
        return {}


def latents(frames: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


@pytest.fixture(scope="module")
def checkpoint(tiny_wan_folder: Path) -> Checkpoint:
    return Checkpoint.open(tiny_wan_folder)


@pytest.mark.parametrize("frames", [1, 3])
def test_decoding_in_steps_equals_decoding_the_whole_video(checkpoint: Checkpoint, frames: int) -> None:
    decoder = StreamingDecoder(
        *(component_engine(f"vae_decoder_{step}", checkpoint) for step in ("first", "next"))
    )
    given = latents(frames)
    vae: Any = checkpoint.load("vae")
    with torch.no_grad():
        expected = vae.decode(given, return_dict=False)[0]
    found = decoder.decode(given)
    assert found.shape == (1, 3, 1 + 4 * (frames - 1), 8 * HEIGHT, 8 * WIDTH)
    assert (found - expected).norm() / expected.norm() < 1e-5
    steps = list(decoder.decode_steps(given))
    assert [step.shape[2] for step in steps] == [1] + [4] * (frames - 1)
    assert torch.equal(torch.cat(steps, dim=2), found)


@pytest.mark.slow  # four graphs are exported
def test_onnx_runtime_decodes_and_encodes_as_the_vae_of_wan22(tmp_path: Path) -> None:
    """All of the published model's caches and shortcuts, with one residual block less in each block."""
    checkpoint = wan22.checkpoint(num_res_blocks=1)
    model = ResolvedModel("wan22", checkpoint, {}, GenerationDefaults())
    settings = Settings(cache=tmp_path, threads=1, export=ExportSettings(check=False))
    made = (model, wan22.PROFILE, "fp32", "onnxruntime")
    vae, sizes = checkpoint.load("vae"), wan22.SIZES
    given = vae_reference.random_latents(vae.config, 3, sizes.latent_height, sizes.latent_width, seed=1)
    video = vae_reference.random_video(vae.config, sizes.frames, sizes.height, sizes.width, seed=1)
    with torch.no_grad():
        decoded, encoded = vae.decode(given).sample, vae.encode(video).latent_dist.mode()
    with EngineStore(settings) as engines:
        found = engines.vae_decoder(*made).decode(given), engines.vae_encoder(*made).encode(video)
    assert decoded.shape == (1, 3, 9, sizes.height, sizes.width)
    assert encoded.shape == (1, 6, 3, sizes.latent_height, sizes.latent_width)
    for ours, theirs in zip(found, (decoded, encoded), strict=True):
        peak, error = theirs.max() - theirs.min(), (ours - theirs).pow(2).mean().sqrt()
        assert 20 * torch.log10(peak / error) > 110


@pytest.mark.parametrize("frames", [1, 9])
def test_encoding_in_steps_gives_the_mode_of_the_whole_video(checkpoint: Checkpoint, frames: int) -> None:
    encoder = StreamingEncoder(
        *(component_engine(f"vae_encoder_{step}", checkpoint) for step in ("first", "next"))
    )
    given = vae_reference.random_video(checkpoint.config("vae"), frames, 8 * HEIGHT, 8 * WIDTH, seed=frames)
    vae: Any = checkpoint.load("vae")
    with torch.no_grad():
        expected = vae.encode(given).latent_dist.mode()
    found = encoder.encode(given)
    assert found.shape == (1, 16, 1 + frames // 4, HEIGHT, WIDTH)
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(torch.cat(list(encoder.encode_steps(given)), dim=2), found)
    for shape in (given[0], given.expand(2, -1, -1, -1, -1), given.repeat(1, 1, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"the video has shape .*, expected .* with 4k\+1 frames"):
            encoder.encode(shape)


def test_the_engines_of_the_other_half_are_refused(checkpoint: Checkpoint) -> None:
    engines = [component_engine(f"vae_decoder_{step}", checkpoint) for step in ("first", "next")]
    with pytest.raises(EngineError, match=r"a VAE encoder's engine returns sample, .*; expected latents and"):
        StreamingEncoder(*engines)


@pytest.mark.parametrize(("frames", "early"), [(2, 0.5), (1, 1.0)])
def test_the_reference_step_copies_no_whole_cache(frames: int, early: float) -> None:
    """Timed against an engine it must do what diffusers does, and no more."""
    cache, given = CacheSpec("taken", "left", channels=3, scale=2, frames=frames), latents(1)
    whole = torch.ones(1, 3, frames, 2 * HEIGHT, 2 * WIDTH)
    assert vae_reference._whole(whole, cache, given) is whole
    for left, expected in (("Rep", 0.0), (whole[:, :, :1], early)):
        made = vae_reference._whole(left, cache, given)
        assert made.shape == whole.shape and made.mean() == expected


def test_every_step_sees_what_came_before() -> None:
    decoder = StreamingDecoder(Counting(first=True), Counting(first=False))
    given = latents(6)
    shown = [step.flatten()[0] for step in decoder.decode_steps(given)]
    expected = given.mean(dim=(0, 1, 3, 4)).cumsum(0)
    torch.testing.assert_close(torch.stack(shown), expected)


def test_two_sets_of_caches_change_places() -> None:
    following = Counting(first=False)
    list(StreamingDecoder(Counting(first=True), following).decode_steps(latents(7)))
    assert len(set(following.read)) == len(set(following.written)) == 2
    for read, written, then in zip(following.read, following.written, following.read[1:], strict=False):
        assert not set(read) & set(written)
        assert then == written


def test_memory_does_not_grow_with_the_video() -> None:
    """Tensors alive at each step of a long video: two sets of caches."""
    first, following = Counting(first=True), Counting(first=False)
    alive = []
    steps = StreamingDecoder(first, following).decode_steps(latents(40))
    while next(steps, None) is not None:
        alive.append(len(first.alive | following.alive))
    assert len(alive) == 40
    assert max(alive[3:]) == min(alive[3:]) == 2 * 2
    gc.collect()
    assert not following.alive


def test_memory_is_released_when_the_caller_stops_early() -> None:
    following = Counting(first=False)
    steps = StreamingDecoder(Counting(first=True), following).decode_steps(latents(10))
    next(steps), next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    del steps  # Python 3.12 keeps a closed generator's frame as long as the generator
    gc.collect()
    assert not following.alive


def test_the_engine_is_told_what_its_caches_are() -> None:
    """Both sets while a video is done, none of it when the caller has stopped."""
    following, one = Counting(first=False), 2 * 2 * 2 * HEIGHT * WIDTH * 4
    decoder = StreamingDecoder(Counting(first=True), following)
    assert following.caches == 0
    assert [following.caches for _ in decoder.decode_steps(latents(3))] == [2 * one] * 3
    assert following.caches == 0
    assert [following.caches for _ in decoder.decode_steps(latents(1))] == [one], "there is no next step"
    steps = decoder.decode_steps(latents(3))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert following.caches == 0


def test_frames_are_the_callers_to_keep() -> None:
    decoder = StreamingDecoder(Counting(first=True), Counting(first=False))
    kept = [(step, step.clone()) for step in decoder.decode_steps(latents(5))]
    assert all(torch.equal(step, copy) for step, copy in kept)


def test_latents_are_cast_to_what_the_engines_take() -> None:
    decoder = StreamingDecoder(Counting(first=True, dtype="float16"), Counting(first=False, dtype="float16"))
    assert decoder.dtype == torch.float16
    given = latents(3)
    assert decoder.decode(given).dtype == torch.float16
    assert given.dtype == torch.float32


def test_the_outputs_of_blocks_are_no_caches() -> None:
    first, following = Counting(first=True), Counting(first=False)
    for engine in (first, following):
        engine.outputs["conv_in"] = TensorInfo("float32", (1, 8, 1, "height", "width"))
    StreamingDecoder(first, following).decode(latents(3))


@pytest.mark.parametrize(
    "shape", [(16, 2, 4, 4), (2, 16, 2, 4, 4), (1, 16, 0, 4, 4)], ids=["no batch", "batch of 2", "no frames"]
)
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    decoder = StreamingDecoder(Counting(first=True), Counting(first=False))
    with pytest.raises(ValueError, match=r"latents have shape .*, expected \(1, channels, latent frames"):
        list(decoder.decode_steps(torch.zeros(shape)))
    with pytest.raises(ValueError, match="latents have shape"):
        decoder.decode(torch.zeros(shape))


def test_engines_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EngineError, match=r"takes 'cache_a' as float16 .* but 'out_a' is float32"):
        StreamingDecoder(Counting(first=True), Counting(first=False, dtype="float16"))
    with pytest.raises(EngineError, match="returns sample, out_a; expected sample and 2 caches"):
        StreamingDecoder(Counting(first=True, caches=("a",)), Counting(first=False))


def test_an_engine_that_returns_too_few_frames_is_an_error() -> None:
    following = Counting(first=False)
    following.frames = 3
    with pytest.raises(EngineError, match="returned 7 frames, expected 9"):
        StreamingDecoder(Counting(first=True), following).decode(latents(3))
