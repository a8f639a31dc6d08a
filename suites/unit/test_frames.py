"""Videos that were compared: written beside the report and nowhere else, shown in the page, and told when missing."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import typer
from fabricated import case_record, make_case, run_record, with_facts, with_frames
from test_html_report import HOSTILE, Parsed

from wan_trt_core.cli.report import report
from wan_trt_core.comparison import frames, parity, perf
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.frames import keep_frames
from wan_trt_core.comparison.targets import Arm, Outputs
from wan_trt_core.config import load_settings
from wan_trt_core.pipeline.video import probe
from wan_trt_core.pytest_plugin.session import WanSession
from wan_trt_core.records import Measurement, RunRecord
from wan_trt_core.report.frames import Album
from wan_trt_core.report.html import html_report, write_html

ARMS = ("reference", "candidate", "difference")


def outputs(error: float = 0.0, frame: int = 2) -> Outputs:
    """A grey video of 5 frames; one of them is off by ``error``."""
    video = np.full((5, 32, 48, 3), 0.5, np.float32)
    video[frame] += error
    return Outputs(video=video)


def kept(folder: Path, reference: Outputs, candidate: Outputs, name: str = "case-parity") -> dict[str, Any]:
    found: dict[str, Any] = keep_frames(folder, name, reference, candidate, 8)["frames"]
    return found


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with av.open(str(path)) as image:
        return next(image.decode(video=0)).to_ndarray(format="rgb24")


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestKeeping:
    def test_three_playable_videos_and_the_worst_frame_of_each(self, tmp_path: Path) -> None:
        found = kept(tmp_path, outputs(), outputs(0.25, frame=3))
        assert (found["frame"], found["of"], found["left_out"]) == (4, 5, "")
        assert files_in(tmp_path) == sorted([*found["videos"].values(), *found["stills"].values()])
        for arm in ARMS:
            assert found["videos"][arm] == f"videos/case-parity-{arm}.mp4"
            info = probe(tmp_path / found["videos"][arm])
            assert (info.codec, info.width, info.height, info.frames, info.fps) == ("h264", 48, 32, 5, 8)
        values = {arm: set(pixels(tmp_path / path).flat) for arm, path in found["stills"].items()}
        # the RMS over all frames is 0.25 / sqrt(5) = 0.11, close to an eighth: nothing to amplify
        assert found["gain"] == 1
        assert values == {"reference": {128}, "candidate": {191}, "difference": {64}}

    @pytest.mark.parametrize(
        ("error", "gain", "shown"), [(0.0, 256, 0), (1e-5, 256, 1), (1e-2, 32, 82), (0.5, 1, 128)]
    )
    def test_a_small_difference_is_amplified(
        self, tmp_path: Path, error: float, gain: int, shown: int
    ) -> None:
        found = kept(tmp_path, outputs(), outputs(error))
        assert found["gain"] == gain
        assert set(pixels(tmp_path / found["stills"]["difference"]).flat) == {shown}

    def test_what_is_not_finite_is_black_and_worst(self, tmp_path: Path) -> None:
        found = kept(tmp_path, outputs(), outputs(np.nan, frame=1))
        assert found["frame"] == 2 and found["videos"]
        assert not pixels(tmp_path / found["stills"]["candidate"]).any()

    def test_nothing_without_a_report_or_a_video(self, tmp_path: Path) -> None:
        assert keep_frames(None, "case", outputs(), outputs(), 8) == {}
        assert keep_frames(tmp_path, "case", Outputs(), Outputs(), 8) == {}
        assert not files_in(tmp_path)

    def test_no_name_leaves_the_folder(self, tmp_path: Path) -> None:
        for name in ("../../out", "/etc/x", HOSTILE, ".."):
            found = kept(tmp_path / "report", outputs(), outputs(), name)
            assert found["left_out"] == "" and len(found["videos"]) == len(found["stills"]) == 3
        assert len(files_in(tmp_path)) == len(files_in(tmp_path / "report" / "videos")) == 4 * 6

    def test_too_large_videos_are_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept(tmp_path, outputs(), outputs(0.1))
        monkeypatch.setattr(frames, "KEPT_BYTES", 1024)
        written: list[Path] = []
        write = frames.write_video
        monkeypatch.setattr(frames, "write_video", lambda path, *of: (written.append(path), write(path, *of)))
        found = kept(tmp_path, outputs(), outputs(0.1))
        assert "more than 1 KiB" in found["left_out"] and found["videos"] == {}
        assert files_in(tmp_path) == sorted(found["stills"].values())
        assert len(written) == 1, "noise takes long to write: one that is too large is enough"

    def test_what_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        odd = Outputs(video=np.zeros((1, 31, 48, 3), np.float32))
        found = kept(tmp_path, odd, odd)
        assert "even width and height" in found["left_out"] and found["stills"]
        (tmp_path / "file").write_text("no folder")
        found = kept(tmp_path / "file", outputs(), outputs())
        assert "cannot be written" in found["left_out"] and not found["stills"]


class TestMeasuring:
    @pytest.fixture
    def measure(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Measure a made-up pipeline in one of the suites."""
        arms = [Arm(lambda _, error=error: outputs(error)) for error in (0.0, 0.1)]  # type: ignore[misc]
        target = SimpleNamespace(
            reference=arms[0], candidate=arms[1], fps=8.0, steps=1, device="cpu", parity_inputs=lambda: [("opt", None)],
            build=lambda: None, inputs=lambda *_: None, facts=dict, problems=dict,
        )  # fmt: skip
        quick = {"perf.max_pairs": 5, "perf.min_pairs": 5, "perf.min_sample_time": 0, "perf.warmup_time": 0}
        quick["perf.kernels"] = False  # in a process of its own, which knows of no made-up pipeline
        settings = load_settings(overrides=quick, environ={}).settings

        def measure(module: Any, report: Path | None) -> Measurement:
            monkeypatch.setattr(module, "target_of", lambda case, context: target)
            found: Measurement = module.measure(make_case("fake"), Context(settings, report))
            return found

        return measure

    @pytest.mark.parametrize("module", [parity, perf], ids=["parity", "perf"])
    def test_the_videos_are_in_the_reports_folder_and_their_paths_in_the_facts(
        self, module: Any, measure: Any, tmp_path: Path
    ) -> None:
        facts = measure(module, tmp_path).facts["frames"]
        suite = module.__name__.rpartition(".")[2]
        assert facts["videos"]["candidate"] == f"videos/fake-{suite}-candidate.mp4"
        assert len(files_in(tmp_path)) == 6 and facts["frame"] == 3
        assert "frames" not in measure(module, None).facts

    def test_every_context_of_a_session_knows_the_report(self, tmp_path: Path) -> None:
        settings = load_settings(environ={}).settings
        assert Context(settings, tmp_path).beside(settings).report == tmp_path
        session: Any = SimpleNamespace(settings=settings)
        assert WanSession.context.func(session).report == settings.report


def one_case() -> RunRecord:
    """A run without charts, which take time to draw."""
    return run_record(case_record(make_case("pipeline-fp16"), Measurement(metrics={}), suite="parity"))


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return with_frames(one_case(), tmp_path)


def sources(page: str, tag: str) -> list[str]:
    return [attributes["src"] for name, attributes in Parsed(page).tags if name == tag]


class TestShowing:
    def test_stills_and_players_are_in_the_page(self, run: RunRecord, tmp_path: Path) -> None:
        write_html(run, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        for tag, kind, type_ in (("img", "png", "image/png"), ("video", "mp4", "video/mp4")):
            files = [(tmp_path / f"videos/pipeline-fp16-parity-{arm}.{kind}").read_bytes() for arm in ARMS]
            data = [f"data:{type_};base64,{base64.b64encode(file).decode()}" for file in files]
            assert sources(page, tag) == data
        found = Parsed(page)
        players = [attributes for tag, attributes in found.tags if tag == "video"]
        assert all("controls" in player and "autoplay" not in player for player in players)
        assert [player["aria-label"] for player in players] == [
            f"Video, {arm} of pipeline-fp16 (parity)" for arm in ARMS
        ]
        assert "Frame 3 of 4, reference" in found.text and "absolute, times" in found.text
        (policy,) = (content for content in found.all("content") if "default-src" in content)
        assert policy.endswith("img-src data:; media-src data:")

    def test_what_is_too_large_for_the_page_is_linked(self, run: RunRecord, tmp_path: Path) -> None:
        stills = sum(path.stat().st_size for path in (tmp_path / "videos").glob("*.png"))
        page = html_report(run, Album(tmp_path, tmp_path / "else where" / "deep", room=stills))
        assert len(sources(page, "img")) == 3 and not sources(page, "video")
        links = [link for link in Parsed(page).all("href") if link.endswith(".mp4")]
        assert links == [f"../../videos/pipeline-fp16-parity-{arm}.mp4" for arm in ARMS]
        assert not sources(html_report(run, Album(tmp_path, tmp_path, room=stills - 1)), "img")

    def test_the_report_of_a_stored_run_finds_them(self, run: RunRecord, tmp_path: Path) -> None:
        run.write(tmp_path / "results.json")
        page = tmp_path / "elsewhere" / "page.html"
        with suppress(typer.Exit):  # the run did not pass
            report(tmp_path / "results.json", html=page)
        assert len(sources(page.read_text(), "video")) == 3

    def test_missing_files_are_told_and_the_page_stands(self, run: RunRecord, tmp_path: Path) -> None:
        (tmp_path / "videos" / "pipeline-fp16-parity-candidate.mp4").unlink()
        page = html_report(run, Album(tmp_path, tmp_path))
        assert "videos/pipeline-fp16-parity-candidate.mp4 is not in the run's folder." in Parsed(page).text
        assert len(sources(page, "video")) == 2
        nothing = html_report(run, Album(tmp_path / "gone", tmp_path))
        assert nothing.count("is not in the run&#39;s folder") == 6 and "wan-trt: NOT PASSED" in nothing
        left_out = run.cases[0].measurement.facts["frames"] | {"videos": {}, "left_out": HOSTILE}
        told = html_report(with_facts(run, {"frames": left_out}), Album(tmp_path, tmp_path))
        assert f"No videos were kept: {HOSTILE}" in Parsed(told).text and "<script" not in told

    @pytest.mark.parametrize("outside", ["../secret.mp4", "{tmp}/secret.mp4", "link.mp4", HOSTILE])
    def test_nothing_outside_the_runs_folder_is_read(self, tmp_path: Path, outside: str) -> None:
        (tmp_path / "secret.mp4").write_text("secret")
        folder = tmp_path / "run"
        facts = with_frames(one_case(), folder).cases[0].measurement.facts["frames"]
        (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
        facts |= {"videos": {HOSTILE: outside.format(tmp=tmp_path)}}
        page = html_report(with_facts(one_case(), {"frames": facts}), Album(folder, folder))
        assert not sources(page, "video") and base64.b64encode(b"secret").decode() not in page
        assert "is not in the run's folder" in Parsed(page).text and "<script" not in page
