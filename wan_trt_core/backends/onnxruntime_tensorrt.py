"""ONNX Runtime's TensorRT provider: TensorRT builds and runs the graph, CUDA what it does not take.

An engine folder holds the graph as it was exported and, beside it, what the provider built of it; loading it builds
nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from torch import Tensor

from wan_trt_core.backends._tensors import within
from wan_trt_core.backends.base import Device, EngineError, OnnxModel
from wan_trt_core.backends.onnxruntime import Description, OnnxRuntimeEngine, new_session, session_options
from wan_trt_core.backends.onnxruntime_cuda import (
    OnnxRuntimeCudaBackend,
    OnnxRuntimeGpuEngine,
    cuda_options,
    device_options,
)
from wan_trt_core.distributions import TENSORRT, distribution_versions

if TYPE_CHECKING:
    from wan_trt_core.backends.onnxruntime import Providers
    from wan_trt_core.backends.tensorrt.cuda import CudaStream
    from wan_trt_core.config import Settings

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable of NVIDIA's libraries: ``0`` forbids TF32. The provider has no switch of its own."""

_LEVEL = "disabled"
"""TensorRT optimises the graph itself, and the engine's name depends on the graph that it is given."""


class OnnxRuntimeTensorRtEngine(OnnxRuntimeGpuEngine):
    """A session on engines that the TensorRT provider built for a range of shapes."""

    @property
    def problems(self) -> tuple[str, ...]:
        """TF32 where the settings forbid it."""
        if self.description.precision != "fp32" or self._settings.perf.allow_tf32 or not _tf32():
            return ()
        return (
            f"{self.name}: built with TF32, which is not allowed here (perf.allow_tf32) and ONNX Runtime's TensorRT"
            f" provider cannot switch off; run with {TF32_OVERRIDE}=0",
        )

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`run`, the named outputs written into the given tensors without a copy.

        Raises:
            EngineError: also for shapes outside those that the engine was built for: the provider would build anew.
        """
        for name, points in self.description.shapes.items():
            if name in inputs and not within(tuple(inputs[name].shape), points["min"], points["max"]):
                raise EngineError(
                    f"{self.name}: input {name!r} has shape {tuple(inputs[name].shape)}, the engine is built for"
                    f" {tuple(points['min'])} to {tuple(points['max'])}"
                )
        return super().run_into(inputs, outputs)


class OnnxRuntimeTensorRtBackend(OnnxRuntimeCudaBackend):
    """Builds, loads and runs with ONNX Runtime's TensorRT provider on the current GPU."""

    name: ClassVar[str] = "onnxruntime-tensorrt"
    runs_on: ClassVar[Device | None] = "cuda"
    provider: ClassVar[str] = "TensorrtExecutionProvider"
    install: ClassVar[str] = 'pip uninstall -y onnxruntime && pip install "wan-trt-core[gpu,tensorrt]"'
    engine: ClassVar[type[OnnxRuntimeEngine]] = OnnxRuntimeTensorRtEngine

    def versions(self) -> dict[str, str]:
        """Versions of ONNX Runtime and of TensorRT, as far as it came as a package."""
        return {**super().versions(), **distribution_versions(*TENSORRT)}

    def options(self, settings: Settings, precision: str) -> dict[str, Any]:
        """What the engine depends on beside the graph."""
        return {
            "provider": self.provider,
            "workspace_gib": settings.tensorrt.workspace_gib,
            "optimization_level": settings.tensorrt.optimization_level,
            "tf32": _tf32(),
        }

    def remedy(self) -> str:
        """What helps where the provider does not load."""
        return (
            'a missing libnvinfer.so.10 is TensorRT 10 (pip install "tensorrt<11"), a missing library of CUDA:'
            f" {super().remedy()}"
        )

    def load_libraries(self) -> None:
        """CUDA's libraries, and TensorRT's where its package brought them."""
        super().load_libraries()
        # Without the package they may still lie on the loader's path; where they do not, the loader says so.
        with suppress(ImportError, OSError):
            import tensorrt  # noqa: F401

    def make(self, model: OnnxModel, description: Description, folder: Path, settings: Settings) -> int:
        """Copy the graph and let the provider build its engines beside it; returns their bytes."""
        for file in model.path.parent.glob(f"{model.path.name}*"):  # the graph and its external data
            shutil.copyfile(file, folder / file.name)
        timings = self._timings(settings)
        with self._building_alone(timings, settings):
            self._session(folder, description, settings, None, timings, "building")
        engines = _engines(folder)
        if not engines:
            raise EngineError(f"building engine {description.name}: TensorRT took no part of the graph")
        return sum((folder / name).stat().st_size for name in engines)

    def session(
        self, folder: Path, description: Description, settings: Settings, stream: CudaStream | None
    ) -> Any:
        """ONNX Runtime's session for an engine on disk.

        Raises:
            EngineError: also when the provider did not take the stored engine but built another.
        """
        before = _engines(folder)
        session = self._session(folder, description, settings, stream, None, "loading")
        if new := sorted(_engines(folder) - before):
            for name in new:
                (folder / name).unlink()
            raise EngineError(
                f"loading engine {description.name}: TensorRT built {', '.join(new)} instead of loading"
                f" {', '.join(sorted(before)) or 'an engine'}: it is of another TensorRT or GPU;"
                " `wan-trt engines prune --unused`, then build again"
            )
        return session

    def _session(
        self,
        folder: Path,
        description: Description,
        settings: Settings,
        stream: CudaStream | None,
        timings: Path | None,
        doing: str,
    ) -> Any:
        chosen = settings.tensorrt
        options = {
            **device_options(stream),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            # Off, the network is strongly typed: every operator has the type that the graph says.
            "trt_fp16_enable": "False",
            "trt_builder_optimization_level": str(chosen.optimization_level),
            "trt_timing_cache_enable": str(timings is not None),
            **{
                f"trt_profile_{point}_shapes": _profile(description, point) for point in ("min", "opt", "max")
            },
        }
        if timings is not None:
            options["trt_timing_cache_path"] = str(timings)
        if chosen.workspace_gib is not None:
            options["trt_max_workspace_size"] = str(int(chosen.workspace_gib * (1 << 30)))
        # No CUDA graphs: this provider's replay with the addresses of the first call.
        rest = cuda_options(settings, stream, cuda_graph=False)
        providers: Providers = [(self.provider, options), ("CUDAExecutionProvider", rest)]
        return new_session(
            folder / description.graph,
            session_options(settings, _LEVEL),
            providers,
            f"{doing} engine {description.name}",
        )

    def _timings(self, settings: Settings) -> Path | None:
        """Folder of the kernels' timings, for all builds with these versions; the provider names the file by GPU."""
        if not settings.tensorrt.timing_cache:
            return None
        return settings.cache / "tensorrt" / "-".join(("ort", *self.versions().values()))

    def _building_alone(self, timings: Path | None, settings: Settings) -> AbstractContextManager[Any]:
        """The provider reads and writes its timings without a lock: one build at a time."""
        if timings is None:
            return nullcontext()
        timings.mkdir(parents=True, exist_ok=True)
        return FileLock(timings / "lock", timeout=settings.engine_lock_timeout)


def _tf32() -> bool:
    return os.environ.get(TF32_OVERRIDE) != "0"


def _profile(description: Description, point: str) -> str:
    """As the provider takes it: ``latents:1x16x5x8x8,timestep:1``."""
    shapes = {name: points[point] for name, points in description.shapes.items()}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items() if shape)


def _engines(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.engine")}


BACKEND = OnnxRuntimeTensorRtBackend()
