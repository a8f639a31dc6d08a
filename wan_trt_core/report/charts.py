"""What the charts of a case show: data only, :mod:`~wan_trt_core.report.drawing` draws it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Literal

from wan_trt_core.gates.formatting import GIB, KIB, MIB
from wan_trt_core.gates.perf import SPEEDUP
from wan_trt_core.measure.memory_events import MemoryRecord, label
from wan_trt_core.records import OF_REFERENCE, CaseRecord, Metric
from wan_trt_core.report.summary import ARMS, together

QUALITY = ("psnr_db", "ssim", "lpips")
"""Shown wherever a record has several values of them (a frame, a denoising step, a point of the profile)."""

BOOKS = {
    "resident_set": "of the host",
    "allocated": "in PyTorch's tensors",
    "reserved": "in PyTorch's allocator",
    "device_used": "of the device",
}
"""The books of memory events in words."""

_INDEX = {"video": "frame", "latents": "denoising step"}
"""What a metric with that prefix has one sample of."""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        kind: ``spread`` (a row of points a series), ``lines`` (values in their order), ``bars`` (by label),
            ``timeline`` (values at their times, and below them what went on).
        axis: what the values are, with their unit.
        series: values by name, all finite but in ``bars``, where NaN leaves a bar out; ``reference`` and
            ``candidate`` always look alike.
        labels: what each bar is; of ``spread``, what to call the rows if not by the series' names.
        index: what the values of ``lines`` are counted by; of ``timeline``, what the times are.
        times: of ``timeline``, when each value of every series was, in seconds.
        spans: of ``timeline``, from when to when each thing went on, in seconds; a row each.
        marks: values to draw a line at, by what they are; of ``timeline``, times.
        bands: ranges to shade, by what they are.
    """

    kind: Literal["spread", "lines", "bars", "timeline"]
    title: str
    axis: str
    series: Mapping[str, Sequence[float]]
    labels: tuple[str, ...] = ()
    index: str = ""
    times: tuple[float, ...] = ()
    spans: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    bands: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The chart in words, for those who do not see it."""
        if self.kind == "timeline":
            return self._told_in_time()
        bars = self.labels if self.kind == "bars" else ()
        parts = [f"{name}: {_in_words(values, bars)}" for name, values in self.series.items()]
        parts += [f"{name}: {value:.4g}" for name, value in self.marks.items()]
        parts += [f"{name}: {low:.4g} to {high:.4g}" for name, (low, high) in self.bands.items()]
        return f"{self.title}, {self.axis}. {'; '.join(parts)}."

    def _told_in_time(self) -> str:
        parts = []
        for name, values in self.series.items():
            at = self.times[values.index(max(values))]
            parts.append(f"{name}: {min(values):.4g} to {max(values):.4g}, the most at {at:.4g} s")
        for name, spans in self.spans.items():
            took = sum(end - start for start, end in spans)
            parts.append(f"{name}: {took:.4g} s between {spans[0][0]:.4g} s and {spans[-1][1]:.4g} s")
        parts += [f"{name}: at {time:.4g} s" for name, time in self.marks.items()]
        return f"{self.title}, {self.axis}. {'; '.join(parts)}."


def case_charts(case: CaseRecord) -> list[Chart]:
    """The charts of a case, as far as its record goes; values that are not finite are left out."""
    of_suite = {"perf": _perf, "parity": _parity, "memory": _memory}
    return [chart for chart in of_suite[case.suite](case) if all(chart.series.values())]


def memory_timeline(record: MemoryRecord) -> Chart:
    """What a run held from its start to its end, the peak of every stage, and when which kind of stage ran, in the
    book that decides.

    Args:
        record: with at least one event.
    """
    events = record.events
    scale, unit = _bytes(event.peak.of(record.book) for event in events)
    ends = [(event.before.of(record.book), event.after.of(record.book)) for event in events]
    spans: dict[str, list[tuple[float, float]]] = {}
    for stage, group in groupby(events, lambda event: event.stage):
        run = list(group)
        spans.setdefault(label(stage), []).append((run[0].start, run[-1].end))
    ended = {}
    if failure := record.failure:
        ended = {f"ended in {failure.stage}" if failure.stage else "ended early": events[-1].end}
    return Chart(
        "timeline",
        "Memory over the run",
        f"{unit} {BOOKS[record.book]}",
        {
            "peak of the stage": [event.peak.of(record.book) / scale for event in events for _ in range(2)],
            "held": [size / scale for both in ends for size in both],
        },
        index="seconds since the start",
        times=tuple(time for event in events for time in (event.start, event.end)),
        spans=spans,
        marks=ended,
    )


def _perf(case: CaseRecord) -> Iterator[Chart]:
    metrics = case.measurement.metrics
    times = {
        arm: [1e3 * time for time in _samples(metrics.get(f"{arm}_time"))]
        for arm in ("reference", "candidate")
    }
    if all(times.values()):
        middle = {arm: median(values) for arm, values in times.items()}
        spread = {arm: [100 * (time / middle[arm] - 1) for time in values] for arm, values in times.items()}
        rows = tuple(f"{arm}\n{value:.4g} ms" for arm, value in middle.items())
        yield Chart("spread", "Times of both arms", "% from the arm's own median", spread, rows)
        yield _ratio(case)
        yield Chart("lines", "Pairs in the order measured", "ms a call", times, index="pair")
    noise = metrics.get("noise_floor")
    series = case.measurement.series
    pairs = zip(series.get("noise_first_s", ()), series.get("noise_second_s", ()), strict=False)
    if noise is not None and noise.value is not None and (again := [a / b for a, b in pairs if b > 0]):
        floor = {f"noise floor {noise.value:.1%}": _around(1.0, noise.value)}
        yield Chart(
            "lines", "Candidate against itself", "ratio", {"candidate": again}, index="pair", bands=floor
        )
    if stages := case.measurement.facts.get("stages"):
        by_stage = {arm: together(stages[arm]) for arm in ARMS}
        labels = tuple(by_stage["reference"])
        arms = {arm: [sums.get(label, math.nan) for label in labels] for arm, sums in by_stage.items()}
        yield Chart("bars", "Time by stage", "s a video", arms, labels)
    kernels = case.measurement.facts.get("kernels", {})
    if "groups_ms" in kernels:
        groups = tuple(kernels["groups_ms"])
        arms = {
            name: [float(arm["groups_ms"][group]) for group in groups]
            for name, arm in (("reference", kernels["reference"]), ("candidate", kernels))
        }
        yield Chart("bars", "Kernels by what they do", "ms a call", arms, groups)


def _ratio(case: CaseRecord) -> Chart:
    """The speed-up with its interval, and what is asked; a ratio within the noise floor of that decides nothing."""
    speedup = case.measurement.metrics[SPEEDUP]
    check = next((check for check in case.checks if check.metric == SPEEDUP), None)
    marks, bands = {}, {}
    if check is not None and check.limit is not None:
        marks[f"asked: {check.limit:g}x"] = check.limit
        if check.evidence.get("noise_floor") is not None:
            bands[f"noise floor around {check.limit:g}x"] = _around(
                check.limit, check.evidence["noise_floor"]
            )
    if check is not None and "low" in check.evidence:
        name = f"{check.evidence['confidence']:.0%} interval"
        bands[name] = (check.evidence["low"], check.evidence["high"])
    pairs = {"pairs": _samples(speedup)}
    return Chart("spread", "Speed-up", "reference / candidate", pairs, marks=marks, bands=bands)


def _parity(case: CaseRecord) -> Iterator[Chart]:
    limits = {
        check.metric: check.limit
        for check in case.checks
        if check.limit is not None and not check.advisory and check.gate != "band"
    }
    for name, metric in case.measurement.metrics.items():
        prefix, _, kind = name.rpartition(".")
        values = _samples(metric)
        if (kind not in QUALITY and name not in limits) or len(set(values)) < 2:
            continue
        marks = {f"limit: {limits[name]:g}": limits[name]} if name in limits else {}
        index = _INDEX.get(prefix, "output or point of the profile")
        yield Chart(
            "lines",
            f"{name} by {index}",
            metric.unit or kind,
            {"candidate": values},
            index=index,
            marks=marks,
        )


def _memory(case: CaseRecord) -> Iterator[Chart]:
    sizes = {name: metric for name, metric in case.measurement.metrics.items() if metric.unit == "B"}
    held = {
        name: metric.value
        for name, metric in sizes.items()
        if metric.value is not None and math.isfinite(metric.value) and not metric.samples
    }
    if owners := tuple(name for name in held if not name.startswith(OF_REFERENCE)):
        scale, unit = _bytes(held.values())
        arms = {
            "reference": [held.get(f"{OF_REFERENCE}{name}", math.nan) / scale for name in owners],
            "candidate": [held[name] / scale for name in owners],
        }
        if all(map(math.isnan, arms["reference"])):
            del arms["reference"]
        yield Chart("bars", "Memory by owner", unit, arms, owners)
    sampled = {name: values for name, metric in sizes.items() if (values := _samples(metric))}
    steps = {name for name in sampled if name.endswith("step_growth")}
    for index, title, names in (
        ("run", "Memory over repeated runs", sampled.keys() - steps),
        ("step", "Memory over denoising steps", steps),
    ):
        if series := {name: sampled[name] for name in sampled if name in names}:
            scale, unit = _bytes(value - values[0] for values in series.values() for value in values)
            since = {
                name: [(value - values[0]) / scale for value in values] for name, values in series.items()
            }
            yield Chart("lines", title, f"{unit} since the first {index}", since, index=index)


def _samples(metric: Metric | None) -> list[float]:
    return [value for value in metric.samples if math.isfinite(value)] if metric else []


def _around(value: float, noise: float) -> tuple[float, float]:
    """The range that a noise floor (a difference of logarithms) makes of a ratio."""
    return value * math.exp(-noise), value * math.exp(noise)


def _bytes(sizes: Iterable[float]) -> tuple[float, str]:
    """The unit in which the largest of ``sizes`` reads well."""
    largest = max(map(abs, sizes))
    return next(
        ((size, name) for size, name in ((GIB, "GiB"), (MIB, "MiB")) if largest >= size), (KIB, "KiB")
    )


def _in_words(values: Sequence[float], labels: Sequence[str]) -> str:
    if labels:
        named = zip(labels, values, strict=True)
        return ", ".join(f"{label} {value:.4g}" for label, value in named if not math.isnan(value))
    return f"{len(values)} values from {min(values):.4g} to {max(values):.4g}, median {median(values):.4g}"
