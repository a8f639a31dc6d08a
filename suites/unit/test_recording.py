"""The stages of a pipeline and the loading of its parts become memory events; without a recorder nothing is touched."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import load_script

from wan_trt_core.backends.base import Engine
from wan_trt_core.config import PipelineSettings, Settings
from wan_trt_core.measure import memory_recorder
from wan_trt_core.measure.memory_events import FILE_NAME, MemoryRecord
from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel, resolve
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import Sizes
from wan_trt_core.pipeline import recording as recording_module
from wan_trt_core.pipeline.assembly import on_engines
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.offload import Turns, offload
from wan_trt_core.pipeline.recording import RunRecording, recorded_run
from wan_trt_core.pipeline.scheduler_step import PlannedStep
from wan_trt_core.pipeline.swap import REPLACED, swap

SMALL = GenerationDefaults(
    32, 32, 9, num_inference_steps=2, guidance_scale=3.0, max_sequence_length=16, fps=8
)
CACHES = "vae_decoder_next engine caches"
STAGES = ("text encode", "denoise 1", "denoise 2", "decode 1", "decode 2", "decode 3", "postprocess")


@pytest.fixture
def model(small_checkpoint: Path) -> ResolvedModel:
    return resolve(str(small_checkpoint))


@pytest.fixture
def settings() -> Settings:
    return Settings(device="cpu")


@pytest.fixture
def store(settings: Settings, on_modules: None) -> EngineStore:
    return EngineStore(settings)


def labels(record: MemoryRecord) -> list[str]:
    """The stages, without what ran between them for longer than a moment: that depends on the machine."""
    return [event.label for event in record.events if event.stage != "other"]


def test_engines_in_a_pipeline(
    model: ResolvedModel, settings: Settings, store: EngineStore, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {"model": "tiny-wan"}) as recording, store:
        with recording.loads(model.checkpoint, store):
            stock = model.checkpoint.pipeline(replaced=REPLACED)
            pipe = swap(stock, store.pipeline(model, model.profile(), "fp32", "torch"))
        with recording.stages(pipe):
            video = generate(pipe, "red", SMALL).frames
        unwatched = generate(pipe, "red", SMALL).frames
        assert "fresh" not in vars(model.checkpoint) and "load" not in vars(store)
        assert not {"decode", "encode_prompt"} & {*vars(pipe.vae), *vars(pipe)}
        assert isinstance(pipe.scheduler.step, PlannedStep), "as before"
        assert "decode_steps" not in vars(pipe.vae.decoder)
    record = MemoryRecord.read(path)
    loads = ("dit engine", "vae_decoder_first engine", "vae_decoder_next engine")
    assert labels(record) == [
        "load text_encoder",
        *(f"{stage} {name}" for stage in ("build", "load") for name in loads),
        *STAGES,
        *(f"unload {name}" for name in loads),
    ]
    assert record.precisions["dit engine weights"] == "fp32"
    held = [set(event.held.get("host", {})) for event in record.events]
    engines = {f"{name} weights" for name in loads}
    assert engines <= held[-len(loads) - 1] and not engines & held[-1], "closed engines hold nothing"
    assert np.array_equal(video, unwatched), "watching changes nothing"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, no time counts as longer than a moment."""
    monkeypatch.setattr(memory_recorder, "MOMENT", float("inf"))


@pytest.mark.parametrize("tile", [None, 64])
def test_the_caches_of_the_streaming_decoder_have_an_owner(
    model: ResolvedModel, settings: Settings, on_modules: None, tmp_path: Path, tile: int | None
) -> None:
    """Where it may be in tiles the decode is one stage, at whose end they are gone."""
    path = tmp_path / FILE_NAME
    settings = settings.model_copy(update={"pipeline": PipelineSettings(vae_tile=tile)})
    with recorded_run(path, "cpu", {}) as recording, EngineStore(settings) as store:
        with recording.loads(model.checkpoint, store):
            stock = model.checkpoint.pipeline(replaced=REPLACED)
            pipe = swap(stock, store.pipeline(model, model.profile(), "fp32", "torch"))
        with recording.stages(pipe):
            generate(pipe, "red", SMALL)
    record = MemoryRecord.read(path)
    sizes = {event.label: event.held["host"].get(CACHES, 0) for event in record.events if event.held}
    expected = 2 * cache_bytes(model)
    assert expected > 0
    decode = ["decode"] if tile else ["decode 1", "decode 2", "decode 3"]
    assert {name: size for name, size in sizes.items() if size} == dict.fromkeys(decode, expected)


def cache_bytes(model: ResolvedModel) -> int:
    """Of one set, as the memory suite counts it."""
    component = get_component("vae_decoder_next")
    sizes = component.sizes(Sizes(SMALL.height, SMALL.width, SMALL.num_frames, SMALL.max_sequence_length))
    _, *caches = component.inputs(model.checkpoint)
    return sum(cache.nbytes(sizes, "fp32") for cache in caches)


def test_engines_that_are_offloaded_come_and_go_in_stages_of_their_own(
    model: ResolvedModel, settings: Settings, on_modules: None, tmp_path: Path, at_once: None
) -> None:
    """Neither within the building of others nor within what needs them; and in none when the recording is over."""
    path, offload = tmp_path / FILE_NAME, PipelineSettings(offload=True)
    with EngineStore(settings.model_copy(update={"pipeline": offload})) as store:
        with recorded_run(path, "cpu", {}) as recording:
            with recording.loads(model.checkpoint, store):
                stock = model.checkpoint.pipeline(replaced=REPLACED)
                pipe = swap(stock, store.pipeline(model, model.profile(), "fp32", "torch"))
            with recording.stages(pipe):
                generate(pipe, "red", SMALL)
        before = path.read_text()
        generate(pipe, "red", SMALL)
        assert path.read_text() == before
    record = MemoryRecord.read(path)
    dit, first, following = (f"{name} engine" for name in ("dit", "vae_decoder_first", "vae_decoder_next"))
    assert labels(record)[1:] == [
        *(f"build {dit}", f"build {first}", f"build {following}"),
        *(f"load {dit}", f"unload {dit}", f"load {first}", f"load {following}"),
        *("text encode", f"unload {first}", f"unload {following}", f"onload {dit}", "denoise 1", "denoise 2"),
        *(f"unload {dit}", f"onload {first}", "decode 1", f"onload {following}", "decode 2", "decode 3"),
        "postprocess",
    ]
    weights = [f"{dit} weights" in event.held["host"] for event in record.events if event.name == dit]
    assert weights == [False, True, False, True, False]


def test_modules_that_are_offloaded_come_and_go_in_stages_of_their_own(
    model: ResolvedModel, tmp_path: Path, at_once: None
) -> None:
    path = tmp_path / FILE_NAME
    pipe = model.checkpoint.apart().pipeline()
    offload(pipe, Turns(), "cpu")
    with recorded_run(path, "cpu", {}) as recording:
        for _ in range(2):  # the second video begins with the VAE where it is
            with recording.stages(pipe):
                generate(pipe, "red", SMALL)
        generate(pipe, "red", SMALL)
    found = labels(MemoryRecord.read(path))
    encoder, dit = "text_encoder", "transformer"
    video = [
        *(f"onload {encoder}", "text encode", f"unload {encoder}", f"onload {dit}", "denoise 1", "denoise 2"),
        *(f"unload {dit}", "onload vae", "decode 1", "decode 2", "decode 3", "postprocess"),
    ]
    assert found == [*video, "unload vae", *video]


def test_a_checkpoint_that_is_made_apart_meanwhile_is_recorded_and_has_modules_of_its_own(
    model: ResolvedModel, store: EngineStore, tmp_path: Path
) -> None:
    """Those of a pipeline that is offloaded move and have hooks: an export must not get one of them."""
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {}) as recording, recording.loads(model.checkpoint, store):
        theirs = model.checkpoint.apart().load("text_encoder")
        assert model.checkpoint.load("text_encoder") is not theirs
        assert model.checkpoint.load("text_encoder") is model.checkpoint.prompt_encoder()
    assert labels(MemoryRecord.read(path)) == ["load text_encoder"] * 2, (
        "what is loaded already is no loading"
    )


def test_engines_are_built_in_stages_before_anything_is_loaded(
    model: ResolvedModel, settings: Settings, on_modules: None, tmp_path: Path
) -> None:
    """What a build takes is its own: no other weights are there. One that is loaded alone is built then."""
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {}) as recording, EngineStore(settings) as store:  # noqa: SIM117
        with recording.loads(model.checkpoint, store):
            on_engines(model, model.profile(), "fp32", "torch", store, settings, "cpu")
            store.load("vae_encoder_first", model, model.profile(), "fp32", "torch")
    record = MemoryRecord.read(path)
    names = [f"{name} engine" for name in ("dit", "vae_decoder_first", "vae_decoder_next")]
    alone = "vae_encoder_first engine"
    assert labels(record)[:9] == [
        *(f"build {name}" for name in names),
        *(f"load {name}" for name in ("text_encoder", *names)),
        *(f"build {alone}", f"load {alone}"),
    ]
    assert not any(event.held for event in record.of("build")[:3])


def test_an_engine_that_is_loaded_when_it_is_called_for_is_recorded(
    model: ResolvedModel, settings: Settings, store: EngineStore, tmp_path: Path
) -> None:
    """As those of the VAE's encoder: the step that waits for them goes on afterwards."""
    path, name = tmp_path / FILE_NAME, "vae_encoder_next engine"
    with recorded_run(path, "cpu", {}) as recording, store:
        with recording.loads(model.checkpoint, store):
            pipe = model.checkpoint.pipeline()
        with recording.stages(pipe):
            recording._recorder.begin("denoise", index=1)  # type: ignore[union-attr]
            for _ in range(2):  # the second time they are there
                encoder = store.vae_encoder(model, model.profile(), "fp32", "torch")
                encoder.encode(torch.zeros(1, 3, 9, SMALL.height, SMALL.width))
    record = MemoryRecord.read(path)
    assert [label for label in labels(record) if "encoder_next" in label] == [
        f"build {name}",
        f"load {name}",
        f"unload {name}",
    ]
    (step,) = (event for event in record.of("denoise") if f"{name} weights" in event.held["host"])
    assert step.held["host"][f"{name} caches"] > 0


def test_nothing_is_touched_without_a_recorder(model: ResolvedModel, store: EngineStore) -> None:
    recording = RunRecording(None)
    pipe = model.checkpoint.pipeline()
    with recording.loads(model.checkpoint, store):
        assert "fresh" not in vars(model.checkpoint)
    with recording.stages(pipe):
        assert "encode_prompt" not in vars(pipe) and not pipe.vae.decoder._forward_pre_hooks


def test_stock_modules(model: ResolvedModel, settings: Settings, store: EngineStore, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {}) as recording:
        with recording.loads(model.checkpoint, store):
            pipe = model.checkpoint.pipeline()
        with recording.stages(pipe):
            generate(pipe, "red", SMALL)
        assert not pipe.vae.decoder._forward_pre_hooks
    assert labels(MemoryRecord.read(path))[3:] == list(STAGES)


def test_a_decode_in_tiles_is_one_stage(
    model: ResolvedModel, settings: Settings, store: EngineStore, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    pipe = model.checkpoint.pipeline()
    pipe.vae.enable_tiling(16, 16, 8, 8)
    with recorded_run(path, "cpu", {}) as recording:  # noqa: SIM117
        with recording.stages(pipe):
            generate(pipe, "red", SMALL)
    assert labels(MemoryRecord.read(path))[-2:] == ["decode", "postprocess"]


def test_a_module_is_an_owner_only_as_long_as_others_hold_it(
    model: ResolvedModel, settings: Settings, store: EngineStore, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {}) as recording, recording.loads(model.checkpoint, store):
        model.checkpoint.load("vae")
        model.checkpoint._modules.clear()
        gc.collect()
        model.checkpoint.load("transformer")
    first, second = MemoryRecord.read(path).of("load")
    assert set(first.held["host"]) == {"vae weights"}
    assert set(second.held["host"]) == {"transformer weights"}


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp16", "int8"])
def test_the_precision_of_a_module_is_that_of_most_of_its_weights(
    model: ResolvedModel, store: EngineStore, tmp_path: Path, precision: str
) -> None:
    """By its word, as an engine's. The first may be one of the few that are kept in float32."""
    path = tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {}) as recording, recording.loads(model.checkpoint, store):
        model.checkpoint.load("text_encoder", precision)
    assert MemoryRecord.read(path).precisions == {"text_encoder weights": precision}


class HeldEngine(Engine):
    """As TensorRT's: the scratch memory is shared."""

    def __init__(self, scratch: int) -> None:
        self.inputs = self.outputs = {}
        self._scratch = scratch

    def run(self, inputs: Any) -> Any:
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        return {"weights": 100, "scratch": self._scratch, "buffers": 7}

    @property
    def graphs(self) -> int:
        return self._scratch // 40


def test_on_a_gpu_an_engines_weights_lie_outside_the_allocator_and_scratch_is_held_once() -> None:
    owners = recording_module._Owners("cuda")
    assert owners.note()() == ({}, {})
    owners.add_engine("dit engine", HeldEngine(50), "fp16")
    owners.add_engine("vae_decoder_next engine", streamed := HeldEngine(80), "fp32")
    streamed.keep(9)
    told = owners.note()
    streamed.keep(0)
    owners.drop_engine("dit engine")
    held, graphs = told()  # as it was
    assert held == {
        "device": {"dit engine weights": 100, "vae_decoder_next engine weights": 100},
        "allocator": {
            "dit engine buffers": 7,
            "vae_decoder_next engine buffers": 7,
            "vae_decoder_next engine caches": 9,
            "engines' shared scratch": 80,
        },
    }
    assert graphs == {"dit engine": 1, "vae_decoder_next engine": 2}
    held, graphs = owners.note()()
    assert held["allocator"] == {"vae_decoder_next engine buffers": 7, "engines' shared scratch": 80}
    assert graphs == {"vae_decoder_next engine": 2}


def test_the_frames_of_a_compiled_decoder_are_told_apart(
    model: ResolvedModel, settings: Settings, tmp_path: Path
) -> None:
    """As torch-compile wraps it: a module around the decoder."""
    path = tmp_path / FILE_NAME
    pipe = model.checkpoint.pipeline()
    pipe.vae._modules["decoder"] = torch.compile(pipe.vae.decoder, backend="eager")
    short = dataclasses.replace(SMALL, num_frames=5, num_inference_steps=1, guidance_scale=1.0)
    with recorded_run(path, "cpu", {}) as recording, recording.stages(pipe):
        generate(pipe, "red", short)
    stages = ["text encode", "denoise 1", "decode 1", "decode 2", "postprocess"]
    assert labels(MemoryRecord.read(path)) == stages


@pytest.mark.parametrize("backend", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_the_benchmark_times_both_arms(
    backend: str,
    small_checkpoint: Path,
    engine_cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of stock diffusers, and with engines, which say at every step what they hold."""
    benchmark = load_script("benchmarks/memory_events.py")
    monkeypatch.setenv("WAN_TRT_DEVICE", "cpu")
    monkeypatch.setenv("WAN_TRT_CACHE", str(engine_cache_folder))
    monkeypatch.setenv("WAN_TRT_EXPORT__CHECK", "false")
    devices, asked = [], set[str]()

    def told(path: Path, device: Any, run: Any) -> Any:
        devices.append(device)
        return recorded_run(path, device, run)

    def note(owners: Any) -> Any:
        asked.update(owners._engines)
        return known(owners)

    known = recording_module._Owners.note
    monkeypatch.setattr(recording_module._Owners, "note", note)
    monkeypatch.setattr(benchmark, "recorded_run", told)
    written = tmp_path / "found.json"
    given = ["--model", str(small_checkpoint), "--steps", "3", "--rounds", "3", "--json", str(written)]
    benchmark.main([*given, "--backend", backend])
    found = json.loads(written.read_text())
    assert 0 < found["step_end_s"] < found["step_s"]["recorded"]
    assert 0 < found["step_end_share"] < 1
    low, centre, high = found["added"]["recorded"]
    assert low <= centre <= high and found["rounds"] == 3
    assert "| a step | recording adds" in capsys.readouterr().out
    assert {*devices} == {"cpu"}, "on a GPU its memory would not be recorded"
    engines = {f"{name} engine" for name in ("dit", "vae_decoder_first", "vae_decoder_next")}
    assert asked == (engines if backend == "onnxruntime" else set())
