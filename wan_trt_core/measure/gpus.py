"""The physical GPUs that this process may use, by names that mean the same to every process of the machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables"""


def visible_gpus(environ: Mapping[str, str] = os.environ, nvml: Any = None) -> tuple[str, ...]:
    """Each GPU once, in the order of ``CUDA_VISIBLE_DEVICES``; without it all there are.

    UUIDs where NVML tells them, else as the variable names them. A slice of a GPU (MIG) shares it with others and is
    left out.

    Args:
        nvml: the module ``pynvml``; imported unless given, and done without where it is not installed.
    """
    uuids = _uuids(nvml)
    if VISIBLE not in environ:
        return uuids
    found: dict[str, None] = {}
    for entry in environ[VISIBLE].split(","):
        name = entry.strip()
        if not name or name.startswith("-"):
            break  # as CUDA does: what follows an invalid entry is not seen
        if name.isdigit() and uuids:
            if int(name) >= len(uuids):
                break
            name = uuids[int(name)]
        elif uuids:
            name = next((uuid for uuid in uuids if uuid.startswith(name)), name)
        if not name.startswith("MIG"):
            found[name] = None
    return tuple(found)


def _uuids(nvml: Any) -> tuple[str, ...]:
    """Of all GPUs of the machine, in the order of their bus addresses; empty where NVML is not there."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:  # comes with the extra "gpu"
            return ()
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    except nvml.NVMLError:
        return ()
    return tuple(uuid.decode() if isinstance(uuid, bytes) else uuid for uuid in uuids)
