"""What every report says of a case: the check that decided, its two numbers, and the order of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from wan_trt_core.gates.bands import regenerate_command
from wan_trt_core.gates.formatting import pair, quantity
from wan_trt_core.gates.memory import BUDGET
from wan_trt_core.gates.perf import SPEEDUP
from wan_trt_core.gates.verdict import SEVERITY, Reason, Verdict, deciding
from wan_trt_core.records import CaseRecord, CheckRecord, RunRecord

BELOW_GATE = "BELOW GATE"
"""The mark of a case whose own threshold lies under the product's speed-up gate."""

RANDOM_WEIGHTS = "RANDOM WEIGHTS"
"""The mark of a case whose model was never trained: its speed and memory count, its quality numbers say nothing."""

ORPHANS = "orphaned_baselines"
"""Where the environment of a record keeps them, ``SUITE CASE (MODEL)`` each."""

WHY = {
    Reason.WITHIN_LIMIT: "within limit",
    Reason.BEYOND_LIMIT: "beyond limit",
    Reason.WITHIN_BAND: "within band",
    Reason.WORSE_THAN_BAND: "worse than baseline",
    Reason.BETTER_THAN_BAND: "better than baseline",
    Reason.NO_BANDS_FOR_HARDWARE: "no baselines for this hardware",
    Reason.NO_BASELINE: "no baseline",
    Reason.BASELINE_INVALID: "baseline unusable",
    Reason.METRIC_VANISHED: "metric vanished",
    Reason.METRIC_UNEXPECTED: "metric not in case",
    Reason.METRIC_NOT_COMPUTED: "not computed",
    Reason.NON_FINITE: "NaN or infinite",
    Reason.INTERVAL_ABOVE_THRESHOLD: "fast enough",
    Reason.INTERVAL_BELOW_THRESHOLD: "too slow",
    Reason.NO_THRESHOLD: "none is promised",
    Reason.BUDGET_EXHAUSTED: "not decided in time",
    Reason.NOISE_TOO_HIGH: "machine too noisy",
    Reason.REFERENCE_SLOWER: "stock diffusers slower",
    Reason.OUTPUTS_DIFFER: "timed output wrong",
    Reason.SETTINGS_DIFFER: "arms set differently",
    Reason.FALLBACK_TO_PYTORCH: "fell back to PyTorch",
    Reason.ENGINE_NOT_AS_PLANNED: "engine not as planned",
    Reason.THROTTLED: "machine slowed down",
    Reason.NOT_MEASURED: "not measured",
    Reason.GROWTH: "memory grows",
    Reason.NO_GROWTH: "no growth",
    Reason.UNATTRIBUTED: "held by no known owner",
    Reason.WITHIN_BUDGET: "fits the budget",
    Reason.OVER_BUDGET: "over the budget",
}
"""A few words for each reason code, for tables."""

_PERF = {
    SPEEDUP: "speed-up over eager",
    "compile_speedup": "speed-up over torch.compile",
    "graph_gain": "gain of CUDA graphs",
    "reference_time": "reference",
    "candidate_time": "candidate",
    "drift": "drift",
    "noise_floor": "noise floor",
}
"""What the reports show of a performance case, in this order."""

ARMS = ("reference", "candidate")

_QUALITY = {
    "video.psnr_db": "PSNR, worst frame",
    "video.ssim": "SSIM, worst frame",
    "video.lpips": "LPIPS",
    "video.cvvdp_jod": "ColorVideoVDP",
}
"""What a benchmark shows of how alike the videos are."""


@dataclass(frozen=True)
class Headline:
    """The two numbers that decided a case, as people read them; empty where there are none."""

    metric: str
    value: str
    limit: str


def deciding_check(case: CaseRecord) -> CheckRecord | None:
    """The check that made the verdict; ``None`` when nothing was judged (the case broke before)."""
    return deciding(case.checks)


def headline(case: CaseRecord) -> Headline:
    """What decided ``case``, with enough digits to tell the value from its limit."""
    check = deciding_check(case)
    return check_headline(case, check) if check else Headline("", "", "")


def check_headline(case: CaseRecord, check: CheckRecord) -> Headline:
    """The numbers of one check of ``case``."""
    metric = case.measurement.metrics.get(check.metric)
    unit = metric.unit if metric else "B" if check.metric == BUDGET else ""
    if check.value is None:
        limit = quantity(check.limit, unit) if check.limit is not None else ""
        return Headline(check.metric, "", limit)
    if check.limit is None:
        return Headline(check.metric, quantity(check.value, unit), "")
    return Headline(check.metric, *pair(check.value, check.limit, unit))


def marks(case: CaseRecord) -> tuple[str, ...]:
    """What a reader must know of a case beside its verdict, in capitals; every report shows it."""
    found = {BELOW_GATE: case.below_gate, RANDOM_WEIGHTS: bool(case.random_weights)}
    return tuple(mark for mark, shown in found.items() if shown)


def worst_first(record: RunRecord) -> list[CaseRecord]:
    """The cases of a run, most severe verdict first, then by suite and name."""
    return sorted(record.cases, key=lambda case: (SEVERITY.index(case.verdict), case.suite, case.case))


def advisory_checks(record: RunRecord) -> list[tuple[CaseRecord, CheckRecord]]:
    """What was found but did not decide and did not pass, besides :func:`missing_bands`."""
    return [
        (case, check)
        for case in worst_first(record)
        for check in case.checks
        if check.advisory
        and check.verdict is not Verdict.PASS
        and check.reason is not Reason.NO_BANDS_FOR_HARDWARE
    ]


def missing_bands(record: RunRecord) -> list[str]:
    """One line a suite that this hardware has no baselines for, where that does not decide."""
    lines = []
    for suite in sorted({case.suite for case in record.cases}):
        found = [
            (case.case, check.metric)
            for case in record.cases
            for check in case.checks
            if case.suite == suite and check.advisory and check.reason is Reason.NO_BANDS_FOR_HARDWARE
        ]
        if found:
            cases = len({case for case, _ in found})
            lines.append(
                f"{len(found)} {suite} bands of {cases} {'case' if cases == 1 else 'cases'} hold nothing: "
                f"this hardware has no {suite} baselines; make them with: "
                f"{regenerate_command(suite, run=record.command)}"
            )
    return lines


def stale_baselines(record: RunRecord) -> list[tuple[CaseRecord, CheckRecord]]:
    """Metrics that are better than their band: a new baseline would keep the gain."""
    return [
        (case, check)
        for case in worst_first(record)
        for check in case.checks
        if check.reason is Reason.BETTER_THAN_BAND and not check.advisory
    ]


def orphaned_baselines(record: RunRecord) -> list[str]:
    """One line a stored baseline that no case asks for; known of complete runs only."""
    return [
        f"no case asks for the baseline {where}: it may belong to another case file; if to none, drop it with: "
        f"{regenerate_command(where.split()[0], run=record.command)} --accept-regression REASON"
        for where in record.environment.get(ORPHANS, ())
    ]


def passed(record: RunRecord) -> bool:
    """Whether every case passed; a run that judged nothing did not."""
    return bool(record.cases) and all(case.verdict is Verdict.PASS for case in record.cases)


def totals(record: RunRecord) -> str:
    """One line: how many cases came to which verdict."""
    if not record.cases:
        return "no case was judged"
    counts = Counter(case.verdict for case in record.cases)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in SEVERITY[::-1] if counts[verdict]]
    marked = Counter(mark for case in record.cases for mark in marks(case))
    after = "".join(f"; {count} {mark}" for mark, count in sorted(marked.items()))
    cases = "case" if len(record.cases) == 1 else "cases"
    return f"{len(record.cases)} {cases}: {', '.join(parts)}{after}"


def perf_rows(case: CaseRecord) -> list[tuple[str, str]]:
    """What a performance case found, as names and values; nothing of another suite or of a case that broke.

    The speed-up with its interval, the ratios to what was timed beside it, both arms' times, a drift if there was one,
    the noise floor, and what the GPU's clocks did meanwhile.
    """
    metrics = case.measurement.metrics
    if case.suite != "perf" or SPEEDUP not in metrics:
        return []
    rows = [(_PERF[SPEEDUP], _speedup(case))]
    for name in [name for name in _PERF if name in metrics and name != SPEEDUP]:
        metric = metrics[name]
        if name == "drift" and not metric.value:
            continue
        value = f"{metric.value:.1%}" if name == "noise_floor" and metric.value is not None else ""
        rows.append((_PERF[name], value or metric.detail or quantity(metric.value, metric.unit)))
    clocks = _clocks(case.measurement.facts.get("clocks", {}))
    return [*rows, ("clocks", clocks)] if clocks else rows


def benchmark_title(record: RunRecord) -> str:
    """The video that the candidates of ``wan-trt benchmark`` were asked for."""
    first = record.cases[0]
    video = first.profile
    for facts in (case.measurement.facts for case in record.cases):
        if asked := facts.get("generation"):
            scales = (asked["guidance_scale"], asked.get("guidance_scale_2"))
            guidance = " and ".join(f"{scale:g}" for scale in scales if scale is not None)
            video = (
                f"{asked['num_frames']} frames of {asked['width']}x{asked['height']},"
                f" {asked['num_inference_steps']} steps, guidance {guidance}"
            )
    precision = first.precision
    if any(case.precision != precision for case in record.cases):  # of backends of a CPU and of a GPU
        precision = "; ".join(f"{case.backend} in {case.precision}" for case in record.cases)
    return ", ".join(filter(None, (first.model, first.random_weights, video, precision)))


def benchmark_rows(case: CaseRecord) -> dict[str, tuple[str, str]]:
    """What one candidate of ``wan-trt benchmark`` came to, by name: of the reference, of the candidate.

    The time of a video and of its stages, the ratio with its interval, the most memory in each stage, and quality
    against the reference's video.
    """
    metrics, facts = case.measurement.metrics, case.measurement.facts
    rows = {}
    if SPEEDUP in metrics:
        rows["time"] = _both([metrics[f"{arm}_time"].value for arm in ARMS], "s")
        stages = [facts["stages"][arm] for arm in ARMS]
        sums, medians = ([together(each, of) for each in stages] for of in (sum, median))
        for name in sums[0]:
            rows[f"  {name}"] = _both([each[name] for each in sums], "s")
            if name == "denoise":
                rows["    a step"] = _both([each[name] for each in medians], "s")
        ratio, _, interval = _speedup(case).partition(", ")
        rows["ratio"] = ("", ratio)
        rows["interval"] = ("", interval.replace(" interval ", ": ").partition(" over ")[0])
    if held := facts.get("stage_memory"):
        most = [together(held[arm], max) for arm in ARMS]
        rows |= {f"memory, {name}": _both([each[name] for each in most], "B") for name in most[0]}
    for name, label in _QUALITY.items():
        if name in metrics:
            rows[label] = ("", quantity(metrics[name].value, metrics[name].unit))
    return rows | {"verdict": ("", case.verdict.value.upper())}


def _both(arms: Sequence[float | None], unit: str) -> tuple[str, str]:
    reference, candidate = (quantity(value, unit) for value in arms)
    return reference, candidate


def together(stages: Iterable[Sequence[Any]], of: Callable[[list[float]], float] = sum) -> dict[str, float]:
    """What was measured of each stage (name, value), the denoising steps as one: their sum, or what ``of`` says."""
    by_kind: dict[str, list[float]] = {}
    for name, value in stages:
        by_kind.setdefault(name.rstrip("0123456789 "), []).append(value)
    return {kind: of(values) for kind, values in by_kind.items()}


def _speedup(case: CaseRecord) -> str:
    value = case.measurement.metrics[SPEEDUP].value
    found = next((check.evidence for check in case.checks if check.metric == SPEEDUP), {})
    if value is None or "low" not in found:
        return quantity(value, "x")
    return (
        f"{value:.3f}x, {found['confidence']:.0%} interval {found['low']:.3f}x to {found['high']:.3f}x "
        f"over {found['pairs']} pairs"
    )


def _clocks(clocks: Mapping[str, Any]) -> str:
    """The facts of :class:`~wan_trt_core.measure.clocks.ClockWatch` in a line."""
    parts = []
    if sm := clocks.get("sm_clock_mhz"):
        parts.append(f"SM {sm['min']:.0f} to {sm['max']:.0f} MHz, median {sm['median']:.0f}")
    for name, unit in (("temperature_c", "°C"), ("power_w", "W")):
        if clocks.get(name) is not None:
            parts.append(f"at most {clocks[name]:.0f} {unit}")
    if reasons := clocks.get("reasons"):
        parts.append(f"held by: {', '.join(reasons)}")
    return "; ".join(parts) or str(clocks.get("error", ""))
