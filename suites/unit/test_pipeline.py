"""Engines in the place of a pipeline's modules, and the way from a component's name to a loaded engine."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import retrieve_latents
from diffusers.video_processor import VideoProcessor
from module_engine import ModuleEngine, component_engine

from wan_trt_core import engine_cache
from wan_trt_core.backends.base import BackendUnavailable, EngineBackend, EngineError, OnnxModel
from wan_trt_core.backends.registry import UnknownBackend, get_backend
from wan_trt_core.config import (
    ConfigError,
    OnnxRuntimeSettings,
    PipelineSettings,
    Settings,
    TensorRtSettings,
    with_values,
)
from wan_trt_core.engine_cache import EngineCache
from wan_trt_core.models.catalogue import GenerationDefaults, ResolvedModel, resolve
from wan_trt_core.models.components import ComponentError, component_names, get_component
from wan_trt_core.models.components.dit import Dit
from wan_trt_core.models.graphs.dit import Modulation
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.pipeline import engines as engines_module
from wan_trt_core.pipeline.assembly import on_engines
from wan_trt_core.pipeline.engines import (
    VAE_DECODER,
    VAE_ENCODER,
    EngineStore,
    PipelineEngines,
    exported_model,
    load_engine,
    precision_of,
)
from wan_trt_core.pipeline.generate import GenerationError, check_request, generate, tell_what_is_cut
from wan_trt_core.pipeline.offload import OffloadedEngine
from wan_trt_core.pipeline.streaming import StreamingEncoder
from wan_trt_core.pipeline.swap import REPLACED, swap, with_parts
from wan_trt_core.pipeline.video_processor import StagedVideoProcessor

PROMPT = "a small red square moves left"
SMALL = GenerationDefaults(
    32, 32, 5, num_inference_steps=2, guidance_scale=3.0, max_sequence_length=16, fps=8
)
SIZES = Sizes(32, 32, 5, 16)
PROFILE = ShapeProfile("tiny", SIZES, SIZES, Sizes(32, 48, 9, 16))


@pytest.fixture(scope="module")
def model(tiny_wan_folder: Path) -> ResolvedModel:
    return resolve("tiny-wan", tiny_wan_folder)


@pytest.fixture(scope="module")
def pipe(model: ResolvedModel) -> Any:
    return model.checkpoint.pipeline()


def module_engines(
    model: ResolvedModel, precision: dict[str, str], text_encoder: bool = False
) -> PipelineEngines:
    names = {"dit": "dit", "vae_first": "vae_decoder_first", "vae_next": "vae_decoder_next"}
    if text_encoder:
        names["text_encoder"] = "text_encoder"
    precisions = {name: precision_of(precision, name) for name in names.values()}
    made = {
        field: component_engine(name, model.checkpoint, precisions[name]) for field, name in names.items()
    }
    return PipelineEngines(checkpoint=model.checkpoint, precision=precisions, **made)


@pytest.fixture(scope="module")
def engines(model: ResolvedModel) -> PipelineEngines:
    return module_engines(model, {"dit": "fp32", "vae": "fp32", "text_encoder": "fp32"}, text_encoder=True)


# engines in the pipeline


def test_a_pipeline_on_engines_makes_the_same_video(
    pipe: Any, engines: PipelineEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    modulated: list[int] = []
    compute = Modulation.__call__
    monkeypatch.setattr(Modulation, "__call__", lambda *at, **by: modulated.append(1) or compute(*at, **by))
    expected = generate(pipe, PROMPT, SMALL, seed=3, keep_latents=True)
    before = {name: getattr(engines, name).runs for name in ("dit", "vae_first", "vae_next", "text_encoder")}
    found = generate(
        swap(pipe, engines),
        PROMPT,
        SMALL,
        seed=3,
        keep_latents=True,
        on_step=lambda *step: steps.append(step),
    )
    assert found.frames.shape == (5, 32, 32, 3)
    assert found.frames.dtype == np.float32
    assert 0 <= found.frames.min() < found.frames.max() <= 1
    assert np.abs(found.frames - expected.frames).max() < 1e-3
    assert len(found.latents) == len(expected.latents) == 2
    for latents, wanted in zip(found.latents, expected.latents, strict=True):
        assert latents.shape == (1, 16, 2, 4, 4)
        assert (latents - wanted).norm() / wanted.norm() < 1e-4
    assert not torch.equal(found.latents[0], found.latents[1])
    assert steps == [(1, 2), (2, 2)]
    ran = {name: getattr(engines, name).runs - count for name, count in before.items()}
    assert ran == {"dit": 4, "vae_first": 1, "vae_next": 1, "text_encoder": 2}
    assert len(modulated) == 2  # once a step, not for each of its calls with and without the prompt


def test_the_callers_pipeline_is_left_as_it_was(pipe: Any, engines: PipelineEngines) -> None:
    components = dict(pipe.components)
    config = dict(pipe.config)
    swapped = swap(pipe, engines)
    generate(swapped, PROMPT, dataclasses.replace(SMALL, num_inference_steps=1, guidance_scale=1.0))
    assert pipe.components == components
    assert dict(pipe.config) == config
    assert swapped.tokenizer is pipe.tokenizer
    assert swapped.transformer is not pipe.transformer
    assert swapped.scheduler is not pipe.scheduler
    assert swapped.scheduler.config == pipe.scheduler.config
    assert swapped.vae_scale_factor_temporal == pipe.vae_scale_factor_temporal == 4
    assert swapped.vae_scale_factor_spatial == pipe.vae_scale_factor_spatial == 8
    assert swapped.device == pipe.device
    assert type(swapped.video_processor) is StagedVideoProcessor
    assert type(pipe.video_processor) is VideoProcessor


def test_what_engines_replace_takes_no_memory_on_the_device(
    model: ResolvedModel, engines: PipelineEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = model.checkpoint.pipeline(device="meta", replaced=REPLACED)
    assert next(pipe.text_encoder.parameters()).is_meta
    swapped = swap(pipe, dataclasses.replace(engines, text_encoder=None), "meta")
    assert {part.device for part in (swapped.transformer, swapped.vae)} == {torch.device("meta")}
    assert swapped.device == torch.device("meta")

    monkeypatch.setattr(type(model.checkpoint), "load", lambda *_: pytest.fail("a whole module was loaded"))
    modulation, _ = get_component("dit").prepare(model.checkpoint, "fp32").sources(torch.device("meta"))
    assert all(parameter.is_meta for parameter in modulation._embedder.parameters())
    assert modulation._tables.is_meta
    names = {name.partition(".")[0] for name, _ in modulation._embedder.named_parameters()}
    assert names == {"time_embedder", "time_proj"}  # what embeds prompts and images is inside the engine


def test_a_half_precision_transformer_beside_a_full_precision_vae(model: ResolvedModel, pipe: Any) -> None:
    swapped = swap(pipe, module_engines(model, {"dit": "fp16", "vae": "fp32"}))
    assert (swapped.transformer.dtype, swapped.vae.dtype) == (torch.float16, torch.float32)
    assert swapped.text_encoder is pipe.text_encoder
    one_step = dataclasses.replace(SMALL, num_inference_steps=1, num_frames=1, guidance_scale=1.0)
    found, expected = generate(swapped, PROMPT, one_step), generate(pipe, PROMPT, one_step)
    assert 0 < np.abs(found.frames - expected.frames).max() < 0.1


def test_the_swapped_modules_return_what_diffusers_does(pipe: Any, engines: PipelineEngines) -> None:
    swapped = swap(pipe, engines)
    call = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 16, pipe.transformer.config.text_dim),
    }
    with torch.no_grad():
        expected = pipe.transformer(**call)
    predicted = swapped.transformer(**call)
    assert type(predicted) is type(expected)
    torch.testing.assert_close(predicted.sample, expected.sample, rtol=1e-4, atol=1e-4)
    assert torch.equal(swapped.transformer(**call, return_dict=False)[0], predicted.sample)
    latents = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents)
    assert type(swapped.vae.decode(latents)) is type(decoded)
    torch.testing.assert_close(swapped.vae.decode(latents).sample, decoded.sample, rtol=1e-4, atol=1e-4)
    assert isinstance(swapped.vae.decode(latents, return_dict=False), tuple)
    video = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        encoded = pipe.vae.encode(video)
    pair = (component_engine(f"vae_encoder_{step}", engines.checkpoint) for step in ("first", "next"))
    encoder = StreamingEncoder(*pair)
    swapped = swap(pipe, dataclasses.replace(engines, vae_encoder=lambda: encoder))
    found = swapped.vae.encode(video)
    assert type(found) is type(encoded)
    for wanted in (encoded.latent_dist.mode(), encoded.latent_dist.mean):
        torch.testing.assert_close(
            retrieve_latents(found, sample_mode="argmax"), wanted, rtol=1e-4, atol=1e-4
        )
    assert torch.equal(swapped.vae.encode(video, return_dict=False)[0].mean, found.latent_dist.mode())
    with pytest.raises(AttributeError, match="'sample': of the VAE's distribution engines compute the mode"):
        retrieve_latents(found)
    assert swapped.vae.config.z_dim == 16


def test_what_an_engine_cannot_do_is_refused(pipe: Any, engines: PipelineEngines) -> None:
    swapped = swap(pipe, engines)
    good = {
        "hidden_states": torch.zeros(1, 16, 2, 4, 4),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.zeros(1, 16, 64),
    }
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: swapped.transformer(**good, encoder_hidden_states_image=torch.zeros(1)), "_image"),
        (lambda: swapped.transformer(**good, attention_kwargs={"scale": 0.5}), r"attention_kwargs \(scale\)"),
        (
            lambda: swapped.transformer(**good | {"hidden_states": torch.zeros(2, 16, 2, 4, 4)}),
            "batch size 2",
        ),
        (lambda: swapped.transformer(**good | {"timestep": torch.zeros(1, 8)}), "timestep has shape"),
        (lambda: swapped.vae.decode(torch.zeros(2, 16, 2, 4, 4)), "z has batch size 2"),
        (lambda: swapped.vae.encode(torch.zeros(1, 3, 5, 32, 32)), "the engines decode"),
        (lambda: swapped.text_encoder(torch.zeros(2, 4).long(), torch.ones(2, 4).long()), "batch size 2"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_with_parts_replaces_what_it_is_told(pipe: Any) -> None:
    replacement = torch.nn.Identity()
    other = with_parts(pipe, transformer=replacement)
    assert other.transformer is replacement
    assert other.vae is pipe.vae
    with pytest.raises(ValueError, match=r"no part 'unet'; it has .*transformer"):
        with_parts(pipe, unet=replacement)


# generation


def test_the_seed_decides(pipe: Any) -> None:
    quick = dataclasses.replace(SMALL, num_inference_steps=1, num_frames=1, guidance_scale=1.0)
    one, again, other = (generate(pipe, PROMPT, quick, seed=seed).frames for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_latents_are_kept_only_when_asked_for(pipe: Any) -> None:
    quick = dataclasses.replace(SMALL, num_inference_steps=1, num_frames=1, guidance_scale=1.0)
    assert generate(pipe, PROMPT, quick).latents == ()


def test_the_pipelines_progress_bar_is_off_and_restored(
    pipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = dataclasses.replace(SMALL, num_inference_steps=1, num_frames=1, guidance_scale=1.0)
    pipe.set_progress_bar_config(desc="mine")
    generate(pipe, PROMPT, quick)
    assert "%" not in capsys.readouterr().err
    assert pipe._progress_bar_config == {"desc": "mine"}
    pipe.set_progress_bar_config()


def test_a_prompt_that_is_too_long_is_told(model: ResolvedModel, caplog: pytest.LogCaptureFixture) -> None:
    """With the words that the pipeline leaves out."""
    tokenizer = model.checkpoint.tokenizer()
    kept = tokenizer(PROMPT, max_length=4, truncation=True).input_ids
    assert tokenizer.decode(kept, skip_special_tokens=True) == "a small red"
    with caplog.at_level(logging.WARNING):
        tell_what_is_cut(model.checkpoint, 4, "red", PROMPT)
    assert "the negative prompt has 7 tokens; only the first 4 count" in caplog.text
    assert caplog.text.strip().endswith("which leaves out: square moves left") and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("prompt", "changes", "seed", "message"),
    [
        ("", {}, 0, "the prompt is empty"),
        (" \n", {}, 0, "the prompt is empty"),
        (PROMPT, {"height": 40}, 0, "height must be a positive multiple of 16"),
        (PROMPT, {"width": 0}, 0, "width must be a positive multiple of 16"),
        (PROMPT, {"num_frames": 8}, 0, r"frames must be 4k\+1"),
        (PROMPT, {"num_inference_steps": 0}, 0, "num_inference_steps must be positive"),
        (PROMPT, {"max_sequence_length": 0}, 0, "text_length must be positive"),
        (PROMPT, {"guidance_scale_2": 3.0}, 0, r"guidance_scale_2 \(3\) is that of a second expert"),
        (PROMPT, {}, -1, "the seed must be from 0 to"),
        (PROMPT, {}, 2**64, "the seed must be from 0 to"),
        (PROMPT, {"guidance_scale": float("inf")}, 0, "guidance_scale must be finite, not inf"),
        (PROMPT, {"guidance_scale_2": float("nan")}, 0, "guidance_scale_2 "),
    ],
)
def test_what_cannot_be_generated_is_told_before_any_work(
    prompt: str, changes: dict[str, Any], seed: int, message: str, pipe: Any
) -> None:
    with pytest.raises(GenerationError, match=message):
        check_request(prompt, dataclasses.replace(SMALL, **changes), seed)
    with pytest.raises(GenerationError, match=message):
        generate(SimpleNamespace(vae=pipe.vae), prompt, dataclasses.replace(SMALL, **changes), seed)  # type: ignore[arg-type]


def test_a_size_must_suit_the_model_s_latents() -> None:
    with pytest.raises(GenerationError, match="width must be a positive multiple of 32 pixels, not 48"):
        check_request(PROMPT, dataclasses.replace(SMALL, width=48), spatial=16)


# from a name to an engine


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(cache=tmp_path_factory.mktemp("cache"), threads=1, export={"check": False})


class Phases:
    """Collects the phases that it is told of; interrupts at one when asked to, as Ctrl-C would."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.seen: list[str] = []
        self.interrupt_at = interrupt_at

    def __call__(self, phase: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        self.seen.append(phase)
        if self.interrupt_at is not None and self.interrupt_at in phase:
            raise KeyboardInterrupt


def load(model: ResolvedModel, settings: Settings, **keywords: Any) -> Any:
    return load_engine("text_encoder", model, PROFILE, "fp32", "onnxruntime", settings, **keywords)


def leftovers(settings: Settings) -> list[str]:
    return [file.name for file in (settings.cache / "tmp").glob("*")]


def test_an_engine_is_made_once_and_survives_interruptions(
    model: ResolvedModel, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """In one test, since each stage goes on from what the last one left in the cache."""
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C in the export
        load(model, settings, progress=Phases("convert"))
    assert leftovers(settings) == []
    assert list((settings.cache / "onnx").glob("*")) == []

    with pytest.raises(KeyboardInterrupt):  # Ctrl-C in the build: what was exported stays
        load(model, settings, progress=Phases("build text_encoder fp32: optimise"))
    assert leftovers(settings) == []

    phases = Phases()
    engine = load(model, settings, progress=phases)
    assert set(phases.seen) == {"build text_encoder fp32: optimise"}
    component = get_component("text_encoder")
    call = component.call_tensors(model.checkpoint, SIZES)
    with torch.no_grad():
        expected = component.reference(model.checkpoint, "fp32")(call)["last_hidden_state"]
    found = engine.run(component.prepare(model.checkpoint, "fp32")(call))["last_hidden_state"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    phases = Phases()
    load(model, settings, progress=phases)
    assert phases.seen == []

    (graph,) = (settings.cache / "engines").glob("*/text_encoder_fp32.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    phases = Phases()
    load(model, settings, progress=phases)
    assert set(phases.seen) == {"build text_encoder fp32: optimise"}
    assert "corrupted: text_encoder_fp32.onnx differs" in caplog.text

    onnx = exported_model("text_encoder", model, PROFILE, "fp32", "onnxruntime", settings)
    assert onnx.path.is_file()
    assert (onnx.component, onnx.precision, onnx.profile) == ("text_encoder", "fp32", "tiny")
    assert onnx.shapes == onnx.opt_shapes
    assert onnx.shapes["input_ids"] == {"min": (1, 16), "opt": (1, 16), "max": (1, 16)}
    assert onnx.outputs == ("last_hidden_state",)


def test_what_pytorch_only_keeps_is_given_back_before_an_engine_takes_memory(
    model: ResolvedModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that made room for engines leave theirs with PyTorch's allocator, past which engines and builders ask."""
    order: list[str] = []
    backend = get_backend("onnxruntime")
    for name in ("build", "load"):
        original = getattr(backend, name)

        def noted(*given: Any, name: str = name, original: Any = original, **keywords: Any) -> Any:
            order.append(name)
            return original(*given, **keywords)

        monkeypatch.setattr(backend, name, noted)
    load(model, settings)  # so that nothing is exported once there seems to be a GPU
    order.clear()
    for name in ("is_available", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("given back"))
    load(
        model,
        settings.model_copy(update={"onnxruntime": OnnxRuntimeSettings(graph_optimization_level="basic")}),
    )
    assert order == ["given back", "build", "given back", "load"]


class Noting(EngineBackend):
    """Notes by which settings it is told to work."""

    name = "noting"

    def __init__(self) -> None:
        self.told: list[Settings] = []

    def require(self, settings: Settings) -> None: ...

    def versions(self) -> dict[str, str]:
        return {}

    def device(self, settings: Settings) -> str:
        return "none"

    def options(self, settings: Settings, precision: str) -> dict[str, Any]:
        self.told.append(settings)
        return {"tf32": settings.perf.allow_tf32, "tactics": settings.tensorrt.max_tactics}

    def build(self, model: Any, folder: Path, settings: Settings, progress: Any = None) -> dict[str, Any]:
        self.told.append(settings)
        return {}

    def load(self, folder: Path, settings: Settings) -> Any:
        self.told.append(settings)
        return SimpleNamespace(close=lambda: None)


def told_of(
    component: str, model: ResolvedModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> list[Settings]:
    """By which settings an engine is built, loaded and asked for, when nothing is exported."""
    backend = Noting()
    monkeypatch.setattr(engines_module, "exported_model", lambda *_, **__: SimpleNamespace(sha256=""))
    for lookup in ("engine_backend", "get_backend"):
        monkeypatch.setattr(engines_module, lookup, lambda name: backend)
    made = (component, model, PROFILE, "fp32", backend.name, settings)
    load_engine(*made)
    assert engines_module.cached_facts(*made) is not None, "it is the engine that was built"
    return backend.told


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(None, {*VAE_DECODER, *VAE_ENCODER}), (True, {*component_names()}), (False, set())],
)
def test_tf32_is_where_pytorch_has_it_unless_it_is_given(
    model: ResolvedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: bool | None,
    allowed: set[str],
) -> None:
    """In convolutions, PyTorch's own default, for whoever builds an engine, loads it or asks what is known of it."""
    settings = with_values(Settings(cache=tmp_path), {"perf.allow_tf32": given})
    for component in ("dit", "text_encoder", *VAE_DECODER, *VAE_ENCODER):
        told = told_of(component, model, settings, monkeypatch)
        assert {one.perf.allow_tf32 for one in told} == {component in allowed}


@pytest.mark.parametrize(
    ("named", "limited"),
    [
        (None, {"dit", "text_encoder", *VAE_DECODER, *VAE_ENCODER}),
        (["vae"], {*VAE_DECODER, *VAE_ENCODER}),
        (["dit", "vae_decoder_next"], {"dit", "vae_decoder_next"}),
    ],
)
def test_a_builder_is_limited_for_the_components_that_are_named(
    model: ResolvedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: list[str] | None,
    limited: set[str],
) -> None:
    values = {"tensorrt.workspace_gib": 8, "tensorrt.max_tactics": 16, "tensorrt.limited_components": named}
    settings = with_values(Settings(cache=tmp_path), values)
    for component in ("dit", "text_encoder", *VAE_DECODER, *VAE_ENCODER):
        told = {
            (one.tensorrt.workspace_gib, one.tensorrt.max_tactics)
            for one in told_of(component, model, settings, monkeypatch)
        }
        assert told == {(8, 16) if component in limited else (None, None)}
    misspelt = with_values(settings, {"tensorrt.limited_components": ["vea"]})
    with pytest.raises(ConfigError, match=r"limited_components names vea; there are dit, .*vae"):
        load_engine("dit", model, PROFILE, "fp32", "onnxruntime", misspelt)


def test_an_engine_that_was_built_just_now_is_loaded_without_another_look(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At gigabytes of hashes. Whoever loads it later looks again."""
    backend, looks, missing, original = Noting(), list[str](), list[None](), EngineCache.get_or_make
    monkeypatch.setattr(engines_module, "exported_model", lambda *_, **__: SimpleNamespace(sha256=""))
    monkeypatch.setattr(engines_module, "engine_backend", lambda _: backend)

    def look(cache: EngineCache, kind: Any, *given: Any) -> Any:
        looks.append(kind)
        return original(cache, kind, *given)

    monkeypatch.setattr(EngineCache, "get_or_make", look)
    made = ("dit", model, PROFILE, "fp32", backend.name)
    for _ in range(2):
        with EngineStore(Settings(cache=tmp_path)) as store:
            for _ in range(2):
                store.build(*made, missing=lambda: missing.append(None))
            store.load(*made)
            store.build(*made)
            assert len(looks) == 1
            store.load(*made, block_outputs=True)
            assert len(looks) == 2
        looks.clear()
    assert len(missing) == 1, "told where it is made alone"


@pytest.mark.parametrize("damage", [lambda plan: plan.write_bytes(b"broken"), lambda plan: plan.unlink()])
def test_an_engine_that_takes_turns_is_looked_at_again_only_where_its_files_changed(
    damage: Callable[[Path], object], model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes as long as a load, and there is one in each video. What is damaged meanwhile is made again."""

    class Writing(Noting):
        def build(self, model: Any, folder: Path, *_: Any) -> dict[str, Any]:
            (folder / "plan").write_bytes(b"engine")
            return {}

        def load(self, folder: Path, settings: Settings) -> Any:
            plans.append(folder / "plan")
            assert plans[-1].read_bytes() == b"engine"
            of_engine = {"inputs": {}, "outputs": {}, "problems": (), "working": 0}
            return SimpleNamespace(**of_engine, memory=dict, close=lambda: None)

    plans, hashed, original = list[Path](), list[Path](), engine_cache.file_sha256
    monkeypatch.setattr(engine_cache, "file_sha256", lambda path: (hashed.append(path), original(path))[1])
    monkeypatch.setattr(engines_module, "exported_model", lambda *_, **__: SimpleNamespace(sha256=""))
    backend = Writing()
    monkeypatch.setattr(engines_module, "engine_backend", lambda _: backend)
    settings = Settings(cache=tmp_path, pipeline=PipelineSettings(offload=True))
    made = ("dit", model, PROFILE, "fp32", backend.name)
    with EngineStore(settings) as store:
        store.build(*made)
        engine = store.load(*made)
        assert isinstance(engine, OffloadedEngine)
        for _ in range(2):
            engine.release()
            engine.bring()
        assert (len(plans), len(hashed)) == (3, 1)
        damage(plans[-1])
        engine.release()
        engine.bring()
        assert (len(plans), {*plans}) == (4, {plans[0]}) and len(hashed) > 1


def test_what_an_export_loads_is_let_go(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 14B's transformer would lie in host memory beside its build, and the second expert's beside the first's."""
    opened, loaded = resolve(str(small_checkpoint)), list[weakref.ref[Any]]()
    kept = opened.checkpoint.load("vae")

    def export(
        part: Any, checkpoint: Any, profile: Any, precision: str, folder: Path, *_: Any, **__: Any
    ) -> Any:
        loaded.append(weakref.ref(checkpoint.load(part.part, precision)))
        return OnnxModel(part.name, precision, folder / "file.onnx", "", profile.name, {}, {}, (), ())

    monkeypatch.setattr("wan_trt_core.export.exporter.export_component", export)
    for name in ("dit", "vae_decoder_next"):
        made = (name, opened, PROFILE, "fp32", "onnxruntime", Settings(cache=tmp_path))
        assert exported_model(*made).component == name
    transformer, vae = loaded
    assert transformer() is None and vae() is kept, "what was there before stays"
    assert opened.checkpoint.load("vae") is kept


@pytest.mark.parametrize(
    ("name", "text_encoder"), [("tiny-wan2.1-i2v", True), ("tiny-wan2.2-t2v-a14b", False)]
)
def test_all_engines_are_built_before_anything_is_loaded(
    name: str, text_encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever holds memory of a GPU then, a builder leaves out the kernels that need it, for ever: the engine is
    cached."""
    model, done, settings = resolve(name, text_encoder=True), list[tuple[str, str]](), Settings(device="cpu")

    def load(component: str, *given: Any, entry: Any, **_: Any) -> ModuleEngine:
        assert entry.folder == component
        done.append(("load", component))
        return component_engine(component, model.checkpoint)

    def build(component: str, *_: Any, **__: Any) -> Any:
        done.append(("build", component))
        return SimpleNamespace(folder=component, unchanged=lambda: True)

    def fresh(part: str, *given: Any) -> Any:
        done.append(("load", part))
        return fresh_module(part, *given)

    fresh_module = model.checkpoint.fresh
    monkeypatch.setattr(model.checkpoint, "fresh", fresh)
    monkeypatch.setattr(engines_module, "load_engine", load)
    monkeypatch.setattr(engines_module, "built_engine", build)
    with EngineStore(settings) as store:
        made = (model, model.profile(), "fp32", "torch", store, settings, "cpu")
        pipe = on_engines(*made, text_encoder=text_encoder)
        of_image = model.checkpoint.begins_with_image
        if of_image:
            pipe.vae.encode(torch.zeros(1, 3, 5, 32, 32))
    built = [
        "dit",
        *(() if of_image else ("dit_2",)),
        *VAE_DECODER,
        *(("text_encoder",) if text_encoder else ()),
    ]
    built += VAE_ENCODER if of_image else ()
    assert done[: len(built)] == [("build", name) for name in built]
    assert {what for what, _ in done[len(built) :]} == {"load"}
    assert {*built} <= {name for _, name in done[len(built) :]}


def test_the_store_loads_each_engine_once(
    model: ResolvedModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str, bool]] = []

    def fake(component: str, *args: Any, block_outputs: bool = False, **_: Any) -> ModuleEngine:
        loaded.append((component, args[2], block_outputs))
        return component_engine(component, model.checkpoint, args[2])

    monkeypatch.setattr(engines_module, "load_engine", fake)
    monkeypatch.setattr(EngineStore, "build", lambda *_, **__: None)
    with EngineStore(settings) as store:
        whole = store.pipeline(model, PROFILE, {"dit": "fp16", "vae": "fp32"}, "onnxruntime")
        decoder = store.vae_decoder(model, PROFILE, "fp32", "onnxruntime")
        assert decoder.engines == (whole.vae_first, whole.vae_next)
        assert whole.text_encoder is None
        assert whole.precision == {"dit": "fp16", "vae_decoder_first": "fp32", "vae_decoder_next": "fp32"}
        again = store.load("dit", model, PROFILE, "fp16", "onnxruntime")
        assert again is whole.dit
        assert store.load("dit", model, PROFILE, "fp16", "onnxruntime", block_outputs=True) is not again
        other = dataclasses.replace(PROFILE, max=SIZES)
        assert store.load("dit", model, other, "fp16", "onnxruntime") is not again
    assert loaded == [
        ("dit", "fp16", False),
        ("vae_decoder_first", "fp32", False),
        ("vae_decoder_next", "fp32", False),
        ("dit", "fp16", True),
        ("dit", "fp16", False),
    ]
    assert whole.dit.closed  # type: ignore[attr-defined]


def test_precision_of_a_component() -> None:
    both = {"dit": "fp16", "vae": "fp32"}
    assert precision_of("fp16", "dit") == "fp16"
    assert precision_of(both, "vae_decoder_next") == "fp32"
    assert precision_of({"vae": "fp32", "vae_decoder_next": "fp16"}, "vae_decoder_next") == "fp16"
    with pytest.raises(ValueError, match="precision names dit, vae, but not text_encoder"):
        precision_of(both, "text_encoder")
    with pytest.raises(ValueError, match=r"names dit, but not vae_decoder_first \(nor vae\)"):
        precision_of({"dit": "fp16"}, "vae_decoder_first")


def test_the_identity_of_an_export_covers_what_it_depends_on(
    model: ResolvedModel, settings: Settings
) -> None:
    def identity(
        component: str = "dit",
        profile: ShapeProfile = PROFILE,
        precision: str = "fp32",
        backend: str = "onnxruntime",
        **changes: Any,
    ) -> Any:
        chosen = settings.model_copy(update=changes.pop("settings", {}))
        return engines_module.onnx_identity(component, model, profile, precision, backend, chosen, **changes)

    base = identity()
    assert identity() == base
    larger = dataclasses.replace(PROFILE, max=Sizes(64, 64, 9, 16))
    export = settings.export.model_copy(update={"opset": 21})
    for other in (
        identity("vae_decoder_first"),
        identity(profile=larger),
        identity(precision="fp16"),
        identity(block_outputs=True),
        identity(settings={"export": export}),
    ):
        assert other != base
    assert identity(settings={"threads": 2}) == base
    longer = ShapeProfile("tiny-9f", *(dataclasses.replace(sizes, frames=9) for sizes in (PROFILE.opt,) * 3))
    short = dataclasses.replace(longer, name="tiny-5f", opt=PROFILE.opt)
    assert identity("vae_decoder_next", longer) == identity("vae_decoder_next", short)
    for form in ("bf16", "centred", "plain"):
        chosen = {"tensorrt": settings.tensorrt.model_copy(update={"self_attention": form})}
        other = identity(precision="fp16", backend="tensorrt", settings=chosen) != identity(precision="fp16")
        assert other == (form != "plain"), "another graph"
        assert identity(backend="tensorrt", settings=chosen) == base, "only in FP16"
        assert identity(precision="fp16", settings=chosen) == identity(precision="fp16"), "only of TensorRT"
    assert identity(profile=longer) != identity(profile=short)
    assert {"torch", "onnx", "diffusers"} <= set(base["versions"])


def test_an_engine_is_known_by_what_built_it_and_not_by_what_runs_it(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engines_module.EngineCache, "facts", lambda _, kind, identity: asked.append(identity))
    runs = get_backend("onnxruntime")
    monkeypatch.setattr(runs, "versions", lambda: {"builder": "1", "runner": "1"})
    monkeypatch.setattr(runs, "built_by", lambda: {"builder": "1"})
    (tmp_path / "engines" / "one").mkdir(parents=True)
    engines_module.cached_facts(
        "text_encoder", model, PROFILE, "fp32", "onnxruntime", Settings(cache=tmp_path)
    )
    assert [identity["versions"] for identity in asked] == [{"builder": "1"}]


def test_attention_among_many_tokens_is_in_bf16_unless_told_otherwise() -> None:
    wan = resolve("wan2.1-t2v-1.3b")

    def of(profile: ShapeProfile, asked: Any, backend: str, name: str) -> Any:
        settings = Settings(tensorrt=TensorRtSettings(self_attention=asked))
        component: Any = engines_module.form_of(name, profile, backend, settings)
        return component.self_attention

    def attention(profile: str, asked: Any = "auto", backend: str = "tensorrt", name: str = "dit") -> Any:
        return of(wan.profile(profile), asked, backend, name)

    assert [attention("480p-17f"), attention("480p-81f")] == ["centred", "bf16"]
    few, many = wan.profile("480p-17f").opt, wan.profile("480p-81f").opt
    assert of(ShapeProfile("up to many", few, few, many), "auto", "tensorrt", "dit") == "bf16"
    for asked in ("plain", "centred", "bf16"):
        assert attention("480p-81f", asked, name="dit_2") == asked
        assert [attention("480p-17f", asked), attention("480p-81f", asked)] == [asked, asked]
        assert attention("480p-81f", asked, "onnxruntime") == "plain", "a CPU sums in float32"
    larger_latents = resolve("wan2.2-ti2v-5b").profile("704p-121f").opt
    assert Dit().tokens(wan.profile("480p-81f").opt) == 32_760
    assert Dit().tokens(larger_latents) == 27_280, "of 32x32 pixels each"


def test_the_identity_covers_the_source_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models", "export", "report"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.py").write_text("a = 1\n")
    monkeypatch.setattr(engines_module.wan_trt_core, "__file__", str(tmp_path / "__init__.py"))
    before = engines_module.sources_sha256()
    (tmp_path / "report" / "file.py").write_text("a = 2\n")
    assert engines_module.sources_sha256() == before
    (tmp_path / "export" / "file.py").write_text("a = 2\n")
    assert engines_module.sources_sha256() != before


def test_what_has_no_engine_is_told(
    model: ResolvedModel, settings: Settings, tiny_wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(
        component: str = "dit", precision: str = "fp32", backend: str = "onnxruntime", **changes: Any
    ) -> None:
        load_engine(component, model, PROFILE, precision, backend, settings.model_copy(update=changes))

    with pytest.raises(UnknownBackend, match="no backend 'rocket'"):
        attempt(backend="rocket")
    with pytest.raises(EngineError, match="the backend torch runs PyTorch modules and has no engines"):
        attempt(backend="torch")
    with pytest.raises(ComponentError, match="no component 'unet'"):
        attempt("unet")
    with pytest.raises(ComponentError):
        attempt(precision="int3")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["RocketExecutionProvider"])
    with pytest.raises(
        BackendUnavailable, match="has no CPUExecutionProvider; it has RocketExecutionProvider"
    ):
        attempt()
    assert leftovers(settings) == []


def test_importing_the_engines_imports_no_diffusers() -> None:
    code = (
        "import sys, wan_trt_core.pipeline.engines, wan_trt_core.pipeline.generate;"
        "import wan_trt_core.pipeline.video;"
        "assert not {'diffusers', 'transformers', 'onnx', 'onnxruntime', 'av'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("dit", ["fp32", "fp16"])
def test_onnx_runtime_makes_the_video_that_diffusers_makes(
    model: ResolvedModel, pipe: Any, settings: Settings, dit: str
) -> None:
    with EngineStore(settings) as store:
        loaded = store.pipeline(model, PROFILE, {"dit": dit, "vae": "fp32"}, "onnxruntime")
        found = generate(swap(pipe, loaded), PROMPT, SMALL, keep_latents=True)
        expected = generate(pipe, PROMPT, SMALL, keep_latents=True)
        assert np.abs(found.frames - expected.frames).max() < (1e-3 if dit == "fp32" else 0.1)
        decoder = store.vae_decoder(model, PROFILE, "fp32", "onnxruntime")
        assert sum(frames.shape[2] for frames in decoder.decode_steps(torch.randn(1, 16, 40, 4, 4))) == 157
