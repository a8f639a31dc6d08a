"""Parity over a set of prompts: the worst video, each by itself, and their mean, from made-up videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wan_trt_core.baselines import new_entry
from wan_trt_core.cases import Band, Case, Limit, ParityGate, Prompt
from wan_trt_core.comparison import parity
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import Outputs, PipelineTarget
from wan_trt_core.config import Settings, load_settings
from wan_trt_core.gates import decide, gate_bands, judge
from wan_trt_core.gates.verdict import Check, Reason, Verdict
from wan_trt_core.records import Measurement

ERRORS = {"square": 1e-3, "circle": 1e-2, "cross": 1e-4}
"""By prompt, how far each pixel of the candidate's video is off: 60, 40 and 80 dB."""


def case_with(**limits: float) -> Case:
    """A case over the three prompts; a ``mean`` in a limit's name stands for ``mean.``."""
    return Case(
        id="videos", model="tiny-wan", component="pipeline", profile="128p-17f", precision="fp32",
        backend="onnxruntime", prompts=tuple(Prompt(id=name, prompt=f"a {name}") for name in ERRORS),
        parity=ParityGate(
            limits={name: Limit(min=least, reason="r") for name, least in limits.items()},
            bands={
                "video.psnr_db": Band(rel=0.05, reason="r"),
                "mean.video.psnr_db": Band(rel=0.05, reason="r"),
            },
        ),
    )  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measurement:
    video = np.full((2, 16, 16, 3), 0.5, dtype=np.float32)

    class Videos:
        fps = 16.0
        built = False

        def build(self) -> None:
            self.built = True

        def parity_inputs(self) -> Iterator[tuple[str, str]]:
            assert self.built, "before an arm takes memory of a GPU"
            for name in ERRORS:
                yield name, name

        reference = SimpleNamespace(call=lambda name: Outputs(video=video))
        candidate = SimpleNamespace(call=lambda name: Outputs(video=video + np.float32(ERRORS[name])))
        facts = problems = staticmethod(dict)

    monkeypatch.setattr(parity, "target_of", lambda case, context: Videos())
    settings = load_settings(environ={}).settings
    with torch.inference_mode():
        return parity.measure(case_with(**{"video.psnr_db": 30.0}), Context(settings, report=tmp_path))


def judged(case: Case, measurement: Measurement, baseline: Any = None) -> Check:
    return decide(
        judge(
            case,
            "parity",
            measurement,
            baseline,
            bands_for_hardware=baseline is not None,
            require_bands=False,
        )
    )


def test_the_worst_each_and_the_mean(measured: Measurement) -> None:
    found = {name: metric.value for name, metric in measured.metrics.items() if name.endswith("psnr_db")}
    assert found == pytest.approx(
        {
            "video.psnr_db": 40.0,
            "square.video.psnr_db": 60.0,
            "circle.video.psnr_db": 40.0,
            "cross.video.psnr_db": 80.0,
            "mean.video.psnr_db": 60.0,
        },
        abs=0.1,
    )
    assert measured.metrics["video.psnr_db"].detail.startswith("worst at circle")
    assert measured.metrics["mean.video.psnr_db"].samples == pytest.approx((60.0, 40.0, 80.0), abs=0.1)


def test_the_video_that_is_kept_is_the_worst(measured: Measurement, tmp_path: Path) -> None:
    from PIL import Image

    kept = tmp_path / measured.facts["frames"]["stills"]["candidate"]
    assert np.asarray(Image.open(kept))[0, 0, 0] == round(255 * 0.51)


def test_the_worst_and_the_mean_are_both_gated(measured: Measurement) -> None:
    assert (
        judged(case_with(**{"video.psnr_db": 39.0, "mean.video.psnr_db": 59.0}), measured).verdict
        is Verdict.PASS
    )
    worst = judged(case_with(**{"video.psnr_db": 41.0, "mean.video.psnr_db": 59.0}), measured)
    assert (worst.verdict, worst.metric) == (Verdict.FAIL, "video.psnr_db")
    mean = judged(case_with(**{"video.psnr_db": 39.0, "mean.video.psnr_db": 61.0}), measured)
    assert (mean.verdict, mean.metric) == (Verdict.FAIL, "mean.video.psnr_db")


def test_each_video_has_its_band(measured: Measurement) -> None:
    """A video that gets worse is found although another one is still the worst of all."""
    case = case_with(**{"video.psnr_db": 30.0})
    bands = gate_bands(case, "parity")
    assert set(bands) == {
        "video.psnr_db",
        "mean.video.psnr_db",
        *(f"{name}.video.psnr_db" for name in ERRORS),
    }
    entry = new_entry(
        case.id, bands, [measured], {"backend": "onnxruntime", "weights": "checkpoint", "profile": "128p-17f"}
    )
    assert judged(case, measured, entry).verdict is Verdict.PASS
    cross = measured.metrics["cross.video.psnr_db"].model_copy(update={"value": 70.0})
    worse = measured.model_copy(update={"metrics": {**measured.metrics, "cross.video.psnr_db": cross}})
    found = judged(case, worse, entry)
    assert (found.verdict, found.reason, found.metric) == (
        Verdict.FAIL,
        Reason.WORSE_THAN_BAND,
        "cross.video.psnr_db",
    )


def test_what_of_a_prompt_is_cut_is_told(
    small_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "a Majestic elephant!"  # as they were given, also those that the tokenizer does not know
    prompts = (Prompt(id="long", prompt="red " * 15 + words), Prompt(id="short", prompt="red"))
    case = case_with(psnr=1.0).model_copy(update={"model": str(small_checkpoint), "prompts": prompts})
    with closing(Context(Settings(cache=tmp_path))) as context:
        assert PipelineTarget(case.model_copy(update={"profile": "64p-9f"}), context).reference
    assert [record.message.partition("leaves out: ")[2] for record in caplog.records] == [words]


def test_a_metric_that_one_video_lacks_has_no_mean() -> None:
    from wan_trt_core.records import Metric

    def of(value: float | None) -> dict[str, Metric]:
        return {"video.ssim": Metric(value=value, unit="", better="higher")}

    found = parity._of_each({"square": of(0.99), "circle": of(None)})["mean.video.ssim"]
    assert (found.value, found.detail) == (None, "not computed for every prompt")
