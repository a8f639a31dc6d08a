"""Cases, measurements and records made up for tests of the gates, the baselines and the reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wan_trt_core.cases import Band, Case, Limit, MemoryGate, ParityGate, PerfGate
from wan_trt_core.gates import judge
from wan_trt_core.gates.bands import BaselineEntry, BaselineMetric, Tolerance
from wan_trt_core.records import CaseRecord, Measurement, Metric, RunRecord

HARDWARE = "cpu-test-2c-8gib"
TIMES = ("reference_time", "candidate_time")
TEN_PERCENT = Band(rel=0.10, reason="ten percent")

KERNELS = {
    "groups_ms": {"attention": 6.6, "products": 9.6, "other": 0.0},
    "top": [[f"kernel_{index}<a|b>", 2.0, 30] for index in range(20)],
    "total_ms": 16.2,
    "reference": {
        "groups_ms": {"attention": 8.1, "products": 10.0, "other": 7.0}, "top": [], "total_ms": 25.1
    },
}  # fmt: skip
STORED_KERNELS = {
    **KERNELS,
    "reference": {"groups_ms": {"attention": 8.1, "products": 10.0, "other": 7.0}, "total_ms": 25.1},
}
"""The same as a baseline keeps them."""

CLOCKS = {
    "samples": 12, "sm_clock_mhz": {"min": 1755, "median": 1965.0, "max": 1980}, "temperature_c": 61,
    "power_w": 688.4, "reasons": {"power cap": 9},
}  # fmt: skip

STAGES = {
    "stages": {
        "reference": [
            ["text encode", 0.01], ["denoise 1", 0.2], ["denoise 2", 0.4], ["decode", 2.0], ["postprocess", 0.01]
        ],
        "candidate": [
            ["text encode", 0.01], ["denoise 1", 0.1], ["denoise 2", 0.3], ["decode", 0.5], ["postprocess", 0.01]
        ],
    },
    "transformer_s": {"reference": 0.5, "candidate": 0.3},
    "stage_memory": {
        "reference": [["text encode", 2**30], ["denoise 1", 2**32], ["denoise 2", 2**31]],
        "candidate": [["text encode", 2**20], ["denoise 1", 2**22], ["denoise 2", 2**23]],
    },
}  # fmt: skip
"""Facts of a benchmark of whole videos."""


def make_case(case: str = "dit-fp32", *, speedup: float = 1.5, bands: dict[str, Band] | None = None) -> Case:
    """A case that is in all three suites, its times banded at 10 % unless ``bands`` says otherwise."""
    return Case(
        id=case,
        model="tiny-wan",
        component="dit",
        profile="128p-17f",
        precision="fp32",
        backend="onnxruntime",
        parity=ParityGate(limits={"psnr_db": Limit(min=90, reason="float32")}),
        perf=PerfGate(
            speedup=speedup,
            reason=None if speedup == 1.5 else "measured",
            parity={"psnr_db": Limit(min=60, reason="what was timed is right")},
            bands=dict.fromkeys(TIMES, TEN_PERCENT) if bands is None else bands,
        ),
        memory=MemoryGate(growth=Limit(max=1024, reason="a page now and then")),
    )


def paired_times(
    ratio: float, *, pairs: int = 30, noise: float = 0.01, seed: int = 0, reference: float = 0.1
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Log-normal times of both arms, in seconds."""
    rng = np.random.default_rng(seed)
    a = reference * np.exp(rng.normal(0, noise, pairs))
    b = reference / ratio * np.exp(rng.normal(0, noise, pairs))
    return tuple(a.tolist()), tuple(b.tolist())


def perf_measurement(
    ratio: float = 1.67,
    *,
    reference: float = 0.1,
    psnr_db: float = 120.0,
    pairs: int = 30,
    noise_pairs: int = 4,
    seed: int = 0,
    **changes: Any,
) -> Measurement:
    """What a perf case measures, at 1 % noise."""
    a, b = paired_times(ratio, pairs=pairs, seed=seed, reference=reference)
    first, second = paired_times(1.0, pairs=noise_pairs, noise=0.001, seed=seed + 1)
    data: dict[str, Any] = {
        "metrics": {
            "psnr_db": Metric(value=psnr_db, unit="dB", better="higher"),
            "non_finite": Metric(value=0.0, unit="", better="lower"),
            "reference_time": Metric(value=float(np.median(a)), unit="s", better="lower", samples=a),
            "candidate_time": Metric(value=float(np.median(b)), unit="s", better="lower", samples=b),
            "speedup": Metric(
                value=float(np.median(a) / np.median(b)),
                unit="x",
                better="higher",
                samples=tuple(x / y for x, y in zip(a, b, strict=True)),
            ),
        },
        "series": {
            "reference_s": a,
            "candidate_s": b,
            "noise_first_s": first,
            "noise_second_s": second,
        },
        "facts": {"sampling_plan": {"min_pairs": 5, "max_pairs": 30, "step": 5, "confidence": 0.99}},
    }
    return Measurement(**{**data, **changes})


def entry(
    reference: float = 0.1,
    candidate: float = 0.06,
    rel: float = 0.10,
    kernels: Mapping[str, Any] | None = None,
) -> BaselineEntry:
    """A baseline of both times, in seconds."""
    tolerance = Tolerance(rel, 0.0, "ten percent")
    values = zip(TIMES, (reference, candidate), strict=True)
    return BaselineEntry(
        {name: BaselineMetric(value, "s", "lower", tolerance, 1, 0.0, (value,)) for name, value in values},
        provenance(),
        kernels,
    )


def provenance() -> dict[str, Any]:
    """Of a baseline entry."""
    return {
        "backend": "onnxruntime",
        "weights": "checkpoint",
        "profile": "128p-17f",
        "commit": "abc",
        "dirty": False,
        "date": "2026-01-01T00:00:00Z",
        "command": "tool",
        "versions": {"torch": "2.11.0"},
        "runs": 1,
        "accepted_regression": None,
    }


def case_record(
    case: Case, measurement: Measurement, *, suite: str = "perf", baseline: BaselineEntry | None = None
) -> CaseRecord:
    """What the plugin makes of a measurement."""
    checks = judge(
        case,
        suite,  # type: ignore[arg-type]
        measurement,
        baseline,
        bands_for_hardware=baseline is not None,
        require_bands=False,
    )
    return CaseRecord.judged(case, suite, checks, measurement, seconds=1.5)  # type: ignore[arg-type]


def with_frames(record: RunRecord, folder: Path) -> RunRecord:
    """The run with videos of 4 frames, written to ``folder``, in its only parity case; frame 3 is the worst."""
    from wan_trt_core.comparison.frames import keep_frames
    from wan_trt_core.comparison.targets import Outputs

    reference = np.linspace(0, 1, 4 * 32 * 48 * 3, dtype=np.float32).reshape(4, 32, 48, 3)
    candidate = reference.copy()
    candidate[2, 8:16, 8:16] = 1
    facts = keep_frames(folder, "pipeline-fp16-parity", Outputs(video=reference), Outputs(video=candidate), 8)
    return with_facts(record, facts)


def with_events(record: RunRecord, folder: Path, events: str | None = None) -> RunRecord:
    """The run with memory events, written to ``folder``, of its only memory case.

    Args:
        events: what stands in the file in their place.
    """
    from fabricated_memory import FAILURE, stock

    from wan_trt_core.measure.memory_events import events_file

    (case,) = (case for case in record.cases if case.suite == "memory")
    path = folder / events_file(case.case)
    stock(failure=FAILURE).write(path)
    if events is not None:
        path.write_text(events)
    return record


def with_facts(record: RunRecord, facts: dict[str, Any]) -> RunRecord:
    """The run with more facts in its parity cases."""

    def changed(case: CaseRecord) -> CaseRecord:
        measured = case.measurement
        more = measured.model_copy(update={"facts": measured.facts | facts})
        return case.model_copy(update={"measurement": more}) if case.suite == "parity" else case

    return record.model_copy(update={"cases": tuple(map(changed, record.cases))})


def run_record(*cases: CaseRecord, hardware_key: str = HARDWARE, **environment: Any) -> RunRecord:
    """A run on the made-up hardware, from a clean commit."""
    source = {"commit": "abc", "dirty": False, "changed": [], "given": False}
    return RunRecord(
        started="2026-01-01T00:00:00Z",
        command=("pytest", "-m", "perf", "suites"),
        hardware_key=hardware_key,
        environment={"source": source, "throttled": "", "packages": {"torch": "2.11.0"}, **environment},
        settings={"perf": {"time_budget": 60}},
        cases=cases,
    )


def full_run() -> RunRecord:
    """A run with all that a report can show: all suites, all verdicts, both marks, a GPU's kernels and clocks."""
    measured = perf_measurement(1.67, notes=("layer 3 is slow",))
    beside = {"noise_floor": Metric(value=0.0021, unit="", better="lower")}
    on_a_gpu = measured.model_copy(
        update={
            "metrics": measured.metrics | beside,
            "facts": measured.facts
            | {"kernels": KERNELS, "clocks": CLOCKS, "random_weights": "seeded random"},
        }
    )
    frames = (71.5, 69.25, 70.125)
    video = {
        "psnr_db": Metric(
            value=89.5, unit="dB", better="higher", samples=(95.0, 89.5, 92.0), detail="worst at opt"
        ),
        "non_finite": Metric(value=0.0, unit="", better="lower", samples=(0.0, 0.0, 0.0)),
        "video.psnr_db": Metric(value=69.25, unit="dB", better="higher", samples=frames),
        "latents.psnr_db": Metric(value=80.0, unit="dB", better="higher", samples=(99.0, 90.0, 80.0)),
        "video.lpips": Metric(value=None, unit="", better="lower", detail="no backbone"),
    }
    held = tuple(5e8 + 4096.0 * (run % 3) for run in range(20))
    memory = {
        "resident_set_peak": Metric(value=6.2e8, unit="B", better="lower"),
        "reference_resident_set_peak": Metric(value=7.5e8, unit="B", better="lower"),
        "engine_weights": Metric(value=8.6e6, unit="B", better="lower", deterministic=True),
        "growth": Metric(value=0.0, unit="B", better="lower", samples=held),
    }
    undecided = perf_measurement(1.5)
    missing = {name: metric for name, metric in measured.metrics.items() if name != "psnr_db"}
    return run_record(
        case_record(make_case("dit-fp16"), on_a_gpu, baseline=entry(0.1, 0.07)),
        case_record(make_case("slow-fp32", speedup=1.2), perf_measurement(1.31)),
        case_record(make_case("unsure-fp32"), undecided),
        case_record(make_case("wrong-fp16"), perf_measurement(psnr_db=40.0)),
        case_record(make_case("silent-fp16"), measured.model_copy(update={"metrics": missing})),
        case_record(make_case("pipeline-fp16"), Measurement(metrics=video), suite="parity"),
        case_record(make_case("dit-fp32"), Measurement(metrics=memory), suite="memory"),
    )
