"""The ``tensorrt`` backend: what the rest of the program sees."""

from __future__ import annotations

import mmap
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from filelock import FileLock, Timeout

from wan_trt_core.backends.base import Device, Engine, EngineBackend, EngineError, OnnxModel, Progress
from wan_trt_core.backends.tensorrt.api import message_log, reasons, tensorrt
from wan_trt_core.backends.tensorrt.cuda import CudaStream, free_memory, require_cuda
from wan_trt_core.backends.tensorrt.plan import Description, read_description, tf32
from wan_trt_core.distributions import TENSORRT, distribution_versions
from wan_trt_core.gates.formatting import GIB

if TYPE_CHECKING:
    from wan_trt_core.backends.tensorrt.runtime import Scratch
    from wan_trt_core.config import Settings, TensorRtSettings


class TensorRtBackend(EngineBackend):
    """Builds, loads and runs with TensorRT on the current GPU."""

    name: ClassVar[str] = "tensorrt"
    runs_on: ClassVar[Device | None] = "cuda"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16")

    def require(self, settings: Settings) -> None:
        """Raise unless TensorRT, a GPU and cuda-python are there.

        Raises:
            BackendUnavailable: with what is missing and what to install.
        """
        tensorrt()
        require_cuda()

    def versions(self) -> dict[str, str]:
        """Versions of TensorRT, by its packages for a CUDA too, and of cuda-python."""
        return {**self.built_by(), **distribution_versions("cuda-python")}

    def built_by(self) -> dict[str, str]:
        """Versions of TensorRT alone: cuda-python only runs what it built."""
        found = distribution_versions(*TENSORRT)
        return {"tensorrt": tensorrt().__version__, **found}

    def options(self, settings: Settings, precision: str) -> dict[str, Any]:
        """What the plan depends on beside the graph."""
        chosen = settings.tensorrt
        return {
            "profiles": list(chosen.profiles),
            "workspace_gib": chosen.workspace_gib,
            "optimization_level": chosen.optimization_level,
            "max_tactics": chosen.max_tactics,
            "weight_streaming": chosen.weight_streaming,
            "tf32": tf32(settings, precision),
        }

    def device(self, settings: Settings) -> str:
        """The GPU: a plan loads only on one of the same kind."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return (
            f"{properties.name} sm{properties.major}{properties.minor} {properties.multi_processor_count} SMs"
        )

    def build(
        self, model: OnnxModel, folder: Path, settings: Settings, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build a plan, alone on its GPU.

        Raises:
            EngineError: when TensorRT refuses the model or cannot build it, or another process builds there for
                longer than ``engine_lock_timeout``.
            BackendUnavailable: as :meth:`require`.
        """
        from wan_trt_core.backends.tensorrt.builder import build_plan

        self.require(settings)
        timings = self._timing_cache(settings)
        timings.parent.mkdir(parents=True, exist_ok=True)
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        # kernels are chosen by their time: two builds at once on one GPU would time each other, and keep the result
        lock = FileLock(timings.parent / f"{gpu}.building.lock")
        try:
            lock.acquire(timeout=settings.engine_lock_timeout)
        except Timeout as error:
            raise EngineError(
                f"another process has been building an engine on this GPU for over {settings.engine_lock_timeout:g} s"
                " (engine_lock_timeout), and kernels are chosen on a quiet one"
            ) from error
        try:
            return build_plan(model, folder, settings, timings, progress)
        finally:
            lock.release()

    def load(self, folder: Path, settings: Settings) -> Engine:
        """Load a plan onto the current GPU.

        Raises:
            EngineError: when the folder holds no plan, or one that this TensorRT or GPU refuses.
            BackendUnavailable: as :meth:`require`.
        """
        from wan_trt_core.backends.tensorrt.runtime import TensorRtEngine

        self.require(settings)
        description = read_description(folder)
        device = torch.device("cuda", torch.cuda.current_device())
        log = message_log()
        try:
            plan = _mapped(folder / description.plan)
        except (OSError, ValueError) as error:  # a file without a byte cannot be mapped
            raise EngineError(f"engine {description.name}: its plan cannot be read: {error}") from error
        engine = tensorrt().Runtime(log).deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"engine {description.name}: TensorRT {tensorrt().__version__} refuses the plan on"
                f" {torch.cuda.get_device_name(device)}: {reasons(log)}; the plan has {len(plan) / GIB:.2f} GiB,"
                f" {free_memory()}"
            )
        chosen = settings.tensorrt
        weights = len(plan) - (
            _stream_weights(engine, description, chosen, log) if chosen.weight_streaming else 0
        )
        stream, scratch = _shared(device)
        if not chosen.share_scratch:
            scratch = type(scratch)(device)
        return TensorRtEngine(description, engine, stream, scratch, chosen, weights, log)

    def _timing_cache(self, settings: Settings) -> Path:
        name = re.sub(r"[^a-z0-9.]+", "-", f"{tensorrt().__version__}-{self.device(settings)}".lower())
        return settings.cache / "tensorrt" / f"{name}.timing"


def _mapped(path: Path) -> mmap.mmap:
    """A file's bytes where the system keeps them: a copy would need as much host memory again as the weights."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _stream_weights(engine: Any, description: Description, chosen: TensorRtSettings, log: Any) -> int:
    """Keep as many weights on the GPU as the budget says, all of them where there is none; returns the bytes that stay
    in host memory. Before any context is made, as TensorRT demands.

    Raises:
        EngineError: when TensorRT does not take the budget, which it tells in its log alone.
    """
    most, budget = int(engine.streamable_weights_size), chosen.weight_streaming_budget_gib
    kept = most if budget is None else min(int(budget * GIB), most)
    engine.weight_streaming_budget_v2 = kept
    if engine.weight_streaming_budget_v2 != kept:
        raise EngineError(
            f"engine {description.name}: {kept / GIB:.2f} GiB of weights do not stay on the GPU"
            f" (tensorrt.weight_streaming_budget_gib): {reasons(log)}; {free_memory()}"
        )
    return most - kept


@cache
def _shared(device: torch.device) -> tuple[CudaStream, Scratch]:
    """The stream and the scratch memory of all engines on a GPU."""
    from wan_trt_core.backends.tensorrt.runtime import Scratch

    return CudaStream(device), Scratch(device)
