"""How near does ``wan-trt memory plan`` come on a GPU? What it predicts now beside what the stored baselines hold.

    python benchmarks/memory_predictions.py baselines/cuda-nvidia-h200-132sm-139gib

Nothing is measured here. A row is a memory case of a pipeline or of a decode whose baseline tells what the GPU held:
the prediction by shapes alone, as this code makes it, beside the number of the last run that was stored, with its
commit. The suite has planned with the sizes of the very engines: what that was off at the time, as the baseline has it
(``peak_over_plan``), stands beside it. Where the case measured stock diffusers too, the same of these. The table goes
to the terminal as Markdown; ``docs/memory.md`` holds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import PEAK_OVER_PLAN, Case, load_cases
from wan_trt_core.config import PipelineSettings, Settings, with_values
from wan_trt_core.gates.bands import BaselineEntry
from wan_trt_core.memory.prediction import choice_of, predict, workload
from wan_trt_core.models.catalogue import ResolvedModel, resolve
from wan_trt_core.observations import OF_REFERENCE, commit_of, seen
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.report.markdown import markdown_table

TOTAL = "device_used"
"""What a prediction for a GPU is of."""

DECODE = "vae_decoder"
HEADER = (
    "case",
    "planned, GB",
    "measured",
    "off",
    "off with its engines",
    "stock, planned",
    "measured",
    "off",
    "commit",
)


def rows(stored: Sequence[tuple[Case, BaselineEntry]]) -> Iterator[tuple[str, ...]]:
    """A row for each of these cases."""
    opened = cache(_opened)
    for case, entry in stored:
        model = opened(case.model, case.layers, case.text_encoder)
        settings = with_values(Settings(), case.settings)
        ratio = seen(entry, PEAK_OVER_PLAN)
        yield (
            case.id,
            *_beside(
                _planned(model, case, case.backend, settings, case.precision), _stored(entry, TOTAL) or 0.0
            ),
            f"{1 / ratio.value - 1:+.1%}" if ratio else "",
            *_stock(model, case, settings, _stored(entry, f"{OF_REFERENCE}{TOTAL}")),
            f"`{commit_of(entry)[:7]}`",
        )


def _opened(name: str, layers: int | None, text_encoder: bool) -> ResolvedModel:
    return resolve(name, layers=layers, text_encoder=text_encoder)


def _stock(
    model: ResolvedModel, case: Case, settings: Settings, measured: float | None
) -> tuple[str, str, str]:
    """Of stock diffusers, which shares the tiles with the candidate and none of its other settings."""
    if measured is None:
        return "", "", ""
    own = Settings(pipeline=PipelineSettings(vae_tile=settings.pipeline.vae_tile))
    return _beside(_planned(model, case, "torch", own, case.stock_precision), measured)


def _planned(
    model: ResolvedModel, case: Case, backend: str, settings: Settings, precision: str | dict[str, str]
) -> int:
    """The peak by shapes, bytes; of a decode by itself what it has in a pipeline whose other parts hold nothing."""
    has_encoder = "text_encoder" in model.checkpoint.parts
    made = model, model.profile(case.profile), backend, "cuda", settings
    work = replace(workload(*made, text_encoder=has_encoder), built=lambda component, precision, choice: None)
    choice = choice_of(settings, precision)
    if case.component != DECODE:
        return predict(work, choice).peak
    alone = replace(choice, offload=True)  # as if all else had been taken away
    return predict(work, alone).of("decode")


def _beside(planned: float, measured: float) -> tuple[str, str, str]:
    return f"{planned / 1e9:.2f}", f"{measured / 1e9:.2f}", f"{planned / measured - 1:+.1%}"


def _stored(entry: BaselineEntry, name: str) -> float | None:
    found = seen(entry, name)
    return found.value if found else None


def table(baselines: Path, case_file: Path) -> str:
    """The table of one hardware's baselines, as Markdown."""
    found = []
    for case in load_cases(case_file, allowed_names(), "--cases").cases:
        if case.memory is None or case.component not in ("pipeline", DECODE):
            continue
        file = read_baselines(baselines.parent, baselines.name, case.model, "memory")
        entry = file.cases.get(case.id) if file else None
        if entry and seen(entry, TOTAL):
            found.append((case, entry))
    return markdown_table(HEADER, list(rows(found)))


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
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
