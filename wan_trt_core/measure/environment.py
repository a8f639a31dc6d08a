"""Where a measurement was made: the hardware key, versions, the state of the sources, and throttling."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wan_trt_core.distributions import ONNX_RUNTIME, TENSORRT, distribution_versions
from wan_trt_core.gates.formatting import GIB

if TYPE_CHECKING:
    from wan_trt_core.config import Settings

Device = Literal["cpu", "cuda"]

PACKAGES = (
    "wan-trt-core",
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "onnx",
    "onnxscript",
    *ONNX_RUNTIME,
    *TENSORRT,
    "numpy",
    "scikit-image",
    "cvvdp",
    "lpips",
    "av",
)
"""Distributions whose versions go into every record; the ones that are not installed are left out."""

_ROOT = Path("/")
_CPU_THERMAL = "thermal throttling"
_NVML_SLOWDOWNS = {
    "nvmlClocksThrottleReasonSwThermalSlowdown": "software thermal slowdown",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hardware thermal slowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}
"""Reasons that make a timing void. The power cap is not one: large GPUs always run at it."""

_NVML_REASONS = {
    **_NVML_SLOWDOWNS,
    "nvmlClocksThrottleReasonGpuIdle": "idle",
    "nvmlClocksThrottleReasonApplicationsClocksSetting": "application clocks",
    "nvmlClocksThrottleReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonSyncBoost": "sync boost",
    "nvmlClocksThrottleReasonDisplayClockSetting": "display clocks",
}

GPU_SLOWDOWNS = frozenset(_NVML_SLOWDOWNS.values())
"""Those of :func:`clock_reasons` that make a timing void."""


@dataclass(frozen=True)
class SourceState:
    """The commit that was measured.

    Attributes:
        commit: its hash; ``None`` where there is no git, or no commit in it yet, and none was given.
        dirty: whether files differ from it; ``None`` where nobody knows, true where git has no commit yet.
        changed: the files that differ, relative to the repository.
        given: stated on the command line, not read from git.
    """

    commit: str | None
    dirty: bool | None
    changed: tuple[str, ...] = ()
    given: bool = False

    def without(self, written: Collection[str]) -> SourceState:
        """The same but for what the tool itself wrote, which is nothing that was measured.

        Args:
            written: files and folders, see :func:`names_in_repository`.
        """
        changed = tuple(
            path
            for path in self.changed
            if not any(path == name or path.startswith(f"{name}/") for name in written)
        )
        return replace(self, changed=changed, dirty=bool(changed) if self.changed else self.dirty)


def hardware_key(device: Device = "cpu", *, root: Path = _ROOT) -> str:
    """Device name, core or SM count and memory as one word: ``cuda-nvidia-h200-132sm-139gib``.

    Baselines are stored under it and never read under another. The cores are those this process may use
    (affinity and cgroup quota), the memory is that of the machine or cgroup.

    Args:
        device: ``cuda`` (the current device; imports torch) or ``cpu``.
        root: of the file system; injected so that other machines can be tested.

    Raises:
        RuntimeError: for ``cuda`` without a CUDA device.
    """
    if device == "cuda":
        gpu = _cuda_properties()
        return slug(f"cuda {gpu.name} {gpu.multi_processor_count}sm {gpu.total_memory // GIB}gib")
    return slug(f"cpu {cpu_name(root)} {cpu_count(root)}c {memory_bytes(root) // GIB}gib")


def hardware_key_of(settings: Settings) -> str:
    """:func:`hardware_key` of the device that both arms of every comparison run on with these settings.

    Raises:
        RuntimeError: where that is a GPU and there is none; before that it says what the backend needs besides, and the
            extra to install, for that is the way to a machine that has one.
    """
    from wan_trt_core.backends.base import BackendUnavailable
    from wan_trt_core.backends.registry import UnknownBackend, device_of, get_backend

    try:
        return hardware_key(device_of(settings))
    except RuntimeError as no_device:
        try:
            get_backend(settings.backend).require(settings)
        except (BackendUnavailable, UnknownBackend) as lacking:
            raise RuntimeError(f"{lacking}; {no_device}") from no_device
        raise


def slug(text: str) -> str:
    """Lower-case words of letters, digits and dots joined by dashes, without trademark signs."""
    text = re.sub(r"\((r|tm|c)\)|\bcpu @.*?ghz|\bprocessor\b", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def cpu_name(root: Path = _ROOT) -> str:
    """The CPU's name; with family, model and stepping where a hypervisor gives a name without any number."""
    info: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    return name if re.search(r"\d", name) else " ".join([name, *numbers])


def cpu_count(root: Path = _ROOT) -> int:
    """Cores that this process may use: its affinity, or the cgroup's quota where that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus(root)
    return max(1, min(affinity, math.floor(quota))) if quota else affinity


def memory_bytes(root: Path = _ROOT) -> int:
    """Memory of the machine, or of the cgroup where that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limits = [total]
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(root / name).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def free_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that this process may still take: what the machine has available, or the cgroup's less its own."""
    import psutil

    own = int(psutil.Process().memory_info().rss)
    return max(0, min(int(psutil.virtual_memory().available), memory_bytes(root) - own))


def environment_record(
    device: Device = "cpu",
    *,
    source: SourceState | None = None,
    throttle_before: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Everything about this machine that a number may depend on; JSON-serialisable.

    Args:
        device: where both arms ran.
        source: the state of the sources, asked before the run writes; read from git in the working folder unless
            given.
        throttle_before: what :func:`throttle_counters` said before the measurements; ``throttled`` then says
            what happened since.
    """
    source = source or source_state(Path.cwd())
    return {
        "hardware_key": hardware_key(device),
        "device": _device_record(device),
        "cpu": {
            "name": cpu_name(),
            "cores": cpu_count(),
            "memory": memory_bytes(),
            "governor": _read(_ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
            "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": distribution_versions(*PACKAGES),
        "source": {
            "commit": source.commit,
            "dirty": source.dirty,
            "changed": list(source.changed),
            "given": source.given,
        },
        "throttled": throttled(throttle_before, throttle_counters()) if throttle_before is not None else None,
    }


def source_state(folder: Path) -> SourceState:
    """Commit and changed files of the git repository around ``folder``; unknown where there is none, without a commit
    where it has none yet."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=all", "-z")
    if commit is None or status is None:
        return SourceState(None, None if status is None else True)
    changed = tuple(sorted(_porcelain_paths(status)))
    return SourceState(commit.strip(), bool(changed), changed)


def names_in_repository(*paths: Path) -> tuple[str, ...]:
    """The paths as git names them, relative to the repository around the working folder; without git, to that folder.

    One that the working folder lies in is left out: it holds the sources too.
    """
    here = Path.cwd()
    top = (_git(here, "rev-parse", "--show-toplevel") or str(here)).strip()
    found = [path.expanduser().resolve() for path in paths]
    return tuple(
        Path(os.path.relpath(path, top)).as_posix()
        for path in found
        if not here.resolve().is_relative_to(path)
    )


def measured_source(report: Path | None) -> SourceState:
    """:func:`source_state` of the working folder, without the reports of this run and of others before it.

    Args:
        report: folder that this run writes to besides :data:`~wan_trt_core.config.OUTPUTS`.
    """
    from wan_trt_core.config import OUTPUTS

    return source_state(Path.cwd()).without(names_in_repository(OUTPUTS, *([report] if report else [])))


def throttle_counters() -> dict[str, int]:
    """Counters that rise when the machine is slowed down or held to its quota, by name; read it before and after
    measuring."""
    counters: dict[str, int] = {}
    for path in sorted(
        (_ROOT / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    ):
        if (text := _read(path).strip()).isdigit():
            counters[f"{path.parent.parent.name} {_CPU_THERMAL}"] = int(text)
    for line in _read(_ROOT / "sys/fs/cgroup/cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "nr_throttled" and value.isdigit():
            counters["cgroup quota throttling"] = int(value)
    for reason in _gpu_slowdowns():
        counters[f"GPU {reason}"] = 1
    return counters


def slows_down(name: str) -> bool:
    """Whether a counter of :func:`throttle_counters` that rose is of a machine that was slowed down.

    A cgroup's quota is no slowdown: where it is set it holds all the time, and the noise floor judges it.
    """
    return name.startswith("GPU ") or name.endswith(_CPU_THERMAL)


def throttled(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """What slowed the machine down between two readings of :func:`throttle_counters`; empty if nothing did.

    A GPU's reasons are states and not counters, so one that holds at either end counts.
    """
    found = [
        name
        for name, value in after.items()
        if slows_down(name) and (name.startswith("GPU ") or value > before.get(name, 0))
    ]
    found += [name for name in before if name.startswith("GPU ") and name not in after]
    return ", ".join(sorted(found))


def _device_record(device: Device) -> dict[str, Any]:
    if device == "cpu":
        return {"type": "cpu"}
    gpu = _cuda_properties()
    import torch

    cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version
    record: dict[str, Any] = {
        "type": "cuda",
        "name": gpu.name,
        "sm_count": gpu.multi_processor_count,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "memory": gpu.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version(),
    }
    return record | _nvml_record()


def _cuda_properties() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is visible to PyTorch; use device cpu, or check nvidia-smi")
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def _nvml_record() -> dict[str, Any]:
    nvml, handle = nvml_device()
    if nvml is None:
        return {}
    try:
        return {
            "driver": _decoded(nvml.nvmlSystemGetDriverVersion()),
            "uuid": _decoded(nvml.nvmlDeviceGetUUID(handle)),
            "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
    except nvml.NVMLError as error:  # a virtual GPU may keep some of these to itself
        return {"nvml_error": str(error)}


def _gpu_slowdowns() -> tuple[str, ...]:
    nvml, handle = nvml_device()
    if nvml is None:
        return ()
    return tuple(reason for reason in clock_reasons(nvml, handle) or () if reason in GPU_SLOWDOWNS)


def clock_reasons(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    """Why a GPU does not run at its highest clock right now; empty where it does, ``None`` where it does not say."""
    try:
        mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except nvml.NVMLError:
        return None
    return tuple(text for name, text in _NVML_REASONS.items() if mask & getattr(nvml, name, 0))


def nvml_device() -> tuple[Any, Any]:
    """NVML and the handle of PyTorch's current device; ``(None, None)`` unless this process uses a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    try:
        import pynvml
    except ImportError:  # comes with the extra "gpu"
        return None, None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    except (pynvml.NVMLError, AttributeError):
        return None, None
    for kind in ("GPU", "MIG"):  # a whole one, or a slice
        with suppress(pynvml.NVMLError):
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}".encode())
    return None, None


def _decoded(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None
    return result.stdout


def _porcelain_paths(status: str) -> list[str]:
    """Paths of ``git status --porcelain -z``; a rename is followed by the old name, changed as well."""
    fields = iter(status.split("\0"))
    paths = []
    for field in fields:
        if not field:
            continue
        paths.append(field[3:])
        if field[0] in "RC":
            paths.append(next(fields, ""))
    return [path for path in paths if path]


def _cgroup_cpus(root: Path) -> float | None:
    """Cores that the cgroup's quota comes to, v2 then v1."""
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    if not quota:
        quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
