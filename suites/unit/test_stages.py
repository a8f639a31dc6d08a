"""The stages of a pipeline's call: each begins where it should and is charged with its own time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wan_trt_core.comparison.conditions import mark
from wan_trt_core.measure.timing import DeviceMoment, HostMoment
from wan_trt_core.pipeline.stages import StageTimes, median_call, peaks_by_stage, stages, time_stages


class FakePipe:
    """Does what ``WanPipeline.__call__`` does, on a clock of its own: every part takes as long as told."""

    def __init__(self, steps: int = 3) -> None:
        self.now, self.waited = 0.0, 0
        self.num_timesteps = steps
        self.scheduler = SimpleNamespace(step=self._takes(0.25))
        self.transformer = SimpleNamespace(forward=self._takes(1.0))
        self.vae = SimpleNamespace(decode=self._takes(5.0))

    def encode_prompt(self) -> None:
        self.now += 0.5

    def __call__(self, *, fails: bool = False) -> None:
        self.encode_prompt()
        for _ in range(self.num_timesteps):
            self.transformer.forward()
            self.transformer.forward()  # guidance
            self.scheduler.step()
        if fails:
            raise RuntimeError("out of memory")
        self.vae.decode()
        self.now += 2.0  # frames

    def synchronize(self) -> None:
        self.waited += 1

    def _takes(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def times_of(pipe: Any) -> StageTimes:
    return time_stages(pipe, pipe, mark=lambda: HostMoment(pipe.now))


def test_every_stage_has_its_own_time() -> None:
    pipe = FakePipe()
    times = times_of(pipe)
    assert times.stages == (
        ("text encode", 0.5),
        ("denoise 1", 2.25),
        ("denoise 2", 2.25),
        ("denoise 3", 2.25),
        ("decode", 5.0),
        ("postprocess", 2.0),
    )
    assert times.transformer == 6.0
    assert sum(seconds for _, seconds in times.stages) == pipe.now, "nothing is left out"


def test_a_moment_is_on_the_clock_of_what_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        recorded = False

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing, "else it has no time"

        def record(self) -> None:
            self.recorded = True

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert isinstance(mark(), HostMoment), "a GPU that nothing was asked of"
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.Event", Event)
    moment = mark()
    assert isinstance(moment, DeviceMoment) and moment.event.recorded


def test_a_pipeline_is_left_as_it_was_even_by_a_call_that_fails() -> None:
    pipe: Any = FakePipe()
    before = [dict(vars(each)) for each in (pipe.scheduler, pipe.transformer, pipe.vae)]
    with pytest.raises(RuntimeError, match="out of memory"), stages(pipe, lambda *_: None):
        pipe(fails=True)
    times_of(pipe)
    assert [dict(vars(each)) for each in (pipe.scheduler, pipe.transformer, pipe.vae)] == before
    assert "encode_prompt" not in vars(pipe)


def test_the_median_call_is_one_of_the_calls() -> None:
    """Medians of each stage and of the transformer need not come to the length of any call."""
    runs = [
        StageTimes((("denoise 1", denoise), ("decode", decode)), denoise / 2)
        for denoise, decode in ((1.0, 9.0), (9.0, 2.0), (1.0, 1.0))
    ]
    assert median_call(runs) is runs[0]


def test_the_most_that_is_held_is_told_by_stage() -> None:
    """Between the reads of the thread every stage has those of its own begin and end."""
    pipe: Any = FakePipe(steps=2)
    held = {0.0: 7, 0.5: 3, 2.75: 5, 5.0: 2, 10.0: 9, 12.0: 1}
    peaks = peaks_by_stage(pipe, pipe, lambda: held[pipe.now], synchronize=pipe.synchronize, seconds=60)
    assert peaks == (
        ("text_encode", None, 7), ("denoise", 1, 5), ("denoise", 2, 5), ("decode", None, 9),
        ("postprocess", None, 9),
    )  # fmt: skip


def test_what_is_held_for_a_while_counts_in_its_stage() -> None:
    pipe: Any = FakePipe(steps=1)
    held, seen = [1], threading.Event()
    decode = pipe.vae.decode

    def large() -> None:
        held[0] = 100
        assert seen.wait(10)
        held[0] = 2
        decode()

    def read() -> int:
        if held[0] == 100:
            seen.set()
        return held[0]

    pipe.vae.decode = large
    peaks = peaks_by_stage(pipe, pipe, read, synchronize=pipe.synchronize, seconds=0.001)
    assert [size for *_, size in peaks] == [1, 1, 100, 2]
