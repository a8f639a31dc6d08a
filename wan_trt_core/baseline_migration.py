"""Carrying stored baselines over a change of their schema, from what they hold, without measuring again.

Each step knows one change: it fills in what files of older releases lack and leaves every other file alone, so that
all steps run over all files, and a file with nothing to do keeps its bytes. What a file cannot know has to be given.
A new step goes to the end of :data:`STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from wan_trt_core.baselines import ORIGIN, BaselineError, carried_over, derived
from wan_trt_core.records import write_json

Given = Mapping[str, str | None]
"""What the caller says of all files: :data:`~wan_trt_core.baselines.ORIGIN` key to its value, if it is known."""

Step = Callable[[dict[str, Any], Given], None]
"""Completes the JSON object of one file in place."""


def with_origin(data: dict[str, Any], given: Given) -> None:
    """Since a baseline judges only runs of its own backend, weights and profile, its provenance names them.

    Raises:
        BaselineError: when an entry lacks one and it is not given.
    """
    for case, entry in data["cases"].items():
        for key in (key for key in ORIGIN if key not in entry["provenance"]):
            if not given.get(key):
                raise BaselineError(f"case {case} does not say which {key} made it; say so with --{key} NAME")
            entry["provenance"][key] = given[key]


def with_derived(data: dict[str, Any], _: Given) -> None:
    """What is derived from the samples is computed from them where it is absent.

    Raises:
        BaselineError: when there are no samples, or what is there does not follow from them.
    """
    for case, entry in data["cases"].items():
        for name, metric in entry["metrics"].items():
            if not metric["samples"]:
                raise BaselineError(f"case {case}: {name} has no samples to carry over; measure it again")
            for key, value in derived(metric["samples"]).items():
                if metric.setdefault(key, value) != value:
                    raise BaselineError(
                        f"case {case}: {name} has the {key} {metric[key]}, its samples say {value}"
                    )


def with_kernels(data: dict[str, Any], _: Given) -> None:
    """Since a perf baseline holds the kernels of its run, an entry says that it has none."""
    for entry in data["cases"].values():
        entry.setdefault("kernels", None)


def with_observed(data: dict[str, Any], _: Given) -> None:
    """What stock diffusers needed of memory, once under a key of its own, is observed as all else that nothing judges;
    it was always of the entry's own run."""
    for entry in data["cases"].values():
        if (sizes := entry.pop("reference", None)) is not None:
            made = entry["provenance"]
            metrics = {
                f"reference_{name}": {"value": float(size), "unit": "B"} for name, size in sizes.items()
            }
            entry["observed"] = {"commit": made["commit"], "date": made["date"], "metrics": metrics}


STEPS: tuple[Step, ...] = (with_origin, with_derived, with_kernels, with_observed)
"""In the order in which the schema changed."""


def migrate(paths: Collection[Path], given: Given, *, dry_run: bool = False) -> tuple[Path, ...]:
    """Carry baseline files over; returns those that change. Nothing is written unless all of them can be.

    Raises:
        BaselineError: when a file cannot be carried over, or would not be a baseline file of this schema.
    """
    changed = {path: data for path in paths if (data := _migrated(path, given)) is not None}
    if not dry_run:
        for path, data in changed.items():
            write_json(path, data)
    return tuple(changed)


def _migrated(path: Path, given: Given) -> dict[str, Any] | None:
    def change(data: dict[str, Any]) -> None:
        try:
            for step in STEPS:
                step(data, given)
        except BaselineError as error:
            raise BaselineError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise BaselineError(f"{path}: is not in the form of any release: {error!r}") from error

    return carried_over(path, change)
