"""``wan_trt_core.accelerate`` on a GPU without room for the video: told before anything is moved, built or loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import WanPipeline
from fake_device import MIB, TOTAL, FakeDevice
from torch import nn

import wan_trt_core
from wan_trt_core.backends.registry import get_backend
from wan_trt_core.config import PipelineSettings, Settings
from wan_trt_core.memory import plan, room
from wan_trt_core.memory.options import offered
from wan_trt_core.memory.prediction import (
    CUDA_OWN,
    Choice,
    Prediction,
    Term,
    Workload,
    weight_terms,
)
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.profiles import ShapeProfile, Sizes
from wan_trt_core.pipeline.acceleration import Acceleration
from wan_trt_core.pipeline.generate import GenerationError

VIDEO = Sizes(512, 512, 17, 16)
PROFILE = ShapeProfile("large", Sizes(32, 32, 5, 16), VIDEO, VIDEO)
GPU = torch.device("cuda", 0)
NOT_CHECKED = "whether the GPU has room is not checked: the prediction does not know "


class Begun(Exception):
    """The first engine would be built now."""


Free = Callable[[int], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """A GPU of which so much is free and nothing taken; what has room for its video begins, and goes no further."""

    def begin(*_: object) -> None:
        raise Begun

    def of_size(size: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (size, size))

    monkeypatch.setattr("wan_trt_core.accelerating.device_of", lambda *_: "cuda")
    monkeypatch.setattr("wan_trt_core.accelerating.located", lambda *_: GPU)
    monkeypatch.setattr(type(get_backend("tensorrt")), "require", lambda *_: None)
    monkeypatch.setattr(Acceleration, "build", begin)
    return of_size


@pytest.fixture
def pipe(small_checkpoint: Path) -> Any:
    dtypes = {"transformer": torch.float16, "text_encoder": torch.bfloat16}
    return WanPipeline.from_pretrained(small_checkpoint, dtype=dtypes)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", backend="tensorrt")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Workload, Choice]]:
    """What was predicted: two GiB, whatever it is."""
    seen: list[tuple[Workload, Choice]] = []

    def predicted(work: Workload, choice: Choice) -> Prediction:
        seen.append((work, choice))
        return Prediction({"decode": (Term("all of it", 2**31, "shapes"),)})

    monkeypatch.setattr(plan, "predict", predicted)
    monkeypatch.setattr(plan, "plan", lambda *_: SimpleNamespace(fitting=()))
    return seen


def test_too_little_memory_is_told_before_any_work(pipe: Any, settings: Settings, free: Free) -> None:
    """As ``wan-trt run`` tells it, with the profile that the video's size is of."""
    free(1300 * MIB)
    parts = dict(pipe.components)
    with pytest.raises(GenerationError) as told:
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    message = str(told.value)
    assert message.startswith("large (512x512, 17 frames): such a video needs "), message
    assert "of the GPU at its most (decode), and 1.27 GiB are free. What fits: " in message
    assert message.endswith(" (wan-trt memory plan)") and "int8" not in message, (
        "which no setting makes of it"
    )
    assert pipe.components == parts and not any(settings.cache.glob("engines/*"))
    free(2**40)
    with pytest.raises(Begun):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)


def test_what_is_asked_for_is_what_will_run(
    pipe: Any, settings: Settings, free: Free, asked: list[tuple[Workload, Choice]]
) -> None:
    """The profile's own size; the engines' precisions, of what stays in PyTorch the module's own; the settings."""
    free(2**30)
    settings = settings.model_copy(update={"pipeline": PipelineSettings(vae_tile=256)})
    with pytest.raises(GenerationError, match=r"needs 2 GiB .*, and 1 GiB are free"):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    ((work, choice),) = asked
    assert (work.video, work.backend, work.device, work.text_encoder) == (VIDEO, "tensorrt", "cuda", True)
    assert choice == Choice("fp16", "fp32", "bf16", vae_tile=256)
    in_8_bits, own = "text_encoder=int8", {option.name for option in offered(work, choice)}
    assert in_8_bits not in own, "which nothing makes of a module in memory"
    assert in_8_bits in {option.name for option in offered(replace(work, in_memory=False), choice)}
    with pytest.raises(GenerationError):
        wan_trt_core.accelerate(
            pipe, PROFILE, precision={"dit": "fp16", "vae": "fp32", "text_encoder": "fp32"}, settings=settings,
            text_encoder=True,
        )  # fmt: skip
    assert asked[-1][1] == Choice("fp16", "fp32", "fp32", vae_tile=256, text_encoder_engine=True)
    pipe.text_encoder = None
    with pytest.raises(GenerationError):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    assert not asked[-1][0].text_encoder


def test_without_a_profile_nothing_is_predicted_before_the_size_is_known(
    pipe: Any, settings: Settings, free: Free, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(0)
    monkeypatch.setattr(Acceleration, "put_in", lambda _: None)
    wan_trt_core.accelerate(pipe, "jit", settings=settings)
    assert not asked


def test_with_all_engines_in_the_cache_nothing_is_predicted(
    pipe: Any, settings: Settings, free: Free, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds of a start that takes ten."""

    def facts(component: str, *_: object) -> dict[str, Any] | None:
        return None if component == missing else {}

    free(0)
    monkeypatch.setattr("wan_trt_core.pipeline.acceleration.cached_facts", facts)
    for missing, refused in ((None, Begun), ("vae_decoder_next", GenerationError)):
        with pytest.raises(refused):
            wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
        assert bool(asked) == bool(missing)


def test_a_cpu_is_not_asked(
    pipe: Any, settings: Settings, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(0)
    monkeypatch.setattr("wan_trt_core.accelerating.located", lambda *_: torch.device("cpu"))
    with pytest.raises(Begun):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)


def hooked(pipe: Any) -> None:
    add_hook_to_module(pipe.text_encoder, AlignDevicesHook(execution_device="cpu"))


def grouped(pipe: Any) -> None:
    pipe.text_encoder.encoder.block[0]._diffusers_hook = SimpleNamespace(hooks={"group_offloading": None})


def quantised(pipe: Any) -> None:
    class Weight(nn.Parameter):
        pass

    pipe.text_encoder.shared.weight = Weight(pipe.text_encoder.shared.weight.data)


def in_part(pipe: Any) -> None:
    pipe.text_encoder.encoder.block[0].float()


def in_eight_bits(pipe: Any) -> None:
    pipe.text_encoder.to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "unknown"),
    [
        (hooked, "what the hooks on the text_encoder move"),
        (grouped, "what the hooks on the text_encoder move"),
        (quantised, "the weights of the text_encoder"),
        (in_part, "the weights of the text_encoder"),
        (in_eight_bits, "the weights of the text_encoder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_known_of_what_stays_in_pytorch_is_told_and_nothing_refused(
    change: Callable[[Any], None],
    unknown: str,
    pipe: Any,
    settings: Settings,
    free: Free,
    caplog: pytest.LogCaptureFixture,
) -> None:
    free(0)
    change(pipe)
    with pytest.raises(Begun):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    assert [line for line in caplog.messages if "room" in line] == [NOT_CHECKED + unknown]
    on_the_cpu = settings.model_copy(update={"pipeline": PipelineSettings(text_encoder_device="cpu")})
    with pytest.raises(GenerationError):  # where it is nothing of the GPU's, nothing has to be known of it
        wan_trt_core.accelerate(pipe, PROFILE, settings=on_the_cpu)


def test_two_transformers_in_two_precisions_are_not_known(
    settings: Settings, free: Free, caplog: pytest.LogCaptureFixture
) -> None:
    free(0)
    pipe = resolve("tiny-wan2.2-t2v-a14b", text_encoder=True).checkpoint.pipeline()
    pipe.transformer_2.half()
    with pytest.raises(Begun):
        wan_trt_core.accelerate(pipe, settings=settings)
    assert NOT_CHECKED + "two transformers in two precisions" in caplog.messages
    pipe.transformer.half()
    with pytest.raises(GenerationError, match=r"64p-9f \(64x96, 9 frames\): such a video needs"):
        wan_trt_core.accelerate(pipe, settings=settings)


def test_an_image_encoder_is_counted_as_it_is(
    settings: Settings, free: Free, asked: list[tuple[Workload, Choice]]
) -> None:
    free(2**30)
    model = resolve("tiny-wan2.1-i2v", text_encoder=True)
    pipe = model.checkpoint.pipeline()
    pipe.image_encoder.bfloat16()
    with pytest.raises(GenerationError):
        wan_trt_core.accelerate(pipe, settings=settings)
    work, choice = asked[0]
    assert (choice.text_encoder, choice.image_encoder) == ("fp32", "bf16")
    sizes = {part: term.size for part, term in weight_terms(work, choice)}
    assert sizes["image_encoder"] == sum(weight.nbytes for weight in pipe.image_encoder.parameters())


def test_a_guess_refuses_nothing(
    pipe: Any, settings: Settings, free: Free, caplog: pytest.LogCaptureFixture
) -> None:
    """What TensorRT needs for a DiT in FP32 was never measured, and is counted high: what FP16 needs decides."""
    pipe.transformer.float()
    settings = settings.model_copy(update={"pipeline": PipelineSettings(vae_tile=64)})
    free(1100 * MIB)
    with pytest.raises(Begun):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)
    assert NOT_CHECKED + "what a DiT in FP32 needs at work" in caplog.messages
    free(700 * MIB)
    with pytest.raises(GenerationError, match="and 700 MiB are free"):
        wan_trt_core.accelerate(pipe, PROFILE, settings=settings)


def test_what_the_pipeline_holds_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what PyTorch only keeps, and the process's CUDA context; not what others hold."""
    device, here, there = FakeDevice(others=4096 * MIB, outside=500 * MIB), torch.device("cpu"), GPU
    for name in ("mem_get_info", "memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))
    pipe = SimpleNamespace(components={"vae": nn.Linear(MIB // 8, 16, bias=False), "scheduler": object()})
    held = pipe.components["vae"].weight.nbytes
    device.take(held + 100 * MIB)  # something else of the caller's
    device.take(300 * MIB)
    device.drop(300 * MIB)
    assert room.free_for(pipe, here) == TOTAL - 4096 * MIB - 500 * MIB - 100 * MIB + CUDA_OWN
    assert room.free_for(pipe, there) == room.free_for(pipe, here) - held
    device.others = 0
    assert room.free_for(pipe, here) == TOTAL - 100 * MIB, "no more of a context than there is"
