"""``benchmarks/accelerated.py`` times both arms, tells the stages apart, and refuses to time a fallback."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from wan_trt_core.config import Settings

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
    benchmark_file.main([*size, "--pairs", "3", "--staged", "1", "--json", str(tmp_path / "times.json")])
    result = json.loads((tmp_path / "times.json").read_text())
    assert 0 < result["low"] <= result["speedup"] <= result["high"]
    assert result["difference"] < 1e-3
    assert {len(times) for times in result["seconds"].values()} == {3}
    for stages in result["stages"].values():
        assert list(stages) == ["text encoder", "transformer", "vae", "the rest"]
        assert all(seconds > 0 for seconds in stages.values())
    out = capsys.readouterr().out
    assert f"accelerated is {result['speedup']:.2f}x as fast as stock" in out
    assert "tiny-wan, 5 frames of 64x64, 1 steps" in out


def test_a_fallback_is_not_timed(benchmark_file: ModuleType, tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path, on_missing_shape="torch")
    with pytest.raises(benchmark_file.FellBack, match=r"own transformer, vae ran in the accelerated arm"):
        benchmark_file.measure(settings, "fp32", {**GENERATION, "height": 256}, 3, 1)
