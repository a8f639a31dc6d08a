"""``benchmarks/start_up.py`` charges every moment of a start to what it is spent on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from module_engine import component_engine
from scripts import load_script

from wan_trt_core.backends.onnxruntime import OnnxRuntimeBackend
from wan_trt_core.config import Settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/start_up.py")


@pytest.fixture
def settings(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With a cache whose engines name a component, and are loaded as its graph in PyTorch."""

    def build(_: Any, onnx: Any, folder: Path, *__: Any) -> dict[str, Any]:
        (folder / "component").write_text(onnx.sha256)
        return {}

    def load(_: Any, folder: Path, __: Settings) -> Any:
        return component_engine((folder / "component").read_text(), Checkpoint.open(small_checkpoint))

    def exported(component: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(sha256=component)

    monkeypatch.setattr(OnnxRuntimeBackend, "build", build)
    monkeypatch.setattr(OnnxRuntimeBackend, "load", load)
    monkeypatch.setattr("wan_trt_core.pipeline.engines.exported_model", exported)
    return Settings(model=str(small_checkpoint), cache=tmp_path, on_missing_shape="torch")


@pytest.mark.parametrize("by", ["accelerate", "run"])
def test_every_moment_is_charged_once(
    script: ModuleType, by: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipeline(*args: Any, replaced: Sequence[str] = (), **keywords: Any) -> Any:
        without_weights.append({*replaced})
        return own(*args, replaced=replaced, **keywords)

    own, without_weights = Checkpoint.pipeline, []
    monkeypatch.setattr(Checkpoint, "pipeline", pipeline)
    ticks = count(1)
    spent = script.Spent(0, lambda: next(ticks))
    spent.on("wan_trt_core")
    script.start_up(settings, "fp32", spent, by)
    replaced = {"transformer", "transformer_2", "vae"}
    assert without_weights == [replaced if by == "run" else set()]
    assert sum(spent.seconds.values()) == next(ticks) - 1
    assert all(spent.seconds[stage] > 0 for stage in script.STAGES)
    # three engines: each is looked up and loaded, and time passes on the rest between
    assert spent.seconds["hash of the engines"] == spent.seconds["engines loaded"] == 3


def test_stock_diffusers_start_has_no_engines(script: ModuleType, settings: Settings) -> None:
    ticks = count(1)
    spent = script.Spent(0, lambda: next(ticks))
    spent.on("wan_trt_core")
    script.start_up(settings, "fp32", spent, "stock")
    without = {name for name, seconds in spent.seconds.items() if not seconds}
    assert without == {"hash of the weights", "hash of the engines", "engines loaded"}


@pytest.mark.parametrize("by", ["accelerate", "run"])
def test_weights_that_are_saved_first_are_read_as_a_script_reads_them(
    script: ModuleType, by: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a random model, which are drawn otherwise; only the script's own start is an engine's here."""
    read: list[Any] = []
    own = script._read
    monkeypatch.setattr(script, "_read", lambda *given: read.append(given) or own(*given))
    folder = tmp_path / "new" / "model"
    script.save(settings, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "nothing unfinished is left"
    of_model, saved = (resolve(str(each)).generation for each in (settings.model, folder))
    assert saved == of_model, "or the video would be of another size"
    spent = script.Spent(time.time())
    stored = settings.model_copy(update={"checkpoint": folder})
    script.start_up(stored, {"dit": "fp32", "vae": "fp32", "text_encoder": "bf16"}, spent, by, folder)
    dtypes = {"transformer": "fp32", "transformer_2": "fp32", "vae": "fp32", "text_encoder": "bf16"}
    assert read == ([(folder, dtypes)] if by == "accelerate" else [])
    assert spent.seconds[script.MODULES] > 0 and spent.seconds[script.STEP] > 0


def test_random_weights_are_saved_with_a_small_text_encoder(script: ModuleType, tmp_path: Path) -> None:
    script.save(Settings(model="tiny-wan2.1-i2v"), tmp_path / "model")
    saved = Checkpoint.open(tmp_path / "model")
    assert saved.config("text_encoder")["num_layers"] == 1
    assert saved.config("text_encoder")["d_model"] == saved.config("transformer")["text_dim"]


def test_a_folder_is_made_once_and_is_the_checkpoint(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []

    def save(settings: Settings, folder: Path, *, text_encoder: bool) -> None:
        made.append((settings.model, text_encoder))
        folder.mkdir()

    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    monkeypatch.setattr(script, "save", save)
    monkeypatch.setattr(script, "in_new_process", lambda *_: dict.fromkeys(script.STAGES, 1.0))
    asked = ["--model", "wan2.1-t2v-1.3b", "--from-folder", str(tmp_path / "model"), "--text-encoder"]
    for _ in range(2):
        script.main(asked)
    assert made == [("wan2.1-t2v-1.3b", True)]
    seen: list[Any] = []
    monkeypatch.setattr(script, "start_up", lambda *given: seen.append((given[0].checkpoint, given[-1])))
    script.main([*asked, "--since", "0"])
    assert seen == [(tmp_path / "model", tmp_path / "model")]
    for wrong in ([*asked, "--checkpoint", "x"], ["--text-encoder"]):
        with pytest.raises(SystemExit):
            script.main(wrong)
    assert "name one of both" in capsys.readouterr().err


def test_a_fallback_is_told(script: ModuleType, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_trt_core.pipeline.acceleration.covers", lambda *_: False)
    with pytest.raises(script.FellBack, match="own transformer ran"):
        script.start_up(settings, "fp32", script.Spent(0))


def test_starts_are_processes_of_their_own(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        starts.append(command)
        folders.append(env["PYTHONPYCACHEPREFIX"])
        assert "PYTHONDONTWRITEBYTECODE" not in env
        assert Path(folders[-1]).is_dir()
        seconds = {stage: float(len(starts)) for stage in script.STAGES}
        return SimpleNamespace(returncode=0, stdout=f"a library's line\n{json.dumps(seconds)}\n")

    starts: list[list[str]] = []
    folders: list[str] = []
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(script.subprocess, "run", run)
    asked = ["--model", "tiny-wan", "--json", str(tmp_path / "start.json")]
    script.main(asked)
    assert all(command[2:-2] == asked and command[-2] == "--since" for command in starts)
    assert len(starts) == 4, (
        "the first does not count: it may have built engines, and compiled what is imported"
    )
    assert len(set(folders)) == 1, "the later ones find what it compiled"
    out = capsys.readouterr().out
    assert "all                        30.00 s   20.00 to 40.00 s" in out
    assert "all but modules            27.00 s" in out
    assert [run["wan_trt_core"] for run in json.loads((tmp_path / "start.json").read_text())["seconds"]] == [
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("fell_back", [False, True])
def test_a_start_prints_its_seconds_unless_it_fell_back(
    script: ModuleType, fell_back: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(settings: Settings, precision: Any, spent: Any, by: str, _: Any) -> None:
        assert by == "run"
        assert (settings.profile, settings.on_missing_shape) == ("128p-17f", "torch")
        assert precision == {"dit": "fp16", "vae": "fp32"}
        if fell_back:
            raise script.FellBack("diffusers' own vae ran")
        spent.on("device")

    monkeypatch.setenv("WAN_TRT_CONFIG", "")
    monkeypatch.setattr(script, "start_up", start)
    asked = ["--profile", "128p-17f", "--precision", "dit=fp16,vae=fp32", "--by", "run"]
    asked += ["--since", str(time.time() - 5)]
    if fell_back:
        with pytest.raises(SystemExit, match="invalid: diffusers' own vae ran"):
            script.main(asked)
    else:
        script.main(asked)
    out = capsys.readouterr().out
    assert not out if fell_back else json.loads(out)["PyTorch and diffusers"] >= 5
