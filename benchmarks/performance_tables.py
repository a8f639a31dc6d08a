"""What do the engines reach beside stock diffusers? The stored numbers of every case, and each with its commit.

    python benchmarks/performance_tables.py baselines/cuda-nvidia-h200-132sm-139gib

Nothing is measured here: a row is what one run showed, as the baseline of its case has it
(``wan-trt baselines regenerate --observed`` brings it up to date), and, where no run was observed, what set the bands.
The tables go to the terminal as Markdown; ``docs/performance.md`` holds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import PEAK_OVER_REFERENCE, Case, Limit, Suite, load_cases
from wan_trt_core.gates.bands import BaselineEntry, ObservedMetric
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.gates.perf import SPEEDUP
from wan_trt_core.measure.differences import costliest
from wan_trt_core.models.profiles import POINTS
from wan_trt_core.observations import CACHES, commit_of, seen
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.records import OF_REFERENCE
from wan_trt_core.report.markdown import markdown_table

BACKEND = "tensorrt"
"""What all columns of engines are of; entries of another backend are left out."""

Stored = Sequence[tuple[Case, BaselineEntry]]
"""The cases of a suite that have an entry, in the order of the case file, tiny models after the published ones."""


@dataclass(frozen=True)
class Aim:
    """The speed-up over stock diffusers that a case was to have; the lower end of its interval counts.

    Attributes:
        name: of the case, for people.
        case: its id.
        required: the least that was required of it; ``None`` where nothing was.
        reach: what was to be reached.
        ideas: links to the sections of the page with what was measured to get there.
        within_memory: the engines may take no more of the device than stock diffusers.
    """

    name: str
    case: str
    required: float | None
    reach: float
    ideas: str
    within_memory: bool = False


_DECODER = "[ideas](#the-vaes-decoder)"
AIMS = (
    Aim("DiT 1.3B FP16, 17 frames", "wan-1.3b-dit-17f", 1.5, 1.65, "[ideas](#the-dit-at-17-frames)"),
    Aim("DiT 1.3B FP16, 81 frames", "wan-1.3b-dit-81f", 1.35, 1.45, "[ideas](#the-dit-at-81-frames)"),
    Aim("DiT 14B FP16, 10 of 40 layers, 17 frames", "wan-14b-dit-17f-10-layers", None, 1.5,
        "[ideas](#the-14b-at-17-frames)"),
    Aim("DiT 14B FP16, 10 of 40 layers, 81 frames", "wan-14b-dit-81f-10-layers", None, 1.4,
        "[ideas](#the-14b-at-81-frames)"),
    Aim("VAE decode FP32, 81 frames", "wan-1.3b-vae-decoder-81f", 1.8, 2.0, _DECODER),
    Aim("the same within stock diffusers' memory", "wan-1.3b-vae-decoder-81f-lean", None, 1.5, _DECODER,
        within_memory=True),
    Aim("VAE decode FP32, 17 frames", "wan-1.3b-vae-decoder-17f", 1.5, 1.8, _DECODER),
    Aim("pipeline 1.3B, 17 frames, 50 steps", "wan-1.3b-pipeline-17f", 1.5, 1.6,
        "[the DiT's](#the-dit-at-17-frames) and [the decoder's ideas](#the-vaes-decoder)"),
)  # fmt: skip

TARGETS = (
    "case",
    "id",
    "required",
    "to reach",
    "speed-up (lower end)",
    "outcome",
    "over torch.compile (lower end)",
    "memory over stock's",
    "commit",
)
UNKNOWN = "–"
"""In the place of what is not stored."""

VERDICTS = (
    "case",
    "stock diffusers",
    "TensorRT",
    "speed-up (interval)",
    "asked",
    "over torch.compile",
    "gain of CUDA graphs",
    "PSNR",
    "commit",
)
PARITY = ("case", "reference", "metric", "worst", *POINTS, "asked", "commit")
MEMORY = {
    "device in use": ("device_used",),
    "weights": ("engine_weights",),
    "scratch": ("engine_scratch", "engine_own_scratch"),
    "caches": (CACHES,),
    "nobody's": ("device_unattributed",),
    "stock diffusers, device in use": (f"{OF_REFERENCE}device_used",),
}
"""The columns in GB, each with the metric that it is of, the first that is stored."""

KERNELS = ("products", "attention", "convolutions", "pointwise", "copies", "other")
"""Groups of kernels, see :mod:`wan_trt_core.measure.kernels`."""

LAYERS = ("case", "layers", "time", "of all layers", "runs", "commit")
COSTLIEST = 8
"""Layers of a case that are listed."""


def targets(perf: Stored, memory: Stored) -> Iterator[tuple[str, ...]]:
    """What was aimed at, and what came of it: a row for each aim, whether its case was measured or not."""
    timed = {case.id: entry for case, entry in perf}
    weighed = {case.id: entry for case, entry in memory}
    for aim in AIMS:
        entry, of_memory = timed.get(aim.case), weighed.get(aim.case)
        speedup, over_compile = (_seen(entry, name) for name in (SPEEDUP, "compile_speedup"))
        peak = _seen(of_memory, PEAK_OVER_REFERENCE)
        yield (
            aim.name,
            aim.case,
            f"{aim.required:g}x" if aim.required else "",
            f"{aim.reach:g}x",
            _at_least(speedup),
            _outcome(aim, speedup, peak),
            _at_least(over_compile),
            _peak(of_memory, peak) if aim.within_memory else "",
            commit_of(entry)[:7] if entry else UNKNOWN,
        )


def verdicts(stored: Stored) -> Iterator[tuple[str, ...]]:
    """How fast: a row for each perf case; the PSNR is that of the timed outputs, from the timed reference's."""
    for case, entry in stored:
        assert case.perf is not None
        quality = next((name for name in ("video.psnr_db", "psnr_db") if name in case.perf.parity), "")
        yield (
            case.id,
            _plain(seen(entry, "reference_time")),
            _plain(seen(entry, "candidate_time")),
            *(
                _ratio(seen(entry, "speedup")),
                "none" if case.perf.speedup is None else f"{case.perf.speedup:g}x",
            ),
            *(_ratio(seen(entry, name)) for name in ("compile_speedup", "graph_gain")),
            _plain(seen(entry, quality)),
            commit_of(entry)[:7],
        )


def parity(stored: Stored) -> Iterator[tuple[str, ...]]:
    """How exact: a row for each metric with a limit, at every point of a component's profile."""
    for case, entry in stored:
        assert case.parity is not None
        for name, limit in case.parity.limits.items():
            if (found := seen(entry, name)) is None:
                continue
            points = (quantity(found.points[at], found.unit) if found.points else "" for at in POINTS)
            reference = case.reference_precision or case.precision
            yield (
                case.id,
                reference if isinstance(reference, str) else case.precision_label,
                name,
                _plain(found),
                *points,
                _bound(limit),
                commit_of(entry)[:7],
            )


def memory(stored: Stored) -> Iterator[tuple[str, ...]]:
    """How much of the GPU, in GB: a row for each memory case that says."""
    for case, entry in stored:
        found = [
            next((metric for name in names if (metric := seen(entry, name))), None)
            for names in MEMORY.values()
        ]
        if found[0] is not None:
            cells = ("" if metric is None else f"{metric.value / 1e9:.2f}" for metric in found)
            yield case.id, *cells, commit_of(entry)[:7]


def kernels(stored: Stored) -> Iterator[tuple[str, ...]]:
    """Where the time goes, in milliseconds of one call: a row for each component, without options, that says."""
    for case, entry in stored:
        if entry.kernels is None or case.component == "pipeline" or case.settings:
            continue
        reference: Mapping[str, float] = entry.kernels["reference"]["groups_ms"]
        ours: Mapping[str, float] = entry.kernels["groups_ms"]
        pairs = [(reference.get(group, 0.0), ours.get(group, 0.0)) for group in KERNELS]
        pairs.append((entry.kernels["reference"]["total_ms"], entry.kernels["total_ms"]))
        yield (
            case.id,
            *(
                f"{stock:,.1f} → {engine:,.1f}" if max(stock, engine) >= 0.05 else ""
                for stock, engine in pairs
            ),
            _commit(entry),
        )


def layers(stored: Stored) -> Iterator[tuple[str, ...]]:
    """Which layers of an engine cost most, by the PyTorch module that they came from: some rows for each component,
    without options, of a published model. TensorRT's own profiler waits between layers, so their sum is more than the
    kernels'."""
    for case, entry in stored:
        found: Sequence[tuple[str, float, int]] = (entry.kernels or {}).get("layers", ())
        if not found or case.component == "pipeline" or case.settings or case.model.startswith("tiny-"):
            continue
        for name, ms, share, runs in costliest(found, COSTLIEST):
            yield case.id, name, f"{ms:,.2f} ms", f"{share:.1%}", str(runs), _commit(entry)


def tables(baselines: Path, case_file: Path) -> dict[str, str]:
    """The tables of one hardware's baselines by their titles, as Markdown."""
    cases = load_cases(case_file, allowed_names(), "--cases").cases
    perf, weighed = _stored(baselines, cases, "perf"), _stored(baselines, cases, "memory")
    return {
        "What was aimed at": markdown_table(TARGETS, list(targets(perf, weighed))),
        "Speed": markdown_table(VERDICTS, list(verdicts(perf))),
        "Parity": markdown_table(PARITY, list(parity(_stored(baselines, cases, "parity")))),
        "Memory, GB": markdown_table(("case", *MEMORY, "commit"), list(memory(weighed))),
        "Kernels, ms, stock diffusers → TensorRT": markdown_table(
            ("case", *KERNELS, "all", "commit"), list(kernels(perf))
        ),
        "Costliest layers of the engines": markdown_table(LAYERS, list(layers(perf))),
    }


def _stored(baselines: Path, cases: Sequence[Case], suite: Suite) -> Stored:
    found = []
    for case in sorted(cases, key=lambda case: case.model.startswith("tiny-")):
        file = read_baselines(baselines.parent, baselines.name, case.model, suite)
        entry = file.cases.get(case.id) if file and suite in case.suites else None
        if entry is not None and entry.provenance["backend"] == BACKEND:
            found.append((case, entry))
    return found


def _commit(entry: BaselineEntry) -> str:
    """Of the run that the kernels are of."""
    return str(entry.provenance["commit"])[:7]


def _plain(metric: ObservedMetric | None) -> str:
    return quantity(metric.value, metric.unit) if metric else ""


def _ratio(metric: ObservedMetric | None) -> str:
    if metric is None:
        return ""
    told = f"{metric.value:.3f}x"
    if metric.low is None or metric.high is None:
        return told
    return f"{told} ({metric.low:.3f} to {metric.high:.3f}, {metric.pairs} pairs)"


def _seen(entry: BaselineEntry | None, name: str) -> ObservedMetric | None:
    return seen(entry, name) if entry else None


def _at_least(metric: ObservedMetric | None) -> str:
    if metric is None or metric.low is None:
        return UNKNOWN
    return f"{metric.value:.3f}x ({metric.low:.3f}x)"


def _peak(entry: BaselineEntry | None, peak: ObservedMetric | None) -> str:
    """With the commit of its own run, which is another than that of the times."""
    return f"{peak.value:.3f}x ({commit_of(entry)[:7]})" if entry and peak else UNKNOWN


def _outcome(aim: Aim, speedup: ObservedMetric | None, peak: ObservedMetric | None) -> str:
    if speedup is None or speedup.low is None:
        return "not measured"
    beyond = speedup.low - aim.reach
    if beyond < 0:
        return f"missed by {-beyond:.3f}x ({aim.ideas})"
    if not aim.within_memory:
        return f"met by {beyond:.3f}x"
    if peak is None:
        return f"speed met by {beyond:.3f}x, memory not stored"
    return f"met by {beyond:.3f}x" if peak.value <= 1 else f"missed: more memory ({aim.ideas})"


def _bound(limit: Limit) -> str:
    return f"≥ {limit.min:g}" if limit.min is not None else f"≤ {limit.max:g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("baselines", type=Path, help="folder of one hardware's baselines")
    parser.add_argument("--cases", type=Path, default=Path("suites/cases.yaml"))
    given = parser.parse_args(arguments)
    if not any(given.baselines.glob("*/*.json")):
        parser.exit(1, f"{given.baselines}: no folder of a hardware's baselines\n")
    try:
        found = tables(given.baselines, given.cases)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(f"### {title}\n\n{table}" for title, table in found.items()))


if __name__ == "__main__":
    main()
