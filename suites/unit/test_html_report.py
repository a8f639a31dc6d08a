"""The HTML report: nothing of a record is lost, nothing is loaded, and no name in a record breaks out of its place."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from fabricated import case_record, full_run, make_case, perf_measurement, run_record, with_events
from fabricated_memory import FAILURE, stock

import wan_trt_core.report
from wan_trt_core.records import CaseRecord, Measurement, Metric, RunRecord
from wan_trt_core.report.charts import Chart, case_charts, memory_timeline
from wan_trt_core.report.drawing import svg
from wan_trt_core.report.frames import Album
from wan_trt_core.report.html import html_report, page_of, write_html
from wan_trt_core.report.memory_report import memory_page
from wan_trt_core.report.tables import case_tables, facts_table, run_tables

HOSTILE = """</style><img src=x onerror=alert(1)>"'><script>alert($x^2$)</script><!-- -->"""


STYLE = Path(wan_trt_core.report.__file__).parent / "templates" / "report.css"


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours (#rrggbb), as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


class Parsed(HTMLParser):
    """What a browser would make of a page: the tags, their attributes, and the text outside the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._texts: list[str] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self._texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self._texts.append(data)

    def all(self, name: str) -> list[str]:
        """The values of an attribute, wherever it is."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return full_run()


@pytest.fixture(scope="module")
def text(record: RunRecord) -> str:
    return html_report(record)


@pytest.fixture(scope="module")
def page(text: str) -> Parsed:
    return Parsed(text)


class TestContent:
    def test_every_case_verdict_mark_and_number_is_there(self, record: RunRecord, page: Parsed) -> None:
        wanted = [record.hardware_key, record.started, " ".join(record.command)]
        for case in record.cases:
            wanted += [case.case, case.message, case.verdict.value.upper(), *case.measurement.notes]
            tables = (*case_tables(case), facts_table(case))
            wanted += [cell for table in tables for row in table.rows for cell in row]
        wanted += [cell for table in run_tables(record) for row in table.rows for cell in row]
        wanted += ["BELOW GATE", "RANDOM WEIGHTS", "NOT PASSED", "Missing bands (advisory)"]
        assert len(wanted) > 200
        missing = [words for words in wanted if re.sub(r"\s+", " ", words).strip() not in page.text]
        assert not missing

    def test_the_worst_comes_first(self, record: RunRecord) -> None:
        verdicts = [case.verdict for case in page_of(record).cases]
        assert list(dict.fromkeys(verdicts)) == ["fail", "invalid", "missing", "inconclusive", "pass"]

    def test_what_did_not_pass_is_open(self, record: RunRecord) -> None:
        assert all(case.opened == (case.verdict != "pass") for case in page_of(record).cases)

    def test_a_passing_and_an_empty_run(self) -> None:
        passed = Parsed(html_report(run_record(case_record(make_case(), perf_measurement()))))
        assert "wan-trt: pass" in passed.text
        assert "wan-trt: NOT PASSED" in Parsed(html_report(run_record())).text

    def test_the_same_record_gives_the_same_bytes(self, record: RunRecord, text: str, tmp_path: Path) -> None:
        record.write(tmp_path / "results.json")
        write_html(RunRecord.read(tmp_path / "results.json"), tmp_path / "new" / "report.html")
        assert (tmp_path / "new" / "report.html").read_text() == text
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


class TestMemoryEvents:
    @pytest.fixture
    def measured(self, record: RunRecord) -> RunRecord:
        return run_record(*(case for case in record.cases if case.suite == "memory"))

    def test_what_analyze_shows_is_in_the_page(self, measured: RunRecord, tmp_path: Path) -> None:
        write_html(with_events(measured, tmp_path), tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        shown, seen = memory_page(stock(failure=FAILURE)), Parsed(page).text
        assert shown.chart is not None
        titles = [table.title for table in shown.tables]
        cells = [cell for table in shown.tables for row in table.rows for cell in row]
        wanted = [shown.headline, shown.subject, *shown.notes, *titles, *cells]
        assert not [words for words in wanted if re.sub(r"\s+", " ", words).strip() not in seen]
        assert f'aria-label="{shown.chart.description}"' in page
        assert {"Loading", "Growth of what is held", "Biggest moments", "Recommendations"} < set(titles)

    @pytest.mark.parametrize(
        ("events", "why"), [("{", "not a readable file of memory events"), ("{}", "no file of memory events")]
    )
    def test_a_broken_file_is_told(self, measured: RunRecord, tmp_path: Path, events: str, why: str) -> None:
        with_events(measured, tmp_path, events)
        (view,) = page_of(measured, Album(tmp_path, tmp_path)).cases
        assert view.memory is None and why in view.notes[-1]


class TestSelfContained:
    def test_it_names_no_resource_and_holds_no_script(self, text: str, page: Parsed) -> None:
        assert not re.search(r"https?:|//\w|@import|url\((?!#)", text)
        assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed", "base"}
        links = [attributes["href"] for tag, attributes in page.tags if tag == "link"]
        assert links == ["data:,"]

    def test_its_policy_forbids_what_it_does_not_need(self, page: Parsed) -> None:
        (policy,) = (content for content in page.all("content") if "default-src" in content)
        assert policy.startswith("default-src 'none'")
        assert "script-src" not in policy and "connect-src" not in policy

    def test_ids_are_unique_and_every_reference_finds_its_own(self, text: str, page: Parsed) -> None:
        ids = page.all("id")
        assert len(ids) == len(set(ids))
        targets = [href for name in ("href", "xlink:href") for href in page.all(name) if href.startswith("#")]
        targets += re.findall(r"url\((#[^)]+)\)", text)
        targets += [f"#{label}" for label in page.all("aria-labelledby")]
        assert len(targets) > 50
        assert {target.removeprefix("#") for target in targets} <= set(ids)

    def test_every_chart_is_described_in_words(self, record: RunRecord, page: Parsed) -> None:
        images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
        charts = [chart for case in record.cases for chart in case_charts(case)]
        assert sorted(image["aria-label"] for image in images) == sorted(
            chart.description for chart in charts
        )
        assert len([tag for tag, _ in page.tags if tag == "svg"]) == len(images) > 15


def hostile_run() -> RunRecord:
    record = full_run()

    def hostile(case: CaseRecord) -> CaseRecord:
        found = case.measurement
        odd = {f"{HOSTILE}.psnr_db": Metric(value=1.0, unit="dB", better="higher", samples=(1.0, 2.0))}
        if case.suite == "memory":
            odd = {HOSTILE: Metric(value=1.0, unit="B", better="lower", detail=HOSTILE)}
            odd[f"{HOSTILE} grows"] = Metric(value=1.0, unit="B", better="lower", samples=(1.0, 2.0, 3.0))
        changed = {
            "metrics": found.metrics | odd,
            "notes": (HOSTILE,),
            "facts": found.facts | {HOSTILE: HOSTILE},
        }
        return case.model_copy(
            update={
                "case": f"{case.case} {HOSTILE}",
                "message": HOSTILE,
                "model": HOSTILE,
                "measurement": found.model_copy(update=changed),
            }
        )

    changed = {
        "cases": tuple(map(hostile, record.cases)),
        "command": (HOSTILE,),
        "hardware_key": HOSTILE,
        "environment": {HOSTILE: HOSTILE},
    }
    return record.model_copy(update=changed)


def test_hostile_names_stay_text(text: str) -> None:
    found = Parsed(html_report(hostile_run()))
    kept = {tag for tag, _ in Parsed(text).tags} | {"polygon"}
    assert {tag for tag, _ in found.tags} <= kept
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.text.count(HOSTILE) > 50
    anchors = [attributes["id"] for tag, attributes in found.tags if tag == "article"]
    assert all(re.fullmatch(r"[\w.-]+", anchor) for anchor in anchors)
    labels = [attributes["aria-label"] for _, attributes in found.tags if attributes.get("role") == "img"]
    assert any(HOSTILE in label for label in labels)


def charts_of(case: CaseRecord) -> dict[str, Chart]:
    return {chart.title: chart for chart in case_charts(case)}


def case_of(record: RunRecord, name: str, suite: str) -> CaseRecord:
    return next(case for case in record.cases if (case.case, case.suite) == (name, suite))


class TestCharts:
    def test_a_perf_case_shows_arms_ratio_noise_and_kernels(self, record: RunRecord) -> None:
        case = case_of(record, "dit-fp16", "perf")
        metrics = case.measurement.metrics
        charts = charts_of(case)
        assert list(charts) == [
            "Times of both arms",
            "Speed-up",
            "Pairs in the order measured",
            "Candidate against itself",
            "Kernels by what they do",
        ]
        for arm, deviations in charts["Times of both arms"].series.items():
            times = metrics[f"{arm}_time"]
            assert times.value is not None
            assert deviations == pytest.approx([100 * (time / times.value - 1) for time in times.samples])
        in_order = charts["Pairs in the order measured"].series
        assert in_order["candidate"] == pytest.approx(
            [1000 * time for time in metrics["candidate_time"].samples]
        )
        kernels = charts["Kernels by what they do"]
        assert kernels.labels == ("attention", "products", "other")
        assert kernels.series == {"reference": [8.1, 10.0, 7.0], "candidate": [6.6, 9.6, 0.0]}

    def test_the_threshold_the_interval_and_the_noise_floor_are_drawn_in(self, record: RunRecord) -> None:
        case = case_of(record, "dit-fp16", "perf")
        evidence = next(check.evidence for check in case.checks if check.metric == "speedup")
        chart = charts_of(case)["Speed-up"]
        assert chart.marks == {"asked: 1.5x": 1.5}
        assert chart.bands["99% interval"] == (evidence["low"], evidence["high"])
        low, high = chart.bands["noise floor around 1.5x"]
        assert math.log(high / 1.5) == pytest.approx(evidence["noise_floor"]) == math.log(1.5 / low)
        assert f"asked: 1.5x: 1.5; noise floor around 1.5x: {low:.4g} to {high:.4g}" in chart.description

    def test_a_parity_case_shows_quality_by_frame_and_step(self, record: RunRecord) -> None:
        charts = charts_of(case_of(record, "pipeline-fp16", "parity"))
        assert list(charts) == [
            "psnr_db by output or point of the profile",
            "video.psnr_db by frame",
            "latents.psnr_db by denoising step",
        ]
        assert charts["video.psnr_db by frame"].series == {"candidate": [71.5, 69.25, 70.125]}
        assert charts["psnr_db by output or point of the profile"].marks == {"limit: 90": 90.0}

    def test_a_memory_case_shows_owners_and_runs(self, record: RunRecord) -> None:
        charts = charts_of(case_of(record, "dit-fp32", "memory"))
        owners, runs = charts["Memory by owner"], charts["Memory over repeated runs"]
        assert owners.labels == ("resident_set_peak", "engine_weights")
        assert owners.series["candidate"] == pytest.approx([6.2e8 / 2**20, 8.6e6 / 2**20])
        assert owners.series["reference"] == pytest.approx([7.5e8 / 2**20, math.nan], nan_ok=True)
        assert "nan" not in owners.description
        assert runs.series["growth"][:4] == [0.0, 4.0, 8.0, 0.0]
        assert runs.axis == "KiB since the first run"

    def test_what_is_not_finite_or_not_there_leaves_no_chart(self) -> None:
        bad = Metric(value=math.nan, unit="dB", better="higher", samples=(math.nan, math.inf, 3.0))
        broken = case_record(make_case(), Measurement(metrics={"psnr_db": bad}), suite="parity")
        assert case_charts(broken) == []
        assert case_charts(case_record(make_case(), Measurement(metrics={}))) == []
        stored = Metric(value=math.inf, unit="B", better="lower")
        huge = case_record(make_case(), Measurement(metrics={"resident_set_peak": stored}), suite="memory")
        assert case_charts(huge) == []


class TestDrawing:
    CHARTS = (
        Chart(
            "spread", "t", "x", {"pairs": [1.0, 2.0, 4.0]}, marks={"asked": 1.5}, bands={"sure": (1.0, 3.0)}
        ),
        Chart("lines", "t", "x", {"reference": [1.0, 2.0], "candidate": [2.0, 1.0]}, index="pair"),
        Chart("lines", "t", "x", {name: [1.0, 2.0] for name in ("a", "b", "c", "d")}, index="run"),
        Chart("bars", "t", "x", {"reference": [1.0, math.nan], "candidate": [2.0, 3.0]}, ("here", "there")),
        memory_timeline(stock(failure=FAILURE)),
    )

    @pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{chart.kind}{len(chart.series)}")
    def test_every_colour_is_the_style_sheets(self, chart: Chart) -> None:
        drawn = svg(chart, "a")
        assert not re.search(r"#[0-9a-f]{6}", drawn)
        style = STYLE.read_text()
        for variable in set(re.findall(r"var\((--\w+)\)", drawn)):
            assert style.count(f"{variable}:") == 2, "once for light and once for dark"
        assert "var(--ink)" in drawn

    def test_colours_can_be_told_from_the_page(self) -> None:
        """The contrast that WCAG 2.2 asks of text (4.5) and of graphics (3); axe-core leaves charts out."""
        light_and_dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), flags=re.DOTALL)
        assert len(light_and_dark) == 2
        for block in light_and_dark:
            colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
            for name in colours.keys() - {"page", "raised", "grid"}:
                least = 3 if name in ("reference", "candidate", "third", "limit") else 4.5
                for behind in ("page", "raised"):
                    assert contrast(colours[name], colours[behind]) >= least, (name, behind)

    def test_words_stay_text(self) -> None:
        drawn = svg(self.CHARTS[0], "a")
        for words in ("pairs", "asked", "sure"):
            assert re.search(rf"<text[^>]*>{words}</text>", drawn)

    @pytest.mark.parametrize("lasting", [0.0, 1e-6, 1.0], ids=lambda lasting: f"{lasting:g}s")
    def test_names_of_short_stages_do_not_meet(self, lasting: float) -> None:
        """A timeline of 50 steps, with times that are those of a run, or next to nothing for each stage."""
        record = stock(steps=(1600,) * 50, after=1700)
        events = [
            event.model_copy(update={"start": place * lasting, "end": (place + 1) * lasting})
            for place, event in enumerate(record.events)
        ]
        chart = memory_timeline(record.model_copy(update={"events": tuple(events)}))
        drawn = svg(chart, "a")
        names = re.findall(r"<text style=\"([^\"]*)\" x=\"\S+\" y=\"(\S+)\"[^>]*>([a-z ]+)</text>", drawn)
        at = {text: float(y) for _, y, text in names if text in chart.spans}
        assert list(at) == ["load", "text encode", "denoise", "decode", "postprocess"]
        assert all(below - above >= 9 for above, below in pairwise(at.values())), "a line of 9 points each"
        assert "nan" not in drawn and "inf" not in drawn
