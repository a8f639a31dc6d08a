"""Reports from made-up records: nothing is lost, and they read well."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from fabricated import (
    CLOCKS,
    KERNELS,
    STAGES,
    case_record,
    entry,
    full_run,
    make_case,
    perf_measurement,
    run_record,
)
from rich.console import Console

from wan_trt_core.gates.verdict import Reason
from wan_trt_core.records import Measurement, Metric, RunRecord
from wan_trt_core.report.charts import case_charts
from wan_trt_core.report.github import annotate
from wan_trt_core.report.html import html_report
from wan_trt_core.report.junit import junit_properties
from wan_trt_core.report.markdown import markdown_report, write_markdown
from wan_trt_core.report.summary import WHY, headline, perf_rows, totals, worst_first
from wan_trt_core.report.tables import case_tables
from wan_trt_core.report.terminal import render

AT_EACH_POINT = "worst at max; min 120 dB, opt 101.5 dB, max 90 dB"


@pytest.fixture(scope="module")
def record() -> RunRecord:
    """Passed, failed, below the gate, invalid, missing bands and a stale baseline."""
    problem = {Reason.FALLBACK_TO_PYTORCH: "a linear layer ran in PyTorch"}
    return run_record(
        case_record(make_case("vae-decoder-fp32"), perf_measurement(2.5), baseline=entry(0.1, 0.06)),
        case_record(make_case("dit-fp32", speedup=1.2), perf_measurement(1.31)),
        case_record(make_case("text-encoder-fp32"), perf_measurement(1.2, notes=("layer 3 is slow",))),
        case_record(make_case("pipeline-fp16"), perf_measurement(problems=problem)),
        case_record(
            make_case("dit-fp16"),
            Measurement(
                metrics={
                    "psnr_db": Metric(value=89.99999, unit="dB", better="higher", detail=AT_EACH_POINT),
                    "non_finite": Metric(value=0.0, unit="", better="lower"),
                }
            ),
            suite="parity",
        ),
    )


def terminal(record: RunRecord, width: int = 80) -> str:
    stream = io.StringIO()
    render(record, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_terminal_fits_eighty_columns_without_colour(record: RunRecord) -> None:
    text = terminal(record)
    assert "\x1b" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("width", [80, 120, 200])
def test_terminal_says_all_that_matters(record: RunRecord, width: int) -> None:
    text = terminal(record, width)
    for case in record.cases:
        assert case.case in text
    squeezed = re.sub(r"\s+", " ", text)
    for word in ("FAIL", "INVALID", "PASS", "89.99999 dB", "too slow", "layer 3 is slow", "linear layer"):
        assert word in squeezed
    assert "baselines regenerate" in squeezed
    assert "5 cases: 2 pass, 1 invalid, 2 fail; 1 BELOW GATE" in squeezed


def test_a_narrow_terminal_cuts_no_number(record: RunRecord) -> None:
    assert "…" not in terminal(record, width=40)


def test_long_names_stay_in_one_piece_at_eighty_columns(record: RunRecord) -> None:
    below = case_record(make_case("tiny-wan-vae-decoder-first-fp32", speedup=1.2), perf_measurement(1.31))
    growing = Measurement(
        metrics={"growth": Metric(value=1e6, unit="B", better="lower", samples=(0.0, 1e6, 2e6))}
    )
    leak = case_record(make_case("tiny-wan-pipeline-memory"), growing, suite="memory")
    open_ = case_record(make_case("tiny-wan-vae-decoder-next-fp32"), perf_measurement(1.5))
    assert len(below.case) == 31 and open_.verdict.value == "inconclusive"
    text = terminal(run_record(*record.cases, below, leak, open_), 80)
    table = text[: text.index("\nFAIL ")].splitlines()
    assert max(len(line.rstrip()) for line in table) <= 80
    for case in (below, leak, open_):
        assert any(line.startswith(f"{case.case} ") for line in table), case.case
    rows = "\n".join(table[table.index(next(line for line in table if line.startswith(below.case))) :])
    assert "BELOW GATE" in rows


def test_a_name_too_long_for_the_terminal_is_folded_not_cut() -> None:
    name = "a-case-" + "with-a-very-long-name-" * 4
    table = terminal(run_record(case_record(make_case(name + "x"), perf_measurement(2.0))), 80)
    column = "".join(line.split(" ")[0] for line in table.splitlines()[2:] if not line.startswith(" "))
    assert column.startswith(name)


def test_below_gate_is_marked_in_its_row(record: RunRecord) -> None:
    text = terminal(record, 200)
    rows = [line for line in text.splitlines() if line.startswith("dit-fp32")]
    assert len(rows) == 1 and "BELOW GATE" in rows[0]
    assert "BELOW GATE" in markdown_report(record)


def test_random_weights_are_marked_in_their_row() -> None:
    facts = {"random_weights": "seeded random, 10 of 40 layers"}
    case = case_record(make_case("wan2.1-t2v-14b-dit-fp16", speedup=1.2), perf_measurement(1.31, facts=facts))
    record = run_record(case, case_record(make_case(), perf_measurement()))
    for width in (80, 200):
        text = terminal(record, width)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        table = re.sub(r"\s+", " ", text[: text.index("\nhardware")])
        assert table.count("RANDOM") == 1 and table.count("WEIGHTS") == 1
    assert "RANDOM WEIGHTS" in next(line for line in text.splitlines() if line.startswith(case.case))
    assert "1 BELOW GATE; 1 RANDOM WEIGHTS" in text
    page = markdown_report(record)
    assert page.count("**RANDOM WEIGHTS**") == 1
    assert "(perf, BELOW GATE, RANDOM WEIGHTS)" in page
    assert "tiny-wan (seeded random, 10 of 40 layers) / dit" in page
    assert dict(junit_properties(case))["wan.random_weights"] == "seeded random, 10 of 40 layers"


def test_a_failure_says_what_it_was_at_each_point(record: RunRecord) -> None:
    """In the message, not only in the table of metrics: whether the failure is at the shape that one runs."""
    for text in (terminal(record), markdown_report(record), html_report(record)):
        message = f"psnr_db 89.99999 dB < 90 dB ({AT_EACH_POINT}; limit: "
        assert message in re.sub(r"\s+", " ", html.unescape(text))


def test_worst_first(record: RunRecord) -> None:
    assert [case.verdict.value for case in worst_first(record)] == ["fail", "fail", "invalid", "pass", "pass"]
    text = terminal(record)
    assert text.index("text-encoder-fp32") < text.index("vae-decoder-fp32")


def test_value_and_limit_never_look_alike(record: RunRecord) -> None:
    head = headline(next(case for case in record.cases if case.case == "dit-fp16"))
    assert (head.value, head.limit) == ("89.99999 dB", "90 dB")


def test_every_reason_has_its_words() -> None:
    assert set(WHY) == set(Reason)


def test_totals() -> None:
    assert totals(run_record()) == "no case was judged"
    assert totals(run_record(case_record(make_case(), perf_measurement()))) == "1 case: 1 pass"


def test_markdown_holds_everything(record: RunRecord) -> None:
    text = markdown_report(record)
    assert text.startswith("# wan-trt: NOT PASSED")
    for case in record.cases:
        assert f"`{case.case}`" in text
        for check in case.checks:
            assert check.message.replace("|", "\\|").replace("<", "&lt;") in text
    for words in (
        "Missing bands (advisory)",
        "Better than the baseline",
        "## Environment",
        "packages.torch",
    ):
        assert words in text


def test_markdown_tables_are_whole(record: RunRecord) -> None:
    """Each table row has as many cells as its header, whatever the messages hold."""
    cells = 0
    for line in markdown_report(record).splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        cells = cells or found
        assert found == cells, line


def test_markdown_shows_memory_in_units() -> None:
    sizes = {"device_used": 5.5 * 2**30, "vae_decoder_next.engine_scratch": 300.0 * 2**20}
    metrics = {name: Metric(value=size, unit="B", better="lower") for name, size in sizes.items()}
    metrics["growth"] = Metric(value=0.0, unit="B", better="lower", deterministic=True)
    ratio = Metric(value=0.875, unit="x", better="lower")
    facts = {"engines": {"dit": {"weights": 3 * 2**29}}, "steps": 50}
    found = Measurement(metrics=metrics | {"peak_over_reference": ratio}, facts=facts)
    text = markdown_report(run_record(case_record(make_case(), found, suite="memory")))
    for row in (
        "| device_used | 5.5 GiB |",
        "| vae_decoder_next.engine_scratch | 300 MiB |",
        "| peak_over_reference | 0.875x |",
        "| engines.dit.weights | 1.5 GiB |",
        "| steps | 50 |",
    ):
        assert row in text


def test_memory_of_stock_diffusers_stands_beside_the_candidates() -> None:
    sizes = {"device_used": 2.0 * 2**30, "reference_device_used": 8.0 * 2**30, "engine_weights": 2.0**30}
    metrics = {name: Metric(value=size, unit="B", better="lower") for name, size in sizes.items()}
    case = case_record(make_case(), Measurement(metrics=metrics), suite="memory")
    (table,) = [table for table in case_tables(case) if table.title == "Memory of both arms"]
    assert table.rows == (("device_used", "8 GiB", "2 GiB", "4.00x"),)
    assert "| device_used | 8 GiB | 2 GiB | 4.00x |" in markdown_report(run_record(case))


def test_markdown_of_an_empty_or_passing_run() -> None:
    assert "NOT PASSED" in markdown_report(run_record())
    passed = markdown_report(run_record(case_record(make_case(), perf_measurement())))
    assert passed.startswith("# wan-trt: pass")
    assert "no perf baselines" in passed


def test_markdown_messages_cannot_break_out(record: RunRecord) -> None:
    notes = ("a | b\n<script>",)
    text = markdown_report(run_record(case_record(make_case(), perf_measurement(notes=notes))))
    assert "a \\| b &lt;script>" in text


def test_summary_of_the_job_is_appended_to(record: RunRecord, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    write_markdown(record, tmp_path / "out" / "report.md", {"GITHUB_STEP_SUMMARY": str(summary)})
    text = (tmp_path / "out" / "report.md").read_text()
    assert summary.read_text() == "before\n" + text
    write_markdown(record, tmp_path / "again.md", {})
    assert summary.read_text() == "before\n" + text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.md"]


def test_junit_properties_are_scalars(record: RunRecord) -> None:
    found = {case.case: dict(junit_properties(case)) for case in record.cases}
    assert (found["dit-fp16"]["wan.verdict"], found["dit-fp16"]["wan.reason"]) == ("fail", "beyond_limit")
    assert found["dit-fp16"]["wan.deciding_metric"] == "psnr_db"
    assert float(found["dit-fp16"]["wan.value"]) == 89.99999
    assert float(found["dit-fp16"]["wan.limit"]) == 90.0
    assert found["dit-fp32"]["wan.below_gate"] == "BELOW GATE"
    assert float(found["dit-fp32"]["wan.metric.speedup"]) == pytest.approx(1.31, rel=0.02)
    assert all(isinstance(value, str) for properties in found.values() for value in properties.values())


@pytest.mark.parametrize(
    "case",
    ["- id: one-case", "- {id: one-case, parity: {}}", "- {'id': 'one-case'}", '-   "id": "one-case"  # why'],
)
def test_a_case_is_annotated_in_its_line(case: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.yaml"
    file.write_text(f"version: 1\ncases:\n  {case}\n")
    run = run_record(case_record(make_case("one-case"), perf_measurement(1.31)))
    workspace = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(tmp_path)}
    (line,) = annotate(run, file, workspace)
    assert line.startswith("::error file=cases.yaml,line=3,title=wan-trt%3A one-case (perf) FAIL")
    assert not list(annotate(run, file, {}))


def test_everything_but_a_pass_is_annotated_the_worst_first(tmp_path: Path) -> None:
    found = list(annotate(full_run(), tmp_path / "absent.yaml", {"GITHUB_ACTIONS": "true"}))
    verdicts = re.findall(r"^::error .* ([A-Z]+) \(\w+\)::", "\n".join(found), re.MULTILINE)
    assert verdicts == ["FAIL", "INVALID", "MISSING", "INCONCLUSIVE"]
    assert [line.startswith("::warning ") for line in found] == [False] * 4 + [True]


def test_terminal_says_all_that_failed_in_a_case() -> None:
    text = terminal(run_record(case_record(make_case(), perf_measurement(1.31, psnr_db=40.0))))
    assert "1.5x is asked" in text and "the timed output is wrong" in text


def on_a_gpu(drift: float = 0.0, **facts: object) -> RunRecord:
    measurement = perf_measurement(1.67)
    detail = "1.200x, 99% interval 1.150x to 1.250x over 5 pairs"
    beside = {
        "compile_speedup": Metric(value=1.2, unit="x", better="higher", detail=detail),
        "graph_gain": Metric(value=None, unit="x", better="higher", detail="out of memory"),
        "noise_floor": Metric(value=0.0021, unit="", better="lower"),
        "drift": Metric(value=drift, unit="", better="lower", detail="5.1% slower" if drift else ""),
    }
    changed = {"metrics": measurement.metrics | beside, "facts": measurement.facts | facts}
    return run_record(case_record(make_case(), measurement.model_copy(update=changed)))


def test_a_perf_case_shows_its_ratios_times_and_clocks() -> None:
    record = on_a_gpu(clocks=CLOCKS)
    interval = re.compile(
        r"speed-up over eager\W+1\.6\d\dx, 99% interval 1\.6\d\dx to 1\.\d{3}x over \d+ pairs"
    )
    assert "drift" not in terminal(record)
    assert "drift 5.1% slower;" in re.sub(r"\s+", " ", terminal(on_a_gpu(drift=0.051)))
    for text in (markdown_report(record), re.sub(r"\s+", " ", terminal(record))):
        assert interval.search(text)
        for words in (
            "over torch.compile | 1.200x, 99% interval 1.150x to 1.250x over 5 pairs",
            "gain of CUDA graphs | out of memory",
            "noise floor | 0.2%",
            "SM 1755 to 1980 MHz, median 1965; at most 61 °C; at most 688 W; held by: power cap",
        ):
            assert words in text or words.replace(" | ", " ") in text
        assert re.search(r"reference\W+\d+(\.\d+)? ms", text) and re.search(
            r"candidate\W+\d+(\.\d+)? ms", text
        )


def test_the_kernels_of_both_arms_stand_side_by_side() -> None:
    text = markdown_report(on_a_gpu(kernels=KERNELS))
    for row in (
        "| attention | 8.1 ms | 6.6 ms |",
        "| other | 7 ms | 0 ms |",
        "| all kernels | 25.1 ms | 16.2 ms |",
    ):
        assert row in text
    assert "| kernel_9&lt;a\\|b> | 2 ms | 30 |" in text
    assert "kernel_10" not in text


def test_kernels_that_could_not_be_told_apart_say_why() -> None:
    text = markdown_report(on_a_gpu(kernels={"error": "no answer within 600 s"}))
    assert "The kernels could not be told apart: no answer within 600 s" in text


def test_a_suite_without_pairs_has_no_performance_rows(record: RunRecord) -> None:
    parity = next(case for case in record.cases if case.suite == "parity")
    assert perf_rows(parity) == []


def test_the_stages_of_a_video_are_told_and_added_up() -> None:
    measured = perf_measurement(2.0)
    case = case_record(make_case(), measured.model_copy(update={"facts": measured.facts | STAGES}))
    report = markdown_report(run_record(case))
    for row in (
        "| denoise 2 | 400 ms | 300 ms | 1.33x |",
        "| decode | 2000 ms | 500 ms | 4.00x |",
        "| all denoising steps | 600 ms | 400 ms | 1.50x |",
        "| inside the transformer | 500 ms | 300 ms | 1.67x |",
        "| outside transformer and decoder | 120 ms | 120 ms | 1.00x |",
        "| whole video | 2620 ms | 920 ms | 2.85x |",
        "| denoise 1 | 4 GiB | 4 MiB | 1024.00x |",
    ):
        assert row in report
    assert "stage_memory" not in report, "not among the facts again"
    chart = next(chart for chart in case_charts(case) if chart.title == "Time by stage")
    assert chart.labels == ("text encode", "denoise", "decode", "postprocess")
    assert chart.series["candidate"] == pytest.approx([0.01, 0.4, 0.5, 0.01])
