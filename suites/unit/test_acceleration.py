"""``wan_trt_core.accelerate`` and ``restore``: a user's own pipeline on engines, compared with stock diffusers."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wan22
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import DDIMScheduler, WanPipeline, WanVideoToVideoPipeline
from diffusers.hooks import apply_layerwise_casting
from module_engine import Loads, ModuleEngine

import wan_trt_core
from wan_trt_core import accelerating
from wan_trt_core.backends.base import EngineBackend, EngineError
from wan_trt_core.backends.registry import get_backend, tell_idle_gpu
from wan_trt_core.comparison.targets import Arm, Outputs
from wan_trt_core.config import PipelineSettings, Settings, load_settings
from wan_trt_core.models import loaded as loaded_module
from wan_trt_core.models.catalogue import CatalogueError, ResolvedModel, resolve, resolve_loaded
from wan_trt_core.models.checkpoint import Checkpoint, torch_dtype
from wan_trt_core.models.components import ComponentError
from wan_trt_core.models.loaded import LoadedCheckpoint
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.pipeline import acceleration
from wan_trt_core.pipeline import offload as offload_module
from wan_trt_core.pipeline.acceleration import AcceleratedTransformer, AcceleratedVAE, originals
from wan_trt_core.pipeline.compatibility import IncompatiblePipeline
from wan_trt_core.pipeline.engines import EngineStore, load_engine
from wan_trt_core.pipeline.parts import UnsupportedCall

PROMPT = "a small red square moves left"
SMALL = Sizes(32, 32, 5, 16)
PROFILE = ShapeProfile("tiny", SMALL, SMALL, SMALL)
SHORT = ShapeProfile("short", SMALL, SMALL, SMALL)
LONG = ShapeProfile("long", SMALL, Sizes(64, 64, 9, 16), Sizes(64, 64, 9, 16))
CALL = {
    "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0,
    "max_sequence_length": 16,
}  # fmt: skip


def loaded(folder: Path, **keywords: Any) -> Any:
    pipe = WanPipeline.from_pretrained(folder, **keywords)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_profiles(*profiles: ShapeProfile) -> Callable[[Checkpoint], ResolvedModel]:
    """What finds these of any checkpoint."""

    def resolved(checkpoint: Checkpoint) -> ResolvedModel:
        return replace(resolve_loaded(checkpoint), profiles={profile.name: profile for profile in profiles})

    return resolved


@pytest.fixture
def pipe(small_checkpoint: Path) -> Any:
    """A pipeline that a test may change."""
    return loaded(small_checkpoint)


def video(pipe: Any, **changes: Any) -> np.ndarray[Any, Any]:
    frames: np.ndarray[Any, Any] = pipe(
        PROMPT, generator=torch.Generator().manual_seed(5), **{**CALL, **changes}
    ).frames
    return frames[0] if len(frames) == 1 else frames


def close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float = 1e-4) -> bool:
    return found.shape == expected.shape and float(np.abs(found - expected).max()) < tolerance


def offloaded_by_leaves(pipe: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does. Itself it names a CPU cpu:0, where accelerate's hooks fail for stock
    diffusers too."""
    pipe.remove_all_hooks()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))


def test_what_is_cut_of_a_prompt_is_told(
    pipe: Any, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Diffusers cuts without a word. Just in time nothing is built before a video."""

    def cut(**asked: Any) -> list[str]:
        caplog.clear()
        pipe.encode_prompt(**asked, max_sequence_length=4)
        return [record.getMessage() for record in caplog.records if "which leaves out" in record.getMessage()]

    own = pipe.encode_prompt
    assert cut(prompt=PROMPT) == []
    wan_trt_core.accelerate(pipe, "jit", backend="onnxruntime", settings=settings)
    told = "the {} has 7 tokens; only the first 4 count (max_sequence_length), which leaves out: square moves left"
    assert cut(prompt=PROMPT, negative_prompt="red") == [told.format("prompt")]
    assert cut(prompt=["red", PROMPT], negative_prompt=[PROMPT, "red"]) == [
        told.format("prompt"),
        told.format("negative prompt"),
    ]
    assert cut(prompt=None, prompt_embeds=torch.zeros(1, 4, 8), do_classifier_free_guidance=False) == []
    wan_trt_core.restore(pipe)
    assert pipe.encode_prompt == own
    pipe.encode_prompt = theirs = lambda *args, **kwargs: own(*args, **kwargs)
    wan_trt_core.accelerate(pipe, "jit", backend="onnxruntime", settings=settings)
    wan_trt_core.restore(pipe)
    assert pipe.encode_prompt is theirs


OFFLOADS: dict[str, Callable[[Any], None]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": offloaded_by_leaves,
    "blocks": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1),
    "leaves": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
}
"""The ways of diffusers, on a device that every machine has."""


# the two lines


def test_two_lines_make_the_same_video_on_engines(
    tiny_wan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With real engines, in the user's own cache, where the suites look too; the tests below have stand-ins."""
    pipe, least = loaded(tiny_wan_folder), resolve("tiny-wan").profile().min
    size: dict[str, Any] = {
        "height": least.height, "width": least.width, "num_frames": least.frames,
        "max_sequence_length": least.text_length,
    }  # fmt: skip
    stock = {guidance: video(pipe, guidance_scale=guidance, **size) for guidance in (3.0, 1.0)}
    assert (
        wan_trt_core.accelerate(pipe, profile="128p-17f", settings=load_settings(environ={}).settings) is pipe
    )
    with caplog.at_level(logging.WARNING), never_run(originals(pipe)):
        for guidance, expected in stock.items():
            assert close(video(pipe, guidance_scale=guidance, **size), expected)
    assert "instead of an engine" not in caplog.text
    wan_trt_core.restore(pipe)
    for guidance, before in stock.items():
        assert np.array_equal(video(pipe, guidance_scale=guidance, **size), before)


def test_in_half_precision_they_are_as_near_to_float32_as_stock(tiny_wan_folder: Path) -> None:
    """The two lines as the README has them, with real engines too; a VAE in half precision gets one in float32."""
    least = resolve("tiny-wan").profile().min
    size: dict[str, Any] = {
        "height": least.height, "width": least.width, "num_frames": least.frames,
        "max_sequence_length": least.text_length,
    }  # fmt: skip
    exact = video(loaded(tiny_wan_folder), **size)
    pipe = loaded(tiny_wan_folder, dtype=torch.float16)
    stock = video(pipe, **size)
    wan_trt_core.accelerate(pipe, profile="128p-17f", settings=load_settings(environ={}).settings)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)
    with never_run(originals(pipe)):
        found = video(pipe, **size)
    lost, allowed = (float(np.square(each - exact).mean()) ** 0.5 for each in (found, stock))
    assert 0 < lost < 1.2 * allowed, (lost, allowed)


def test_a_text_encoder_on_an_engine_gives_the_same_states_and_video(
    tiny_wan_folder: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real engine beside stand-ins of the others, from the user's own cache as above."""
    make = {"text_encoder": load_engine}
    monkeypatch.setattr(
        "wan_trt_core.pipeline.engines.load_engine",
        lambda name, *given, **more: make.get(name, loads)(name, *given, **more),
    )
    pipe = loaded(tiny_wan_folder)

    def made() -> tuple[list[torch.Tensor], Any]:
        with torch.no_grad():
            return list(pipe.encode_prompt(PROMPT, "a circle", max_sequence_length=32)), video(
                pipe, max_sequence_length=32
            )

    encoder, (states, frames) = pipe.text_encoder, made()
    settings = load_settings(environ={}).settings
    wan_trt_core.accelerate(pipe, profile="128p-17f", settings=settings, text_encoder=True)
    with never_run(originals(pipe)):
        found, video_found = made()
    torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found[0], states[0]) and close(video_found, frames)
    wan_trt_core.restore(pipe)
    assert pipe.text_encoder is encoder and torch.equal(made()[0][0], states[0])


@contextmanager
def never_run(modules: dict[str, Any]) -> Iterator[None]:
    """Fails where one of the modules runs meanwhile."""
    with Arm(Outputs, forbidden=lambda: modules).watched() as ran:
        yield
    assert not ran


def test_importing_the_package_imports_no_pytorch() -> None:
    code = (
        "import sys, wan_trt_core; early = 'torch' in sys.modules; wan_trt_core.accelerate;"
        " print(early, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'accelerat'"):
        wan_trt_core.accelerat  # noqa: B018


# what stays as it is


def test_a_callback_gets_the_latents_of_each_step(pipe: Any, settings: Settings, loads: Loads) -> None:
    def trajectory(keep: Callable[[torch.Tensor], torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        seen: list[torch.Tensor] = []

        def after(passed: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            assert passed is pipe and len(seen) == step
            seen.append(tensors["latents"].clone())
            return {"latents": keep(tensors["latents"])}

        return seen, video(pipe, callback_on_step_end=after)

    stock = [trajectory(keep) for keep in (torch.clone, torch.zeros_like)]
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    for keep, (latents, frames) in zip((torch.clone, torch.zeros_like), stock, strict=True):
        found, made = trajectory(keep)
        for ours, theirs in zip(found, latents, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert close(made, frames)
    assert not close(stock[0][1], stock[1][1])
    assert loads.runs() > 0


def test_all_but_the_two_modules_stays(pipe: Any, settings: Settings, loads: Loads) -> None:
    before = dict(pipe.components)
    config, device = dict(pipe.config), pipe._execution_device
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert type(pipe) is WanPipeline and pipe._execution_device == device
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert isinstance(pipe.transformer, AcceleratedTransformer) and isinstance(pipe.vae, AcceleratedVAE)
    assert all(pipe.components[name] is before[name] for name in ("text_encoder", "tokenizer"))
    assert pipe.transformer.config is before["transformer"].config
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.float32, torch.float32)
    pipe.scheduler = before["scheduler"]
    wan_trt_core.restore(pipe)
    assert pipe.components == before and dict(pipe.config) == config


@pytest.mark.parametrize(("text_encoder", "experts"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("way", OFFLOADS)
def test_what_stays_can_be_offloaded_afterwards(
    way: str, text_encoder: bool, experts: int, pipe: Any, settings: Settings, loads: Loads
) -> None:
    if experts == 2:
        pipe.register_modules(transformer_2=deepcopy(pipe.transformer))
        pipe.register_to_config(boundary_ratio=0.95)
    stock, components = video(pipe), dict(pipe.components)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings, text_encoder=text_encoder)
    OFFLOADS[way](pipe)
    with never_run(originals(pipe)):
        for _ in range(2):  # model offload puts its hooks on anew after each video
            assert close(video(pipe), stock)
            if way == "model":  # diffusers itself cannot move the weights of the others
                pipe.to("cpu")
    assert experts == 1 or pipe.transformer_2.acceleration.part("transformer_2", SMALL)._engine.runs
    wan_trt_core.restore(pipe)
    assert pipe.components == components
    if way != "model":  # which goes on of itself, as the test below shows
        OFFLOADS[way](pipe)
    assert close(video(pipe), stock)


def test_model_offload_is_put_on_as_its_refusal_says(pipe: Any, settings: Settings, loads: Loads) -> None:
    def one_after_the_other() -> list[Any]:
        """Each module with the one that it sends to the host when it begins."""
        parts = [pipe.text_encoder, pipe.transformer, pipe.vae]
        before = [part._hf_hook.prev_module_hook for part in parts]
        return [(part, hook and hook.model) for part, hook in zip(parts, before, strict=True)]

    stock = video(pipe)
    for _ in range(2):
        pipe.enable_model_cpu_offload(device="cpu")
        chain = one_after_the_other()
        for _ in range(2):  # also of one that is accelerated, which is restored first
            with pytest.raises(
                IncompatiblePipeline, match=r"transformer: accelerate's CpuOffload .*pipe\.remove_all_hooks"
            ):
                wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
            assert one_after_the_other() == chain
            pipe.remove_all_hooks()
            wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
            pipe.enable_model_cpu_offload(device="cpu")
            parts = pipe.text_encoder, pipe.transformer, pipe.vae
            assert one_after_the_other() == list(zip(parts, (None, *parts), strict=False))
            assert close(video(pipe), stock)
        wan_trt_core.restore(pipe)
        assert one_after_the_other() == chain, "what comes back is offloaded as it was"
        assert close(video(pipe), stock)
        pipe.remove_all_hooks()


def test_a_copy_is_refused_with_the_way_to_one(pipe: Any, settings: Settings, loads: Loads) -> None:
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    with pytest.raises(TypeError, match=r"the pipeline's \w+ stands for engines.*restore\(pipe\) first"):
        deepcopy(pipe)
    assert close(video(deepcopy(wan_trt_core.restore(pipe))), video(pipe))


def test_what_an_engine_has_not_says_what_to_do(pipe: Any, settings: Settings, loads: Loads) -> None:
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    for part, name in ((pipe.transformer, "load_lora_adapter"), (pipe.vae, "enable_tiling")):
        with pytest.raises(AttributeError, match=rf"'{name}': engines are in .*restore\(pipe\)"):
            getattr(part, name)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prompts_of_different_lengths_and_a_tensor_of_them_that_changes(
    pipe: Any, settings: Settings, loads: Loads, mode: Callable[[], Any]
) -> None:
    """The engine has fewer rows of the short prompt than of the long one, in one video and after a change in place."""
    dim, generator = pipe.transformer.config.text_dim, torch.Generator().manual_seed(1)
    long = torch.randn((1, SMALL.text_length, dim), generator=generator)
    short = long.where(torch.arange(SMALL.text_length)[:, None] < 2, 0)

    def videos() -> list[Any]:
        with mode():
            states, others, made = torch.empty_like(long), torch.empty_like(long), []
            for positive, negative in ((short, long), (long, short), (short, short)):
                states.copy_(positive)
                others.copy_(negative)
                given = {"prompt_embeds": states, "negative_prompt_embeds": others, "prompt": None}
                seeded = torch.Generator().manual_seed(5)
                made.append(pipe(generator=seeded, output_type="latent", **{**CALL, **given}).frames)
            return made

    stock = videos()
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    with never_run(originals(pipe)):
        torch.testing.assert_close(videos(), stock, rtol=1e-4, atol=1e-4)
    assert float((stock[0] - stock[1]).abs().max()) > 1e-2


# restore


def test_restoring_is_bit_identical_and_may_be_repeated(pipe: Any, settings: Settings, loads: Loads) -> None:
    stock, modules = video(pipe), (pipe.transformer, pipe.vae)
    assert wan_trt_core.restore(pipe) is pipe
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    first = list(loads.engines)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert len(first) == 3 and all(engine.closed for engine in first)  # replaced by those of the second
    assert not any(engine.closed for engine in loads.engines[3:])
    assert close(video(pipe), stock)
    for _ in range(2):
        wan_trt_core.restore(pipe)
        assert (pipe.transformer, pipe.vae) == modules
        assert all(engine.closed for engine in loads.engines)
    assert np.array_equal(video(pipe), stock)


def test_a_build_that_fails_leaves_the_pipeline_as_it_was(
    pipe: Any, settings: Settings, loads: Loads
) -> None:
    modules = (pipe.transformer, pipe.vae)
    loads.error = EngineError("no")
    with pytest.raises(EngineError, match="no"):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert (pipe.transformer, pipe.vae) == modules


def test_on_a_gpu_diffusers_modules_make_room_for_the_engines(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline on the CPU, engines on a GPU: nothing moves here, and who would have moved where is noted."""
    gpu = torch.device("cuda:0")
    moved: list[tuple[str, str]] = []
    modules = {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder")}
    for name, module in modules.items():
        note = lambda device, *_, name=name, module=module: moved.append((name, str(device))) or module  # noqa: E731
        monkeypatch.setattr(module, "to", note)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**40, 2**40))
    monkeypatch.setattr(accelerating, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(accelerating, "located", lambda device: gpu if "cuda" in str(device) else device)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert pipe.device == pipe._execution_device == gpu
    assert set(moved) == {("transformer", "cpu"), ("vae", "cpu"), ("text_encoder", "cuda:0")}
    moved.clear()
    with pipe.vae.acceleration.in_pytorch("vae", UnsupportedCall("it is asked to")):
        assert moved == [("vae", "cuda:0")]
    moved.clear()
    wan_trt_core.restore(pipe)
    assert set(moved) == {(name, "cpu") for name in modules}  # where each was


def test_a_later_engine_is_made_on_the_gpu_of_the_first(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current GPU is each thread's own: in one that a server starts for a video it is the first."""
    current = [torch.device("cuda:1")]
    made_on: list[str] = []

    @contextmanager
    def device(gpu: torch.device) -> Iterator[None]:
        current.append(gpu)
        yield
        current.pop()

    def load(*given: Any, **keywords: Any) -> Any:
        made_on.append(str(current[-1]))
        return loads(*given, **keywords)

    for name in ("transformer", "vae", "text_encoder"):
        module = getattr(pipe, name)
        monkeypatch.setattr(module, "to", lambda *_, module=module: module)
    monkeypatch.setattr(accelerating, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(accelerating, "located", lambda device: current[-1] if device == "cuda" else device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr("wan_trt_core.pipeline.engines.load_engine", load)

    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert made_on == 3 * ["cuda:1"]
    current[0] = torch.device("cuda:0")
    pipe.vae.acceleration.load("vae", PROFILE)  # as the first video of another size does
    pipe.vae.acceleration._encoder(PROFILE)
    assert set(made_on) == {"cuda:1"} and len(made_on) > 3


@pytest.mark.parametrize("cached", [False, True])
def test_all_engines_are_built_before_any_is_loaded_and_with_nothing_on_the_gpu(
    cached: bool, pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder leaves a GPU for a build alone: where all is cached it stays."""
    done: list[str] = []

    def build(_: EngineStore, component: str, *given: Any, missing: Any = None) -> None:
        if f"build {component}" in done:
            return  # before each is loaded the store looks whether all are there
        if not cached:
            missing()
        done.append(f"build {component}")

    def load(component: str, *given: Any, **more: Any) -> Any:
        done.append(f"load {component}")
        return loads(component, *given, **more)

    def to(device: Any) -> Any:
        done.append(f"text encoder to {device}")
        return pipe.text_encoder

    monkeypatch.setattr(EngineStore, "build", build)
    monkeypatch.setattr("wan_trt_core.pipeline.engines.load_engine", load)
    monkeypatch.setattr(pipe.text_encoder, "to", to)
    monkeypatch.setattr(accelerating, "device_of", lambda *_: "cuda")
    monkeypatch.setattr(accelerating, "located", lambda *_: torch.device("meta"))
    wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    names = ("dit", "vae_decoder_first", "vae_decoder_next")
    expected = [
        *(line for name in names for line in ("text encoder to cpu", f"build {name}")),
        *(f"load {name}" for name in names),
        "text encoder to meta",
    ]
    assert done == [line for line in expected if not (cached and line.endswith("cpu"))]


# profiles and shapes


def test_the_profile_is_the_checkpoint_s_own(tiny_wan_folder: Path, settings: Settings, loads: Loads) -> None:
    pipe = loaded(tiny_wan_folder)
    wan_trt_core.accelerate(pipe, settings=settings)
    assert {name for _, name, _ in loads.asked} == {"128p-17f"}
    with pytest.raises(CatalogueError, match="no profile '480p-81f'; there are 128p-17f"):
        wan_trt_core.accelerate(pipe, profile="480p-81f", settings=settings)


def test_the_profile_serves_the_model_s_own_video(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "resolve_loaded", with_profiles(SHORT, LONG))
    wan_trt_core.accelerate(pipe, settings=settings)
    assert {name for _, name, _ in loads.asked} == {"long"}, "its own video has nine frames"
    wan_trt_core.accelerate(pipe, profile="short", settings=settings)
    assert {name for _, name, _ in loads.asked} == {"long", "short"}
    monkeypatch.setattr(acceleration, "resolve_loaded", with_profiles(SHORT))
    wan_trt_core.accelerate(pipe, settings=settings)
    assert {name for _, name, _ in loads.asked} == {"long", "short"}, "the first, where none serves it"


def test_just_in_time_builds_for_the_first_video_of_any_model(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "resolve_loaded", with_profiles(SHORT, LONG))
    stock = video(pipe)
    wan_trt_core.accelerate(pipe, profile="jit", settings=settings)
    assert not loads.asked
    assert close(video(pipe), stock)
    assert {name for _, name, _ in loads.asked} == {"32x32-5f"}


def test_without_a_profile_the_first_call_builds_for_its_sizes(
    pipe: Any, settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    stock = video(pipe)
    wan_trt_core.accelerate(pipe, settings=settings.model_copy(update={"on_missing_shape": "torch"}))
    assert not loads.asked  # no model of the catalogue has this transformer's size

    def decoder_is_there(*_: Any) -> dict[str, Any]:
        assert len(loads.asked) == 3  # before the first step is done
        return {}

    with torch.inference_mode():
        assert close(video(pipe, callback_on_step_end=decoder_is_there), stock)
    built = [
        ("dit", "32x32-5f", "fp32"),
        *((f"vae_decoder_{step}", "32x32-5f", "fp32") for step in ("first", "next")),
    ]
    assert loads.asked == built
    assert "no engine for 32x32, 5 frames, prompts of 16 tokens: building the transformer's" in caplog.text
    assert close(video(pipe), stock) and loads.asked == built
    with pytest.raises(CatalogueError, match="no profile 'x'; there are none"):
        wan_trt_core.accelerate(pipe, profile="x", settings=settings)


LONGER = ShapeProfile("longer", SMALL, SMALL, Sizes(48, 32, 5, 24))
LARGER = {"height": 48, "max_sequence_length": 24}
NEAR = ShapeProfile("near", SMALL, SMALL, Sizes(64, 64, 9, 24))
FAR = ShapeProfile("far", SMALL, Sizes(640, 640, 81, 24), Sizes(640, 640, 81, 24))


@pytest.mark.parametrize(
    ("rule", "known", "built", "line"),
    [
        ("build", (FAR, NEAR), "48x32-5f", "no engine for 48x32, 5 frames, prompts of 24 tokens: building"),
        ("nearest", (FAR, NEAR), "near", "the transformer's of the profile near are used"),
        ("nearest", (PROFILE,), None, "24 tokens, and none of the profiles tiny contains it (on_missing"),
        ("torch", (FAR, NEAR), None, "instead of an engine: no engine for 48x32, 5 frames, prompts of 24 tokens"),
    ],
)  # fmt: skip
def test_a_missing_shape_is_served_as_the_setting_says(
    rule: str,
    known: tuple[ShapeProfile, ...],
    built: str | None,
    line: str,
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceleration, "resolve_loaded", with_profiles(*known))
    stock = video(pipe, **LARGER)
    changed = settings.model_copy(update={"on_missing_shape": rule})
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=changed)
    assert close(video(pipe, **LARGER), stock)
    expected = {("tiny"), *((built,) if built else ())}
    assert {name for _, name, _ in loads.asked} == expected and len(loads.asked) == 3 * len(expected)
    assert caplog.text.count(line) == 1
    assert (loads.runs() > 0) == (built is not None)


def test_a_build_that_fails_amid_a_video_leaves_it_to_pytorch(
    pipe: Any, settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    stock = video(pipe, height=48)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    loads.error = RuntimeError("out of luck")
    assert np.abs(video(pipe, height=48) - stock).max() < 1e-5  # of planned steps
    assert caplog.text.count("could not be made (RuntimeError: out of luck)") == 2  # transformer and vae


class Failing:
    """Engines that fail in their runs, or in those of some components, as on a GPU that something happened to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loads: Loads) -> None:
        self.now: set[str] = set()
        run = ModuleEngine.run

        def failing(engine: ModuleEngine, inputs: Any) -> Any:
            (name,) = (
                asked[0] for asked, each in zip(loads.asked, loads.engines, strict=True) if each is engine
            )
            if name in self.now:
                raise EngineError("out of luck")
            return run(engine, inputs)

        monkeypatch.setattr(ModuleEngine, "run", failing)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_an_engine_that_fails_amid_a_video_leaves_it_to_pytorch(
    part: str,
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing, component = Failing(monkeypatch, loads), acceleration.ENGINES_OF[part][-1]
    sizes = {"max_sequence_length": 24} if part == "text_encoder" else {"height": 48}
    stock, other = video(pipe), video(pipe, **sizes)
    wan_trt_core.accelerate(pipe, profile=LONGER, settings=settings, text_encoder=True)
    loaded_first = [name for name, *_ in loads.asked]

    def fail_from_the_second_step(*_: Any) -> dict[str, Any]:
        failing.now = {component}
        return {}

    if part == "text_encoder":
        failing.now = {component}
    told = f"diffusers' own {part} runs instead of an engine: the engine for "
    for count in (1, 2):  # once a video, and no engine is tried again for its size
        with Arm(Outputs, forbidden=lambda: originals(pipe)).watched() as ran:
            assert close(video(pipe, callback_on_step_end=fail_from_the_second_step), stock)
        assert set(ran) == {part}, "which makes the case of a suite invalid"
        assert caplog.text.count(told) == count
        assert "failed (EngineError: out of luck)" in caplog.text
    held = zip(loads.asked, loads.engines, strict=True)
    assert {name for (name, *_), engine in held if engine.closed} == {*acceleration.ENGINES_OF[part]}, (
        "the module has their room"
    )
    failing.now = set()
    with never_run(originals(pipe)):  # of another size the engine may do its work
        assert close(video(pipe, **sizes), other)
    assert [name for name, *_ in loads.asked[len(loaded_first) :]] == [*acceleration.ENGINES_OF[part]]
    assert {name for _, name, _ in loads.asked} == {"longer"}, "it is loaded again, and no other is built"


def test_an_encoder_that_fails_leaves_the_decoder_to_its_work(
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing, frames, latents = Failing(monkeypatch, loads), noise(3, 5, 32, 32), noise(16, 2, 4, 4)
    with torch.no_grad():
        decoded, encoded = pipe.vae.decode(latents).sample, pipe.vae.encode(frames).latent_dist.mode()
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    failing.now = {ENCODED[0]}
    for _ in range(2):
        assert torch.equal(pipe.vae.encode(frames).latent_dist.mode(), encoded)
    assert (
        caplog.text.count("vae runs instead of an engine: the encoder's engine for 32x32, 5 frames failed")
        == 1
    )
    with never_run(originals(pipe)):
        torch.testing.assert_close(pipe.vae.decode(latents).sample, decoded, rtol=1e-4, atol=1e-4)


def test_where_there_is_no_room_beside_the_engines_they_go_for_the_module(
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, several = pipe.transformer, {"num_videos_per_prompt": 2}
    stock, both = video(pipe), video(pipe, **several)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    (engine, *_), moved = loads.engines, []

    def to(device: Any) -> Any:
        """A CPU is named otherwise here: ``cpu`` is host memory, the device of the engines is the device."""
        moved.append(("host" if device == "cpu" else "device", engine.closed))
        if device != "cpu" and not engine.closed:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return own

    monkeypatch.setattr(own, "to", to)
    assert close(video(pipe, **several), both)
    assert moved[:3] == [("device", False), ("host", False), ("device", True)]
    line = "no room for diffusers' own transformer beside its engines, which are released"
    assert caplog.text.count(line) == 1 and len(loads.asked) == 3
    assert not any(other.closed for other in loads.engines[1:]), "the decoder's stay"
    with never_run(originals(pipe)):
        assert close(video(pipe), stock)
    assert [name for name, *_ in loads.asked[3:]] == ["dit"] and moved[-1] == ("host", True)

    def broken(device: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(own, "to", lambda device: own if device == "cpu" else broken(device))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        video(pipe, **several)
    assert not loads.engines[-1].closed and caplog.text.count(line) == 1


def test_where_pytorch_fails_too_its_error_is_from_the_engine_s(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = pipe.transformer
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    Failing(monkeypatch, loads).now = {"dit"}

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(own, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access") as error:
        video(pipe)
    assert isinstance(error.value.__cause__, EngineError) and str(error.value.__cause__) == "out of luck"


def test_what_a_failed_engine_held_is_let_go_before_pytorch_runs(
    pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caches of a decoder are gigabytes, and an error keeps the frames that it came through."""
    caches: list[Any] = []

    def fail(self: Any, inputs: Any) -> Any:
        large = torch.zeros(8)
        caches.append(weakref.ref(large))
        raise EngineError(f"out of luck beside {large.sum()}")

    own, seen = pipe.vae, []
    decode = own.decode
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    monkeypatch.setattr(ModuleEngine, "run", fail)
    monkeypatch.setattr(
        own, "decode", lambda *given, **more: seen.append(caches[0]()) or decode(*given, **more)
    )
    pipe.vae.decode(noise(16, 2, 4, 4))
    assert seen == [None]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_videos_per_prompt": 2}, "transformer runs instead of an engine: hidden_states has batch size 2"),
        ({"attention_kwargs": {"scale": 1.0}}, "transformer runs instead of an engine: attention_kwargs (scale)"),
    ],
)  # fmt: skip
def test_what_no_engine_can_do_runs_in_pytorch(
    changes: dict[str, Any],
    line: str,
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stock = video(pipe, **changes)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    for count in (1, 2):
        assert close(video(pipe, **changes), stock)
        assert caplog.text.count(line) == count  # once a video, however many steps it has
    assert len(loads.asked) == 3


def test_the_text_encoder_falls_back_as_the_others(
    pipe: Any, settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    stock = video(pipe, **LARGER)
    wan_trt_core.accelerate(pipe, settings=settings, text_encoder=True)
    assert close(video(pipe, **LARGER), stock)
    assert loads.asked[0][0] == "text_encoder" and len(loads.asked) == 4 and loads.engines[0].runs == 2
    assert "no engine for prompts of 24 tokens: building the text_encoder's for this size" in caplog.text
    assert close(
        video(pipe, **{**LARGER, "height": 64}), video(wan_trt_core.restore(pipe), **{**LARGER, "height": 64})
    )
    assert [name for name, *_ in loads.asked].count("text_encoder") == 1  # which sees no pixels
    in_pytorch = settings.model_copy(update={"on_missing_shape": "torch"})
    wan_trt_core.accelerate(pipe, PROFILE, settings=in_pytorch, text_encoder=True)
    line = "diffusers' own text_encoder runs instead of an engine: "
    for count in (1, 2):
        assert close(video(pipe, **LARGER), stock)
        assert (
            caplog.text.count(f"{line}no engine for prompts of 24 tokens (on_missing_shape is torch)")
            == count
        )
    with torch.no_grad():
        pipe.encode_prompt(["a", "b"], max_sequence_length=16)
    assert f"{line}input_ids has batch size 2" in caplog.text


def test_a_text_encoder_cannot_be_on_an_engine_and_on_the_cpu(
    pipe: Any, loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerating, "located", lambda device: torch.device("cuda:0"))
    settings = Settings(cache=tmp_path, pipeline={"text_encoder_device": "cpu"})
    with pytest.raises(EngineError, match="text_encoder_device is cpu, and onnxruntime runs on cuda:0"):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings, text_encoder=True)
    assert not loads.asked


ENCODED = [f"vae_encoder_{step}" for step in ("first", "next")]


@pytest.mark.parametrize("kind", ["wan21", "wan22"])
def test_the_vae_decodes_and_encodes_on_engines(
    kind: str, pipe: Any, settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    profile, sizes = PROFILE, SMALL
    if kind == "wan22":
        pipe.vae, profile, sizes = wan22.checkpoint().load("vae"), wan22.PROFILE, wan22.SIZES
    frames = noise(3, sizes.frames, sizes.height, sizes.width)
    latents = noise(pipe.vae.config.z_dim, sizes.latent_frames, sizes.latent_height, sizes.latent_width)
    with torch.no_grad():
        decoded, encoded = pipe.vae.decode(latents), pipe.vae.encode(frames)
    wan_trt_core.accelerate(pipe, profile=profile, settings=settings)
    assert not set(ENCODED) & {name for name, *_ in loads.asked}  # text to video needs none
    with never_run(originals(pipe)):
        torch.testing.assert_close(pipe.vae.decode(latents).sample, decoded.sample, rtol=1e-4, atol=1e-4)
        for count in (frames.shape[2], 1):
            found = pipe.vae.encode(frames[:, :, :count]).latent_dist
            expected = encoded.latent_dist.mode()[:, :, : 1 + count // 4]
            torch.testing.assert_close(found.mode(), expected, rtol=1e-4, atol=1e-4)
    assert [name for name, *_ in loads.asked[3:]] == ENCODED
    assert {name for _, name, _ in loads.asked} == {profile.name}
    assert not caplog.records
    whole = pipe.vae.encode(frames).latent_dist
    assert torch.equal(whole.sample(generator=seed(1)), encoded.latent_dist.sample(generator=seed(1)))
    assert "own vae runs instead of an engine: more of the VAE's distribution is asked for" in caplog.text


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def noise(channels: int, *shape: int) -> torch.Tensor:
    return torch.randn((1, channels, *shape), generator=seed(4))


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        (noise(3, 5, 32, 32).repeat(2, 1, 1, 1, 1), "x has batch size 2"),
        (noise(3, 6, 32, 32), r"frames must be 4k+1 (1, 5, 9, …), not 6"),
        (noise(3, 5, 32, 40), "width must be a positive multiple of 16 pixels, not 40"),
        (noise(3, 5, 32, 32), "the encoder's engine for tiny could not be made (RuntimeError: out of luck)"),
    ],
    ids=["batch", "frames", "width", "build"],
)
def test_what_no_engine_can_encode_runs_in_pytorch(
    frames: torch.Tensor,
    line: str,
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with torch.no_grad():
        expected = pipe.vae.encode(frames).latent_dist.sample(generator=seed(2))
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    loads.error = RuntimeError("out of luck")
    for _ in range(2):
        assert torch.equal(pipe.vae.encode(frames).latent_dist.sample(generator=seed(2)), expected)
    assert caplog.text.count(f"diffusers' own vae runs instead of an engine: {line}") == 1


# precision


@pytest.mark.parametrize(
    ("dtype", "also", "expected"),
    [
        (torch.float16, (), ("fp16", "fp32", "fp16")),
        (torch.bfloat16, (), ("fp16", "fp32", "fp32")),
        (torch.bfloat16, ("bf16",), ("bf16", "fp32", "fp32")),  # as TensorRT
    ],
)
def test_the_precision_is_that_of_the_modules(
    dtype: torch.dtype,
    also: tuple[str, ...],
    expected: tuple[str, str, str],
    small_checkpoint: Path,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EngineBackend, "precisions", ("fp32", "fp16", *also))
    pipe = loaded(small_checkpoint, dtype=dtype)
    stock = video(pipe)
    with caplog.at_level(logging.INFO):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings, text_encoder=True)
    found = {name: precision for name, _, precision in loads.asked}
    assert tuple(found[name] for name in ("dit", "vae_decoder_next", "text_encoder")) == expected
    for part, precision in zip(("transformer", "vae", "text_encoder"), expected, strict=True):
        assert f"{part} in {dtype}: engines in {precision}" in caplog.text
        missing = f"{part}: onnxruntime has no engines in torch.bfloat16; they compute in {precision}"
        inexact = f"{part}: its engines compute in fp32, for those in torch.float16 sum in half precision"
        told = [line in caplog.text for line in (missing, inexact)]
        changed = torch_dtype(precision) != dtype
        assert told == [changed and dtype == torch.bfloat16, changed and dtype == torch.float16]
    assert close(video(pipe), stock, 0.05)
    wan_trt_core.restore(pipe)
    assert np.array_equal(video(pipe), stock)


def test_the_precision_may_be_named(small_checkpoint: Path, settings: Settings, loads: Loads) -> None:
    changed = {"dit": "fp16", "vae": "fp32"}
    pipe = wan_trt_core.accelerate(loaded(small_checkpoint), PROFILE, precision=changed, settings=settings)
    assert loads.asked[0][::2] == ("dit", "fp16") and loads.asked[1][2] == "fp32"
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.float16, torch.float32)
    with pytest.raises(ValueError, match="precision names dit, vae, but not text_encoder"):
        wan_trt_core.accelerate(pipe, PROFILE, precision=changed, settings=settings, text_encoder=True)
    with pytest.raises(ComponentError, match="dit has no precision 'int3'"):
        wan_trt_core.accelerate(pipe, PROFILE, precision="int3", settings=settings)
    with pytest.raises(
        ComponentError, match="dit: the backend onnxruntime has no engines in bf16; it has fp32, fp16"
    ):
        wan_trt_core.accelerate(pipe, PROFILE, precision={**changed, "dit": "bf16"}, settings=settings)


# weights


def test_the_weights_of_a_folder_are_known_again(small_checkpoint: Path) -> None:
    folder = Checkpoint.open(small_checkpoint)
    for dtype in (torch.float32, torch.float16):
        checkpoint = LoadedCheckpoint(loaded(small_checkpoint, dtype=dtype))
        for part in ("transformer", "vae", "text_encoder"):
            assert checkpoint.weights_sha256(part) == folder.weights_sha256(part)
        assert checkpoint.generation() == folder.generation()
        whole = checkpoint.load("transformer", "fp32").state_dict()
        assert all(
            torch.equal(whole[name], value) for name, value in folder.load("transformer").state_dict().items()
        )


def test_a_folder_is_found_by_whatever_names_it(pipe: Any, small_checkpoint: Path, tmp_path: Path) -> None:
    def origin(**changes: str) -> Checkpoint | None:
        for module in (pipe.transformer, pipe):
            module.register_to_config(_name_or_path=changes[type(module).__name__])
        return LoadedCheckpoint(pipe).origin("transformer")

    folder, part, no_copy = str(small_checkpoint), str(small_checkpoint / "transformer"), "nobody/has-it-here"
    for module, whole in ((part, no_copy), (no_copy, folder), (folder, ""), (str(tmp_path), folder)):
        found = origin(WanTransformer3DModel=module, WanPipeline=whole)
        assert found is not None and found.folder == small_checkpoint
    assert origin(WanTransformer3DModel=no_copy, WanPipeline=str(tmp_path)) is None


def test_what_was_compared_once_is_noted(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, notes = shutil.copytree(small_checkpoint, tmp_path / "checkpoint"), tmp_path / "notes"
    pipe, compared = loaded(folder), []
    same = loaded_module._same
    monkeypatch.setattr(loaded_module, "_same", lambda *given: compared.append(given[2]) or same(*given))

    def found() -> tuple[bool, str]:
        checkpoint = LoadedCheckpoint(pipe, notes)
        compared.clear()
        return checkpoint.origin("vae") is not None, checkpoint.weights_sha256("vae")

    first = found()
    assert first == (True, Checkpoint.open(folder).weights_sha256("vae")) and compared == ["vae"]
    assert found() == first and compared == []
    for note in notes.iterdir():
        note.write_text("")  # as a machine leaves it that loses power
    assert found() == first and compared == ["vae"]
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(0, 0))  # a file that was written since
    assert found() == first and compared == ["vae"]
    pipe.vae.decoder.conv_out.bias.data.add_(0.1)
    assert found()[0] is False and compared
    assert {path.suffix for path in notes.iterdir()} == {""}, "nothing half-written is left"


def test_a_configuration_that_differs_is_not_the_folder_s(pipe: Any) -> None:
    pipe.vae.register_to_config(latents_mean=[0.2] * 16)
    checkpoint = LoadedCheckpoint(pipe)
    assert checkpoint.origin("vae") is None and checkpoint.origin("transformer") is not None


def test_changed_weights_are_what_engines_are_made_of(
    pipe: Any, small_checkpoint: Path, settings: Settings, loads: Loads
) -> None:
    unchanged = video(pipe)
    with torch.no_grad():
        pipe.transformer.blocks[1].ffn.net[2].weight.mul_(3.0)
        pipe.vae.decoder.conv_out.bias.add_(0.5)
    stock = video(pipe)
    assert not close(stock, unchanged)
    checkpoint, folder = LoadedCheckpoint(pipe), Checkpoint.open(small_checkpoint)
    for part in ("transformer", "vae"):
        assert checkpoint.origin(part) is None
        assert checkpoint.weights_sha256(part) != folder.weights_sha256(part)
        half = checkpoint.load(part, "fp16")
        assert half is not getattr(pipe, part) and half.dtype == torch.float16
    kept = checkpoint.load("transformer", "fp16").scale_shift_table
    assert kept.dtype == torch.float32  # as diffusers keeps it
    before = checkpoint.weights_sha256("vae")
    pipe.vae.decoder.conv_out.bias.data.add_(0.1)
    assert LoadedCheckpoint(pipe).weights_sha256("vae") != before
    pipe.vae.decoder.conv_out.bias.data.sub_(0.1)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert close(video(pipe), stock)


def test_weights_that_change_afterwards_get_no_engine(
    pipe: Any,
    settings: Settings,
    loads: Loads,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be kept under the hash of what they were."""

    def load(component: str, model: ResolvedModel, *given: Any) -> ModuleEngine:
        model.checkpoint.weights_sha256("transformer")
        return loads(component, model, *given)

    monkeypatch.setattr("wan_trt_core.pipeline.engines.load_engine", lambda *given, **_: load(*given))
    stock = pipe.transformer
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    stock.proj_out.bias.data.add_(1.0)
    video(pipe, height=48)
    assert "transformer: its weights have changed since engines were made; accelerate it again" in caplog.text
    assert ("dit", "48x32-5f", "fp32") not in loads.asked
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert loads.asked[-3] == ("dit", "tiny", "fp32")


def test_a_pipeline_of_no_folder_and_without_a_text_encoder(
    pipe: Any, settings: Settings, loads: Loads
) -> None:
    with torch.no_grad():
        states, nothing = pipe.encode_prompt(PROMPT, "", max_sequence_length=16)
    given = {"prompt_embeds": states, "negative_prompt_embeds": nothing}
    parts = {"vae": type(pipe.vae).from_config(pipe.vae.config), "transformer": pipe.transformer}
    new = WanPipeline(tokenizer=None, text_encoder=None, scheduler=pipe.scheduler, **parts)

    def made() -> Any:
        noise = torch.Generator().manual_seed(1)
        call = {name: value for name, value in CALL.items() if name != "max_sequence_length"}
        return new(**call, **given, generator=noise).frames[0]

    stock = made()
    wan_trt_core.accelerate(new, profile=PROFILE, settings=settings)
    assert close(made(), stock)
    assert LoadedCheckpoint(pipe).parts == ("transformer", "vae", "text_encoder")


def test_exports_encode_their_prompt_with_the_pipeline_s_own_encoder(pipe: Any) -> None:
    from wan_trt_core.models.components import get_component

    states = get_component("dit").call_tensors(LoadedCheckpoint(pipe), SMALL)["encoder_hidden_states"]
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=16)
    torch.testing.assert_close(states, expected)


# what is not compatible


class Int8(torch.nn.Parameter):
    pass


def quantised(pipe: Any) -> None:
    layer = pipe.transformer.blocks[0].ffn.net[2]
    layer.weight = Int8(layer.weight.to(torch.int8), requires_grad=False)


def offloaded(pipe: Any) -> None:
    add_hook_to_module(pipe.vae, AlignDevicesHook(execution_device="cpu"))


def on_meta(pipe: Any) -> None:
    pipe.vae.to("meta")


def cast_by_layer(pipe: Any) -> None:
    apply_layerwise_casting(pipe.transformer, torch.bfloat16, torch.float32)


def watched(pipe: Any) -> None:
    pipe.transformer.blocks[1].register_forward_hook(print)


def compiled(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer)


def with_processor(pipe: Any) -> None:
    class FlashAttnProcessor:
        def __call__(self, *_: Any, **__: Any) -> None: ...

    pipe.transformer.blocks[2].attn2.processor = FlashAttnProcessor()


def with_adapter(pipe: Any) -> None:
    pipe.transformer.peft_config = {"style": SimpleNamespace()}


def with_lora_layer(pipe: Any) -> None:
    layer = pipe.transformer.blocks[0].attn1.to_q
    layer.__class__ = type("Linear", (type(layer),), {"__module__": "peft.tuners.lora.layer"})


def tiled(pipe: Any) -> None:
    pipe.vae.enable_tiling()


def with_two_transformers(pipe: Any) -> None:
    pipe.transformer_2 = pipe.transformer


def with_a_compiled_expert(pipe: Any) -> None:
    pipe.transformer_2 = torch.compile(pipe.transformer)


def without_transformer(pipe: Any) -> None:
    pipe.transformer = None


def of_two_frames(pipe: Any) -> None:
    pipe.transformer.register_to_config(pos_embed_seq_len=514)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantised, r"transformer: blocks\.0\.ffn\.net\.2\.weight is quantised \(Int8 in int8\)"),
        (offloaded, r"vae: accelerate's AlignDevicesHook \(CPU offload or a device map\)"),
        (on_meta, r"vae: .* is not in memory"),
        (cast_by_layer, r"transformer: .*diffusers' hook layerwise_casting of "),
        (watched, r"transformer: a forward hook of blocks\.1 would not run"),
        (compiled, r"transformer: a OptimizedModule in the place of diffusers' WanTransformer3DModel"),
        (with_processor, r"transformer: blocks\.2\.attn2\.processor is a FlashAttnProcessor"),
        (with_adapter, r"transformer: adapters are attached \(style\); pipe\.fuse_lora\(\)"),
        (with_lora_layer, r"transformer: an adapter is attached \(blocks\.0\.attn1\.to_q: Linear\)"),
        (tiled, r"vae: tiling is on"),
        (with_two_transformers, r"transformer_2: without a boundary_ratio nothing runs it"),
        (with_a_compiled_expert, r"transformer_2: a OptimizedModule in the place of"),
        (without_transformer, r"transformer: the pipeline has none"),
        (of_two_frames, r"transformer: a transformer from first and last frame, which is not supported yet"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_compatible_is_told_by_name(
    change: Callable[[Any], None], message: str, pipe: Any, settings: Settings, loads: Loads
) -> None:
    change(pipe)
    with pytest.raises(IncompatiblePipeline, match=message):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert not loads.asked


SHARDED = """
import sys, torch
from diffusers import WanPipeline
from torch.distributed import HashStore, init_device_mesh, init_process_group
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import wan_trt_core
from wan_trt_core.pipeline.compatibility import IncompatiblePipeline

init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))

def wrap(pipe):
    pipe.transformer = FullyShardedDataParallel(pipe.transformer, device_id=torch.device("cpu"))

for shard in (
    lambda pipe: fully_shard(pipe.transformer, mesh=mesh),
    lambda pipe: fully_shard(pipe.transformer.blocks[1], mesh=mesh),
    wrap,
):
    pipe = WanPipeline.from_pretrained(sys.argv[1])
    shard(pipe)
    try:
        wan_trt_core.accelerate(pipe)
    except IncompatiblePipeline as error:
        print(error)
"""


def test_a_sharded_module_is_told(small_checkpoint: Path) -> None:
    """By both kinds of PyTorch's FSDP, in a process of its own, which is all of the process group."""
    command = [sys.executable, "-c", SHARDED, small_checkpoint]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "WAN_TRT_CONFIG": ""}
    )
    assert done.stdout.count("transformer: sharded by FSDP; engines are built from a whole module") == 3, (
        done.stderr
    )


def test_everything_that_is_in_the_way_is_told_at_once(pipe: Any, settings: Settings) -> None:
    tiled(pipe)
    quantised(pipe)
    with pytest.raises(IncompatiblePipeline, match=r"transformer: .*quantised.*; vae: tiling"):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)


def test_another_pipeline_is_told_by_its_class(pipe: Any, settings: Settings) -> None:
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    other = WanVideoToVideoPipeline(**parts)
    with pytest.raises(
        IncompatiblePipeline, match=r"it is a WanVideoToVideoPipeline.*WanImageToVideoPipeline"
    ):
        wan_trt_core.accelerate(other, settings=settings)


def test_the_text_encoder_may_be_quantised_and_offloaded(pipe: Any, settings: Settings, loads: Loads) -> None:
    add_hook_to_module(pipe.text_encoder, AlignDevicesHook(execution_device="cpu"))
    pipe.text_encoder.encoder.register_parameter(
        "scale", Int8(torch.ones(1, dtype=torch.int8), requires_grad=False)
    )
    stock = video(pipe)
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert close(video(pipe), stock)
    with pytest.raises(
        IncompatiblePipeline, match=r"text_encoder: .*scale is quantised.*; text_encoder: .*Align"
    ):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings, text_encoder=True)


def test_a_backend_that_cannot_serve_is_told(
    pipe: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="torch-compile runs PyTorch modules"):
        wan_trt_core.accelerate(pipe, backend="torch-compile", settings=settings)
    monkeypatch.setattr(WanPipeline, "device", torch.device("cuda:1"))
    with pytest.raises(EngineError, match="the pipeline is on cuda:1, and onnxruntime runs on cpu"):
        wan_trt_core.accelerate(pipe, settings=settings)


def test_settings_come_from_the_environment(
    pipe: Any, loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"CONFIG": "", "CACHE": str(tmp_path / "mine"), "ON_MISSING_SHAPE": "torch"}.items():
        monkeypatch.setenv(f"WAN_TRT_{name}", value)
    wan_trt_core.accelerate(pipe, profile=PROFILE)
    assert loads.settings is not None and loads.settings.cache == tmp_path / "mine"
    video(pipe, height=48)
    assert "(on_missing_shape is torch)" in caplog.text


def test_an_engine_that_is_not_as_planned_is_told(
    pipe: Any,
    settings: Settings,
    loads: Loads,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ModuleEngine, "problems", ("attention is not fused",))
    wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    assert "the transformer's engine is not as planned: attention is not fused" in caplog.text
    assert caplog.text.count("the vae's engine is not as planned") == 2


@pytest.mark.parametrize("gpu", [True, False])
def test_the_two_lines_take_tensorrt_on_a_gpu(
    gpu: bool, pipe: Any, settings: Settings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the call nor the settings name a backend. What this machine lacks of it is another question."""
    required: list[str] = []
    for name in ("tensorrt", "onnxruntime"):
        monkeypatch.setattr(type(get_backend(name)), "require", lambda self, _: required.append(self.name))
    monkeypatch.setattr("wan_trt_core.backends.registry.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    begun: list[Any] = []

    def begin(*given: Any) -> None:
        begun.extend(given)
        raise EngineError("enough")

    monkeypatch.setattr(accelerating, "Acceleration", begin)
    with pytest.raises(EngineError, match="enough"):
        wan_trt_core.accelerate(pipe, profile=PROFILE, settings=settings)
    backend, device = ("tensorrt", "cuda:0") if gpu else ("onnxruntime", "cpu")
    assert required == [backend] and begun[2] == backend
    assert str(begun[4]) == device


@pytest.mark.parametrize(
    ("gpu", "device", "told"), [(True, "auto", True), (True, "cpu", False), (False, "auto", False)]
)
def test_a_gpu_that_would_do_nothing_is_told(
    gpu: bool,
    device: str,
    told: bool,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    tell_idle_gpu(settings.model_copy(update={"device": device}), "onnxruntime")
    assert (
        "onnxruntime runs on the CPU, and there is a GPU: name the backend tensorrt" in caplog.text
    ) is told
    caplog.clear()
    tell_idle_gpu(settings, "tensorrt")
    assert not caplog.text


def test_originals_are_those_of_an_accelerated_pipeline(pipe: Any) -> None:
    with pytest.raises(ValueError, match="not accelerated"):
        originals(pipe)


def test_components_take_turns_in_an_accelerated_pipeline(
    pipe: Any, loads: Loads, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU modules stay where they are, so here they are told that it is another device."""
    monkeypatch.setattr("wan_trt_core.pipeline.acceleration.offloading", lambda *_: True)
    expected, encoder = video(pipe), pipe.text_encoder
    settings = settings.model_copy(update={"pipeline": PipelineSettings(offload=True)})
    wan_trt_core.accelerate(pipe, backend="onnxruntime", settings=settings)
    assert close(video(pipe), expected)
    assert encoder._hf_hook.execution_device == torch.device("cpu")
    assert sum(not engine.closed for engine in loads.engines) == 2  # the decoder's, whose turn was last
    wan_trt_core.restore(pipe)
    assert not hasattr(encoder, "_hf_hook") and all(engine.closed for engine in loads.engines)
    assert close(video(pipe), expected)


def test_the_engines_of_the_size_that_is_asked_for_come_early(
    pipe: Any, loads: Loads, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_trt_core.pipeline.acceleration.offloading", lambda *_: True)
    monkeypatch.setattr(offload_module, "fits_beside", lambda stages: (len(stages) - 1) * (True,))
    changes = {"pipeline": PipelineSettings(offload=True), "on_missing_shape": "build"}
    wan_trt_core.accelerate(pipe, PROFILE, settings=settings.model_copy(update=changes))
    hook = pipe.text_encoder._hf_hook
    (first,) = hook.followers
    for size, same in (({}, True), (LARGER, False), ({}, True)):
        video(pipe, **size)
        (transformer,) = hook.followers
        assert (transformer is first) is same
        assert len(transformer.followers) == 2 and all(
            each.memory()["weights"] for each in transformer.followers
        )
    wan_trt_core.restore(pipe)
    assert all(engine.closed for engine in loads.engines)


def test_what_runs_in_pytorch_takes_turns_too(
    pipe: Any, loads: Loads, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_trt_core.pipeline.acceleration.offloading", lambda *_: True)
    changes = {"pipeline": PipelineSettings(offload=True), "on_missing_shape": "torch"}
    wan_trt_core.accelerate(pipe, PROFILE, settings=settings.model_copy(update=changes))
    video(pipe)
    there: set[str] = set()
    seen: dict[str, tuple[set[str], list[str]]] = {}
    for name, module in pipe.vae.acceleration.stock.items():

        def to(device: Any, *, name: str = name, module: Any = module) -> Any:
            (there.discard if device == "cpu" else there.add)(
                name
            )  # the device has no name here, being a CPU
            return module

        def look(*_: object, name: str = name) -> None:
            names = (asked[0] for asked in loads.asked)
            held = [each for each, engine in zip(names, loads.engines, strict=True) if not engine.closed]
            seen[name] = {*there}, held

        monkeypatch.setattr(module, "to", to)
        module.get_submodule("decoder" if name == "vae" else "").register_forward_pre_hook(look)
    video(pipe, **LARGER)
    assert seen == {"transformer": ({"transformer"}, []), "vae": ({"vae"}, [])}
