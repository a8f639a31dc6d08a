"""Image to video, two experts and a timestep a token: pipelines on engines, step by step with stock diffusers."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from module_engine import Loads, component_engine
from PIL import Image
from torch import Tensor

import wan_trt_core
from wan_trt_core.cases import Case
from wan_trt_core.comparison import measure_case
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import Arm, Outputs, target_of
from wan_trt_core.config import ConfigError, Settings
from wan_trt_core.gates import decide, judge
from wan_trt_core.gates.verdict import Verdict
from wan_trt_core.models import catalogue
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.models.prompts import PROMPT, random_states
from wan_trt_core.models.random_weights import RandomCheckpoint, with_two_experts
from wan_trt_core.pipeline.acceleration import originals
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import GenerationError, generate
from wan_trt_core.pipeline.parts import EngineTransformer, UnsupportedCall
from wan_trt_core.pipeline.swap import with_parts

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
SMALL = Sizes(32, 48, 5, 512)
PROFILE = ShapeProfile("small", SMALL, SMALL, SMALL)
OF_5B = Sizes(32, 64, 5, 512, spatial=16)
STEPS = 3
"""Of which the last two are below the boundary (timesteps 999, 857 and 600 at a flow shift of 3)."""


def a14b_of_images() -> Checkpoint:
    """Wan 2.2 A14B image to video: two experts, and the image among the channels alone."""
    configs: Any = catalogue._ENTRIES["tiny-wan2.2-t2v-a14b"].configs
    configs = {**configs, "transformer": {**configs["transformer"], "in_channels": 36}}
    configs = with_two_experts(configs, 0.9)
    return RandomCheckpoint(
        {**configs, "pipeline": {**configs["pipeline"], "_class_name": "WanImageToVideoPipeline"}}, ""
    )


def checkpoint_of(model: str) -> Checkpoint:
    return a14b_of_images() if model == "a14b of images" else resolve(model).checkpoint


def pipeline_of(model: str) -> Any:
    if model == "5b of images":  # the first latent frame is the image's, with the timestep zero
        return resolve("tiny-wan2.2-ti2v-5b").making(from_image=True).checkpoint.pipeline()
    return checkpoint_of(model).pipeline()


def trajectory(pipe: Any, *, height: int = 32, width: int = 48, frames: int = 5) -> tuple[list[Tensor], Any]:
    """The latents after each step, and the frames."""
    latents: list[Tensor] = []

    def after(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"].clone())
        return {}

    dim = pipe.transformer.config.text_dim
    of_image = {"image": IMAGE} if isinstance(pipe, WanImageToVideoPipeline) else {}
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        **of_image,
        prompt_embeds=random_states(PROMPT, 512, dim),
        negative_prompt_embeds=random_states("", 512, dim),
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        callback_on_step_end=after,
    )
    return latents, made.frames[0]


def assert_same(found: tuple[list[Tensor], Any], expected: tuple[list[Tensor], Any]) -> None:
    assert len(found[0]) == len(expected[0]) == STEPS
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert found[1].shape == expected[1].shape and np.abs(found[1] - expected[1]).max() < 1e-3


DECODER = {"vae_decoder_first": 1, "vae_decoder_next": 1}
ENCODER = {"vae_encoder_first": 1, "vae_encoder_next": 1}
CALLS = 2  # with the prompt and without


@pytest.mark.parametrize(
    ("model", "runs"),
    [
        ("tiny-wan2.1-i2v", {"dit": STEPS * CALLS, **DECODER, **ENCODER}),
        ("tiny-wan2.2-t2v-a14b", {"dit": 1 * CALLS, "dit_2": 2 * CALLS, **DECODER}),
        ("a14b of images", {"dit": 1 * CALLS, "dit_2": 2 * CALLS, **DECODER, **ENCODER}),
        ("tiny-wan2.2-ti2v-5b", {"dit": STEPS * CALLS, **DECODER}),
        ("5b of images", {"dit": STEPS * CALLS, **DECODER, **ENCODER, "vae_encoder_next": 0}),
    ],
)
def test_an_accelerated_variant_makes_the_same_video(
    model: str, runs: dict[str, int], settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, sizes = pipeline_of(model), OF_5B if "5b" in model else SMALL
    modules, kind = dict(pipe.components), type(pipe)
    size, profile = {"height": sizes.height, "width": sizes.width}, ShapeProfile("small", sizes, sizes, sizes)
    stock = trajectory(pipe, **size)
    assert wan_trt_core.accelerate(pipe, profile, settings=settings) is pipe and type(pipe) is kind
    with Arm(Outputs, forbidden=lambda: originals(pipe)).watched() as ran, caplog.at_level(logging.WARNING):
        assert_same(trajectory(pipe, **size), stock)
    assert not ran and "instead of an engine" not in caplog.text
    names = [name for name, *_ in loads.asked]
    assert {name: engine.runs for name, engine in zip(names, loads.engines, strict=True)} == runs
    wan_trt_core.restore(pipe)
    assert pipe.components == modules and all(engine.closed for engine in loads.engines)


def test_one_model_alone_makes_videos_of_both_kinds() -> None:
    both = resolve("tiny-wan2.2-ti2v-5b")
    for from_image, kind in ((True, WanImageToVideoPipeline), (False, WanPipeline)):
        made = both.making(from_image=from_image).checkpoint
        assert made.begins_with_image is from_image and type(made.pipeline()) is kind
    assert not both.checkpoint.begins_with_image, "the model itself is as it was"
    for name in ("tiny-wan", "tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b"):
        own = resolve(name)
        for from_image in (True, False):
            assert own.making(from_image=from_image).checkpoint is own.checkpoint


@pytest.mark.parametrize("model", ["tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b"])
def test_where_no_engine_serves_pytorch_does_and_says_so(
    model: str, settings: Settings, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = checkpoint_of(model).pipeline()
    stock = trajectory(pipe, height=48)
    parts = {name for name in ("transformer", "transformer_2", "vae") if getattr(pipe, name, None)}
    wan_trt_core.accelerate(pipe, PROFILE, settings=settings.model_copy(update={"on_missing_shape": "torch"}))
    for count in (1, 2):
        assert_same(trajectory(pipe, height=48), stock)
        for part in parts:  # once a video, for the VAE that en- and decodes too
            assert caplog.text.count(f"own {part} runs instead of an engine: no engine for 48x48") == count


def test_a_vae_that_engines_do_not_decode_in_tiles_is_told(tmp_path: Path, loads: Loads) -> None:
    settings = Settings(cache=tmp_path, pipeline={"vae_tile": 64})
    with pytest.raises(ConfigError, match=r"pipeline.vae_tile is 64, and .*of 16 x 16 pixels a latent"):
        wan_trt_core.accelerate(checkpoint_of("tiny-wan2.2-ti2v-5b").pipeline(), settings=settings)
    assert not loads.asked


def test_engines_of_all_parts_are_built_before_the_first_step(settings: Settings, loads: Loads) -> None:
    """Both experts' and the decoder's: a build of minutes is not for the middle of a video."""
    pipe, asked = checkpoint_of("tiny-wan2.2-t2v-a14b").pipeline(), []
    wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    loads.asked.clear()
    pipe.transformer.register_forward_hook(lambda *_: asked.append(len(loads.asked)))
    trajectory(pipe, height=48)
    assert asked[0] == 4


@pytest.mark.parametrize("model", ["tiny-wan2.1-i2v", "tiny-wan2.2-t2v-a14b", "tiny-wan2.2-ti2v-5b"])
def test_the_suites_compare_whole_videos_of_every_variant(
    model: str, settings: Settings, loads: Loads
) -> None:
    """With engines swapped in, as cases of the component ``pipeline`` have them."""
    case = Case.model_validate({
        "id": "v", "model": model, "component": "pipeline", "profile": "64p-9f", "precision": "fp32",
        "backend": "onnxruntime", "steps": 2,
        "parity": {"limits": {"latents.psnr_db": {"min": 90.0, "reason": "float32"}}},
    })  # fmt: skip
    with closing(Context(settings)) as context:
        measurement = measure_case(case, "parity", context)
    checks = judge(case, "parity", measurement, None, bands_for_hardware=False, require_bands=False)
    assert decide(checks).verdict is Verdict.PASS, [check.message for check in checks]
    assert all(engine.runs for engine in loads.engines)
    assert ("dit_2" in {name for name, *_ in loads.asked}) == model.endswith("a14b")


def test_the_second_expert_has_a_guidance_of_its_own() -> None:
    found = resolve("tiny-wan2.2-t2v-a14b")
    pipe, small = found.checkpoint.pipeline(), replace(found.generation, height=32, width=32, num_frames=1)
    same, other = (
        generate(pipe, PROMPT, replace(small, guidance_scale_2=scale), keep_latents=True).latents
        for scale in (None, 1.0)
    )
    differ = [not torch.equal(*pair) for pair in zip(same, other, strict=True)]
    assert differ == sorted(differ) and 0 < sum(differ) < len(differ)  # from the boundary on


def test_a_suite_builds_what_encodes_the_image_before_it_measures(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(EngineStore, "build", lambda _, name, *__, **___: built.append(name))
    case = Case.model_validate({
        "id": "v", "model": "tiny-wan2.1-i2v", "component": "pipeline", "profile": "64p-9f", "precision": "fp32",
        "backend": "onnxruntime",
    })  # fmt: skip
    target_of(case, Context(settings)).build()
    assert built == ["dit", "vae_decoder_first", "vae_decoder_next", "vae_encoder_first", "vae_encoder_next"]


@pytest.mark.parametrize(
    ("model", "image", "message"),
    [
        ("tiny-wan2.1-i2v", None, "image to video: the video begins with an image, and none is given"),
        ("tiny-wan2.2-t2v-a14b", IMAGE, "text to video: the video begins with no image"),
    ],
)
def test_an_image_is_given_where_a_video_begins_with_one(model: str, image: Any, message: str) -> None:
    found = resolve(model)
    with pytest.raises(GenerationError, match=message):
        generate(found.checkpoint.pipeline(), PROMPT, found.generation, image=image)


# the transformer on its engine, the rest stock


def with_engine(pipe: Any, checkpoint: Checkpoint) -> Any:
    component = get_component("dit")
    engine = component_engine("dit", checkpoint)
    transformer = EngineTransformer(
        engine, component.prepare(checkpoint, "fp32"), pipe.transformer.config, torch.float32, pipe.device
    )
    return with_parts(pipe, transformer=transformer), engine


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("tiny-wan2.1-i2v", {"encoder_hidden_states_image": (1, 16, 32)}, r"_image has shape \(1, 16, 32\)"),
        ("tiny-wan2.1-i2v", {"encoder_hidden_states_image": None}, "_image has shape none"),
        ("tiny-wan2.1-i2v", {"encoder_hidden_states": (1, 256, 32)}, r"_states has shape \(1, 256, 32\)"),
        ("tiny-wan2.2-t2v-a14b", {"encoder_hidden_states_image": (1, 17, 32)}, r"of image states none"),
        ("tiny-wan2.2-t2v-a14b", {"timestep": (1, 18)}, r"timestep has shape \(1, 18\)"),
        ("tiny-wan2.2-ti2v-5b", {"timestep": (1, 18)}, "tokens of one frame have different timesteps"),
    ],
)  # fmt: skip
def test_what_an_engine_of_a_variant_cannot_take_is_told(
    model: str, change: dict[str, Any], message: str
) -> None:
    """Before it runs, so that a pipeline can run in PyTorch instead."""
    found, component = resolve(model), get_component("dit")
    call = component.call_tensors(found.checkpoint, found.profile().opt)
    for name, shape in change.items():
        call.pop(name, None)
        if shape is not None:
            call[name] = torch.randn(shape)
    _, engine = with_engine(found.checkpoint.pipeline(), found.checkpoint)
    part = EngineTransformer(
        engine, component.prepare(found.checkpoint, "fp32"), {}, torch.float32, torch.device("cpu")
    )
    with pytest.raises(UnsupportedCall, match=message):
        part(**call)
    assert engine.runs == 0
