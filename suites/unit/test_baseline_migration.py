"""Baselines of older releases come to this one's schema from what they hold; all others keep their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated import HARDWARE, entry

from wan_trt_core.baseline_migration import migrate
from wan_trt_core.baselines import BaselineError, BaselineFile, read_baselines, write_baselines
from wan_trt_core.gates.bands import Observed, ObservedMetric

BOTH = {"backend": "tensorrt", "weights": "seeded random"}
REPOSITORY = Path(__file__).resolve().parents[2]


def stored(
    root: Path, suite: str = "perf", edit: Callable[[dict[str, Any]], Any] = lambda entry: None
) -> Path:
    """A baseline file; ``edit`` makes its one entry that of an older release, or a wrong one."""
    path = write_baselines(
        root, BaselineFile(HARDWARE, "tiny-wan", suite, {"dit-fp32": entry()}), ["dit-fp32"]
    )
    data = json.loads(path.read_text())
    edit(data["cases"]["dit-fp32"])
    path.write_text(json.dumps(data, indent=2) + "\n")
    return path


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(entry: dict[str, Any]) -> None:
        for key in keys:
            entry["provenance"].pop(key, None)
            for metric in entry["metrics"].values():
                metric.pop(key, None)

    return edit


def test_what_is_as_it_should_be_keeps_its_bytes(tmp_path: Path) -> None:
    path = stored(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))  # even where something else formatted it
    before = path.read_bytes()
    assert migrate([path], BOTH) == ()
    assert path.read_bytes() == before
    assert migrate(sorted((REPOSITORY / "baselines").glob("*/*/*.json")), {}, dry_run=True) == ()


def test_entries_that_do_not_say_what_made_them_get_what_is_given(tmp_path: Path) -> None:
    path = stored(tmp_path, edit=without("weights"))
    with pytest.raises(BaselineError, match="wan-trt baselines migrate --weights NAME"):
        read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
    with pytest.raises(
        BaselineError, match=r"perf.json: case dit-fp32 does not say which weights .*--weights NAME"
    ):
        migrate([path], {"backend": "tensorrt"})
    assert migrate([path], BOTH, dry_run=True) == (path,)
    assert "seeded random" not in path.read_text()
    assert migrate([path], BOTH) == (path,)
    found = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
    assert found is not None
    origin = found.cases["dit-fp32"].provenance
    assert (origin["backend"], origin["weights"]) == ("onnxruntime", "seeded random")  # what it said stays
    assert found.cases["dit-fp32"].metrics == entry().metrics
    assert migrate([path], {}) == ()


def test_entries_without_kernels_say_so(tmp_path: Path) -> None:
    whole = stored(tmp_path / "whole").read_bytes()
    path = stored(tmp_path, edit=lambda entry: entry.pop("kernels"))
    with pytest.raises(BaselineError, match=r"key kernels is absent.*wan-trt baselines migrate"):
        read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
    assert migrate([path], {}) == (path,)
    assert path.read_bytes() == whole
    found = read_baselines(tmp_path, HARDWARE, "tiny-wan", "perf")
    assert found is not None and found.cases["dit-fp32"].kernels is None


def test_what_stock_diffusers_needed_is_observed(tmp_path: Path) -> None:
    """It once had a key of its own, and was of the entry's own run."""
    path = stored(tmp_path, "memory", lambda entry: entry.update(reference={"device_used": 4e9}))
    with pytest.raises(BaselineError, match=r"key reference is of older releases.*wan-trt baselines migrate"):
        read_baselines(tmp_path, HARDWARE, "tiny-wan", "memory")
    assert migrate([path], {}) == (path,)
    found = read_baselines(tmp_path, HARDWARE, "tiny-wan", "memory")
    assert found is not None
    made = entry().provenance
    metrics = {"reference_device_used": ObservedMetric(4e9, "B")}
    assert found.cases["dit-fp32"].observed == Observed(made["commit"], made["date"], metrics)


def test_what_follows_from_the_samples_comes_from_them(tmp_path: Path) -> None:
    whole = stored(tmp_path / "whole").read_bytes()
    path = stored(tmp_path, edit=without("value", "n", "spread"))
    assert migrate([path], {}) == (path,)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (
            lambda entry: entry["metrics"]["candidate_time"].update(value=0.07),
            "candidate_time has the value 0.07",
        ),
        (lambda entry: entry["metrics"]["candidate_time"].update(samples=[]), "no samples to carry over"),
        (lambda entry: entry["metrics"]["candidate_time"].pop("samples"), "not in the form of any release"),
        (lambda entry: entry["metrics"]["candidate_time"].update(colour="red"), "unknown key colour"),
    ],
)
def test_one_file_that_cannot_be_carried_over_leaves_all_as_they_are(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], what: str
) -> None:
    good = stored(tmp_path, "memory", without("weights"))
    bad = stored(tmp_path, edit=edit)
    before = good.read_bytes(), bad.read_bytes()
    with pytest.raises(BaselineError, match=what):
        migrate([good, bad], BOTH)
    assert (good.read_bytes(), bad.read_bytes()) == before
