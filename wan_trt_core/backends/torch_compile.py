"""``torch.compile`` of diffusers' own modules: what one line of PyTorch gains, beside the engines' gain."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wan_trt_core.backends.base import BackendUnavailable, ModuleBackend
from wan_trt_core.backends.torch import BACKEND as EAGER
from wan_trt_core.distributions import distribution_versions

if TYPE_CHECKING:
    from torch import nn

    from wan_trt_core.config import Settings

PROBE = (
    "#include <Python.h>\n#include <cmath>\n#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
)
"""What inductor's kernels include: without one of these headers every compilation fails at its first call."""
PROBE_TIMEOUT = 60.0
"""Seconds after which a compiler that does not come back counts as not working."""


class TorchCompileBackend(ModuleBackend):
    """PyTorch's own compiler, with inductor."""

    name: ClassVar[str] = "torch-compile"
    refuses: ClassVar[tuple[str, ...]] = ("pipeline.offload", "pipeline.attention_slicing")

    def require(self, settings: Settings) -> None:
        """Raise unless inductor can compile here: a C++ compiler with Python's headers, and Triton on a GPU.

        Raises:
            BackendUnavailable: with what is missing and how to get it.
        """
        EAGER.require(settings)
        if any(settings.flat()[key] for key in self.refuses):
            raise BackendUnavailable(
                f"{' and '.join(self.refuses)} change what PyTorch's own modules do, and"
                " torch-compile runs compiled ones; use torch or engines"
            )
        find_compiler()
        if settings.device != "cpu":
            _require_triton(required=settings.device == "cuda")

    def versions(self) -> dict[str, str]:
        """Versions of torch, diffusers and, where it is installed, Triton."""
        return distribution_versions("torch", "diffusers", "triton")

    def scope(self, module: nn.Module, settings: Settings) -> str:
        """What of a module is compiled: ``encoder and decoder`` of a VAE, ``repeated blocks`` where the settings ask
        for them and diffusers says which they are, else the ``whole module``."""
        if hasattr(module, "decode"):
            return "encoder and decoder"
        repeated = settings.torch_compile.regional and getattr(module, "_repeated_blocks", None)
        return "repeated blocks" if repeated else "whole module"

    def wrap(self, module: nn.Module, settings: Settings) -> nn.Module:
        """The compiled module; where only a part of it is (:meth:`scope`), a twin that shares the weights.

        ``torch.compile`` covers a module's ``forward`` and a VAE is entered through ``encode`` and ``decode``, so
        compiling the VAE itself would compile nothing that runs.

        What was compiled before is forgotten: PyTorch remembers by a module's code the shapes that it met, would
        compile the next case's for any length, which is slower, and after some shapes would run them eagerly.
        """
        import torch

        torch.compiler.reset()
        mode, scope = settings.torch_compile.mode, self.scope(module, settings)
        if scope == "whole module":
            compiled: Any = torch.compile(module, mode=mode)
            return cast("nn.Module", compiled)
        if scope == "repeated blocks":
            regional: Any = _twin(module)
            regional.compile_repeated_blocks(mode=mode)  # in place, which the original must not see
            return cast("nn.Module", regional)
        halves = ("encoder", "decoder")
        twin = copy.copy(module)
        compiled = {name: torch.compile(module.get_submodule(name), mode=mode) for name in halves}
        # A shallow copy shares the dict of submodules: replacing one there would reach the original.
        twin._modules = {**module._modules, **cast("dict[str, nn.Module]", compiled)}
        return twin


def _twin(module: nn.Module) -> nn.Module:
    """A module of the same weights whose every submodule is another object."""
    twin = copy.copy(module)
    twin._modules = {name: child and _twin(child) for name, child in module._modules.items()}
    return twin


def find_compiler() -> str:
    """The C++ compiler that inductor takes, after a trial compilation.

    The candidates are those of inductor's own search (its ``cpp.cxx`` setting, by default the environment's
    ``CXX`` or g++), looked up anew: inductor remembers its first answer for the life of the process.

    Raises:
        BackendUnavailable: when there is none, or none that compiles what inductor writes.
    """
    failures = []
    for candidate in _candidates():
        failure = _try(candidate)
        if failure is None:
            return candidate
        failures.append(f"{candidate}: {failure}")
    raise BackendUnavailable(
        "torch-compile needs a working C++ compiler with OpenMP and the headers of this Python: "
        f"{'; '.join(failures) or 'none is configured'}. "
        "Install g++ and python3-dev, or name a compiler in CXX"
    )


def _candidates() -> tuple[str, ...]:
    from torch._inductor import config

    configured = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else (config.cpp.cxx,)
    named = tuple(str(compiler) for compiler in configured if compiler)
    chosen = os.environ.get("CXX")  # inductor reads it when it is imported, which may be long ago
    default = "clang++" if sys.platform == "darwin" else "g++"
    return (chosen,) if chosen else tuple(dict.fromkeys((*named, default)))


def _try(compiler: str) -> str | None:
    """Why a compiler does not work, or None when it does."""
    with tempfile.TemporaryDirectory(prefix="wan-trt-") as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE)
        include = sysconfig.get_paths()["include"]
        command = [*compiler.split(), "-std=c++17", "-fopenmp", "-fPIC", "-shared", f"-I{include}"]
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(Path(folder) / "probe.so")],
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            return "not found"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return f"exits with {done.returncode}" + (f" ({lines[0].strip()})" if lines else "")


def _require_triton(*, required: bool) -> None:
    import torch
    from torch.utils._triton import has_triton

    if (required or torch.cuda.is_available()) and not has_triton():
        raise BackendUnavailable(
            "torch-compile on a GPU needs Triton, which does not work here: pip install triton"
        )


BACKEND = TorchCompileBackend()
