"""A leak and a spike that are put into a real run, recorded on this machine's CPU, are found where they were put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import MIB
from host_memory import touch

from wan_trt_core.config import Settings
from wan_trt_core.measure.memory_events import FILE_NAME, MemoryRecord
from wan_trt_core.memory.analysis import Analysis, Growth, analyse
from wan_trt_core.models.catalogue import GenerationDefaults, resolve
from wan_trt_core.pipeline.engines import EngineStore
from wan_trt_core.pipeline.generate import generate
from wan_trt_core.pipeline.recording import recorded_run
from wan_trt_core.pipeline.swap import REPLACED, swap
from wan_trt_core.report.memory_report import memory_markdown

VIDEO = GenerationDefaults(
    32, 32, 9, num_inference_steps=12, guidance_scale=3.0, max_sequence_length=16, fps=8
)
NOBODYS = "not attributed (activations, arenas, libraries)"

Fault = Callable[[Any], Callable[[int, int], None]]
"""Puts something into a pipeline; what it returns is called after each step."""


def tensor(mebibytes: int) -> torch.Tensor:
    """On pages of its own: memory that earlier tests freed would not be seen to be taken."""
    return torch.frombuffer(touch(mebibytes), dtype=torch.uint8)


def run_with(fault: Fault, checkpoint: Path, tmp_path: Path, steps: int = 12) -> MemoryRecord:
    model, path = resolve(str(checkpoint)), tmp_path / FILE_NAME
    with recorded_run(path, "cpu", {"model": "small", "backend": "torch"}) as recording:
        with recording.loads(model.checkpoint, EngineStore(Settings(device="cpu"))):
            pipe = model.checkpoint.pipeline()
        on_step = fault(pipe)
        with recording.stages(pipe):
            generate(pipe, "red", replace(VIDEO, num_inference_steps=steps), on_step=on_step)
    return MemoryRecord.read(path)


def steps_of(found: Analysis) -> Growth:
    return next(growth for growth in found.growth if growth.per == "denoising step")


def none(pipe: Any) -> Callable[[int, int], None]:
    return lambda done, of: None


@pytest.mark.parametrize("steps", [6, 8, 12])
def test_a_sound_run_does_not_grow(small_checkpoint: Path, tmp_path: Path, steps: int) -> None:
    """The first steps take what the later ones use again: what levels off is no growth."""
    growth = steps_of(analyse(run_with(none, small_checkpoint, tmp_path, steps)))
    assert not growth.grows, growth


def test_a_list_that_keeps_a_tensor_a_step_is_a_leak_of_the_denoising(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    kept: list[torch.Tensor] = []

    def leak(pipe: Any) -> Callable[[int, int], None]:
        return lambda done, of: kept.append(tensor(4))

    record = run_with(leak, small_checkpoint, tmp_path)
    assert len(kept) == 12
    growth = steps_of(analyse(record))
    assert growth.grows
    assert growth.slope == pytest.approx(4 * MIB, rel=0.05)
    assert growth.who == NOBODYS, "no module has it"
    text = memory_markdown(record)
    assert "MiB a denoising step of the host" in text.split("## Owners")[0]
    assert f"most of it {NOBODYS}" in text.split("## Owners")[0]


def test_an_engine_whose_buffers_grow_is_named(
    small_checkpoint: Path, tmp_path: Path, on_modules: None
) -> None:
    model, path = resolve(str(small_checkpoint)), tmp_path / FILE_NAME
    buffers: list[torch.Tensor] = []
    with recorded_run(path, "cpu", {}) as recording, EngineStore(Settings(device="cpu")) as store:
        with recording.loads(model.checkpoint, store):
            stock = model.checkpoint.pipeline(replaced=REPLACED)
            pipe = swap(stock, store.pipeline(model, model.profile(), "fp32", "torch"))
            engine: Any = store.load("dit", model, model.profile(), "fp32", "torch")
        memory = engine.memory
        engine.memory = lambda: memory() | {"buffers": sum(buffer.nbytes for buffer in buffers)}
        with recording.stages(pipe):
            generate(pipe, "red", VIDEO, on_step=lambda done, of: buffers.append(tensor(4)))
    growth = steps_of(analyse(MemoryRecord.read(path)))
    assert growth.grows and growth.slope == pytest.approx(4 * MIB, rel=0.05)
    assert growth.who == "dit engine buffers"
    assert "most of it dit engine buffers" in memory_markdown(MemoryRecord.read(path)).split("## Owners")[0]


def test_a_tensor_that_only_one_step_needs_is_its_spike(small_checkpoint: Path, tmp_path: Path) -> None:
    """Of the fifth call of the transformer, which is the third step: each has one with the prompt and one without."""

    def spike(pipe: Any) -> Callable[[int, int], None]:
        calls = count(1)

        def before(*_: Any) -> None:
            if next(calls) == 5:
                tensor(400)

        pipe.transformer.register_forward_pre_hook(before)
        return lambda done, of: None

    record = run_with(spike, small_checkpoint, tmp_path)
    found = analyse(record)
    first = found.moments[0]
    assert (first.stage, first.who) == ("denoise 3", NOBODYS)
    assert first.above == pytest.approx(400 * MIB, rel=0.1)
    assert found.peak_stage == "denoise 3"
    assert not steps_of(found).grows, "it is gone after it"
    biggest = memory_markdown(record).split("## Biggest moments")[1].split("##")[0]
    row = next(line for line in biggest.splitlines() if line.startswith("| denoise 3 "))
    assert row.endswith(f"| {NOBODYS} |")


def test_weights_that_are_loaded_are_their_own_spike(small_checkpoint: Path, tmp_path: Path) -> None:
    """A moment is its owner's where one says so: here of a text encoder that is made larger while it is loaded."""
    model, path = resolve(str(small_checkpoint)), tmp_path / FILE_NAME
    fresh = model.checkpoint.fresh

    def heavier(part: str, *args: Any, **keywords: Any) -> Any:
        module = fresh(part, *args, **keywords)
        if part == "text_encoder":
            module.register_buffer("ballast", tensor(300))
        return module

    model.checkpoint.fresh = heavier  # type: ignore[method-assign]
    with recorded_run(path, "cpu", {}) as recording:  # noqa: SIM117
        with recording.loads(model.checkpoint, EngineStore(Settings(device="cpu"))):
            model.checkpoint.pipeline()
    first = analyse(MemoryRecord.read(path)).moments[0]
    assert (first.stage, first.who) == ("load text_encoder", "text_encoder weights")
