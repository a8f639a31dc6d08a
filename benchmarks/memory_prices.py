"""What does each option that lowers memory save, and what does it cost? Cases beside those without it.

    python benchmarks/memory_prices.py baselines/cuda-nvidia-h200-132sm-139gib

Nothing is measured here: the numbers are those of the stored baselines (``wan-trt baselines regenerate`` makes them),
of the cases of ``suites/cases.yaml`` that have settings of their own or a text encoder in eight bits, and of the case
that has all the same without these. Where there is none the case's own reference stands in for it, stock diffusers. The
table goes to the terminal as Markdown; ``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import Case, Suite, load_cases
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.models.checkpoint import INT8
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.records import OF_REFERENCE
from wan_trt_core.report.markdown import markdown_table

HEADER = ("option", "case", "memory without", "with", "time without", "with")
METRICS: dict[Suite, tuple[tuple[str, ...], str]] = {
    "memory": (("device_used", "resident_set_peak"), "B"),
    "perf": (("candidate_time",), "s"),
}
"""What a suite says of the candidate, the first that is stored, and its unit."""

Stored = Callable[[Case, Suite, str], float | None]
"""A metric of a case as its baseline has it."""


def option(case: Case) -> str:
    """The settings that set a case apart, in words; empty for a plain one."""
    words = [f"{key}: {value}" for key, value in case.settings.items()]
    if isinstance(case.precision, dict) and case.precision.get("text_encoder") == INT8:
        words.append(f"text_encoder={INT8}")
    return ", ".join(words)


def prices(cases: Sequence[Case], stored: Stored) -> Iterator[tuple[str, ...]]:
    """A row for each case with an option: what the case without it has, and what it has itself."""
    for case in cases:
        if not option(case) or not set(METRICS) & set(case.suites):
            continue
        cells: list[str] = []
        for suite, (metrics, unit) in METRICS.items():
            plain = next((each for each in cases if _is_plain(each, case, suite)), None)
            without = _first(plain, suite, metrics, stored) if plain else None
            if plain is None:
                without = _first(case, suite, [_of_reference(metric) for metric in metrics], stored)
            for value in (without, _first(case, suite, metrics, stored)):
                known = "no baseline" if suite in case.suites else ""
                cells.append(known if value is None or not known else quantity(value, unit))
        yield option(case), case.id, *cells


def _is_plain(case: Case, other: Case, suite: Suite) -> bool:
    """Whether a case is the other one without its option; memory does not depend on the number of steps."""

    def same(each: Case) -> tuple[object, ...]:
        precision = each.precision
        if isinstance(precision, dict):
            precision = {part: word for part, word in precision.items() if part != "text_encoder"}
        steps = each.steps if suite == "perf" else None
        weights = each.model, each.layers, each.text_encoder
        return weights, each.component, each.profile, precision, each.backend, steps

    return not option(case) and suite in case.suites and same(case) == same(other)


def _of_reference(metric: str) -> str:
    return "reference_time" if metric == "candidate_time" else f"{OF_REFERENCE}{metric}"


def _first(case: Case, suite: Suite, metrics: Sequence[str], stored: Stored) -> float | None:
    return next((value for name in metrics if (value := stored(case, suite, name)) is not None), None)


def table(baselines: Path, case_file: Path) -> str:
    """The table of one hardware's baselines, as Markdown."""

    def stored(case: Case, suite: Suite, metric: str) -> float | None:
        file = read_baselines(baselines.parent, baselines.name, case.model, suite)
        entry = file.cases.get(case.id) if file else None
        if entry is None:
            return None
        observed = entry.observed.metrics if entry.observed else {}
        found = entry.metrics.get(metric) or observed.get(metric)
        return found.value if found else None

    return markdown_table(
        HEADER, list(prices(load_cases(case_file, allowed_names(), "--cases").cases, stored))
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("baselines", type=Path, help="folder of one hardware's baselines")
    parser.add_argument("--cases", type=Path, default=Path("suites/cases.yaml"))
    given = parser.parse_args(arguments)
    if not any(given.baselines.glob("*/*.json")):
        parser.exit(1, f"{given.baselines}: no folder of a hardware's baselines\n")
    try:
        print(table(given.baselines, given.cases))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
