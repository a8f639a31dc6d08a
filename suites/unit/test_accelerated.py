"""``benchmarks/accelerated.py`` times both arms, tells the stages apart, and refuses to time a fallback."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripts import load_script

from wan_trt_core.comparison.targets import Outputs
from wan_trt_core.config import Settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.pipeline.stages import StageTimes

GENERATION = {
    "height": 128,
    "width": 128,
    "num_frames": 5,
    "num_inference_steps": 1,
    "max_sequence_length": 32,
}

pytestmark = pytest.mark.usefixtures("on_modules")


@pytest.fixture(scope="module")
def benchmark_file() -> ModuleType:
    return load_script("benchmarks/accelerated.py")


def test_both_arms_and_their_stages_are_timed(
    benchmark_file: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    monkeypatch.setenv("WAN_TRT_CACHE", str(tmp_path))
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "1"]
    counts = ["--pairs", "3", "--staged", "1", "--warm-up", "0", "--full-steps", "2"]
    written: list[set[str]] = []
    write = benchmark_file.write_json
    monkeypatch.setattr(
        benchmark_file, "write_json", lambda path, result: (written.append({*result}), write(path, result))
    )
    benchmark_file.main([*size, *counts, "--json", str(tmp_path / "times.json")])
    result = json.loads((tmp_path / "times.json").read_text())
    assert 0 < result["low"] <= result["speedup"] <= result["high"]
    assert result["difference"] < 1e-3
    assert {len(times) for times in result["seconds"].values()} == {3}
    for part in (result, result["full"]):
        for stages in part["stages"].values():
            assert list(stages) == ["text encoder", "transformer", "vae", "the rest"]
            assert all(seconds > 0 for times in stages.values() for seconds in times)
    assert [{"speedup", "ratios", "full"} & keys for keys in written] == [
        {"speedup"},
        {"speedup", "ratios"},
        {"speedup", "ratios", "full"},
    ], "an interruption loses one part"
    out = capsys.readouterr().out
    assert f"accelerated is {result['speedup']:.2f}x as fast as stock" in out
    assert "tiny-wan, 5 frames of 64x64, 1 steps" in out
    assert "one generation of 2 steps: stock " in out


def test_the_text_encoder_of_both_arms_is_as_it_is_asked_for(
    benchmark_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 takes several times as long on a GPU as bfloat16, in which it is published for."""

    def video(pipe: Any, _: Any) -> Outputs:
        seen.append(pipe.text_encoder.dtype)
        return Outputs(video=np.zeros((1, 8, 8, 3), "float32"))

    seen: list[torch.dtype] = []
    monkeypatch.setattr(benchmark_file, "_video", video)
    monkeypatch.setattr(benchmark_file, "_stages", lambda *_: {"stock": {}, "accelerated": {}})
    settings = Settings(cache=tmp_path, on_missing_shape="torch")
    precision = {"dit": "fp32", "vae": "fp32", "text_encoder": "bf16"}
    benchmark_file.measure(settings, precision, GENERATION, 3, 1, warm_up=0)
    assert {*seen} == {torch.bfloat16} and len(seen) >= 6


@pytest.mark.parametrize(("low", "code"), [(2.0, 0), (1.99, 1)])
def test_a_ratio_that_is_asked_for_decides_the_exit_code(
    benchmark_file: ModuleType,
    low: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the interval's lower end: a median above says less."""
    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    found = {"low": low, "speedup": 2.5, "high": 3.0}
    monkeypatch.setattr(benchmark_file, "measure", lambda *_, **__: found)
    benchmark_file.main([])
    if not code:
        benchmark_file.main(["--at-least", "2.0"])
        return
    with pytest.raises(SystemExit) as ended:
        benchmark_file.main(["--at-least", "2.0"])
    assert ended.value.code == code
    assert "failed: 1.99x is proven, and 2.00x is asked for" in capsys.readouterr().err


def test_pairs_of_stages_take_turns_and_give_ratios(
    benchmark_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def parts(pipe: str, call: Any) -> dict[str, float]:
        ran.append(pipe)
        call()
        slower = 1 + 0.1 * len(ran)
        return {"transformer": slower * (2 if pipe == "a" else 1), "vae": 1.0}

    monkeypatch.setattr(benchmark_file, "_parts", parts)
    pipes = {"stock": "a", "accelerated": "b"}
    stages = benchmark_file._stages(pipes, dict.fromkeys(pipes, lambda asked: asked), None, 4)
    assert ran == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert stages["accelerated"]["transformer"] == pytest.approx([1.2, 1.3, 1.6, 1.7])
    ratios = benchmark_file._ratios(stages)
    assert ratios["vae"] == {"ratio": 1, "low": 1, "high": 1}
    assert ratios["transformer"]["low"] < 2 < ratios["transformer"]["high"]


def test_drawing_random_states_has_no_ratio(
    benchmark_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = StageTimes((("text encode", 0.05), ("denoise 1", 2.0), ("decode", 1.0)), transformer=1.5)
    monkeypatch.setattr(benchmark_file, "time_stages", lambda *_, **__: times)
    for encoder, name, told in ((None, "random states", 0), (object(), "text encoder", 1)):
        parts = benchmark_file._parts(SimpleNamespace(text_encoder=encoder), lambda: None)
        stages = {
            arm: {each: [seconds] for each, seconds in parts.items()} for arm in ("stock", "accelerated")
        }
        assert (next(iter(parts)), len(benchmark_file._ratios(stages))) == (name, 3 + told)
        row = next(line for line in benchmark_file._table(stages) if line.startswith(name))
        assert (row.count("0.050 s"), row.count("1.00x")) == (2, told)


def test_what_a_full_run_comes_to(benchmark_file: ModuleType) -> None:
    stock = {"text encoder": [1.0], "transformer": [60.0], "vae": [38.0], "the rest": [1.0]}
    ours = {"text encoder": [1.0], "transformer": [30.0], "vae": [18.0], "the rest": [1.0]}
    summed = benchmark_file._summed({"stock": stock, "accelerated": ours})
    assert summed["seconds"] == {"stock": 100, "accelerated": 50}
    assert summed["speedup"] == 2
    assert summed["outside"] == pytest.approx({"stock": 0.02, "accelerated": 0.04})


def test_a_named_profile_gives_the_sizes(benchmark_file: ModuleType) -> None:
    model = resolve("wan2.1-t2v-1.3b")
    asked = benchmark_file.asked_of(model, "480p-17f", {"num_inference_steps": 4})
    assert (asked.height, asked.width, asked.num_frames, asked.num_inference_steps) == (480, 832, 17, 4)
    assert benchmark_file.asked_of(model, "480p-17f", {"num_frames": 9}).num_frames == 9
    assert benchmark_file.asked_of(model, None, {}) == model.generation


def test_a_fallback_is_not_timed(benchmark_file: ModuleType, tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path, on_missing_shape="torch")
    with pytest.raises(benchmark_file.FellBack, match=r"own transformer, vae ran in the accelerated arm"):
        benchmark_file.measure(settings, "fp32", {**GENERATION, "height": 256}, 3, 1)
