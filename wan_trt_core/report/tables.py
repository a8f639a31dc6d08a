"""The tables of a case and of a run that every full report shows, as plain text: the reports only set them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.records import OF_REFERENCE, CaseRecord, RunRecord
from wan_trt_core.report.summary import ARMS, check_headline, perf_rows, together

TOP_KERNELS = 10
"""Kernels of the candidate that the reports list; the record has more."""

_TABLED = frozenset({"kernels", "stages", "stage_memory", "transformer_s"})
"""Facts that are shown as tables."""


@dataclass(frozen=True)
class Table:
    """A header, and rows with as many cells; the first cell of a row names it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def case_tables(case: CaseRecord) -> list[Table]:
    """Performance, stages, kernels, checks and metrics of a case, without those that are empty."""
    return _filled(
        Table("Performance", ("performance", "measured"), tuple(perf_rows(case))),
        _stages(case.measurement.facts),
        _stage_memory(case.measurement.facts),
        _beside_stock(case),
        *_kernels(case.measurement.facts.get("kernels", {})),
        _checks(case),
        _metrics(case),
    )


def facts_table(case: CaseRecord) -> Table:
    """What the numbers of a case depend on, without what has tables of its own."""
    facts = {name: fact for name, fact in case.measurement.facts.items() if name not in _TABLED}
    return Table("Facts", ("fact", "value"), flat(facts))


def run_tables(record: RunRecord) -> list[Table]:
    """Environment and settings of a run."""
    return _filled(
        Table("Environment", ("what", "value"), flat(record.environment)),
        Table("Settings", ("setting", "value"), flat(record.settings)),
    )


def case_notes(case: CaseRecord) -> tuple[str, ...]:
    """Lines that explain the case, and why its kernels are not shown where they could not be told apart."""
    kernels = case.measurement.facts.get("kernels", {})
    error = kernels.get("error") or kernels.get("layers_error")
    return (
        *case.measurement.notes,
        *([f"The kernels could not be told apart: {error}"] if error else []),
    )


def case_subject(case: CaseRecord) -> str:
    """What was measured, and how long that took, in a line."""
    weights = f" ({case.random_weights})" if case.random_weights else ""
    return (
        f"{case.model}{weights} / {case.component} / {case.profile} / {case.precision} / {case.backend}, "
        f"{case.seconds:.1f} s"
    )


def flat(data: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Nested settings as dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(data.items()):
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif name.startswith("engines."):  # what each engine holds, in bytes
            rows.append((name, quantity(value, "B")))
        else:
            rows.append((name, str(value)))
    return tuple(rows)


def _filled(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows]


def _checks(case: CaseRecord) -> Table:
    rows = []
    for check in case.checks:
        head = check_headline(case, check)
        verdict = check.verdict.value + (" (advisory)" if check.advisory else "")
        rows.append((check.gate, check.metric, verdict, head.value, head.limit, check.message))
    return Table("Checks", ("gate", "metric", "verdict", "measured", "limit", "message"), tuple(rows))


def _metrics(case: CaseRecord) -> Table:
    rows = tuple(
        (name, quantity(metric.value, metric.unit), str(len(metric.samples) or ""), metric.detail)
        for name, metric in sorted(case.measurement.metrics.items())
    )
    return Table("Metrics", ("metric", "value", "samples", "detail"), rows)


def _stages(facts: Mapping[str, Any]) -> Table:
    """Where the time of both arms' videos goes: each stage in its order, then what they come to."""
    header = ("one video", "reference", "candidate", "ratio")
    if "stages" not in facts:
        return Table("Stages", header, ())
    stages = [facts["stages"][arm] for arm in ARMS]
    inside = [facts["transformer_s"][arm] for arm in ARMS]
    sums = [together(each) for each in stages]
    whole = [sum(each.values()) for each in sums]
    outside = [whole[arm] - inside[arm] - sums[arm]["decode"] for arm in range(2)]
    rows = [_compared(name, seconds, ours) for (name, seconds), (_, ours) in zip(*stages, strict=True)]
    totals = {
        "all denoising steps": [each["denoise"] for each in sums],
        "inside the transformer": inside,
        "outside transformer and decoder": outside,
        "whole video": whole,
    }
    rows += [_compared(name, *seconds) for name, seconds in totals.items()]
    return Table("Stages", header, tuple(rows))


def _beside_stock(case: CaseRecord) -> Table:
    """What both arms of a memory case need, where stock diffusers was measured too."""
    metrics = case.measurement.metrics
    both = [
        (name, metrics[stock].value, metric.value)
        for name, metric in metrics.items()
        if (stock := f"{OF_REFERENCE}{name}") in metrics
    ]
    rows = [
        _compared(name, stock, own, "B") for name, stock, own in both if stock is not None and own is not None
    ]
    return Table("Memory of both arms", ("most memory", "reference", "candidate", "ratio"), tuple(rows))


def _stage_memory(facts: Mapping[str, Any]) -> Table:
    """The most that each arm held in each stage, in a process of its own."""
    held = [facts.get("stage_memory", {}).get(arm, ()) for arm in ARMS]
    rows = [_compared(name, size, ours, "B") for (name, size), (_, ours) in zip(*held, strict=True)]
    return Table("Memory by stage", ("most memory in", "reference", "candidate", "ratio"), tuple(rows))


def _compared(name: str, reference: float, candidate: float, unit: str = "s") -> tuple[str, ...]:
    ratio = f"{reference / candidate:.2f}x" if candidate > 0 else ""
    return (name, quantity(reference, unit), quantity(candidate, unit), ratio)


def _kernels(kernels: Mapping[str, Any]) -> Iterable[Table]:
    """Where both arms' time goes, by what the kernels do, and the candidate's costliest kernels."""
    if not kernels or "error" in kernels:
        return
    arms = (kernels["reference"], kernels)
    rows = [
        (group, *(quantity(arm["groups_ms"][group] / 1000, "s") for arm in arms))
        for group in kernels["groups_ms"]
    ]
    rows.append(("all kernels", *(quantity(arm["total_ms"] / 1000, "s") for arm in arms)))
    yield Table("Kernels", ("one call", "reference", "candidate"), tuple(rows))
    for key, what, each in (("top", "kernels", "launches"), ("layers", "layers", "runs")):
        if key in kernels:
            top = [
                (name, quantity(ms / 1000, "s"), str(count)) for name, ms, count in kernels[key][:TOP_KERNELS]
            ]
            header = (f"costliest {what} of the candidate", "time", each)
            yield Table(f"Costliest {what}", header, tuple(top))
