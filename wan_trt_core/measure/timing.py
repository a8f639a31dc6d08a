"""Paired, interleaved timing of two callables in one process.

Pairs run in the order ABBA (reference, candidate, candidate, reference …), so that a linear drift of the
machine cancels; A/A pairs (the candidate against itself, in the same order) show what the method finds where
there is nothing to find. Samples come one pair at a time, so that the caller can stop as soon as its gate
decides.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, Protocol

from wan_trt_core.gates.statistics import drift, noise_floor, paired_ratio
from wan_trt_core.records import Metric

TIMING_METRICS = ("reference_time", "candidate_time", "speedup", "noise_floor")

NOISE_SHARE = 0.05
"""Share of the time budget that the warm-up and the A/A pairs of a fast case may use."""

Clock = Callable[[], float]
Synchronize = Callable[[], object]
StoppedBy = Literal["decided", "max_pairs", "time_budget"]


def no_synchronize() -> None:
    """For the CPU, where a call has done its work when it returns."""


class Moment(Protocol):
    """When something was, on the clock of those made alike."""

    def until(self, later: Any) -> float:
        """Seconds to a later moment; waits until that has come."""


@dataclass(frozen=True)
class HostMoment:
    """On the host's clock: seconds of :func:`time.perf_counter`."""

    at: float

    def until(self, later: HostMoment) -> float:
        return later.at - self.at


@dataclass(frozen=True)
class DeviceMoment:
    """In the work of a GPU: a recorded ``torch.cuda.Event``. To mark it the host need not wait, and so launches ahead
    as it does where nothing is timed."""

    event: Any

    def until(self, later: DeviceMoment) -> float:
        later.event.synchronize()
        return float(self.event.elapsed_time(later.event)) / 1e3


@dataclass(frozen=True)
class Pair:
    """Seconds of both arms, run one after the other."""

    reference: float
    candidate: float


@dataclass(frozen=True)
class PairedTimes:
    """What a paired measurement came to; all times in seconds.

    Attributes:
        pairs: the timed pairs, in the order measured.
        noise: the A/A pairs, the candidate in both places.
        warmup: runs of each arm before anything was timed.
        calls: calls that each time is the mean of.
        stopped_by: the gate decided, the most pairs were reached, or the time budget ended.
        seconds: how long it took in all.
    """

    pairs: tuple[Pair, ...]
    noise: tuple[Pair, ...]
    warmup: int
    calls: int
    stopped_by: StoppedBy
    seconds: float

    def series(self) -> dict[str, tuple[float, ...]]:
        """The raw times, by the names that the performance gate reads."""
        return {
            "reference_s": tuple(pair.reference for pair in self.pairs),
            "candidate_s": tuple(pair.candidate for pair in self.pairs),
            "noise_first_s": tuple(pair.reference for pair in self.noise),
            "noise_second_s": tuple(pair.candidate for pair in self.noise),
        }

    def facts(self) -> dict[str, Any]:
        """How the times were taken."""
        return {
            "pairs": len(self.pairs),
            "warmup": self.warmup,
            "calls_per_time": self.calls,
            "stopped_by": self.stopped_by,
            "timing_seconds": self.seconds,
        }

    def metrics(self, *, reference_extra: float = 0.0, candidate_extra: float = 0.0) -> dict[str, Metric]:
        """``reference_time``, ``candidate_time``, ``speedup``, ``drift`` of both times over the pairs (a share) and,
        where measured, ``noise_floor``.

        Args:
            reference_extra: seconds to add to each reference time (work done once a prompt, by its steps).
            candidate_extra: the same for the candidate.

        Raises:
            ValueError: when no pair was measured.
        """
        if not self.pairs:
            raise ValueError("no pair was measured")
        reference = tuple(pair.reference + reference_extra for pair in self.pairs)
        candidate = tuple(pair.candidate + candidate_extra for pair in self.pairs)
        metrics = {
            "reference_time": Metric(value=median(reference), unit="s", better="lower", samples=reference),
            "candidate_time": Metric(value=median(candidate), unit="s", better="lower", samples=candidate),
            "speedup": Metric(
                value=paired_ratio(reference, candidate),
                unit="x",
                better="higher",
                samples=tuple(a / b for a, b in zip(reference, candidate, strict=True)),
            ),
            "drift": _drift_metric(drift(reference, candidate)),
        }
        if self.noise:
            first = tuple(pair.reference for pair in self.noise)
            second = tuple(pair.candidate for pair in self.noise)
            metrics["noise_floor"] = Metric(
                value=noise_floor(first, second),
                unit="",
                better="lower",
                samples=tuple(noise_floor((a,), (b,)) for a, b in zip(first, second, strict=True)),
            )
        return metrics


class PairedTimer:
    """Times a reference and a candidate against each other.

    Attributes:
        outputs: what the reference and the candidate returned when they were last timed, so that the very
            outputs of the timed runs can be compared.
    """

    outputs: tuple[Any, Any]

    def __init__(
        self,
        reference: Callable[[], object],
        candidate: Callable[[], object],
        *,
        synchronize: Synchronize = no_synchronize,
        clock: Clock = time.perf_counter,
        warmup: int = 2,
        warmup_time: float = 0.0,
        calls: int = 1,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            reference: one whole call of the reference arm.
            candidate: the same work by the candidate.
            synchronize: waits until the device has done what was asked of it; called before both clock
                readings.
            clock: seconds; injected so that tests are exact.
            warmup: untimed runs of each arm, the same for both.
            warmup_time: seconds that those runs take at least, by more of them.
            calls: calls in a row that make one time, which is their mean.
        """
        self._reference, self._candidate = reference, candidate
        self._synchronize, self._clock = synchronize, clock
        self.warmup = warmup
        self._warmup_time = warmup_time
        self.calls = calls
        self.outputs = (None, None)

    def warm_up(self) -> int:
        """Run both arms without timing them; returns how many times."""
        start, runs = self._clock(), 0
        while runs < self.warmup or self._clock() - start < self._warmup_time:
            self._reference()
            self._candidate()
            self._synchronize()
            runs += 1
        return runs

    def calibrate(self, seconds: float) -> None:
        """Set ``calls`` so that the candidate takes at least ``seconds`` a time: short ones are mostly jitter."""
        least, self.calls = self.calls, 1
        # twice, for the first may hold what is done once: an engine captures its second call as a graph
        for _ in range(2):
            once, _ = self._time(self._candidate)
            self.calls = max(least, math.ceil(seconds / once) if once > 0 else 1)
            if once > 10 * seconds:
                break

    def noise_pairs(self, count: int) -> tuple[Pair, ...]:
        """``count`` A/A pairs: the candidate in both places, in the order of :meth:`pairs`."""
        return tuple(self._pair(index, self._candidate, self._candidate)[0] for index in range(count))

    def pairs(self) -> Iterator[Pair]:
        """Endless pairs of reference and candidate, every other one in reverse order (ABBA)."""
        index = 0
        while True:
            pair, self.outputs = self._pair(index, self._reference, self._candidate)
            yield pair
            index += 1

    def _pair(
        self, index: int, first: Callable[[], object], second: Callable[[], object]
    ) -> tuple[Pair, tuple[Any, Any]]:
        with _no_garbage_collection():
            if index % 2:
                b, output_b = self._time(second)
                a, output_a = self._time(first)
            else:
                a, output_a = self._time(first)
                b, output_b = self._time(second)
        return Pair(a, b), (output_a, output_b)

    def _time(self, call: Callable[[], object]) -> tuple[float, object]:
        self._synchronize()
        start = self._clock()
        for _ in range(self.calls):
            output = call()
        self._synchronize()
        return (self._clock() - start) / self.calls, output


def measure_pairs(
    timer: PairedTimer,
    decided: Callable[[Sequence[Pair]], bool],
    *,
    max_pairs: int,
    noise_pairs: int,
    time_budget: float,
    min_sample_time: float = 0.0,
    clock: Clock = time.perf_counter,
    progress: Callable[[int], object] | None = None,
    watch: AbstractContextManager[object] | None = None,
) -> PairedTimes:
    """Warm up, measure the A/A noise floor, then pairs until ``decided`` says so or the budget ends.

    Args:
        timer: the two arms.
        decided: asked after every pair with all pairs so far; true ends the measurement.
        max_pairs: pairs at most.
        noise_pairs: A/A pairs at least, measured before the first pair; more while they cost little
            (``NOISE_SHARE`` of the budget), because a floor of three short pairs is mostly luck.
        time_budget: seconds for all of it; a pair that has begun is finished, and one pair is always
            measured.
        min_sample_time: seconds that one time of the candidate covers at least, by as many calls as that takes.
        clock: seconds, of the budget.
        progress: called with the number of pairs so far.
        watch: entered once both arms are warm, left after the last pair: what looks at the machine meanwhile.
    """
    start = clock()
    warmup = timer.warm_up()
    if min_sample_time:
        timer.calibrate(min_sample_time)
    with watch or nullcontext():
        noise = timer.noise_pairs(noise_pairs)
        while len(noise) < max_pairs and clock() - start < NOISE_SHARE * time_budget:
            noise += timer.noise_pairs(2)
        pairs: list[Pair] = []
        stopped_by: StoppedBy = "max_pairs"
        for pair in timer.pairs():
            pairs.append(pair)
            if progress:
                progress(len(pairs))
            if decided(pairs):
                stopped_by = "decided"
                break
            if len(pairs) >= max_pairs:
                break
            if clock() - start >= time_budget:
                stopped_by = "time_budget"
                break
    return PairedTimes(tuple(pairs), noise, warmup, timer.calls, stopped_by, clock() - start)


def time_calls(
    call: Callable[[], object],
    runs: int,
    *,
    warmup: int = 1,
    synchronize: Synchronize = no_synchronize,
    clock: Clock = time.perf_counter,
) -> tuple[float, ...]:
    """Seconds of each of ``runs`` calls: for work that is done once a prompt and timed apart."""
    timer = PairedTimer(call, call, synchronize=synchronize, clock=clock)
    for _ in range(warmup):
        call()
    times = []
    for _ in range(runs):
        with _no_garbage_collection():
            times.append(timer._time(call)[0])
    return tuple(times)


def _drift_metric(share: float) -> Metric:
    word = "slower" if share > 0 else "faster"
    told = f"{abs(share):.1%} {word} from the first pair to the last, which cancels in the speed-up"
    return Metric(value=share, unit="", better="lower", detail=told if share else "")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection inside a timed run is charged to the arm it happens to fall into, so none runs there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
