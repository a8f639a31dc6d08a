"""Which backends there are: one for each module or folder beside this file, and those of other installed packages
(:mod:`wan_trt_core.models.installed`)."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from wan_trt_core.backends.base import Backend, Device, EngineBackend, EngineError, ModuleBackend
from wan_trt_core.config import AUTO, ON_ANY_MACHINE
from wan_trt_core.models import installed

if TYPE_CHECKING:
    from wan_trt_core.config import Settings

logger = logging.getLogger(__name__)

_NOT_BACKENDS = frozenset({"base", "registry"})

_RUNS_ON: Mapping[str, Device] = {
    "onnxruntime": "cpu",
    "onnxruntime-cuda": "cuda",
    "onnxruntime-tensorrt": "cuda",
    "tensorrt": "cuda",
}
"""Where a backend of this package runs that runs in one place only: its ``runs_on``, which to ask would import it."""


class UnknownBackend(ValueError):
    """No backend of that name, or none that can be used; the message lists those that exist, or names the package."""


def backend_names() -> tuple[str, ...]:
    """Names of all backends as case files write them, in alphabetical order. Imports none of them."""
    return tuple(sorted({*own_names(), *installed.names(installed.BACKENDS)}))


def own_names() -> tuple[str, ...]:
    """Those of this package's backends, in alphabetical order."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(
        sorted(
            name.replace("_", "-")
            for name in modules
            if name not in _NOT_BACKENDS and not name.startswith("_")
        )
    )


def get_backend(name: str) -> Backend:
    """The backend of that name. Whether it can run here is for its ``require`` to say.

    Raises:
        UnknownBackend: when there is none, or what another package brings cannot be used.
    """
    own, brought = name in own_names(), name in installed.names(installed.BACKENDS)
    if own and brought:
        packages = installed.packages_with(installed.BACKENDS, name)
        raise UnknownBackend(f"{packages} brings a backend {name!r}, which there is already: rename that one")
    if brought:
        return _brought(name)
    if not own:
        raise UnknownBackend(f"no backend {name!r}; there are {', '.join(backend_names())}")
    module = importlib.import_module(f"wan_trt_core.backends.{name.replace('-', '_')}")
    backend: Backend = module.BACKEND
    return backend


def engine_backend(name: str) -> EngineBackend:
    """As :func:`get_backend`, of one that has engines.

    Raises:
        EngineError: for one that runs PyTorch modules.
    """
    backend = get_backend(name)
    if not isinstance(backend, EngineBackend):
        raise EngineError(f"the backend {name} runs PyTorch modules and has no engines")
    return backend


def _brought(name: str) -> Backend:
    """What another package brings under that name.

    Raises:
        UnknownBackend: when it cannot be imported, or is none.
    """
    try:
        found: object = installed.load(installed.BACKENDS, name)
    except installed.InstalledError as error:
        raise UnknownBackend(str(error)) from error
    what = (
        f"{name!r} of {installed.BACKENDS}, brought by {installed.packages_with(installed.BACKENDS, name)},"
    )
    if not isinstance(found, (EngineBackend, ModuleBackend)):
        raise UnknownBackend(f"{what} is {found!r}, expected an EngineBackend or ModuleBackend")
    if (named := getattr(found, "name", None)) != name:
        raise UnknownBackend(f"{what} is a backend named {named!r}, expected one named {name!r}")
    return found


def runs_on(backend: str) -> Device | None:
    """Where a backend runs that runs in one place only; None for one that runs on either, and for an unknown name. One
    of another package is asked itself.

    Raises:
        UnknownBackend: when what another package brings cannot be used.
    """
    if backend in installed.names(installed.BACKENDS):
        return get_backend(backend).runs_on
    return _RUNS_ON.get(backend)


def with_backend(settings: Settings) -> Settings:
    """The settings with a backend in the place of ``auto``. One line of the log says which, and why."""
    if settings.backend != AUTO:
        return settings
    backend, why = _automatic(settings)
    logger.info("backend %s: %s", backend, why)
    return settings.model_copy(update={"backend": backend})


def _automatic(settings: Settings) -> tuple[str, str]:
    """What ``auto`` is with these settings on this machine, and why. A TensorRT that is there and broken is chosen: its
    ``require`` says what is wrong, where the CPU would take hours for a published model's video."""
    if settings.device == "cpu":
        return ON_ANY_MACHINE, "the setting device is cpu"
    if find_spec("tensorrt") is None:
        return ON_ANY_MACHINE, "TensorRT is not installed"
    import torch

    if not torch.cuda.is_available():
        return ON_ANY_MACHINE, "PyTorch sees no CUDA device"
    return "tensorrt", "TensorRT is installed, and PyTorch sees a CUDA device"


def device_of(settings: Settings, backend: str | None = None) -> Device:
    """Where both arms of every comparison run: as the settings say, else where the backend runs.

    PyTorch's backends take a CUDA GPU where there is one.

    Args:
        backend: the candidate's; that of the settings unless given.

    Raises:
        UnknownBackend: as :func:`runs_on`.
    """
    if settings.device != "auto":
        return settings.device
    backend = backend or settings.backend
    if only := runs_on(_automatic(settings)[0] if backend == AUTO else backend):
        return only
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tell_idle_gpu(settings: Settings, backend: str) -> None:
    """One line of the log where a backend of the CPU alone is to make videos and there is a GPU, unless the settings
    name the device: a published model would take hours."""
    import torch

    if settings.device == "auto" and runs_on(backend) == "cpu" and torch.cuda.is_available():
        logger.warning(
            "%s runs on the CPU, and there is a GPU: name the backend tensorrt (WAN_TRT_BACKEND) to use it, or set"
            " device to cpu",
            backend,
        )


def of_one_device(settings: Settings, backends: Iterable[str]) -> str | None:
    """One of these backends if all of them run on one device, which a run of them is then of; else ``None``."""
    names = sorted(set(backends))
    return names[0] if len({device_of(settings, name) for name in names}) == 1 else None
