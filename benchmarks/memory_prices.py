"""What does each option that lowers memory save, and what does it cost? Cases beside those without it.

    python benchmarks/memory_prices.py baselines/cuda-nvidia-h200-132sm-139gib

Nothing is measured here: the numbers are those of the stored baselines (``wan-trt baselines regenerate`` makes them),
of the cases of ``suites/cases.yaml`` that have settings of their own or a text encoder in eight bits, and of the case
that has all the same without these. Where there is none the case's own reference stands in for it, stock diffusers.
Beside the numbers stands the commit that they were measured at; where the two are of two, both, that without the option
first: whatever else changed between them is in the difference too. The table goes to the terminal as Markdown;
``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import Case, Suite, load_cases
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.models.checkpoint import INT8
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.records import OF_REFERENCE
from wan_trt_core.report.markdown import markdown_table

HEADER = ("option", "case", "memory without", "with", "commits", "time without", "with", "commits")
METRICS: dict[Suite, tuple[tuple[str, ...], str]] = {
    "memory": (("device_used", "resident_set_peak"), "B"),
    "perf": (("candidate_time",), "s"),
}
"""What a suite says of the candidate, the first that is stored, and its unit."""


OF_THE_BUILDER = ("tensorrt.workspace_gib", "tensorrt.max_tactics", "tensorrt.limited_components")
"""Settings of a case without which its engines are not built in reasonable time: no option to choose for memory."""


@dataclass(frozen=True)
class Stored:
    """A metric as a baseline has it, and the commit that it was measured at."""

    value: float
    commit: str


Baselines = Callable[[Case, Suite, str], Stored | None]
"""A metric of a case in a suite."""


def option(case: Case) -> str:
    """The settings that set a case apart, in words; empty for a plain one."""
    words = [f"{key}: {value}" for key, value in case.settings.items() if key not in OF_THE_BUILDER]
    if isinstance(case.precision, dict) and case.precision.get("text_encoder") == INT8:
        words.append(f"text_encoder={INT8}")
    return ", ".join(words)


def prices(cases: Sequence[Case], stored: Baselines) -> Iterator[tuple[str, ...]]:
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
            both = (without, _first(case, suite, metrics, stored)) if suite in case.suites else None
            for found in both or ():
                cells.append("no baseline" if found is None else quantity(found.value, unit))
            cells += ["", ""] if both is None else []
            commits = dict.fromkeys(found.commit[:7] for found in both or () if found)
            cells.append(", ".join(f"`{commit}`" for commit in commits))
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


def _first(case: Case, suite: Suite, metrics: Sequence[str], stored: Baselines) -> Stored | None:
    return next((found for name in metrics if (found := stored(case, suite, name)) is not None), None)


def table(baselines: Path, case_file: Path) -> str:
    """The table of one hardware's baselines, as Markdown."""

    def stored(case: Case, suite: Suite, metric: str) -> Stored | None:
        file = read_baselines(baselines.parent, baselines.name, case.model, suite)
        entry = file.cases.get(case.id) if file else None
        if entry is None:
            return None
        if judged := entry.metrics.get(metric):
            return Stored(judged.value, str(entry.provenance["commit"]))
        told = entry.observed and entry.observed.metrics.get(metric)
        return Stored(told.value, entry.observed.commit) if entry.observed and told else None

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
