"""``wan-trt doctor``: the settings, what this machine has, and what is missing for which feature."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wan_trt_core.config import Loaded, Settings
from wan_trt_core.distributions import ONNX_RUNTIME, TENSORRT, distribution_versions
from wan_trt_core.gates.formatting import GIB
from wan_trt_core.measure.quality import LPIPS_BACKBONE, LPIPS_REMEDY

Status = Literal["ok", "missing", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        status: ``ok``, ``missing`` (a feature is not available) or ``error`` (wrong, and must be mended).
        detail: what was found.
        feature: what it is needed for.
        fix: the command or step that mends it; empty when ok.
        required: the main job with these settings cannot run without it.
    """

    name: str
    status: Status
    detail: str
    feature: str
    fix: str = ""
    required: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor found."""

    settings: tuple[dict[str, Any], ...]
    machine: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """The main job can run with these settings, and nothing is installed wrongly."""
        return not any(
            found.status == "error" or (found.required and found.status != "ok") for found in self.findings
        )

    def as_json(self) -> dict[str, Any]:
        """The same as JSON-serialisable data."""
        findings = [asdict(found) for found in self.findings]
        return {
            "healthy": self.healthy,
            "settings": list(self.settings),
            "machine": dict(self.machine),
            "findings": findings,
        }


def diagnose(loaded: Loaded) -> Diagnosis:
    """Look at everything. Imports the heavy libraries and starts a few short processes; changes nothing."""
    from wan_trt_core.backends.registry import with_backend
    from wan_trt_core.config import of_suites

    settings, in_suites = with_backend(loaded.settings), of_suites(loaded.settings)
    findings = [
        *_packages(),
        onnxruntime_build(),
        *_backends(settings),
        _checkpoint(settings),
        _encoder(),
        _lpips(),
        _cache(settings),
        _baselines(in_suites),
    ]
    return Diagnosis(tuple(asdict(row) for row in loaded.describe()), machine(in_suites), tuple(findings))


def machine(settings: Settings) -> dict[str, Any]:
    """Processor, memory (bytes), GPU and the versions that decide what runs here.

    The hardware key is that of the device which the suites run on; ``None`` when it is not there.
    """
    import torch

    from wan_trt_core.measure.environment import cpu_count, cpu_name, memory_bytes

    return {
        "hardware_key": _hardware_key(settings),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "memory": memory_bytes(),
        "gpus": gpus(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_sees_gpu": torch.cuda.is_available(),
        "tensorrt": next(iter(distribution_versions(*TENSORRT).values()), "not installed"),
    }


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU as ``nvidia-smi`` tells them; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = ["--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run([program, *query], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    names = ("name", "driver", "memory", "compute_capability")
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line.strip())
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def onnxruntime_build() -> Finding:
    """Exactly one of ONNX Runtime's builds must be installed: they share one import package."""
    found = distribution_versions(*ONNX_RUNTIME)
    feature = "the onnxruntime backend, and the check of every export"
    if len(found) == 1:
        ((name, version),) = found.items()
        return Finding("ONNX Runtime build", "ok", f"{name} {version}", feature, required=True)
    if not found:
        fix = 'pip install "wan-trt-core[cpu]", or "wan-trt-core[gpu]" on a machine with an NVIDIA GPU'
        return Finding("ONNX Runtime build", "missing", "none is installed", feature, fix, required=True)
    detail = f"{' and '.join(found)} are both installed and overwrite each other's files"
    fix = f"pip uninstall -y {' '.join(found)} && pip install onnxruntime-gpu   (without a GPU: onnxruntime)"
    return Finding("ONNX Runtime build", "error", detail, feature, fix, required=True)


_PACKAGES = {
    "torch": "everything",
    "diffusers": "the reference, and the pipeline",
    "transformers": "the text encoder",
    "onnx": "export",
    "onnxscript": "export",
    "skimage": "SSIM",
    "pycvvdp": "ColorVideoVDP",
    "av": "video files",
}
_DISTRIBUTIONS = {"skimage": "scikit-image", "pycvvdp": "cvvdp"}


def _packages() -> list[Finding]:
    findings = []
    for module, feature in _PACKAGES.items():
        name = _DISTRIBUTIONS.get(module, module)
        try:
            importlib.import_module(module)
            found = Finding(name, "ok", importlib.metadata.version(name), feature, required=True)
        except (ImportError, OSError) as error:  # OSError: a shared library of the package is missing
            fix = f"pip install --force-reinstall {name}"
            found = Finding(name, "missing", _first_line(error), feature, fix, required=True)
        findings.append(found)
    return findings


def _backends(settings: Settings) -> list[Finding]:
    from wan_trt_core.backends.base import BackendUnavailable
    from wan_trt_core.backends.registry import UnknownBackend, backend_names, get_backend

    findings = []
    for name in backend_names():
        required = name in (settings.backend, "torch")
        try:
            backend = get_backend(name)
            backend.require(settings)
        except (BackendUnavailable, UnknownBackend, ImportError) as error:
            feature = f"cases with backend: {name}"
            findings.append(
                Finding(
                    f"backend {name}", "missing", _first_line(error), feature, str(error), required=required
                )
            )
        else:
            versions = ", ".join(f"{package} {version}" for package, version in backend.versions().items())
            findings.append(
                Finding(f"backend {name}", "ok", versions, f"cases with backend: {name}", required=required)
            )
    if settings.backend not in backend_names():
        detail = f"there is no such backend; there are {', '.join(backend_names())}"
        findings.append(
            Finding(
                f"backend {settings.backend}", "missing", detail, "the main job", "set backend", required=True
            )
        )
    return findings


def _checkpoint(settings: Settings) -> Finding:
    from wan_trt_core.models.catalogue import CatalogueError, resolve
    from wan_trt_core.models.checkpoint import CheckpointError
    from wan_trt_core.models.random_weights import RandomCheckpoint

    try:
        model = resolve(settings.model, settings.checkpoint_of(settings.model), download=False)
        model.profile(settings.profile)
    except (CatalogueError, CheckpointError) as error:
        fix = "give another model, checkpoint or profile, or install the package again"
        return Finding(f"model {settings.model}", "missing", str(error), "the main job", fix, required=True)
    detail = model.checkpoint.source
    if isinstance(model.checkpoint, RandomCheckpoint):
        detail += f" weights, for speed and memory only. {model.checkpoint.remedy}"
    return Finding(f"model {settings.model}", "ok", detail, "the main job", required=True)


def _encoder() -> Finding:
    from wan_trt_core.pipeline.video import CODEC, VideoError, check_encoder

    feature = "writing videos"
    try:
        check_encoder()
    except VideoError as error:
        fix = "pip install --force-reinstall av"
        return Finding("H.264 encoder", "missing", str(error), feature, fix, required=True)
    import av

    return Finding("H.264 encoder", "ok", f"{CODEC} through PyAV {av.__version__}", feature, required=True)


def _lpips() -> Finding:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    feature = "LPIPS (only for cases that require it)"
    if path.is_file():
        return Finding("LPIPS weights", "ok", str(path), feature)
    return Finding(
        "LPIPS weights", "missing", f"not in the torch hub's folder: {path}", feature, LPIPS_REMEDY
    )


_ROOM = GIB
"""Bytes that should be left for an engine cache, of a model however small."""


def _cache(settings: Settings) -> Finding:
    from wan_trt_core.engine_cache import EngineCache

    folder = settings.cache
    while not folder.exists():
        folder = folder.parent
    feature = "storing ONNX files and engines"
    if not os.access(folder, os.W_OK):
        fix = "set cache (WAN_TRT_CACHE) to a folder that can be written"
        return Finding(
            "engine cache", "missing", f"{settings.cache} cannot be written", feature, fix, required=True
        )
    free, needs = shutil.disk_usage(folder).free, _engines(settings)
    held = sum(entry.bytes for entry in EngineCache(settings.cache).list())
    detail = f"{settings.cache}, {free / GIB:.1f} GiB free"
    if held:
        detail += f", {held / GIB:.1f} GiB in use"
    if needs:
        detail += f"; engines of {settings.model} take {needs / GIB:.1f} GiB for each profile"
    if free < _ROOM or free + held < needs:
        fix = (
            "free some, remove engines that nothing asks for (wan-trt engines prune), or set cache (WAN_TRT_CACHE) to"
            " another disk"
        )
        return Finding("engine cache", "missing", detail, feature, fix, required=True)
    return Finding("engine cache", "ok", detail, feature, required=True)


def _engines(settings: Settings) -> int:
    """Bytes in the cache of the engines that a video by the settings' model takes, in the precisions that they have
    unless others are given; 0 where there are none or the model is not known."""
    from wan_trt_core.backends.base import EngineBackend
    from wan_trt_core.backends.registry import device_of, get_backend
    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.room import room
    from wan_trt_core.pipeline.engines import VAE_ENCODER, components_run, usual_of_engine

    try:
        checkpoint = resolve(
            settings.model, settings.checkpoint_of(settings.model), download=False
        ).checkpoint
        names = components_run("pipeline", checkpoint)
        if not isinstance(get_backend(settings.backend), EngineBackend):
            return 0
    except ValueError:  # of a model or backend that there is not, which other findings tell
        return 0
    names += VAE_ENCODER if checkpoint.begins_with_image else ()
    device = device_of(settings)
    return room(checkpoint, {name: usual_of_engine(name, device) for name in names}).cache


def _baselines(settings: Settings) -> Finding:
    feature = "absolute bands (without them the ratio gates decide)"
    key = _hardware_key(settings)
    if key is None:
        detail = "the settings ask for a CUDA device, and PyTorch sees none"
        return Finding("baselines", "missing", detail, feature, "set device or backend")
    folder = settings.baselines / key
    if folder.is_dir():
        return Finding("baselines", "ok", str(folder), feature)
    fix = "wan-trt baselines regenerate   (in the repository that keeps the baselines)"
    return Finding("baselines", "missing", f"none for this hardware: {folder}", feature, fix)


def _hardware_key(settings: Settings) -> str | None:
    from wan_trt_core.measure.environment import hardware_key_of

    try:
        return hardware_key_of(settings)
    except RuntimeError:  # no such device
        return None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
