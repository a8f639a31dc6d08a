"""Paired timing with a clock that tells exactly what it is told."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from wan_trt_core.measure.timing import (
    DeviceMoment,
    HostMoment,
    Pair,
    PairedTimer,
    PairedTimes,
    measure_pairs,
    time_calls,
)


class FakeClock:
    """Seconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(
        self, seconds: Callable[[], float] | float, log: list[str] | None = None, name: str = ""
    ) -> Callable[[], str]:
        def call() -> str:
            self.now += seconds() if callable(seconds) else seconds
            if log is not None:
                log.append(name)
            return name

        return call


def take(timer: PairedTimer, count: int) -> list[Pair]:
    pairs = timer.pairs()
    return [next(pairs) for _ in range(count)]


def test_pairs_run_in_the_order_abba_and_hold_the_time_of_their_arm() -> None:
    clock, log = FakeClock(), []
    timer = PairedTimer(clock.work(3.0, log, "a"), clock.work(2.0, log, "b"), clock=clock)
    assert take(timer, 3) == [Pair(3.0, 2.0)] * 3
    assert "".join(log) == "abbaab"


def test_abba_cancels_a_linear_drift() -> None:
    clock = FakeClock()
    step = iter(range(100))
    arm = lambda: 1.0 + 0.01 * next(step)  # noqa: E731
    pairs = take(PairedTimer(clock.work(arm), clock.work(arm), clock=clock), 4)
    assert sum(p.reference for p in pairs) == pytest.approx(sum(p.candidate for p in pairs))


def test_warm_up_runs_both_arms_alike_and_is_not_timed() -> None:
    clock, log = FakeClock(), []
    timer = PairedTimer(clock.work(1.0, log, "a"), clock.work(1.0, log, "b"), clock=clock, warmup=3)
    timer.warm_up()
    assert sorted(log) == ["a"] * 3 + ["b"] * 3


def test_noise_pairs_run_the_candidate_in_both_places() -> None:
    clock, log = FakeClock(), []
    timer = PairedTimer(clock.work(3.0, log, "a"), clock.work(2.0, log, "b"), clock=clock)
    assert timer.noise_pairs(2) == (Pair(2.0, 2.0),) * 2
    assert log == ["b"] * 4


def test_both_clock_readings_wait_for_the_device() -> None:
    """Work that is only queued by the call is charged to it, and not to the next one."""
    clock = FakeClock()
    queued = [0.0]

    def launch() -> None:
        queued[0] += 5.0

    def synchronize() -> None:
        clock.now += queued[0]
        queued[0] = 0.0

    timer = PairedTimer(launch, lambda: None, synchronize=synchronize, clock=clock)
    assert take(timer, 2) == [Pair(5.0, 0.0)] * 2
    assert take(PairedTimer(launch, lambda: None, clock=clock), 1) == [Pair(0.0, 0.0)]


def test_outputs_are_those_of_the_last_timed_pair() -> None:
    clock = FakeClock()
    counter = iter(range(10))
    timer = PairedTimer(lambda: ("a", next(counter)), lambda: ("b", next(counter)), clock=clock)
    take(timer, 2)
    assert timer.outputs == (("a", 3), ("b", 2))


def test_no_garbage_is_collected_while_a_pair_runs() -> None:
    seen = []
    timer = PairedTimer(lambda: seen.append(gc.isenabled()), lambda: seen.append(gc.isenabled()))
    pairs = timer.pairs()
    next(pairs)
    assert seen == [False, False]
    assert gc.isenabled()


def test_garbage_collection_is_restored_when_an_arm_breaks() -> None:
    def broken() -> None:
        raise RuntimeError("engine lost")

    with pytest.raises(RuntimeError, match="engine lost"):
        next(PairedTimer(broken, broken).pairs())
    assert gc.isenabled()


def measured(clock: FakeClock, decided: Callable[[Sequence[Pair]], bool], **options: float) -> object:
    timer = PairedTimer(clock.work(3.0), clock.work(2.0), clock=clock, warmup=1)
    settings: dict[str, float] = {"max_pairs": 10, "noise_pairs": 2, "time_budget": 100.0, **options}
    return measure_pairs(timer, decided, clock=clock, **settings)  # type: ignore[arg-type]


def test_measurement_stops_when_it_is_decided() -> None:
    times = measured(FakeClock(), lambda pairs: len(pairs) == 4)
    assert (len(times.pairs), len(times.noise), times.stopped_by) == (4, 2, "decided")  # type: ignore[attr-defined]


def test_measurement_stops_at_the_most_pairs() -> None:
    times = measured(FakeClock(), lambda pairs: False)
    assert (len(times.pairs), times.stopped_by) == (10, "max_pairs")  # type: ignore[attr-defined]


def test_measurement_stops_when_its_time_is_up() -> None:
    """Warm-up takes 5 s, the two A/A pairs 8 s, each pair 5 s."""
    times = measured(FakeClock(), lambda pairs: False, time_budget=25.0)
    assert (len(times.pairs), times.stopped_by, times.seconds) == (3, "time_budget", 28.0)  # type: ignore[attr-defined]


def test_metrics_and_series_of_a_measurement() -> None:
    clock = FakeClock()
    timer = PairedTimer(clock.work(3.0), clock.work(2.0), clock=clock, warmup=2)
    times = measure_pairs(
        timer, lambda pairs: False, max_pairs=3, noise_pairs=2, time_budget=100.0, clock=clock
    )
    metrics = times.metrics(reference_extra=0.5, candidate_extra=0.5)
    assert {name: metric.value for name, metric in metrics.items()} == {
        "reference_time": 3.5,
        "candidate_time": 2.5,
        "speedup": 1.4,
        "drift": 0.0,
        "noise_floor": 0.0,
    }
    assert times.series() == {
        "reference_s": (3.0,) * 3,
        "candidate_s": (2.0,) * 3,
        "noise_first_s": (2.0,) * 2,
        "noise_second_s": (2.0,) * 2,
    }
    assert metrics["speedup"].samples == (1.4,) * 3
    assert metrics["noise_floor"].samples == (0.0,) * 2
    assert times.facts()["warmup"] == 2


def test_a_machine_that_gets_slower_is_told() -> None:
    pairs = tuple(Pair(3.0 * 1.02**pair, 2.0 * 1.02**pair) for pair in range(8))
    found = PairedTimes(pairs, (), 1, 1, "max_pairs", 1.0).metrics()["drift"]
    assert found.value == pytest.approx(1.02**7 - 1)
    assert found.detail == "14.9% slower from the first pair to the last, which cancels in the speed-up"


def test_calls_once_a_prompt_are_timed_apart() -> None:
    clock, log = FakeClock(), []
    assert time_calls(clock.work(0.5, log, "x"), 3, warmup=2, clock=clock) == (0.5,) * 3
    assert len(log) == 5


def test_short_calls_are_repeated_until_one_time_covers_enough() -> None:
    clock = FakeClock()
    start = clock.now
    timer = PairedTimer(clock.work(0.125), clock.work(0.0625), clock=clock, warmup=1)
    times = measure_pairs(
        timer, lambda pairs: len(pairs) == 3, max_pairs=9, noise_pairs=1, time_budget=9.0,
        min_sample_time=0.25, clock=clock,
    )  # fmt: skip
    assert times.facts()["calls_per_time"] == 4
    assert times.pairs[0] == Pair(0.125, 0.0625)  # of one call, not of four
    warmed, calibrated, noise, pairs = 0.1875, 0.0625 + 0.25, 2 * 0.25, 3 * (0.5 + 0.25)
    assert clock.now - start == pytest.approx(warmed + calibrated + noise + pairs)


def test_what_the_first_calls_do_once_makes_no_short_samples() -> None:
    """A CUDA graph is captured in a hundred times a replay's time."""
    clock = FakeClock()
    first, later = clock.work(0.5), clock.work(0.0078125)
    calls = iter([first, *[later] * 99])
    timer = PairedTimer(clock.work(1.0), lambda: next(calls)(), clock=clock)
    timer.calibrate(0.25)
    assert timer.calls == 32


def test_long_calls_are_timed_one_by_one() -> None:
    clock, log = FakeClock(), []
    timer = PairedTimer(clock.work(3.0), clock.work(2.0, log, "x"), clock=clock, warmup=1)
    timer.calibrate(0.1)
    assert timer.calls == 1
    assert log == ["x"]  # and once is enough to know


def test_cheap_noise_pairs_go_on_for_a_share_of_the_budget() -> None:
    clock = FakeClock()
    timer = PairedTimer(clock.work(1.0), clock.work(0.5), clock=clock, warmup=1)
    times = measure_pairs(
        timer, lambda pairs: True, max_pairs=9, noise_pairs=3, time_budget=100.0, clock=clock
    )
    assert len(times.noise) == 5  # 1.5 s of warm-up, 3 s of the least, and 2 s more make over 5 % of 100 s


def test_warm_up_takes_at_least_its_time() -> None:
    clock = FakeClock()
    timer = PairedTimer(clock.work(3.0), clock.work(2.0), clock=clock, warmup=1, warmup_time=11.0)
    times = measure_pairs(
        timer, lambda pairs: True, max_pairs=3, noise_pairs=2, time_budget=100.0, clock=clock
    )
    assert times.facts()["warmup"] == 3  # 15 s


def test_the_machine_is_watched_once_both_arms_are_warm() -> None:
    clock, log = FakeClock(), []

    @contextmanager
    def watch() -> Iterator[None]:
        log.append("[")
        yield
        log.append("]")

    timer = PairedTimer(clock.work(3.0, log, "a"), clock.work(2.0, log, "b"), clock=clock, warmup=1)
    measure_pairs(
        timer, lambda pairs: True, max_pairs=3, noise_pairs=2, time_budget=50.0, clock=clock, watch=watch()
    )
    assert "".join(log) == "ab[bbbbab]"


def test_moments_of_the_host_and_of_a_gpu() -> None:
    assert HostMoment(1.0).until(HostMoment(3.5)) == 2.5
    waited: list[float] = []

    class Event:
        def __init__(self, milliseconds: float) -> None:
            self.milliseconds = milliseconds

        def synchronize(self) -> None:
            waited.append(self.milliseconds)

        def elapsed_time(self, later: Event) -> float:
            return later.milliseconds - self.milliseconds

    assert DeviceMoment(Event(500.0)).until(DeviceMoment(Event(1750.0))) == 1.25
    assert waited == [1750.0], "the later event may not have come yet, and the earlier one has by then"
