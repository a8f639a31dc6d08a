"""The prices of the options that lower memory: every one has its cases, and each stands beside the case without it."""

from __future__ import annotations

from types import ModuleType

import pytest
from scripts import REPOSITORY, load_script

from wan_trt_core.cases import Case, load_cases
from wan_trt_core.pytest_plugin.session import allowed_names

OPTIONS = (
    "pipeline.offload",
    "pipeline.text_encoder_device",
    "pipeline.vae_frames_per_step",
    "pipeline.vae_lean",
    "pipeline.vae_tile",
    "pipeline.attention_slicing",
    "tensorrt.weight_streaming_budget_gib",
    "tensorrt.share_scratch",
    "tensorrt.max_graphs",
    "text_encoder=int8",
)


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return load_cases(REPOSITORY / "suites" / "cases.yaml", allowed_names()).cases


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/memory_prices.py")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("suite", ["memory", "perf"])
def test_every_option_has_a_case(
    option: str, suite: str, cases: tuple[Case, ...], script: ModuleType
) -> None:
    assert any(option in script.option(case) and suite in case.suites for case in cases)


@pytest.mark.parametrize("option", ["pipeline.vae_tile", "pipeline.attention_slicing"])
def test_what_pytorch_does_by_itself_has_cases_of_its_own(
    option: str, cases: tuple[Case, ...], script: ModuleType
) -> None:
    (case,) = (case for case in cases if case.backend == "torch" and option in script.option(case))
    assert {"memory", "perf"} <= {*case.suites}


def test_a_case_stands_beside_the_one_without_its_option(cases: tuple[Case, ...], script: ModuleType) -> None:
    known = {
        ("wan-1.3b-pipeline-17f-offload", "candidate_time"): (10.5, "b" * 40),
        ("wan-1.3b-pipeline-17f", "candidate_time"): (6.2, "a" * 40),
        ("wan-1.3b-pipeline-17f-offload-memory", "device_used"): (17.0 * 2**30, "b" * 40),
        ("wan-1.3b-pipeline-17f-memory", "device_used"): (19.5 * 2**30, "b" * 40),
        ("wan-1.3b-pipeline-17f-encoder", "candidate_time"): (1.6, "a" * 40),
        ("wan-1.3b-pipeline-17f-encoder-int8", "candidate_time"): (1.7, "a" * 40),
        ("wan-1.3b-pipeline-17f-encoder-memory", "device_used"): (30.0 * 2**30, "a" * 40),
        ("tiny-wan-pipeline-sliced", "reference_time"): (0.2, "a" * 40),
        ("tiny-wan-pipeline-sliced", "candidate_time"): (0.25, "a" * 40),
    }

    def stored(case: Case, _: str, name: str) -> object:
        return script.Stored(*known[case.id, name]) if (case.id, name) in known else None

    rows = {row[1]: row[2:] for row in script.prices(cases, stored)}
    none = ("no baseline", "no baseline", "")
    assert rows["wan-1.3b-pipeline-17f-offload"] == ("", "", "", "6200 ms", "10.5 s", "`aaaaaaa`, `bbbbbbb`")
    assert rows["wan-1.3b-pipeline-17f-offload-memory"] == ("19.5 GiB", "17 GiB", "`bbbbbbb`", "", "", "")
    assert rows["wan-1.3b-pipeline-17f-encoder-int8"] == ("", "", "", "1600 ms", "1700 ms", "`aaaaaaa`")
    assert rows["wan-1.3b-pipeline-17f-encoder-cpu-memory"] == (
        "30 GiB", "no baseline", "`aaaaaaa`", "", "", "",
    )  # fmt: skip
    assert rows["tiny-wan-pipeline-sliced"] == (*none, "200 ms", "250 ms", "`aaaaaaa`")
    assert rows["wan-1.3b-vae-decoder-81f-one-graph"] == (*none, *none)


def test_the_table_of_the_docs_is_what_the_script_says(script: ModuleType) -> None:
    baselines = REPOSITORY / "baselines" / "cuda-nvidia-h200-132sm-139gib"
    said = script.table(baselines, REPOSITORY / "suites" / "cases.yaml").strip()
    assert said in (REPOSITORY / "docs" / "memory.md").read_text()
