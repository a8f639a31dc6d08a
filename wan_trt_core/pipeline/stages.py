"""The stages of a ``WanPipeline``'s call, stock or with engines: where each begins, what it takes and needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, Literal

from wan_trt_core.measure.memory import sampled
from wan_trt_core.measure.memory_events import label

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from wan_trt_core.measure.timing import Moment

Stage = Literal["text_encode", "denoise", "decode", "postprocess"]
Begin = Callable[[Stage, int | None], object]
"""Told that a stage begins, which ends the one before; the index, from 1, is that of the denoising step."""

TRANSFORMERS = ("transformer", "transformer_2")
"""Parts of a pipeline that predict the flow; most have one of them."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one call of a pipeline.

    Attributes:
        stages: ``text encode``, ``denoise 1`` …, ``decode``, ``postprocess``, in their order; together the whole call.
        transformer: inside the transformer; the rest of the denoising is guidance and scheduler.
    """

    stages: tuple[tuple[str, float], ...]
    transformer: float


@contextmanager
def stages(pipe: WanPipeline, begin: Begin) -> Iterator[None]:
    """Meanwhile ``begin`` is told of each stage of one call of ``pipe``; the last one ends with this.

    A denoising step ends with the scheduler's; before the first, and after the last up to the decoder, what prepares
    the latents is part of it.
    """
    ended = count(1)

    def encode(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        states = original(*args, **keywords)
        begin("denoise", 1)
        return states

    def step(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        latents = original(*args, **keywords)
        if (done := next(ended)) < pipe.num_timesteps:
            begin("denoise", done + 1)
        return latents

    def decode(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        begin("decode", None)
        video = original(*args, **keywords)
        begin("postprocess", None)
        return video

    with (
        through(pipe, "encode_prompt", encode),
        through(pipe.scheduler, "step", step),
        through(pipe.vae, "decode", decode),
    ):
        begin("text_encode", None)
        yield


def time_stages(pipe: WanPipeline, call: Callable[[], object], *, mark: Callable[[], Moment]) -> StageTimes:
    """Time one call of ``pipe`` by stage.

    Args:
        call: generates a video with ``pipe``.
        mark: notes a moment; called where a stage or the transformer begins and ends, and read when all is over.
    """
    began: list[tuple[str, Moment]] = []
    forwards: list[tuple[Moment, Moment]] = []

    def begin(stage: Stage, index: int | None) -> None:
        began.append((label(stage, index=index), mark()))

    def forward(original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        started = mark()
        flow = original(*args, **keywords)
        forwards.append((started, mark()))
        return flow

    with ExitStack() as watched:
        for name in TRANSFORMERS:
            if (module := getattr(pipe, name, None)) is not None:
                watched.enter_context(through(module, "forward", forward))
        watched.enter_context(stages(pipe, begin))
        call()
    began.append(("end", mark()))
    return StageTimes(
        tuple((name, start.until(end)) for (name, start), (_, end) in pairwise(began)),
        sum(start.until(end) for start, end in forwards),
    )


def peaks_by_stage(
    pipe: WanPipeline,
    call: Callable[[], object],
    read: Callable[[], int],
    *,
    synchronize: Callable[[], object],
    seconds: float,
) -> tuple[tuple[Stage, int | None, int], ...]:
    """The most that ``read`` says during each stage of one call of ``pipe``, with the stage's index.

    Args:
        call: generates a video with ``pipe``.
        read: bytes held now; read every ``seconds``, and where a stage begins and ends.
    """
    began: list[tuple[Stage, int | None]] = []
    bounds: list[int] = []  # where among the samples a stage begins, and the last one ends

    def bound() -> None:
        synchronize()
        bounds.append(len(samples))
        samples.append(read())

    def begin(stage: Stage, index: int | None) -> None:
        bound()
        began.append((stage, index))

    with sampled(read, seconds) as samples:
        with stages(pipe, begin):
            call()
        bound()
    return tuple(
        (*stage, max(samples[start : end + 1]))
        for stage, (start, end) in zip(began, pairwise(bounds), strict=True)
    )


def median_call(times: Sequence[StageTimes]) -> StageTimes:
    """Of several calls the one of median length (of an even number the longer of the middle two): unlike a median of
    each stage, its stages come to its length."""
    by_length = sorted(times, key=lambda each: sum(seconds for _, seconds in each.stages))
    return by_length[len(times) // 2]


@contextmanager
def through(target: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Meanwhile calls of a method of this one object go to ``wrapper``, with the original before its arguments."""
    before: Mapping[str, Any] = vars(target)
    own, original = name in before, getattr(target, name)
    setattr(target, name, partial(wrapper, original))
    try:
        yield
    finally:
        if own:
            setattr(target, name, original)
        else:
            delattr(target, name)
