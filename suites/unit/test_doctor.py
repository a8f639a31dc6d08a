"""The doctor: what it finds, and what it says is missing for which feature."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from wan_trt_core import doctor
from wan_trt_core.config import Loaded, load_settings
from wan_trt_core.engine_cache import EngineCache
from wan_trt_core.measure.quality import LPIPS_BACKBONE
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.footprint import engine_bytes, stock_bytes
from wan_trt_core.models.random_weights import RandomCheckpoint
from wan_trt_core.models.room import room
from wan_trt_core.pipeline.engines import VAE_DECODER, components_run


@pytest.fixture
def loaded(tmp_path: Path, tiny_wan_folder: Path) -> Loaded:
    options = {
        "checkpoint": tiny_wan_folder,
        "cache": tmp_path / "cache",
        "baselines": tmp_path / "baselines",
    }
    return load_settings(None, options, {"WAN_TRT_CONFIG": ""})


def found(diagnosis: doctor.Diagnosis) -> dict[str, doctor.Finding]:
    return {each.name: each for each in diagnosis.findings}


def test_this_machine_can_run_the_main_job(loaded: Loaded) -> None:
    diagnosis = doctor.diagnose(loaded)
    findings = found(diagnosis)
    assert diagnosis.healthy, [each for each in diagnosis.findings if each.status != "ok"]
    for name in ("torch", "H.264 encoder", "backend onnxruntime", "model tiny-wan"):
        assert findings[name].status == "ok", findings[name]
    assert findings["baselines"].status == "missing"
    assert diagnosis.machine["cores"] >= 1
    for each in diagnosis.findings:
        assert each.feature
        assert bool(each.fix) == (each.status != "ok"), f"{each.name}: what is not ok comes with its mending"
    data = diagnosis.as_json()
    assert data["healthy"] is True
    sources = {row["key"]: row["source"] for row in data["settings"]}
    assert (sources["checkpoint"], sources["threads"]) == ("--checkpoint", "default")


def test_baselines_of_a_gpu_that_is_not_there_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = load_settings(None, {"device": "cuda"}, {"WAN_TRT_CONFIG": ""}).settings
    finding = doctor._baselines(settings)
    assert finding.status == "missing"
    assert "ask for a CUDA device" in finding.detail
    assert doctor.machine(settings)["hardware_key"] is None


class TestOnnxRuntimeBuild:
    """Exactly one of the two distributions may be installed."""

    BOTH: Mapping[str, str] = {"onnxruntime": "1.23", "onnxruntime-gpu": "1.23"}

    @pytest.mark.parametrize("one", BOTH)
    def test_one_is_right(self, one: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "distribution_versions", lambda *_: {one: "1.23"})
        finding = doctor.onnxruntime_build()
        assert (finding.status, finding.detail) == ("ok", f"{one} 1.23")

    def test_both_are_an_error_with_the_commands_that_mend_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "distribution_versions", lambda *_: self.BOTH)
        finding = doctor.onnxruntime_build()
        assert finding.status == "error"
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in finding.fix
        assert not doctor.Diagnosis((), {}, (finding,)).healthy

    def test_the_backend_refuses_both(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        from wan_trt_core.backends import onnxruntime
        from wan_trt_core.backends.base import BackendUnavailable

        monkeypatch.setattr(onnxruntime, "distribution_versions", lambda *_: self.BOTH)
        with pytest.raises(BackendUnavailable, match="both installed"):
            onnxruntime.BACKEND.require(loaded.settings)

    def test_none_names_the_extras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "distribution_versions", lambda *_: {})
        finding = doctor.onnxruntime_build()
        assert (finding.status, finding.required) == ("missing", True)
        assert "wan-trt-core[cpu]" in finding.fix
        assert "wan-trt-core[gpu]" in finding.fix
        assert not doctor.Diagnosis((), {}, (finding,)).healthy


@pytest.mark.parametrize(
    ("installed", "told"),
    [({"tensorrt": "10.6"}, "10.6"), ({"tensorrt-cu12": "10.6"}, "10.6"), ({}, "not installed")],
)
def test_tensorrt_is_told_by_whichever_wheel_holds_it(
    installed: dict[str, str], told: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "distribution_versions", lambda *_: installed)
    assert doctor.machine(loaded.settings)["tensorrt"] == told


class TestWhatIsMissing:
    def test_a_model_without_its_checkpoint(self, loaded: Loaded, tmp_path: Path) -> None:
        settings = loaded.settings.model_copy(update={"checkpoint": tmp_path / "nowhere"})
        finding = doctor._checkpoint(settings)
        assert (finding.status, finding.required) == ("missing", True)
        assert "nowhere" in finding.detail

    def test_a_model_with_random_weights_is_told_apart(self, loaded: Loaded) -> None:
        settings = loaded.settings.model_copy(update={"checkpoint": None, "model": "wan2.1-t2v-1.3b"})
        finding = doctor._checkpoint(settings)
        assert finding.status == "ok"
        assert "seeded random weights, for speed and memory only" in finding.detail
        assert "give --wan-checkpoint Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in finding.detail

    def test_a_backend_without_its_package_says_what_to_install(self, loaded: Loaded) -> None:
        finding = {each.name: each for each in doctor._backends(loaded.settings)}["backend tensorrt"]
        assert (finding.status, finding.required) == ("missing", False)
        assert 'pip install "wan-trt-core[gpu,tensorrt]"' in finding.fix

    def test_a_provider_that_does_not_load_is_told_in_its_loaders_words(
        self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from wan_trt_core.backends import onnxruntime_cuda

        offered = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
        words = "libonnxruntime_providers_cuda.so: libcublasLt.so.13: cannot open shared object file"
        monkeypatch.setattr(onnxruntime_cuda, "why_not", lambda backend: words)
        findings = {each.name: each for each in doctor._backends(loaded.settings)}
        for name in ("backend onnxruntime-cuda", "backend onnxruntime-tensorrt"):
            assert (findings[name].status, findings[name].required) == ("missing", False)
            assert f"does not load: {words}" in findings[name].detail

    def test_a_backend_that_does_not_exist(self, loaded: Loaded) -> None:
        settings = loaded.settings.model_copy(update={"backend": "openvino"})
        finding = {each.name: each for each in doctor._backends(settings)}["backend openvino"]
        assert (finding.status, finding.required) == ("missing", True)
        assert "there are onnxruntime" in finding.detail

    def test_a_compiler_for_torch_compile(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        from wan_trt_core.backends import torch_compile
        from wan_trt_core.backends.base import BackendUnavailable

        def none() -> str:
            raise BackendUnavailable("torch.compile needs a C++ compiler: apt-get install g++")

        monkeypatch.setattr(torch_compile, "find_compiler", none)
        finding = {each.name: each for each in doctor._backends(loaded.settings)}["backend torch-compile"]
        assert (finding.status, finding.required) == ("missing", False)
        assert "apt-get install g++" in finding.fix

    def test_an_encoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wan_trt_core.pipeline.video.CODEC", "libnone")
        finding = doctor._encoder()
        assert (finding.status, finding.required) == ("missing", True)
        assert "no encoder of H.264 (libnone)" in finding.detail

    def test_a_cache_that_cannot_be_written(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.os, "access", lambda *_: False)
        finding = doctor._cache(loaded.settings)
        assert (finding.status, "WAN_TRT_CACHE" in finding.fix) == ("missing", True)

    @pytest.mark.parametrize(
        ("free", "status", "detail"),
        [(2**30, "ok", "1.0 GiB"), (2**30 - 1, "missing", "1.0 GiB"), (6e6, "missing", "0.0 GiB")],
    )
    def test_a_cache_without_room(
        self, free: float, status: str, detail: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        finding = doctor._cache(loaded.settings)
        assert (finding.status, detail in finding.detail) == (status, True)
        assert status == "ok" or "WAN_TRT_CACHE" in finding.fix

    @pytest.mark.parametrize(
        ("free", "held", "status"),
        [(6.1, 0.0, "ok"), (5.9, 0.0, "missing"), (2.0, 6.0, "ok"), (0.9, 6.0, "missing")],
    )
    def test_the_engines_of_the_model_need_room_unless_they_are_there(
        self, free: float, held: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """As docs/gpu-ci.md tells of the 1.3B: 6.0 GiB for the transformer in FP16 and the VAE's decoder."""
        gib, options = 2**30, {"model": "wan2.1-t2v-1.3b", "backend": "tensorrt", "cache": tmp_path}
        settings = load_settings(None, options, {"WAN_TRT_CONFIG": ""}).settings
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * gib))
        monkeypatch.setattr(EngineCache, "list", lambda _: (SimpleNamespace(bytes=held * gib),))
        finding = doctor._cache(settings)
        assert finding.status == status
        assert "engines of wan2.1-t2v-1.3b take 6.0 GiB for each profile" in finding.detail

    def test_the_table_of_disk_and_host_memory_is_what_the_catalogue_comes_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RandomCheckpoint, "random", False)  # of a checkpoint, which has a text encoder
        text = (Path(__file__).parents[2] / "docs" / "gpu-ci.md").read_text()
        rows = [
            line for line in text.partition("### Disk and host memory")[2].splitlines() if line[:1] == "|"
        ][2:8]
        found = [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows]
        told = []
        for name in ("wan2.1-t2v-1.3b", "wan2.2-ti2v-5b", "wan2.1-t2v-14b", "wan2.2-t2v-a14b"):
            checkpoint = resolve(name, text_encoder=True).checkpoint
            precisions = {
                component: "fp16" if component.startswith("dit") else "fp32"
                for component in components_run("pipeline", checkpoint)
            }
            takes = room(checkpoint, precisions)
            sizes = [
                engine_bytes(checkpoint, "dit", "fp16"),
                sum(engine_bytes(checkpoint, part, "fp32") for part in VAE_DECODER),
                stock_bytes(checkpoint, "text_encoder", "fp32"),
                *(takes.cache, takes.export, takes.build),
            ]
            cells = [f"{size / 2**30:.1f}" for size in sizes]
            told.append([f"{'2 x ' if 'dit_2' in precisions else ''}{cells[0]}", *cells[1:]])
        assert found == [list(row) for row in zip(*told, strict=True)]

    @pytest.mark.parametrize(("model", "backend"), [("tiny-wan", "torch"), ("no-such", "tensorrt")])
    def test_what_has_no_engines_needs_no_room(self, model: str, backend: str) -> None:
        settings = load_settings(None, {"model": model, "backend": backend}, {"WAN_TRT_CONFIG": ""}).settings
        assert doctor._engines(settings) == 0

    def test_lpips_weights_when_they_are_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
        assert doctor._lpips().status == "missing"
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / LPIPS_BACKBONE).touch()
        assert doctor._lpips().status == "ok"


class TestGpus:
    def test_rows_of_nvidia_smi(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = "NVIDIA H200, 580.65.06, 143771 MiB, 9.0\nNVIDIA H200, 580.65.06, 143771 MiB, 9.0\n"
        monkeypatch.setattr(doctor.shutil, "which", lambda _: "nvidia-smi")
        monkeypatch.setattr(
            doctor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, rows, "")
        )
        assert [gpu["name"] for gpu in doctor.gpus()] == ["NVIDIA H200", "NVIDIA H200"]
        assert doctor.gpus()[0]["driver"] == "580.65.06"

    def test_none_where_nvidia_smi_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.shutil, "which", lambda _: sys.executable)
        assert doctor.gpus() == []
