"""The command line: what each command prints, its exit codes, and errors without tracebacks."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from fabricated import (
    HARDWARE,
    STAGES,
    case_record,
    entry,
    make_case,
    perf_measurement,
    provenance,
    run_record,
)
from fabricated_memory import on_host, record_of
from PIL import Image
from repositories import committed

from wan_trt_core import __version__, cli
from wan_trt_core.backends.base import EngineError
from wan_trt_core.backends.registry import get_backend
from wan_trt_core.baselines import BaselineFile, write_baselines
from wan_trt_core.cases import Case, precision_word
from wan_trt_core.cli import making
from wan_trt_core.cli import run as run_command
from wan_trt_core.cli.output import OUT
from wan_trt_core.cli.videos import profile_for
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.targets import Asked, PipelineTarget
from wan_trt_core.config import MOST_THREADS, Loaded, Settings, load_settings
from wan_trt_core.doctor import Diagnosis, Finding
from wan_trt_core.engine_cache import EngineCache
from wan_trt_core.gates.bands import Observed, ObservedMetric
from wan_trt_core.measure.memory_events import AGAIN, Failure, MemoryRecord
from wan_trt_core.memory import plan, prediction
from wan_trt_core.memory.prediction import Choice, Workload
from wan_trt_core.models.catalogue import CatalogueError, resolve
from wan_trt_core.models.checkpoint import DTYPES
from wan_trt_core.models.components import component_names, get_component
from wan_trt_core.pipeline import engines
from wan_trt_core.pipeline.engines import load_engine, precision_of
from wan_trt_core.pipeline.generate import GenerationError
from wan_trt_core.pipeline.precisions import usual_precision
from wan_trt_core.pipeline.video import probe, write_image, write_video
from wan_trt_core.progress import progress
from wan_trt_core.records import Measurement, Metric, RunRecord

CASES = """
version: 1
cases:
  - id: other
    model: tiny-wan
    component: dit
    profile: 128p-17f
    precision: fp32
    backend: onnxruntime
    parity: {limits: {psnr_db: {min: 90, reason: a test}}}
"""

Wan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Wan:
    """Run a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OUT, "_width", 200)
    for name in [name for name in os.environ if name.startswith("WAN_TRT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WAN_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test process keeps its own handlers

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wan-trt", *map(str, arguments)])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        assert isinstance(code, int) or code is None
        return code or 0, out, err

    return run


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that backends find and that has room; nothing runs on it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**40, 2**40))
    for backend in ("tensorrt", "torch-compile"):
        monkeypatch.setattr(type(get_backend(backend)), "require", lambda *_: None)
    monkeypatch.setattr("wan_trt_core.measure.environment.hardware_key", lambda device: HARDWARE)
    monkeypatch.setattr("wan_trt_core.measure.environment.environment_record", lambda *_, **__: {})


USUAL = "dit=fp16,vae=fp32,text_encoder=bf16"
"""On a GPU."""

CACHE_REFUSED = "--cache: /proc/x: cannot be written to: No such file or directory; name another folder"


def last_events() -> Path:
    """Of the runs that wrote ``v.mp4`` and recorded their memory."""
    return max(Path("outputs/report").glob("v-*/memory_events.json"))


def commands() -> list[tuple[str, ...]]:
    """Every command as it is typed: ``("run",)``, ``("engines", "list")``."""

    def below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not hasattr(command, "commands"):
            yield path
            return
        for name, inner in command.commands.items():
            yield from below(inner, (*path, name))

    return list(below(typer.main.get_command(cli.app), ()))


class TestHelp:
    def test_every_command_has_help_with_an_example(self, wan: Wan) -> None:
        assert {("run",), ("export",), ("build",), ("doctor",), ("engines", "prune")} <= set(commands())
        for command in commands():
            code, out, _ = wan(*command, "--help")
            assert code == 0
            assert f"Example: wan-trt {' '.join(command)}" in " ".join(out.split()), command

    @pytest.mark.parametrize("command", ["export", "build", "run", "benchmark", "memory plan"])
    def test_every_precision_that_a_component_may_have_is_named(self, wan: Wan, command: str) -> None:
        there_are = {each for name in component_names() for each in get_component(name).precisions}
        _, out, _ = wan(*command.split(), "--help")
        assert f"One of {', '.join(DTYPES)}, " in " ".join(out.replace("│", " ").split())
        assert {"fp32", "fp16", "bf16"} <= there_are == {*DTYPES}

    @pytest.mark.parametrize("command", ["export", "build", "run", "benchmark", "memory plan"])
    def test_the_precision_by_default_is_told(self, wan: Wan, command: str) -> None:
        engines_alone = command in ("export", "build")
        usual = usual_precision("cuda", text_encoder_engine=engines_alone)
        told = precision_word(usual).replace(",", ", ")
        _, out, _ = wan(*command.split(), "--help")
        assert f"By default fp32 on a CPU, and on a GPU {told}." in " ".join(out.replace("│", " ").split())

    def test_every_exit_code_is_documented(self, wan: Wan) -> None:
        """Those that the tests here expect, the same in the help, the landing page and the package's docstring."""
        readme = (Path(__file__).parents[2] / "README.md").read_text()
        for place in (wan("--help")[1], readme, cli.__doc__ or ""):
            told = re.search(r"Exit codes: (.*?)\.", " ".join(place.split()))
            assert told and re.findall(r"(?:^|[,;] )(\d+) ", told[1]) == ["0", "1", "2", "3", "130", "143"]

    def test_version(self, wan: Wan) -> None:
        assert wan("--version") == (0, f"{__version__}\n", "")

    def test_the_module_runs_too(self) -> None:
        command = [sys.executable, "-m", "wan_trt_core.cli", "inspect", "nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "no model 'nowhere'" in done.stderr) == (3, True)

    def test_no_command_shows_the_commands(self, wan: Wan) -> None:
        code, out, err = wan()
        assert code == 2
        assert "doctor" in out + err


class TestWrongInput:
    """One line on standard error, the documented exit code, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "code", "part"),
        [
            (("run", "--prompt", "x"), 2, "--out"),
            (("run", "--prompt", "", "--out", "v.mp4"), 3, "the prompt is empty"),
            (("run", "--prompt", "x", "--out", "v.avi"), 3, "must end in .mp4"),
            (("run", "--prompt", "x", "--out", "v.mp4", "--frames-dir", "/proc/x"), 3, "/proc/x: cannot be"),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--frames-dir", Path(__file__).parent),
                3,
                "is not empty",
            ),
            (("run", "--prompt", "x", "--out", "v.mp4", "--image", __file__), 3, "begins with no image"),
            (("run", "--prompt", "x", "--out", "v.mp4", "--image", "no.png"), 2, "--image"),
            (("run", "--prompt", "x", "--out", "v.mp4", "--frames", "6"), 3, "frames must be 4k+1"),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--seed", 2**64),
                3,
                f"seed must be from 0 to {2**64 - 1}",
            ),
            (("run", "--prompt", "x", "--out", "v.mp4", "--seed", -1), 3, "the seed must be from 0 to"),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--guidance", "inf"),
                3,
                "guidance_scale must be finite",
            ),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--threads", MOST_THREADS + 1),
                3,
                f"--threads: threads: {MOST_THREADS + 1} is not allowed: at most {MOST_THREADS}, which is 8 for each",
            ),
            (("run", "--prompt", "x", "--out", "v.mp4", "--cache", "/proc/x"), 3, CACHE_REFUSED),
            (("export", "dit", "--cache", "/proc/x"), 3, CACHE_REFUSED),
            (("build", "dit", "--cache", "/proc/x"), 3, CACHE_REFUSED),
            (("benchmark", "--compare", "onnxruntime", "--cache", "/proc/x"), 3, CACHE_REFUSED),
            (("benchmark", "--compare", "onnxruntime", "--seed", 2**64), 3, "the seed must be from 0 to"),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--guidance-2", "3"),
                3,
                "this model has one transformer",
            ),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--height", "512"),
                3,
                "--height: 512 is outside the",
            ),
            (("run", "--prompt", "x", "--out", "v.mp4", "--height", "8"), 3, "multiple of 16 pixels, not 8"),
            (("run", "--prompt", "x", "--out", "v.mp4", "--frames", "0"), 3, "frames must be 4k+1"),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--precision", "dit=fp16"),
                2,
                "not vae_decoder_first",
            ),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--precision", "dit=fp32,vae=bf16"),
                3,
                "first has no prec",
            ),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--precision", "bf16"),
                3,
                "onnxruntime has no engines in bf16",
            ),
            (
                ("run", "--prompt", "x", "--out", "v.mp4", "--precision", "dit=fp32,vea=fp32"),
                2,
                "no component 'vea'",
            ),
            (("run", "--prompt", "x", "--out", "v.mp4", "--backend", "nope"), 3, "there are onnxruntime"),
            (("run", "--prompt", "x", "--out", "v.mp4", "--profile", "1p"), 3, "has no profile '1p'"),
            (("benchmark",), 2, "--compare"),
            (("benchmark", "--compare", "torch"), 2, "torch is the reference; name a backend"),
            (("benchmark", "--compare", "torch", "nope"), 3, "there are onnxruntime"),
            (("benchmark", "--compare", "onnxruntime", "--prompt", " "), 3, "the prompt is empty"),
            (
                ("benchmark", "--compare", "onnxruntime", "--guidance-2", "3"),
                3,
                "this model has one transformer",
            ),
            (("benchmark", "--compare", "onnxruntime", "--image", __file__), 3, "begins with no image"),
            (
                ("benchmark", "--compare", "onnxruntime", "--model", "tiny-wan2.1-i2v", "--image", __file__),
                2,
                "no image that can be read",
            ),
            (("benchmark", "--compare", "onnxruntime", "--frames", "6"), 3, "frames must be 4k+1"),
            (("benchmark", "--compare", "onnxruntime", "--height", "512"), 3, "--height: 512 is outside the"),
            (
                ("benchmark", "--compare", "onnxruntime", "--width", "100"),
                3,
                "multiple of 16 pixels, not 100",
            ),
            (("benchmark", "--compare", "onnxruntime", "--precision", "fp33"), 3, "fp33"),
            (("benchmark", "--compare", "onnxruntime", "--reference-precision", "vae=fp32"), 2, "not dit"),
            (("benchmark", "--compare", "onnxruntime", "--profile", "1p"), 3, "has no profile '1p'"),
            (("benchmark", "--compare", "onnxruntime", "--runs", "2"), 2, "--runs"),
            (("benchmark", "--compare", "onnxruntime", "--report", sys.executable), 2, "is a file"),
            (
                ("benchmark", "--compare", "onnxruntime", "--report", "/proc/x"),
                3,
                "--report: /proc/x: cannot be",
            ),
            (("export", "--out", "/proc/x"), 3, "--out: /proc/x: cannot be written to"),
            (("export", "dit", "--out", "/proc/x"), 3, "--out: /proc/x: cannot be written to"),
            (("export", "dti"), 3, "no component 'dti'; there are dit"),
            (("export", "dit", "--precision", "fp33"), 3, "fp33"),
            (
                ("export", "dit", "vae_decoder_next", "--precision", "bf16"),
                3,
                "vae_decoder_next has no precision",
            ),
            (("build", "dit", "--precision", "bf16"), 3, "onnxruntime has no engines in bf16"),
            (("build", "dit", "--precision", "vae=fp32"), 2, "precision names vae, but not dit"),
            (("build", "--precision", "dit=fp32,vea=fp32"), 2, "no component 'vea'"),
            (
                ("memory", "plan", "--precision", "dit=fp4"),
                3,
                "dit has no precision 'fp4'; it has fp32, fp16, bf16",
            ),
            (
                ("memory", "plan", "--precision", "vae=fp4"),
                3,
                "vae_decoder_first has no precision 'fp4'; it has fp32",
            ),
            (("memory", "plan", "--precision", "dit=fp16"), 2, "add vae=PRECISION"),
            (
                ("build", "--precision", "dit_2=fp32"),
                2,
                "names no component of tiny-wan; it has dit,",
            ),
            (("build", "--precision", "dit=fp32,vae=bf16"), 3, "has no precision 'bf16'"),
            (("inspect", "nowhere"), 3, "neither a folder nor one of tiny-wan"),
            (("report", "nowhere.json"), 3, "nowhere.json: not a readable result record"),
            (("engines", "prune", "--older-than", "7x"), 2, "units s, m, h, d"),
            (("engines", "prune", "--max-size", "much"), 2, "units B, KiB, MiB, GiB"),
            (("--config", "nowhere.yaml", "doctor"), 2, "nowhere.yaml"),
            (("--log-level", "loud", "engines", "list"), 3, "log.level: 'loud' is not allowed"),
        ],
    )
    def test_is_told_in_one_message(
        self,
        wan: Wan,
        tiny_wan_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: Any,
        code: int,
        part: str,
    ) -> None:
        monkeypatch.setenv(
            "WAN_TRT_CHECKPOINT", str(tiny_wan_folder) if arguments[0] in ("run", "export") else ""
        )
        got, out, err = wan(*arguments)
        assert got == code, err
        assert part in " ".join(err.replace("│", " ").split())
        assert "Traceback" not in err
        assert out == ""
        if code == 3:
            assert re.match(r"(INFO +backend onnxruntime: .*\n)?error: ", err)
        assert not list(Path().glob("*.mp4"))

    @pytest.mark.parametrize("below", ["", "a file"])
    def test_a_report_folder_that_cannot_be_written_to_is_told_before_any_work(
        self, wan: Wan, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which ``run`` has no option of."""
        (tmp_path / "a file").write_text("")
        folder = tmp_path / below if below else Path("/proc")
        monkeypatch.setenv("WAN_TRT_REPORT", str(folder / "report"))
        code, out, err = wan("run", "--prompt", "x", "--out", "v.mp4", "--profile-memory")
        assert (code, out) == (3, ""), err
        assert f"error: --profile-memory: {folder / 'report'}: cannot be written to" in err
        assert "set `report` (WAN_TRT_REPORT)" in err and "generate" not in err

    def test_a_missing_encoder_is_told_before_any_work(
        self, wan: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wan_trt_core.pipeline.video.CODEC", "libx263")
        report = tmp_path / "report"
        for command in (
            ("run", "--prompt", "x", "--out", "v.mp4"),
            ("benchmark", "--compare", "torch", "onnxruntime", "--report", str(report)),
        ):
            code, out, err = wan(*command)
            assert (code, out) == (3, "") and "no encoder of H.264 (libx263)" in err, err
        assert not report.exists()

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (
                ("run", "--prompt", "x", "--out", "v.mp4"),
                ("would be noise", "give --checkpoint Wan-AI/Wan2.1-T2V-14B-Diffusers"),
            ),
            (("export", "text_encoder"), ("random weights has no text_encoder", "or --checkpoint FOLDER")),
        ],
    )
    def test_what_random_weights_cannot_do(self, wan: Wan, arguments: Any, parts: tuple[str, ...]) -> None:
        code, _, err = wan(*arguments, "--model", "wan2.1-t2v-14b")
        assert code == 3 and all(part in err for part in parts), err

    @pytest.mark.parametrize(
        "command",
        [
            ("run", "--prompt", "x", "--out", "v.mp4"),
            ("export", "dit"),
            ("build", "dit"),
            ("benchmark", "--compare", "onnxruntime"),
            ("memory", "plan"),
        ],
    )
    def test_a_checkpoint_of_another_size_than_the_named_model(
        self, wan: Wan, tiny_wan_folder: Path, command: tuple[str, ...]
    ) -> None:
        code, out, err = wan(*command, "--model", "wan2.1-t2v-1.3b", "--checkpoint", tiny_wan_folder)
        assert (code, out) == (3, ""), err
        assert f"{tiny_wan_folder}: another size than wan2.1-t2v-1.3b: " in err
        assert "not 30 layers of width 1536" in err and f"--model {tiny_wan_folder}" in err

    def test_debug_shows_the_traceback(self, wan: Wan) -> None:
        with pytest.raises(ValueError, match="neither a folder"):
            wan("--debug", "inspect", "nowhere")

    def test_a_mistake_of_ours_keeps_its_traceback(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wan_trt_core.engine_cache.EngineCache.list", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            wan("engines", "list")

    def test_wrong_settings_name_their_source(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("config.yaml").write_text("perf:\n  warmpu: 1\n")
        code, _, err = wan("engines", "list")
        assert (code, "config.yaml:2: perf.warmpu" in err) == (3, True)
        monkeypatch.setenv("WAN_TRT_CONFIG", "")
        monkeypatch.setenv("WAN_TRT_THREADS", "many")
        code, _, err = wan("engines", "list")
        assert (code, "WAN_TRT_THREADS: threads: 'many'" in err) == (3, True)

    def test_a_failure_of_the_system_is_one_line(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("wan_trt_core.engine_cache.EngineCache.list", full)
        code, _, err = wan("engines", "list")
        hint = "the disk is full: free some space, or name another folder"
        assert (code, err) == (1, f"error: [Errno 28] No space left on device; {hint}\n")

    def test_a_full_disk_leaves_no_graph_without_its_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        for name in ("dit_fp32.onnx", "dit_fp32.onnx.data"):
            (source / name).write_bytes(b"x")

        def full(source: Path, target: Path) -> None:
            if source.name.endswith(".data"):
                raise OSError(errno.ENOSPC, "No space left on device")
            target.write_bytes(source.read_bytes())

        monkeypatch.setattr("shutil.copyfile", full)
        with pytest.raises(OSError, match="No space"):
            making._copy_files(source, target, "dit_fp32.onnx")
        assert list(target.iterdir()) == []


class TestInspect:
    def test_lists_parts_components_and_tensors(self, wan: Wan, tiny_wan_folder: Path) -> None:
        code, out, _ = wan("inspect", tiny_wan_folder, "--tensors")
        assert code == 0
        for part in ("WanTransformer3DModel", "AutoencoderKLWan", "UMT5EncoderModel", "vae_decoder_next"):
            assert part in out
        assert "transformer.blocks.0.attn1.to_q.weight" in out

    def test_json(self, wan: Wan, tiny_wan_folder: Path) -> None:
        code, out, _ = wan("inspect", tiny_wan_folder, "--json")
        data = json.loads(out)
        assert code == 0
        assert set(data["parts"]) == {"transformer", "vae", "text_encoder"}
        assert {each["component"] for each in data["components"]} >= {"dit", "text_encoder"}

    def test_a_model_without_a_checkpoint_has_random_weights(self, wan: Wan) -> None:
        code, out, _ = wan("inspect", "wan2.1-t2v-1.3b", "--json")
        data = json.loads(out)
        assert (code, data["source"]) == (0, "seeded random")
        assert data["parts"]["transformer"]["parameters"] == 1_418_996_800
        assert {each["component"] for each in data["components"]} == {
            "dit",
            "vae_decoder_first",
            "vae_decoder_next",
            "vae_encoder_first",
            "vae_encoder_next",
        }
        code, out, _ = wan("inspect", "wan2.1-t2v-1.3b")
        assert code == 0 and "wan2.1-t2v-1.3b: seeded random" in out

    def test_a_truncated_file_is_named(self, wan: Wan, tiny_wan_folder: Path, tmp_path: Path) -> None:
        copy = tmp_path / "broken"
        for path in tiny_wan_folder.rglob("*"):
            if path.is_file():
                (copy / path.relative_to(tiny_wan_folder)).parent.mkdir(parents=True, exist_ok=True)
                (copy / path.relative_to(tiny_wan_folder)).write_bytes(path.read_bytes())
        weights = next((copy / "vae").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1000])
        code, _, err = wan("inspect", copy)
        assert code == 3
        assert weights.name in err


class TestDoctor:
    @pytest.fixture
    def found(self, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
        findings = [Finding("LPIPS weights", "missing", "not there", "LPIPS", "fetch them")]
        machine = {"hardware_key": "cpu-test", "memory": 2**33, "gpus": [{"name": "A100", "driver": "580"}]}

        def diagnose(loaded: Loaded) -> Diagnosis:
            rows = tuple(asdict(row) for row in loaded.describe())
            return Diagnosis(rows, machine, tuple(findings))

        monkeypatch.setattr("wan_trt_core.doctor.diagnose", diagnose)
        return findings

    def test_shows_settings_with_sources_machine_and_what_is_missing(
        self, wan: Wan, found: list[Finding]
    ) -> None:
        Path("config.yaml").write_text("threads: 3\n")
        code, out, _ = wan("doctor", "--backend", "torch")
        assert code == 0
        for part in ("config.yaml:1", "--backend", "8 GiB", "A100, 580", "needed for: LPIPS", "fetch them"):
            assert part in out
        assert out.endswith("The main job can run.\n")

    def test_fails_when_the_main_job_cannot_run(self, wan: Wan, found: list[Finding]) -> None:
        found.append(Finding("torch", "missing", "none", "everything", "pip install torch", required=True))
        assert wan("doctor")[0] == 1
        code, out, _ = wan("doctor", "--json")
        assert code == 1
        assert json.loads(out)["healthy"] is False


class TestEngines:
    @pytest.fixture
    def store(self, tmp_path: Path) -> EngineCache:
        store = EngineCache(tmp_path / "cache")

        def make(folder: Path) -> dict[str, Any]:
            (folder / "graph.onnx").write_bytes(b"graph")
            return {}

        store.get_or_make("onnx", {"component": "dit", "precision": "fp32", "versions": {}}, make)
        return store

    def test_list(self, wan: Wan, store: EngineCache) -> None:
        code, out, _ = wan("engines", "list")
        assert code == 0
        assert "dit fp32" in out
        assert "ok" in out

    def test_list_as_json(self, wan: Wan, store: EngineCache) -> None:
        (entry,) = json.loads(wan("engines", "list", "--json")[1])
        assert entry["identity"]["component"] == "dit"
        assert entry["problem"] is None

    def test_show_has_the_facts_the_largest_activations_first(self, wan: Wan, tmp_path: Path) -> None:
        largest = {f"blocks.{index}": float(index) for index in range(9)}
        facts = {"seconds": 2.5, "unfused": [], "model": {"path": "dit.onnx", "largest_activations": largest}}

        def make(folder: Path) -> dict[str, Any]:
            return facts

        store = EngineCache(tmp_path / "cache")
        key = store.get_or_make("onnx", {"component": "dit", "precision": "fp16"}, make).manifest["key"]
        code, out, _ = wan("engines", "show", key[:8])
        assert code == 0
        assert "onnx dit fp16" in out and "none" in out and "dit.onnx" in out
        shown = [line for line in out.splitlines() if "blocks." in line]
        assert ["blocks.8 8" in shown[0], "blocks.4 4" in shown[-1], len(shown)] == [True, True, 5]
        assert "and 4 more" in out
        assert json.loads(wan("engines", "show", key, "--json")[1])["facts"]["model"] == facts["model"]

    def test_show_wants_one_entry(self, wan: Wan, store: EngineCache) -> None:
        code, _, err = wan("engines", "show", "zz")
        assert code == 2
        assert "is the beginning of 0 keys" in " ".join(err.replace("│", " ").split())

    def test_verify_names_a_flipped_byte_and_fails(self, wan: Wan, store: EngineCache) -> None:
        assert wan("engines", "verify")[0] == 0
        (store.list()[0].folder / "graph.onnx").write_bytes(b"grapH")
        code, out, err = wan("engines", "verify")
        assert code == 1
        assert "graph.onnx differs from the hash" in out
        assert "graph.onnx differs from the hash" in err

    def test_prune(self, wan: Wan, store: EngineCache) -> None:
        assert "0 removed, 1 kept" in wan("engines", "prune", "--older-than", "1d")[1]
        assert "0 removed, 1 kept" in wan("engines", "prune", "--max-size", "1MiB")[1]
        code, out, _ = wan("engines", "prune", "--all", "--json")
        assert code == 0
        assert len(json.loads(out)["removed"]) == 1
        assert store.list() == ()


class TestReport:
    def test_passed(self, wan: Wan, tmp_path: Path) -> None:
        run_record(case_record(make_case(), perf_measurement(2.0))).write(tmp_path / "results.json")
        code, out, _ = wan(
            "report", "results.json", "--markdown", "new/report.md", "--html", "new/report.html"
        )
        assert code == 0
        assert "1 case: 1 pass" in out
        assert Path("new/report.md").read_text().startswith("# wan-trt: pass")
        assert Path("new/report.html").read_text().startswith("<!DOCTYPE html>")

    def test_a_verdict_that_is_no_pass_fails(self, wan: Wan, tmp_path: Path) -> None:
        run_record(case_record(make_case(), perf_measurement(1.2))).write(tmp_path / "results.json")
        code, out, _ = wan("report", "results.json", "--json")
        assert code == 1
        assert json.loads(out)[0]["verdict"] == "fail"

    def test_show_is_what_a_file_alone_means(self, wan: Wan, tmp_path: Path) -> None:
        run_record(case_record(make_case(), perf_measurement(2.0))).write(tmp_path / "results.json")
        assert wan("report", "--json", "results.json") == wan("report", "show", "results.json", "--json")
        assert "compare" in wan("report", "--help")[1]

    def test_compare(self, wan: Wan, tmp_path: Path) -> None:
        for name, ratio in (("a.json", 2.0), ("b.json", 1.2)):
            run_record(case_record(make_case(), perf_measurement(ratio))).write(tmp_path / name)
        code, out, _ = wan("report", "compare", "a.json", "b.json")
        assert code == 0
        assert out.startswith("## wan-trt: 1 case: 1 worse\n")
        assert json.loads(wan("report", "compare", "a.json", "b.json", "--json")[1])["metrics"]
        assert wan("report", "compare", "a.json", "nowhere.json")[0] == 3

    def test_merge(self, wan: Wan, tmp_path: Path) -> None:
        for name, case in (("a.json", "dit"), ("b.json", "vae")):
            run_record(case_record(make_case(case), perf_measurement(2.0))).write(tmp_path / name)
        code, out, _ = wan("report", "merge", "a.json", "b.json", "--out", "all.json")
        assert (code, out) == (0, "all.json: 2 cases of 2 runs\n")
        assert [row["case"] for row in json.loads(wan("report", "all.json", "--json")[1])] == ["dit", "vae"]
        code, _, error = wan("report", "merge", "a.json", "a.json", "--out", "all.json")
        assert code == 3 and "dit (perf) is in several runs" in error

    def test_nothing_judged_is_no_pass(self, wan: Wan, tmp_path: Path) -> None:
        run_record().write(tmp_path / "results.json")
        assert wan("report", "results.json")[0] == 1


class TestBaselines:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        stored = BaselineFile(HARDWARE, "tiny-wan", "perf", {"dit-fp32": entry()})
        return write_baselines(tmp_path / "baselines", stored, ["dit-fp32"])

    def test_show(self, wan: Wan, folder: Path) -> None:
        code, out, _ = wan("baselines", "show")
        assert code == 0
        assert "dit-fp32" in out
        assert "reference_time" in out
        assert "no baselines for other" in wan("baselines", "show", "--hardware", "other")[1]

    def test_show_tells_what_nothing_judges_and_of_which_run(self, wan: Wan, tmp_path: Path) -> None:
        seen = Observed(
            "fedcba9876", "2026-02-02T00:00:00", {"speedup": ObservedMetric(1.61, "x", 1.52, 1.75, 9)}
        )
        stored = BaselineFile(HARDWARE, "tiny-wan", "perf", {"dit-fp32": replace(entry(), observed=seen)})
        write_baselines(tmp_path / "baselines", stored, ["dit-fp32"])
        code, out, _ = wan("baselines", "show")
        assert code == 0
        told = " ".join(re.sub("[│┃]", " ", out).split())
        for word in ("speedup", "1.61x", "fedcba9;", "1.75x,", "2026-02-02"):
            assert word in told
        (shown,) = json.loads(wan("baselines", "show", "--json")[1])
        assert shown["cases"]["dit-fp32"]["observed"]["metrics"]["speedup"]["pairs"] == 9

    def test_show_tells_other_settings_than_the_defaults(self, wan: Wan, tmp_path: Path) -> None:
        seen = Observed("fedcba9876", "", {"speedup": ObservedMetric(1.61, "x")}, {"threads": 3})
        centred = {**provenance(), "settings": {"tensorrt.self_attention": "centred"}}
        made = replace(entry(), provenance=centred, observed=seen)
        stored = BaselineFile(HARDWARE, "tiny-wan", "perf", {"dit-fp32": made, "plain": entry()})
        write_baselines(tmp_path / "baselines", stored, ["dit-fp32", "plain"])
        _, out, _ = wan("baselines", "show")
        assert "dit-fp32: measured with tensorrt.self_attention=centred\n" in out
        assert "plain: measured with" not in out
        assert "observed at fedcba9 with threads=3" in " ".join(re.sub("[│┃]", " ", out).split())

    def test_show_of_this_machine_means_the_device_of_the_settings(
        self, wan: Wan, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The key that the suites would store under, whatever else the machine has."""
        asked: list[str] = []
        monkeypatch.setattr(
            "wan_trt_core.measure.environment.hardware_key",
            lambda device: (asked.append(device), HARDWARE)[1],
        )
        for device in ("cpu", "cuda"):
            monkeypatch.setenv("WAN_TRT_DEVICE", device)
            assert "dit-fp32" in wan("baselines", "show", "--hardware", "this")[1]
        assert asked == ["cpu", "cuda"]

    def test_show_as_json(self, wan: Wan, folder: Path) -> None:
        (stored,) = json.loads(wan("baselines", "show", "--json")[1])
        assert stored["hardware_key"] == HARDWARE

    def test_check(self, wan: Wan, folder: Path) -> None:
        assert (
            "1 files, 1 of them as they should be" in wan("baselines", "migrate", "--hardware", HARDWARE)[1]
        )
        assert "0 files" in wan("baselines", "migrate", "--model", "other")[1]
        code, out, _ = wan("baselines", "check")
        assert (code, "1 files, 1 entries, all readable" in out) == (0, True)

    def test_check_names_a_damaged_file(self, wan: Wan, folder: Path) -> None:
        folder.write_text(folder.read_text()[:-20])
        code, _, err = wan("baselines", "check")
        assert (code, "perf.json" in err) == (3, True)
        assert err.rstrip().endswith("wan-trt baselines regenerate --suite perf")
        Path("cases.yaml").write_text(CASES)
        code, _, err = wan("baselines", "check", "--baselines", "baselines", "--cases", "cases.yaml")
        assert err.rstrip().endswith("regenerate --suite perf --cases cases.yaml --baselines baselines")

    def test_check_names_an_entry_without_a_case(self, wan: Wan, folder: Path) -> None:
        Path("cases.yaml").write_text(CASES)
        code, _, err = wan("baselines", "check", "--cases", "cases.yaml")
        assert code == 1
        assert f"{HARDWARE}/tiny-wan/perf.json: dit-fp32" in err


class TestRun:
    def test_writes_the_video_says_so_and_logs_to_a_file(self, wan: Wan, small_checkpoint: Path) -> None:
        """With stock PyTorch: what goes through engines takes longer, and has its own test."""
        too_long = " ".join(["red"] * 200)
        code, out, err = wan(
            *("--log-file", "logs/run.log", "run", "--prompt", too_long, "--out", "new/v.mp4", "--json"),
            *("--backend", "torch", "--model", small_checkpoint, "--steps", 2),
            *("--height", 64, "--width", 80, "--frames", 5, "--frames-dir", "new"),
        )
        assert code == 0, err
        result = json.loads(out)
        assert Path(result["frames_dir"]) == Path("new").absolute()
        *images, film = sorted(Path("new").iterdir())
        assert [image.name for image in images] == [f"{number:04d}.png" for number in range(1, 6)]
        assert film.name == "v.mp4"
        assert (probe(images[0]).width, probe(images[0]).height) == (80, 64)
        assert Path(result["video"]).is_file()
        assert (result["width"], result["height"], result["frames"]) == (80, 64, 5)
        assert (result["codec"], result["steps"], result["backend"]) == ("h264", 2, "torch")
        assert "generate: done" in err
        assert "only the first 16 count" in " ".join(err.split()) and err.index("WARNING") < err.index(
            "generate …"
        )
        assert "WARNING wan_trt_core.pipeline.generate: the prompt has" in Path("logs/run.log").read_text()

    @pytest.mark.parametrize(
        ("backend", "lost"),
        [
            ("torch", "--vae-frames-per-step, --vae-lean, --no-share-scratch, --max-graphs"),
            ("onnxruntime", "--no-share-scratch, --max-graphs"),
            ("tensorrt", None),
        ],
    )
    def test_options_that_a_backend_does_not_take_are_told(
        self,
        wan: Wan,
        small_checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        backend: str,
        lost: str | None,
    ) -> None:
        monkeypatch.setattr("wan_trt_core.cli.run._check", lambda *_, **__: None)
        monkeypatch.setattr("wan_trt_core.cli.run._generate", lambda *_, **__: {})
        given = ("--vae-lean", "--vae-frames-per-step", 2, "--vae-tile", 64, "--no-share-scratch")
        named = ("--model", small_checkpoint, "--backend", backend)
        code, _, err = wan(
            "run", "--prompt", "x", "--out", "v.mp4", "--json", *named, *given, "--max-graphs", 2
        )
        assert code == 0, err
        told = " ".join(err.split())
        assert (f"{backend} does nothing with {lost}" in told) if lost else "nothing with" not in told

    def test_frames_that_find_no_room_cost_no_video(
        self, wan: Wan, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("wan_trt_core.pipeline.video.write_image", full)
        code, _, err = wan(
            *("run", "--prompt", "red", "--out", "v.mp4", "--backend", "torch", "--model", small_checkpoint),
            *("--steps", 1, "--height", 64, "--width", 80, "--frames", 5, "--frames-dir", "frames"),
        )
        assert code == 3 and "frames: cannot be written: [Errno 28]" in err and "itself is in v.mp4" in err
        assert probe(Path("v.mp4")).frames == 5 and not Path("frames").exists()

    def test_a_gpu_with_too_little_memory_is_told_before_any_work(
        self, wan: Wan, tiny_wan_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (1500 * 2**20, 2**40))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setenv("WAN_TRT_DEVICE", "cuda")
        given = ("run", "--prompt", "red", "--out", "v.mp4", "--backend", "torch", "--model", tiny_wan_folder)
        code, _, err = wan(*given, "--height", "512", "--width", "512")
        told = " ".join(err.split())
        assert code == 3 and "are free. What fits: " in told and "needs" in told, err
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**20, 2**40))
        code, _, err = wan(*given)
        assert code == 3 and "1 MiB are free. No settings fit: make a smaller video" in " ".join(
            err.split()
        ), err
        planned: list[Any] = []
        nothing = SimpleNamespace(fitting=())
        monkeypatch.setattr(
            "wan_trt_core.memory.plan.plan", lambda *asked: (planned.append(asked[1]), nothing)[1]
        )
        on_engines = ("--backend", "onnxruntime", "--precision", "fp16", "--text-encoder-engine")
        code, _, err = wan(*given, *on_engines)
        assert code == 3 and "No settings fit" in err, err
        assert (planned[0].text_encoder_engine, planned[0].text_encoder) == (True, "fp16")

    @pytest.mark.parametrize(
        ("options", "precision"),
        [
            (("--backend", "tensorrt"), USUAL),
            (("--backend", "torch"), USUAL),
            (("--backend", "tensorrt", "--text-encoder-engine"), "dit=fp16,vae=fp32,text_encoder=fp32"),
            (("--backend", "tensorrt", "--text-encoder-device", "cpu"), USUAL),
            (("--backend", "tensorrt", "--precision", "fp32"), "fp32"),
            (("--backend", "tensorrt", "--precision", "dit=bf16,vae=fp32"), "dit=bf16,vae=fp32"),
            (("--backend", "onnxruntime"), "fp32"),
            (("--backend", "onnxruntime", "--text-encoder-engine"), "fp32"),
            ((), USUAL),
        ],
    )
    def test_the_precision_is_that_of_where_it_runs(
        self,
        wan: Wan,
        on_a_gpu: None,
        monkeypatch: pytest.MonkeyPatch,
        options: tuple[str, ...],
        precision: str,
    ) -> None:
        """A machine that has a GPU, and TensorRT; what the run would be made of is what it says."""
        monkeypatch.setattr("wan_trt_core.backends.registry.find_spec", lambda name: object())
        backend = options[1] if options else "tensorrt"
        planned: list[Choice] = []
        made: list[Any] = []
        choose = prediction.choice_of
        monkeypatch.setattr(
            prediction, "choice_of", lambda *given: (planned.append(choose(*given)), planned[-1])[1]
        )

        def generate(settings: Settings, model: Any, generation: Any, asked: Any, *_: Any, **__: Any) -> Any:
            size = {"frames": 17, "width": 128, "height": 128, "codec": "h264", "seconds": 1.0}
            made.append(asked)
            return {"backend": settings.backend, "precision": asked, **size}

        monkeypatch.setattr(run_command, "_generate", generate)
        code, out, err = wan("run", "--prompt", "red", "--out", "v.mp4", *options)
        assert code == 0, err
        assert out == (f"v.mp4: 17 frames of 128x128, h264, generated in 1.0 s by {backend} in {precision}\n")
        assert ("backend tensorrt: TensorRT is installed" in err) is (not options)
        (asked,) = made
        assert precision_word(asked) == precision
        assert len(planned) == (backend != "onnxruntime"), "of a CPU's memory no run is refused"
        for choice in planned:
            encoder = asked.get("text_encoder", "fp32") if isinstance(asked, dict) else "fp32"
            assert (choice.dit, choice.text_encoder) == (precision_of(asked, "dit"), encoder)

    def test_the_profile_is_one_that_serves_the_video(self) -> None:
        model = resolve("wan2.1-t2v-1.3b")
        assert profile_for(model, None, model.generation).name == "480p-81f"
        assert profile_for(model, None, replace(model.generation, num_frames=17)).name == "480p-17f"
        with pytest.raises(GenerationError, match="81 is outside the profile 480p-17f"):
            profile_for(model, "480p-17f", model.generation)
        with pytest.raises(GenerationError, match="121 is outside the profile 480p-17f"):
            profile_for(model, None, replace(model.generation, num_frames=121))

    def test_the_text_encoder_on_an_engine_makes_the_same_video(
        self, wan: Wan, tiny_wan_folder: Path, on_modules: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A real engine beside stand-ins of the others, from the user's own cache, where other tests look too."""
        stand_in, made = engines.load_engine, []

        def load(name: str, *given: Any, **more: Any) -> Any:
            return (load_engine if name == "text_encoder" else stand_in)(name, *given, **more)

        def write(path: Path, frames: Any, fps: float) -> Any:
            made.append(frames)
            return write_video(path, frames, fps)

        monkeypatch.setattr(engines, "load_engine", load)
        monkeypatch.setattr("wan_trt_core.pipeline.video.write_video", write)
        monkeypatch.setenv("WAN_TRT_CACHE", str(load_settings(environ={}).settings.cache))
        size = ("--steps", 1, "--height", 64, "--width", 64, "--frames", 5)
        run = ("run", "--prompt", "red", "--out", "v.mp4", "--model", tiny_wan_folder, *size)
        for options in ((), ("--text-encoder-engine", "--profile-memory")):
            code, out, err = wan(*run, *options, "--json")
            assert (code, json.loads(out)["text_encoder_engine"]) == (0, bool(options)), err
        in_pytorch, on_engine = made
        assert 0 < np.abs(on_engine - in_pytorch).max() < 1e-4
        record = MemoryRecord.read(last_events())
        assert record.run["text_encoder_engine"] is True
        labels = [event.label for event in record.events]
        assert {f"{stage} text_encoder engine" for stage in ("build", "load", "unload")} <= set(labels)
        assert record.of("denoise")[0].held["host"]["text_encoder engine weights"] > 2**16

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--backend", "torch"), "the backend torch runs PyTorch modules and has no engines"),
            (("--precision", "dit=fp32,vae=fp32"), "precision names dit, vae, but not text_encoder"),
            (("--precision", "dit=fp32,vae=fp32,text_encoder=int8"), "text_encoder has no precision 'int8'"),
            (
                ("--backend", "tensorrt", "--text-encoder-device", "cpu"),
                "pipeline.text_encoder_device is cpu, and tensorrt runs on cuda",
            ),
        ],
    )
    def test_a_text_encoder_that_no_engine_can_run(
        self, wan: Wan, tiny_wan_folder: Path, options: tuple[str, ...], told: str
    ) -> None:
        run = ("run", "--prompt", "x", "--out", "v.mp4", "--model", tiny_wan_folder, "--text-encoder-engine")
        code, out, err = wan(*run, *options)
        assert (code, out) == (2, "")
        assert f"--text-encoder-engine: {told}" in " ".join(err.replace("│", " ").split()), err

    def test_an_export_is_for_the_engines_of_a_backend(
        self, wan: Wan, tiny_wan_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def exported(
            component: str, model: Any, profile: Any, precision: str, backend: str, *_: Any, **__: Any
        ) -> Any:
            asked.append(backend)
            raise EngineError("enough")

        monkeypatch.setattr(engines, "exported_model", exported)
        for options in ((), ("--backend", "tensorrt")):
            code, _, err = wan("export", "dit", "--model", tiny_wan_folder, *options)
            assert code != 2 and "enough" in err
        monkeypatch.setattr("wan_trt_core.backends.registry.find_spec", lambda name: object())
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        for verb, make in (("export", "exported_model"), ("build", "load_engine")):  # as run, on a GPU
            monkeypatch.setattr(engines, make, exported)
            wan(verb, "dit", "--model", tiny_wan_folder)
        assert asked == ["onnxruntime", "tensorrt", "tensorrt", "tensorrt"]

    @pytest.mark.parametrize("verb", ["export", "build"])
    def test_a_precision_by_component_is_that_of_run(
        self, wan: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        """Without names all components are made that it gives one to."""
        (tmp_path / "entry").mkdir()
        (tmp_path / "entry" / "it.onnx").write_bytes(b"graph")
        onnx = SimpleNamespace(path=tmp_path / "entry" / "it.onnx")
        engine = SimpleNamespace(memory=lambda: {"weights": 7}, close=lambda: None)
        asked: dict[str, str] = {}

        def make(name: str, model: Any, shapes: Any, precision: str, *_: Any, **__: Any) -> Any:
            asked[name] = precision
            return onnx if verb == "export" else engine

        monkeypatch.setattr(engines, "exported_model" if verb == "export" else "load_engine", make)
        code, out, err = wan(verb, "--precision", "dit=fp16,vae=fp32", "--json")
        assert code == 0, err
        halves = [f"vae_{half}_{which}" for half in ("decoder", "encoder") for which in ("first", "next")]
        assert asked == {"dit": "fp16", **dict.fromkeys(halves, "fp32")}
        assert {row["component"]: row["precision"] for row in json.loads(out)} == asked
        asked.clear()
        assert wan(verb, "text_encoder", "dit", "--precision", "dit=fp16,text_encoder=fp32")[0] == 0
        assert asked == {"text_encoder": "fp32", "dit": "fp16"}
        on_cpu = {name: "fp32" for name in component_names() if name != "dit_2"}
        for backend, expected in (("onnxruntime", on_cpu), ("tensorrt", on_cpu | {"dit": "fp16"})):
            asked.clear()
            code, out, err = wan(verb, "--backend", backend, "--json")
            assert (code, asked) == (0, expected), err
            assert {row["component"]: row["precision"] for row in json.loads(out)} == expected
            asked.clear()
            assert wan(verb, "vae_decoder_next", "dit", "text_encoder", "--backend", backend)[0] == 0
            assert asked == {name: expected[name] for name in ("vae_decoder_next", "dit", "text_encoder")}

    def test_run_loads_what_build_builds(
        self, wan: Wan, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By name, profile, precision and backend, which with the settings are all that tells engines apart."""
        asked: list[tuple[str, ...]] = []

        def load(name: str, model: Any, shapes: Any, precision: str, backend: str, *_: Any, **__: Any) -> Any:
            asked.append((name, shapes.name, precision, backend))
            return SimpleNamespace(memory=dict, close=lambda: None)

        def enough(*_: Any, **__: Any) -> None:
            raise EngineError("enough")

        monkeypatch.setattr(engines, "load_engine", load)
        monkeypatch.setattr(engines.EngineStore, "build", lambda *_, **__: None)
        monkeypatch.setattr("wan_trt_core.pipeline.assembly.placed", lambda *_, **__: None)
        monkeypatch.setattr("wan_trt_core.pipeline.assembly.swap", enough)
        monkeypatch.setenv("WAN_TRT_BACKEND", "tensorrt")
        assert wan("build")[0] == 0
        built = asked.copy()
        for options in ((), ("--text-encoder-engine",)):
            asked.clear()
            _, _, err = wan("run", "--prompt", "red", "--out", "v.mp4", *options)
            assert "enough" in err and len(asked) == 3 + len(options) and {*asked} < {*built}
        asked.clear()
        large = ("--model", "wan2.1-t2v-1.3b")  # whose own video its second profile serves
        assert (
            wan("build", "dit", *large)[0] == 0
            and wan("build", "dit", *large, "--profile", "480p-17f")[0] == 0
        )
        assert [shapes for _, shapes, _, _ in asked] == ["480p-81f", "480p-17f"]

    @pytest.mark.slow
    def test_export_build_and_run_on_engines(self, wan: Wan, small_checkpoint: Path, tmp_path: Path) -> None:
        model = ("--model", small_checkpoint)
        code, out, err = wan("export", "dit", *model, "--out", tmp_path / "onnx", "--json")
        assert code == 0, err
        assert Path(json.loads(out)[0]["file"]) == tmp_path / "onnx" / "dit_fp32.onnx"
        assert {path.name for path in (tmp_path / "onnx").iterdir()} >= {"dit_fp32.onnx"}
        code, out, err = wan("build", "dit", *model, "--json")
        assert code == 0, err
        assert "export dit" not in err, "what was exported is not exported again"
        code, out, err = wan("run", "--prompt", "red", "--out", "v.mp4", *model)
        assert code == 0, err
        assert "build dit" not in err, "what was built is not built again"
        assert "build vae_decoder_next fp32: done" in err
        assert "9 frames of 64x64, h264" in out


class TestEveryVerb:
    def test_tiny_wan_is_exported_built_run_and_benchmarked(
        self, wan: Wan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With real engines, in the user's own cache, where the suites look too; what each verb can do besides has
        tests of its own."""
        monkeypatch.setenv("WAN_TRT_CACHE", str(load_settings(environ={}).settings.cache))
        monkeypatch.setenv("WAN_TRT_PERF__MIN_SAMPLE_TIME", "0")  # the clock is not what is tested
        code, out, err = wan("export", "dit", "--out", "onnx", "--json")
        assert code == 0, err
        (exported,) = json.loads(out)
        assert (exported["component"], exported["precision"]) == ("dit", "fp32")
        assert Path(exported["file"]) == Path("onnx/dit_fp32.onnx") and Path(exported["file"]).is_file()
        parts = ("dit", "vae_decoder_first", "vae_decoder_next")
        code, out, err = wan("build", *parts, "--json")
        assert code == 0, err
        built = json.loads(out)
        assert tuple(row["component"] for row in built) == parts
        assert all(row["backend"] == "onnxruntime" and row["bytes"] > 2**16 for row in built)
        least = resolve("tiny-wan").profile().min
        size = ("--height", least.height, "--width", least.width, "--frames", least.frames, "--steps", 2)
        code, out, err = wan("run", "--prompt", "red", "--out", "v.mp4", *size, "--json")
        assert code == 0, err
        assert "export dit" not in err and "build dit" not in err, "what was built is not built again"
        assert json.loads(out)["backend"] == "onnxruntime"
        found = probe(Path("v.mp4"))
        assert (found.codec, found.width, found.height, found.frames) == (
            "h264", least.width, least.height, least.frames,
        )  # fmt: skip
        # four pairs prove even a hundredth under the noise of the tests beside this one
        compared = ("benchmark", "--compare", "torch", "onnxruntime", "--speedup", 0.01, "--runs", 4)
        given = ("--warmup", 0, "--prompt", "red", *size[:-1], 3, "--report", "report", "--profile-memory")
        code, out, err = wan(*compared, *given, "--json")
        assert code == 0, err
        (result,) = json.loads(out)
        assert (result["backend"], result["verdict"]) == ("onnxruntime", "pass")
        assert result["interval"]["pairs"] == 4
        assert result["interval"]["low"] <= result["metrics"]["speedup"] <= result["interval"]["high"]
        assert result["metrics"]["video.psnr_db"] > 90
        assert result["metrics"]["video.cvvdp_jod"] > 9.9
        (case,) = RunRecord.read(Path("report/results.json")).cases
        assert case.verdict.value == "pass" and case.model == "tiny-wan"
        stages = ["text encode", "denoise 1", "denoise 2", "decode", "postprocess"]
        for held in result["stage_memory"].values():
            assert [name for name, _ in held] == stages and all(bytes > 2**20 for _, bytes in held)
        (note,) = case.measurement.notes
        assert note.startswith("the memory is that of a video of 2 denoising steps")
        assert "Time by stage" in Path("report/report.html").read_text()

    def test_a_video_begins_with_the_image(
        self,
        wan: Wan,
        small_image_checkpoint: Path,
        engine_cache_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With real engines, those of the test of the example. The weights are random: what the image has to do with
        the video is told by another image's, which is another one."""
        monkeypatch.setenv("WAN_TRT_CACHE", str(engine_cache_folder))
        monkeypatch.setenv("WAN_TRT_EXPORT__CHECK", "false")
        made = []
        for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
            write_image(Path(f"{name}.png"), np.full((40, 50, 3), color, np.uint8))
            given = ("--model", small_image_checkpoint, "--image", f"{name}.png", "--frames-dir", name)
            code, out, err = wan(
                "run", "--prompt", "a boat", "--out", f"{name}.mp4", *given, "--steps", 2, "--json"
            )
            assert code == 0, err
            found = probe(Path(f"{name}.mp4"))
            assert (found.codec, found.width, found.height, found.frames) == ("h264", 96, 64, 9)
            assert json.loads(out)["backend"] == "onnxruntime"
            made.append(
                np.stack([np.asarray(Image.open(path), float) for path in sorted(Path(name).iterdir())])
            )
        assert "build" not in err, "the engines of the first are the second's"
        assert np.abs(made[0] - made[1]).mean() > 1


class TestMemoryPlan:
    @pytest.mark.parametrize(
        ("given", "code", "message"),
        [
            (("--model", "nothing", "--gpu", "24GB"), 3, "no model 'nothing'"),
            (("--profile", "4k", "--gpu", "24GB"), 3, "no profile '4k'"),
            (("--precision", "dit=fp12,vae=fp32", "--gpu", "24GB"), 3, "no precision 'fp12'"),
            (("--gpu", "lots"), 2, "'lots' is no size"),
            (("--gpu", "0GB"), 2, "'0GB' is no size"),
            (("--backend", "onnxruntime", "--gpu", "24GB"), 2, "the backend onnxruntime runs on the CPU"),
            (("--table", "--gpu", "24GB"), 2, "--table is of GPUs of 8 to 141 GB"),
            (("--table", "--json"), 2, "--table is Markdown: it takes no --json"),
            (("--table", "--backend", "torch"), 2, "--table has tensorrt and torch"),
            (("--table", "--profile", "128p-17f"), 2, "--table has every profile"),
        ],
    )
    def test_wrong_input_is_told(self, wan: Wan, given: tuple[str, ...], code: int, message: str) -> None:
        found, _, err = wan("memory", "plan", *given)
        assert found == code and message in err and "Traceback" not in err

    def test_the_backend_of_a_gpu(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorRT unless one was asked for; a settings file that lists every default asks for none."""
        Path("config.yaml").write_text("backend: onnxruntime\n")
        for asked, backend in (
            (None, "tensorrt"),
            ("torch", "torch"),
            ("onnxruntime-cuda", "onnxruntime-cuda"),
        ):
            code, out, _ = wan("memory", "plan", "--gpu", "24GB", *(("--backend", asked) if asked else ()))
            assert (code, out.splitlines()[0].endswith(f", on {backend} in {USUAL}")) == (0, True)
        monkeypatch.setenv("WAN_TRT_BACKEND", "onnxruntime")
        code, _, err = wan("memory", "plan", "--gpu", "24GB")
        assert (code, "the backend onnxruntime runs on the CPU" in err) == (2, True)

    @pytest.mark.parametrize(
        ("options", "precision"),
        [
            (("--backend", "tensorrt"), USUAL),  # wherever it is asked
            (("--gpu", "24GB"), USUAL),
            (("--backend", "torch", "--gpu", "24GB"), USUAL),
            (("--backend", "torch"), "fp32"),
            ((), "fp32"),
            (("--gpu", "24GB", "--precision", "dit=fp32,vae=fp32"), "dit=fp32,vae=fp32"),
        ],
    )
    def test_the_precision_is_that_of_where_it_would_run(
        self, wan: Wan, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], precision: str
    ) -> None:
        planned: list[Choice] = []
        predict = plan.predict
        monkeypatch.setattr(
            plan, "predict", lambda work, choice: (planned.append(choice), predict(work, choice))[1]
        )
        monkeypatch.setattr(plan, "offered", lambda *_: ())
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("wan_trt_core.comparison.memory.bare_process", lambda: 10**9)
        code, out, err = wan("memory", "plan", *options, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert precision_word(found["precision"]) == precision
        assert ("was never measured on TensorRT" in found["hint"]) == ("dit=fp32" in precision)
        encoder = "bf16" if precision == USUAL else "fp32"
        dit = "fp16" if precision == USUAL else "fp32"
        assert {(choice.dit, choice.vae, choice.text_encoder) for choice in planned} == {
            (dit, "fp32", encoder)
        }

    def test_the_table_is_of_what_is_usual_on_a_gpu(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Choice] = []
        monkeypatch.setattr(
            "wan_trt_core.cli.memory._sizes", lambda settings, choice, only: (asked.append(choice), "rows")[1]
        )
        code, out, _ = wan("memory", "plan", "--table")
        assert (code, out) == (0, f"rows\n\nIn {USUAL}.\n")
        assert wan("memory", "plan", "--table", "--precision", "fp16")[1] == "rows\n\nIn fp16.\n"
        assert asked == [Choice(dit="fp16", text_encoder="bf16"), Choice(dit="fp16", vae="fp16")]

    def test_a_gpu_that_is_too_small_is_missed_by_so_much(self, wan: Wan) -> None:
        code, out, _ = wan("memory", "plan", "--backend", "torch", "--gpu", "500MB")
        assert code == 1 and "nothing fits into 500 MiB. The smallest misses it by" in out
        code, out, _ = wan("memory", "plan", "--gpu", "24GB", "--json")
        found = json.loads(out)
        assert code == 0 and found["missing"] == 0 and found["fits"][0]["settings"] == []
        assert found["budget"] == 24 * 2**30 and set(found["stages"]) == {
            "load",
            "text_encode",
            "denoise",
            "decode",
        }


class TestBenchmark:
    @pytest.mark.slow
    def test_measures_judges_and_reports(
        self, wan: Wan, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WAN_TRT_EXPORT__CHECK", "false")
        monkeypatch.setenv("WAN_TRT_PERF__MIN_SAMPLE_TIME", "0")  # the clock is not what is tested
        given = ("--model", small_checkpoint, "--steps", 2, "--warmup", 0, "--prompt", "red", "--seed", 3)
        compared = ("benchmark", "--compare", "torch", "onnxruntime", "--speedup", 0.01, *given)
        code, out, err = wan(*compared, "--profile-memory", "--report", "new/report", "--json")
        assert code == 0, err
        (result,) = json.loads(out)
        assert (result["backend"], result["verdict"]) == ("onnxruntime", "pass")
        assert result["interval"]["pairs"] == 3
        assert result["interval"]["low"] <= result["metrics"]["speedup"] <= result["interval"]["high"]
        assert result["metrics"]["video.psnr_db"] > 90
        assert result["metrics"]["video.cvvdp_jod"] > 9.9
        for stages in result["stages"].values():
            names = ["text encode", "denoise 1", "denoise 2", "decode", "postprocess"]
            assert [name for name, _ in stages] == names
        for held in result["stage_memory"].values():
            assert [name for name, _ in held] == names
            assert all(size > 2**20 for _, size in held)
        record = RunRecord.read(Path("new/report/results.json"))
        (case,) = record.cases
        assert case.measurement.facts["prompts"][0] | {"id": ""} == {
            "id": "", "prompt": "red", "negative_prompt": "", "seed": 3,
        }  # fmt: skip
        assert "| all denoising steps |" in Path("new/report/report.md").read_text()
        assert "Time by stage" in Path("new/report/report.html").read_text()
        assert {path.suffix for path in Path("new/report/videos").iterdir()} == {".mp4", ".png"}

    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Measurement]:
        """Makes every candidate be measured as this many times as fast; 0 breaks it."""

        def measure(ratio: float) -> Measurement:
            psnr = {"video.psnr_db": Metric(value=70.0, unit="dB", better="higher")}
            made = perf_measurement(ratio)
            return made.model_copy(update={"facts": made.facts | STAGES, "metrics": made.metrics | psnr})

        return measure

    def test_the_table_has_two_columns_a_candidate(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = {"onnxruntime": measured(2.0), "onnxruntime-cuda": measured(0.5)}
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda case, *_: found[case.backend])
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        monkeypatch.setenv("WAN_TRT_DEVICE", "cpu")
        code, out, _ = wan("benchmark", "--compare", "torch", *found, "onnxruntime")
        assert code == 1, "a candidate that is slower than the reference does not pass"
        rows = {
            name: cells for name, *cells in (re.split(r"\s{2,}", line.strip()) for line in out.splitlines())
        }
        assert rows["one video"] == ["torch", "onnxruntime", "torch", "onnxruntime-cuda"]
        assert rows["denoise"] == ["600 ms", "400 ms"] * 2
        assert rows["a step"] == ["300 ms", "200 ms"] * 2
        assert rows["memory, denoise"] == ["4 GiB", "8 MiB"] * 2, "the most in any step, not their sum"
        assert rows["PSNR, worst frame"] == ["70 dB"] * 2
        assert rows["verdict"] == ["PASS", "FAIL"]
        assert "1x is asked" in out

    def test_without_a_profile_the_video_is_the_model_s_own(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As ``run`` makes it, and as ``memory plan`` plans it: of 81 frames, though the first profile is of 17."""
        frames = []

        def measure(case: Case, context: object, report: object, video: Asked, runs: int) -> Measurement:
            frames.append(video.generation.num_frames)
            return measured(2.0)

        def plan(work: Workload, choice: Choice, budget: int | None) -> Any:
            frames.append(work.video.frames)
            raise CatalogueError("that is all")

        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", measure)
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        monkeypatch.setattr("wan_trt_core.memory.plan.plan", plan)
        wan("benchmark", "--compare", "onnxruntime", "--model", "wan2.1-t2v-1.3b")
        wan("memory", "plan", "--model", "wan2.1-t2v-1.3b")
        assert frames == [81, 81]

    def test_the_record_of_a_clean_tree_says_so(
        self,
        wan: Wan,
        measured: Callable[[float], Measurement],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Though the results are written after each candidate."""
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda *_: measured(2.0))
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        monkeypatch.setattr("wan_trt_core.report.writing.write_report", lambda *_: None)
        monkeypatch.setenv("WAN_TRT_DEVICE", "cpu")
        (tmp_path / "prompts.txt").touch()
        committed(tmp_path)
        code, _, err = wan("benchmark", "--compare", "onnxruntime", "onnxruntime-cuda", "--report", "reports")
        assert code == 0, err
        source = RunRecord.read(tmp_path / "reports" / "results.json").environment["source"]
        assert (source["dirty"], source["changed"]) == (False, [])

    @pytest.mark.parametrize(
        ("options", "expected", "reference"),
        [
            ((), USUAL, None),
            (("--reference-precision", "fp32"), USUAL, "fp32"),
            (("--precision", "dit=fp16,vae=fp32,text_encoder=int8"), None, None),
        ],
    )
    def test_both_arms_have_the_precision_of_where_they_run(
        self,
        wan: Wan,
        on_a_gpu: None,
        measured: Callable[[float], Measurement],
        monkeypatch: pytest.MonkeyPatch,
        options: tuple[str, ...],
        expected: str | None,
        reference: str | None,
    ) -> None:
        """Stock diffusers' text encoder too, which in a case file is in float32 unless the reference's is given."""
        seen: list[Case] = []
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        monkeypatch.setattr(
            "wan_trt_core.comparison.benchmark.measure",
            lambda case, *_: (seen.append(case), measured(2.0))[1],
        )
        compared = ("benchmark", "--compare", "torch", "tensorrt", "torch-compile", *options)
        code, out, err = wan(*compared, "--json")
        assert code == 0, err
        wanted = expected or options[1]
        assert [record["precision"] for record in json.loads(out)] == [wanted] * 2
        assert [precision_word(case.reference_precision or "") for case in seen] == [reference or wanted] * 2
        assert wan(*compared)[1].splitlines()[0].endswith(f", {wanted}")

    def test_a_candidate_of_the_cpu_is_compared_in_its_own_precision(
        self,
        wan: Wan,
        on_a_gpu: None,
        measured: Callable[[float], Measurement],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda *_: measured(2.0))
        code, out, err = wan("benchmark", "--compare", "torch", "onnxruntime", "tensorrt")
        assert (code, f", onnxruntime in fp32; tensorrt in {USUAL}" in out.splitlines()[0]) == (0, True), err
        monkeypatch.setenv("WAN_TRT_DEVICE", "cpu")
        assert wan("benchmark", "--compare", "torch", "onnxruntime")[1].splitlines()[0].endswith(", fp32")

    def test_what_saves_memory_is_the_candidates(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same options as those of ``run``, which are its settings too."""
        seen: list[Settings] = []
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *given: seen.append(given[-1]))
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda *_: measured(2.0))
        given = ("--offload", "--vae-tile", 64, "--vae-lean", "--max-graphs", 2)
        streaming = ("--weight-streaming-budget-gib", 0.5, "--no-share-scratch")
        code, _, err = wan("benchmark", "--compare", "onnxruntime", *given, *streaming)
        assert code == 0, err
        (settings,) = seen
        pipeline = settings.pipeline
        assert (pipeline.offload, pipeline.vae_tile, pipeline.vae_lean) == (True, 64, True)
        engines = settings.tensorrt
        assert (engines.max_graphs, engines.share_scratch) == (2, False)
        assert (engines.weight_streaming, engines.weight_streaming_budget_gib) == (True, 0.5)
        told = "--offload, --weight-streaming-budget-gib, --no-share-scratch, --max-graphs"
        assert f"onnxruntime does nothing with {told}" in " ".join(err.split()), err

    @pytest.mark.parametrize("small", ["torch", "onnxruntime"])
    def test_a_gpu_with_too_little_memory_for_an_arm_is_told_before_any_work(
        self, wan: Wan, monkeypatch: pytest.MonkeyPatch, small: str
    ) -> None:
        """Stock diffusers and the engines alike; what saves memory saves the engines' alone."""
        asked: list[tuple[str, str, int, bool]] = []

        def predicted(work: Workload, choice: Choice) -> Any:
            asked.append((work.backend, choice.dit, work.video.frames, choice.offload))
            return SimpleNamespace(peak=2**31 if work.backend == small else 2**29, peak_stage="decode")

        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**30, 2**40))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("wan_trt_core.memory.plan.predict", predicted)
        monkeypatch.setattr("wan_trt_core.memory.plan.plan", lambda *_: SimpleNamespace(fitting=()))
        monkeypatch.setenv("WAN_TRT_DEVICE", "cuda")
        given = ("--frames", 9, "--precision", "fp16", "--reference-precision", "fp32", "--offload")
        code, out, err = wan("benchmark", "--compare", "onnxruntime", *given)
        assert (code, out) == (3, ""), err
        assert "such a video needs 2 GiB of the GPU at its most (decode), and 1 GiB are free." in err
        assert asked[-1] == (("torch", "fp32", 9, False) if small == "torch" else (small, "fp16", 9, True))

    @pytest.mark.parametrize("model", ["tiny-wan2.1-i2v", "tiny-wan2.2-ti2v-5b"])
    def test_of_an_image_to_video_model_the_image_may_be_given(
        self, model: str, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without one it is of random colours, as in the suites, where the model needs one."""
        asked = []

        def measure(case: Case, context: Context, report: object, video: Asked, runs: int) -> Measurement:
            asked.append(video)
            expected = video.image is not None or model == "tiny-wan2.1-i2v"
            assert PipelineTarget(case, context, video).model.checkpoint.begins_with_image is expected
            return measured(2.0)

        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", measure)
        write_image(Path("red.png"), np.full((32, 48, 3), (255, 0, 0), np.uint8))
        compared = ("benchmark", "--compare", "onnxruntime", "--model", model)
        for given in ((), ("--image", "red.png")):
            code, _, err = wan(*compared, *given)
            assert code == 0, err
        without, with_image = asked
        assert without.image is None
        assert with_image.image.size == (48, 32) and with_image.image.getpixel((5, 5)) == (255, 0, 0)

    def test_what_is_not_decided_names_the_option_that_decides_it(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda *_: measured(1.5))
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        code, out, _ = wan("benchmark", "--compare", "onnxruntime", "--speedup", 1.5)
        assert code == 1
        assert "INCONCLUSIVE" in out and "raise --runs" in " ".join(out.split())

    def test_a_candidate_that_breaks_leaves_the_others(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measure(case: Case, *_: object) -> Measurement:
            if case.backend == "torch-compile":
                raise RuntimeError("CUDA out of memory")
            return measured(2.0)

        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", measure)
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        code, out, _ = wan("benchmark", "--compare", "torch-compile", "onnxruntime", "--report", "report")
        assert code == 1
        assert "RuntimeError: CUDA out of memory" in out
        verdicts = {
            case.backend: case.verdict.value for case in RunRecord.read(Path("report/results.json")).cases
        }
        assert verdicts == {"torch-compile": "invalid", "onnxruntime": "pass"}

    def test_memory_that_cannot_be_measured_leaves_the_times(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = []

        def dies(run: Any, *_: object) -> None:
            steps.append(run.keywords["asked"].generation.num_inference_steps)
            raise EngineError("the process died")

        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", lambda *_: measured(2.0))
        monkeypatch.setattr("wan_trt_core.comparison.benchmark.in_fresh_process", dies)
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        code, out, _ = wan("benchmark", "--compare", "onnxruntime", "--steps", 50, "--profile-memory")
        assert code == 0
        assert "was not measured: EngineError: the process died" in " ".join(out.split())
        assert steps == [2], "memory depends on the size of a video, not on its steps"

    def test_an_interruption_leaves_what_is_finished_and_nothing_half_written(
        self, wan: Wan, measured: Callable[[float], Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measure(case: Case, *_: object) -> Measurement:
            if case.backend == "torch-compile":
                raise KeyboardInterrupt
            return measured(2.0)

        monkeypatch.setattr("wan_trt_core.comparison.benchmark.measure", measure)
        monkeypatch.setattr("wan_trt_core.cli.benchmark._check", lambda *_: None)
        code, out, err = wan("benchmark", "--compare", "onnxruntime", "torch-compile", "--report", "report")
        assert (code, out) == (130, "") and "interrupted" in err
        assert [path.name for path in Path("report").iterdir()] == ["results.json"]
        assert len(RunRecord.read(Path("report/results.json")).cases) == 1


class TestMemory:
    """A run in PyTorch: what goes through engines takes longer, and has its own test."""

    def test_a_run_is_recorded_and_analysed(self, wan: Wan, small_checkpoint: Path) -> None:
        run = ("run", "--prompt", "red", "--out", "v.mp4", "--backend", "torch", "--model", small_checkpoint)
        size = ("--height", 64, "--width", 64, "--frames", 17)
        code, out, err = wan(*run, "--steps", 6, *size, "--attention-slicing", 1024, "--profile-memory")
        assert code == 0, err
        events = last_events()
        assert f"{events}: read it with wan-trt memory analyze" in out
        record = MemoryRecord.read(events)
        assert [event.label for event in record.events if event.stage != "other"] == [
            *("load transformer", "load vae", "load text_encoder", "text encode"),
            *(f"denoise {step}" for step in range(1, 7)),
            *(f"decode {frame}" for frame in range(1, 6)),
            *("postprocess", "write", "unload transformer", "unload vae", "unload text_encoder"),
        ]
        weights = record.of("write")[-1].held["host"]
        assert set(weights) == {"transformer weights", "vae weights", "text_encoder weights"}
        left = [{*event.held.get("host", {})} for event in record.of("unload")]
        assert left == [{"vae weights", "text_encoder weights"}, {"text_encoder weights"}, set()]
        assert record.precisions == dict.fromkeys(weights, "fp32")
        assert (record.run["backend"], record.run["num_frames"], record.failure) == ("torch", 17, None)
        assert record.run["settings"] == {"pipeline.attention_slicing": 1024}
        code, out, err = wan(
            "memory", "analyze", events, "--output", "new/report.md", "--output", "new/report.html"
        )
        assert (code, "Peak " in out, "new/report.md" in out) == (0, True, True), err
        text = Path("new/report.md").read_text()
        assert "| a denoising step, of the host |" in text and "| a decoded frame, of the host |" in text
        assert "<svg" in Path("new/report.html").read_text()
        code, out, _ = wan("memory", "analyze", events, "--json")
        found = json.loads(out)
        assert sum(holder["size"] for holder in found["holders"]) == found["peak"]
        assert wan("memory", "analyze", events)[1] == text

    def test_out_of_memory_is_written_and_analysed(
        self, wan: Wan, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from diffusers import AutoencoderKLWan

        def full(self: object, *_: object, **__: object) -> None:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes"
            )

        monkeypatch.setattr(AutoencoderKLWan, "_decode", full)
        run = ("run", "--prompt", "red", "--out", "v.mp4", "--backend", "torch", "--model", small_checkpoint)
        code, _, err = wan(*run, "--steps", 1, "--frames", 5, "--profile-memory")
        assert str(last_events()) in "".join(err.split())
        assert (code, "error: DefaultCPUAllocator: can't" in err, "Traceback" in err) == (1, True, False)
        assert "what was held up to the failure is in" in err
        code, out, _ = wan("memory", "analyze", last_events())
        assert (code, "out of memory in decode 1, which asked for 3 GiB" in out) == (0, True)
        assert "## Held when it ended" in out

    def test_a_run_that_needs_less(
        self, wan: Wan, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ("run", "--prompt", "red", "--out", "v.mp4", "--backend", "torch", "--model", small_checkpoint)
        size = ("--steps", 1, "--frames", 5, "--height", 128, "--width", 64, "--profile-memory")
        less = ("--vae-tile", 64, "--attention-slicing", 32, "--text-encoder-device", "cpu", "--offload")
        lean = ("--vae-lean",)  # of which PyTorch makes nothing
        int8 = ("--precision", "dit=fp32,vae=fp32,text_encoder=int8")
        held, asked = {}, []
        generate = run_command._generate

        def noted(settings: Settings, *given: Any, **more: Any) -> dict[str, Any]:
            asked.append(settings.pipeline.vae_lean)
            return generate(settings, *given, **more)

        monkeypatch.setattr(run_command, "_generate", noted)
        for options in ((), (*less, *lean, *int8)):
            code, _, err = wan(*run, *size, *options)
            assert code == 0, err
            record = MemoryRecord.read(last_events())
            held[len(record.of("decode"))] = record.of("write")[-1].held["host"]["text_encoder weights"]
        assert asked == [False, True]
        assert len([*Path("outputs/report").glob("v-*/memory_events.json")]) == 2, "a folder a run"
        assert held[1] < 0.3 * held[2]  # in tiles, whose frames no stage can be told by; and with eight bits

    @pytest.mark.parametrize(
        ("options", "code", "told"),
        [
            (("--memory-snapshot",), 2, "--memory-snapshot: goes with --profile-memory"),
            (("--memory-snapshot", "--profile-memory"), 2, "--memory-snapshot: needs a GPU"),
            (
                ("--vae-tile", 100),
                3,
                "--vae-tile: pipeline.vae_tile: 100 is not allowed: Input should be a multiple",
            ),
            (("--max-graphs", 0), 3, "--max-graphs: tensorrt.max_graphs: 0 is not allowed"),
            (
                ("--text-encoder-device", "gpu"),
                3,
                "--text-encoder-device: pipeline.text_encoder_device: 'gpu'",
            ),
        ],
    )
    def test_what_cannot_be_saved(self, wan: Wan, options: tuple[object, ...], code: int, told: str) -> None:
        found, out, err = wan("run", "--prompt", "red", "--out", "v.mp4", *options)
        assert (found, out) == (code, "") and told in " ".join(err.split()), err
        assert not Path("v.mp4").exists()

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "events.json: not a readable file of memory events"),
            ("", "events.json: not a readable file of memory events: Expecting value"),
            ('{"schema_version": 1, "cases": []}', "events.json: no file of memory events"),
            ('{"format": "wan-trt memory events", "schema_version": 9}', "events.json: schema_version 9"),
            (
                '{"format": "wan-trt memory events", "schema_version": 2}',
                "events.json: started: Field required",
            ),
        ],
    )
    def test_what_is_no_file_of_memory_events_is_wrong_input(self, wan: Wan, text: str, told: str) -> None:
        Path("events.json").write_text(text)
        code, out, err = wan("memory", "analyze", "events.json", "--output", "report.md")
        assert (code, out, told in err, Path("report.md").exists()) == (3, "", True, False)
        assert AGAIN in err

    def test_a_file_of_memory_events_that_cannot_be_read_is_wrong_input(self, wan: Wan) -> None:
        """Missing, a folder, or bytes of something else."""
        Path("folder").mkdir()
        Path("binary").write_bytes(bytes(range(256)))
        for name in ("nowhere.json", "folder", "binary"):
            code, out, err = wan("memory", "analyze", name)
            told = err.startswith(f"error: {name}: not a readable file of memory events: ")
            assert (code, out, told, AGAIN in err) == (3, "", True, True)

    def test_a_report_that_cannot_be_written_is_told_with_its_option(self, wan: Wan) -> None:
        record_of([("load vae", on_host(9), on_host(9), {})], start=on_host(8)).write(Path("events.json"))
        code, out, err = wan("memory", "analyze", "events.json", "--output", "/proc/x/report.md")
        told = "--output: /proc/x: cannot be written to: No such file or directory; name another folder"
        assert (code, out, told in err) == (3, "", True)
        code, out, err = wan("memory", "analyze", "events.json", "--output", "events.json/report.md")
        told = "--output: events.json: cannot be written to: File exists; name another folder"
        assert (code, out, told in err) == (3, "", True)

    def test_a_file_without_a_stage(self, wan: Wan) -> None:
        """Of a run that was killed at once a short report; of any other nothing, and the file is named."""
        facts = {"started": "2026-07-01", "command": [], "hardware_key": "cpu-test", "run": {"model": "tiny"}}
        record = MemoryRecord.model_validate({**facts, "methods": {}, "precisions": {}, "events": ()})
        record.write(Path("events.json"))
        code, out, err = wan("memory", "analyze", "events.json")
        assert (code, out, "events.json: the memory events hold no stage" in err) == (3, "", True)
        assert AGAIN in err
        killed = {"kind": "cut_short", "stage": "load dit", "message": "gone", "amounts": {"resident_set": 7}}
        record.model_copy(update={"failure": Failure.model_validate({**killed, "held": {}})}).write(
            Path("events.json")
        )
        code, out, _ = wan("memory", "analyze", "events.json")
        assert (code, "Ended in load dit" in out, "cut short in load dit: gone" in out) == (0, True, True)
        code, out, _ = wan("memory", "analyze", "events.json", "--json")
        assert (code, json.loads(out)["peak"], json.loads(out)["failure"]["kind"]) == (0, 7, "cut_short")


class TestFolders:
    """What a command makes to write into goes again where nothing came of it."""

    @pytest.mark.parametrize(
        ("ends", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (EngineError("enough"), 1)]
    )
    def test_a_run_that_ends_early_leaves_none_of_its_own(
        self,
        wan: Wan,
        small_checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        ends: BaseException,
        code: int,
    ) -> None:
        def end(*_: Any, **__: Any) -> Any:
            for folder in ("videos/red", "frames", "cache", "outputs/report"):
                assert Path(folder).is_dir()
            Path("cache/onnx").mkdir()
            (Path("cache") / "note").write_text("of another process")
            raise ends

        monkeypatch.setattr(run_command, "_generate", end)
        monkeypatch.setenv("WAN_TRT_REPORT", "outputs/report")
        Path("videos").mkdir()
        run = ("run", "--prompt", "red", "--out", "videos/red/v.mp4", "--frames-dir", "frames")
        found, _, err = wan(*run, "--model", small_checkpoint, "--profile-memory")
        assert found == code, err
        left = {str(path) for path in Path().rglob("*")}
        assert left == {"videos", "cache", "cache/note", "cache/onnx"}, (
            "what was there, and what is not empty"
        )

    def test_a_benchmark_does_not_either(self, wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
        def end(*_: Any, **__: Any) -> Any:
            assert Path("reports/mine").is_dir() and Path("cache").is_dir()
            raise KeyboardInterrupt

        monkeypatch.setattr("wan_trt_core.cli.benchmark._run", end)
        code, _, err = wan("benchmark", "--compare", "onnxruntime", "--report", "reports/mine")
        assert (code, list(Path().iterdir())) == (130, []), err

    @pytest.mark.parametrize("verb", ["export", "build"])
    def test_nor_do_export_and_build(self, wan: Wan, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
        def end(*_: Any, **__: Any) -> Any:
            assert Path("cache").is_dir()
            raise KeyboardInterrupt

        monkeypatch.setattr("wan_trt_core.cli.making._made", end)
        code, _, err = wan(verb, "dit", *(("--out", "onnx/mine") if verb == "export" else ()))
        assert (code, list(Path().iterdir())) == (130, []), err


class TestInterrupt:
    SCRIPT = """
import pathlib, time
from wan_trt_core import cli, engine_cache
def slow(self):
    pathlib.Path("started").touch()
    for _ in range(600):  # a signal just before a long sleep would be handled after it
        time.sleep(0.1)
engine_cache.EngineCache.list = slow
cli.main()
"""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_ends_at_once_with_its_own_exit_code(
        self, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        started = tmp_path / "started"
        command = [sys.executable, "-c", self.SCRIPT, "engines", "list"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        deadline = time.monotonic() + 30
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        assert "Traceback" not in err


class TestProgress:
    def test_without_a_terminal_each_job_is_two_lines(self, capfd: pytest.CaptureFixture[str]) -> None:
        with progress() as report:
            for stage, fraction in (("trace", 0.0), ("convert", 0.5), ("done", 1.0)):
                report(f"export dit fp32: {stage}", fraction)
            report("build dit fp32: cached", 1.0)
        first, second = capfd.readouterr().err.splitlines()
        assert first == "export dit fp32 …"
        assert second.startswith("export dit fp32: done in ")

    def test_on_a_terminal_there_is_a_bar_with_the_time_left(self) -> None:
        from io import StringIO

        from rich.console import Console

        stream = StringIO()
        with progress(Console(file=stream, force_terminal=True, width=120)) as report:
            report("generate", 0.0)
            report("generate", 0.5)
            report("generate", 1.0)
        shown = stream.getvalue()
        assert "generate" in shown
        assert "100%" in shown
        assert "left" in shown
