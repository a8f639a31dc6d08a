"""The decoder in tiles: the tiles and the seams are those of diffusers, and the engines' caches those of a tile."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from module_engine import ModuleEngine, component_engine
from torch.profiler import ProfilerActivity, profile

from wan_trt_core.backends.base import TensorInfo
from wan_trt_core.config import ConfigError, PipelineSettings, Settings
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.component import Tensors
from wan_trt_core.models.components import get_component
from wan_trt_core.models.graphs.vae_reference import random_latents
from wan_trt_core.models.profiles import ShapeProfile, Sizes, tile_profile, tiles_of
from wan_trt_core.models.vae_decoder import VaeDecoder
from wan_trt_core.pipeline.engines import VAE_DECODER, EngineStore, onnx_identity, served
from wan_trt_core.pipeline.streaming import StreamingDecoder, _side_by_side
from wan_trt_core.pipeline.tiling import TiledDecoder, tiled

TILE = 64
TILES = Settings(device="cpu", pipeline=PipelineSettings(vae_tile=TILE))


class Sized(ModuleEngine):
    """Keeps the sizes of the latents that it was given."""

    def run(self, inputs: Any) -> Any:
        self.sizes = {*getattr(self, "sizes", ()), tuple(inputs["latents"].shape[-2:])}
        return super().run(inputs)


@pytest.fixture(scope="module")
def checkpoint(tiny_wan_folder: Path) -> Checkpoint:
    return Checkpoint.open(tiny_wan_folder)


@pytest.fixture(scope="module")
def decoder(checkpoint: Checkpoint) -> StreamingDecoder:
    def engine(name: str) -> Sized:
        made, component = component_engine(name, checkpoint), get_component(name)
        assert isinstance(component, VaeDecoder)
        return Sized(component.of_tiles().graph(checkpoint, "fp32"), made.inputs, made.outputs)

    return StreamingDecoder(*map(engine, VAE_DECODER))


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [
        (10, 14, {(8, 8), (8, 2), (4, 8), (4, 2)}),
        (8, 10, {(8, 8), (8, 4), (2, 8), (2, 4)}),  # a side of one tile is cut where the other is longer
        (8, 6, {(8, 6)}),  # no larger than a tile: whole
    ],
)
def test_as_diffusers_decodes_in_tiles(
    checkpoint: Checkpoint, decoder: StreamingDecoder, height: int, width: int, tiles: set[tuple[int, int]]
) -> None:
    vae: Any = checkpoint.load("vae")
    latents = 2 * random_latents(checkpoint.config("vae"), 2, height, width, seed=0)
    for engine in decoder.engines:
        engine.sizes = set()  # type: ignore[attr-defined]
    with torch.no_grad():
        found = TiledDecoder(decoder, TILE).decode(latents)
        expected = tiled(vae, TILE).decode(latents, return_dict=False)[0]
    assert found.shape == expected.shape == (1, 3, 5, 8 * height, 8 * width)
    assert decoder.engines[0].sizes == tiles  # type: ignore[attr-defined]
    rows, columns = tiles_of(8 * height, 8 * width, TILE)
    assert {(row // 8, column // 8) for row in rows for column in columns} == tiles
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert (expected.abs() == 1).float().mean() > 1e-3  # diffusers clamps once all is blended
    assert not vae.use_tiling
    if len(tiles) > 1:
        with torch.no_grad():
            whole = vae.decode(latents, return_dict=False)[0]
        assert float((found - whole).norm() / whole.norm()) > 1e-2  # tiles do change the video


def test_a_tile_is_let_go_before_the_next_is_decoded() -> None:
    tiles: list[weakref.ref[Any]] = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        assert not any(tile() for tile in tiles)
        frames = torch.zeros(1, 3, 1, 8 * latents.shape[-2], 8 * latents.shape[-1])
        tiles.append(weakref.ref(frames.untyped_storage()))
        assert tiles[-1]() is not None
        return frames

    whole: Any = SimpleNamespace(decode=decode)
    assert TiledDecoder(whole, TILE).decode(torch.zeros(1, 16, 1, 16, 16)).shape[-2:] == (128, 128)
    assert len(tiles) == 9


def test_two_latent_frames_a_step(checkpoint: Checkpoint) -> None:
    component = get_component("vae_decoder_next")
    assert isinstance(component, VaeDecoder)
    longer = component.of_steps(2)
    call = longer.call_tensors(checkpoint, Sizes(32, 32, 17, 16))
    graph = longer.graph(checkpoint, "fp32")
    assert call["latents"].shape == (1, 16, 2, 4, 4) and component.latents == 1
    expected = longer.reference(checkpoint, "fp32")(call)
    with torch.no_grad():
        frames, *caches = graph(*(call[spec.name] for spec in longer.inputs(checkpoint)))
    names = [spec.name for spec in longer.outputs(checkpoint)]
    assert frames.shape == longer.outputs(checkpoint)[0].shape({"height": 4, "width": 4}) == (1, 3, 8, 32, 32)
    for name, found in zip(names, (frames, *caches), strict=True):
        assert float((found - expected[name]).norm() / expected[name].norm()) < 1e-5

    latents = random_latents(checkpoint.config("vae"), 5, 4, 4, seed=0)
    sizes = {spec.name: spec for spec in longer.inputs(checkpoint)}
    single = component_engine("vae_decoder_next", checkpoint)
    infos = {name: TensorInfo(info.dtype, sizes[name].axes) for name, info in single.inputs.items()}
    decoder = StreamingDecoder(
        component_engine("vae_decoder_first", checkpoint), ModuleEngine(graph, infos, single.outputs)
    )
    vae: Any = checkpoint.load("vae")
    with torch.no_grad():
        whole = vae.decode(latents, return_dict=False)[0]
    assert [frames.shape[2] for frames in decoder.decode_steps(latents)] == [1, 8, 8]
    assert float((decoder.decode(latents) - whole).norm() / whole.norm()) < 1e-5
    with pytest.raises(
        ValueError, match=r"4 latent frames are the first and 3 more.*vae_frames_per_step to 1"
    ):
        decoder.decode(latents[:, :, :4])


def test_the_caches_that_are_written_lie_in_one_piece_of_memory() -> None:
    given = {"a": torch.ones(1, 3, 2), "b": torch.ones(5, dtype=torch.float16), "c": torch.ones(1, 3, 2)}
    room = _side_by_side(given)
    for name, tensor in given.items():
        room[name].fill_(2)
        assert (room[name].dtype, room[name].shape) == (tensor.dtype, tensor.shape)
        assert room[name].data_ptr() % 256 == room["a"].data_ptr() % 256
    room["b"].fill_(3)
    assert all(bool((room[name] == 2).all()) for name in ("a", "c"))  # none lies in another
    assert len({tensor.untyped_storage().data_ptr() for tensor in room.values()}) == 1


@pytest.mark.parametrize(("device", "tile", "pieces"), [("meta", None, 1), ("meta", 64, 2), ("cpu", None, 2)])
def test_where_the_caches_lie_in_one_piece(
    checkpoint: Checkpoint, device: str, tile: int | None, pieces: int
) -> None:
    decoder = StreamingDecoder(
        *(component_engine(name, checkpoint) for name in ("vae_decoder_first", "vae_decoder_next"))
    )
    if tile is not None:
        TiledDecoder(decoder, tile)
    room = decoder._spare({name: torch.empty(3, device=device) for name in "ab"})
    assert len({tensor.untyped_storage()._cdata for tensor in room.values()}) == pieces


def _top_passes(component: VaeDecoder, checkpoint: Checkpoint, call: Tensors) -> tuple[Any, int]:
    """What a decoder's graph puts out, and how often its last block ran for that."""
    graph: Any = component.graph(checkpoint, "fp32")
    ran: list[object] = []
    graph.up_blocks[-1].register_forward_hook(lambda *_: ran.append(None))
    with torch.no_grad():
        return graph(*call.values()), len(ran)


def test_a_decoder_in_less_memory(checkpoint: Checkpoint) -> None:
    component = get_component("vae_decoder_next")
    assert isinstance(component, VaeDecoder)
    leaner = component.in_less_memory()
    call = component.call_tensors(checkpoint, Sizes(32, 32, 17, 16))
    given = leaner.prepare(checkpoint, "fp32")(call)
    assert {str(value.dtype) for name, value in given.items() if name != "latents"} == {"torch.float16"}
    found, passes = _top_passes(leaner, checkpoint, given)
    assert (passes, _top_passes(component, checkpoint, call)[1]) == (2, 1), "two of the four frames at a time"
    expected = leaner.reference(checkpoint, "fp32")(call)
    for spec, value in zip(leaner.outputs(checkpoint), found, strict=True):
        assert value.dtype == spec.torch_dtype("fp32")
        error = float((value.double() - expected[spec.name]).norm() / expected[spec.name].norm())
        assert error < 1e-3, spec.name
    sizes = component.sizes(Sizes(32, 32, 17, 16))
    caches, halves = (each.inputs(checkpoint)[1:] for each in (component, leaner))
    assert 2 * sum(half.nbytes(sizes, "fp32") for half in halves) == sum(
        cache.nbytes(sizes, "fp32") for cache in caches
    )
    assert not component.lean


def test_another_engine_for_longer_steps(tiny_wan_folder: Path) -> None:
    model = resolve("tiny-wan", tiny_wan_folder)
    longer = Settings(device="cpu", pipeline=PipelineSettings(vae_frames_per_step=2))

    def identity(component: str, settings: Settings) -> dict[str, Any]:
        return onnx_identity(component, model, model.profile(), "fp32", "onnxruntime", settings)

    for component in ("dit", "vae_decoder_first"):
        assert identity(component, longer) == identity(component, Settings(device="cpu"))
    assert identity("vae_decoder_next", longer)["latents"] == 2
    assert identity("vae_decoder_next", Settings(device="cpu"))["latents"] == 1

    lean = Settings(device="cpu", pipeline=PipelineSettings(vae_lean=True))
    assert identity("dit", lean) == identity("dit", Settings(device="cpu"))
    for component in ("vae_decoder_first", "vae_decoder_next"):
        assert identity(component, lean) != identity(component, Settings(device="cpu"))


def test_the_engines_are_built_for_tiles() -> None:
    profile = ShapeProfile(
        "480p-81f", Sizes(256, 256, 33, 512), Sizes(480, 832, 81, 512), Sizes(832, 832, 81, 512)
    )
    tile = tile_profile(profile, 256)
    sides = {point: (tile.at(point).height, tile.at(point).width) for point in ("min", "opt", "max")}  # type: ignore[arg-type]
    assert sides == {"min": (16, 16), "opt": (256, 256), "max": (256, 256)}
    assert tile.name == "480p.tile256-81f" and tile.opt.frames == 81
    fixed = ShapeProfile("480p", *3 * [Sizes(480, 832, 81, 512)])
    assert (tile_profile(fixed, 256).min.height, tile_profile(fixed, 256).min.width) == (96, 64)
    assert tile_profile(tile, 256) == tile  # a tile is decoded whole
    of_5b = Sizes(704, 1280, 121, 512, spatial=16)
    with pytest.raises(
        ConfigError, match=r"pipeline\.vae_tile is 64, .* with a VAE of 16 x 16 pixels a latent"
    ):
        served("vae_decoder_next", ShapeProfile("704p-121f", of_5b, of_5b, of_5b), TILES)
    assert served("dit", profile, TILES) == profile
    assert served("vae_decoder_next", profile, TILES) == tile_profile(profile, TILE)


@pytest.mark.slow  # two exports of the VAE, for tiles
def test_an_engine_serves_every_tile(tiny_wan_folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own, of the sizes at the edges too."""
    model: ResolvedModel = resolve("tiny-wan", tiny_wan_folder)
    settings = TILES.model_copy(
        update={"cache": tmp_path, "export": TILES.export.model_copy(update={"check": False})}
    )
    latents = 2 * random_latents(model.checkpoint.config("vae"), 2, 16, 16, seed=0)
    with EngineStore(settings) as store, torch.no_grad():
        decoder = store.vae_decoder(model, model.profile(), "fp32", "onnxruntime")
        assert isinstance(decoder, TiledDecoder)
        found = decoder.decode(latents)
        vae: Any = model.checkpoint.load("vae")
        expected = tiled(vae, TILE).decode(latents, return_dict=False)[0]
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def most_allocated(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator of the CPU had given out at once during ``call``. It repeats to the byte;
    the resident set depends on what ``malloc`` keeps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    found: Any = profiler.profiler
    changes = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


@pytest.mark.slow  # a decode of four tiles, with every allocation noted
def test_tiles_save_memory_in_pytorch_on_a_cpu(checkpoint: Checkpoint) -> None:
    """158.3 MiB for 212.3, at 256x256 by 5 frames, on any number of threads. Most of a tile's are the copies of
    ``slow_conv3d``; whole frames of that size go to oneDNN, and without it 158.3 MiB stand against 619.9."""
    vae: Any = checkpoint.load("vae")
    latents = random_latents(checkpoint.config("vae"), 2, 32, 32, seed=0)
    with torch.no_grad():
        whole, tiles = (
            most_allocated(partial(each.decode, latents, return_dict=False))
            for each in (vae, tiled(vae, 128))
        )
    assert tiles < 0.85 * whole
