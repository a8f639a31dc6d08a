"""The measurements unless another plugin supplies them: the one place where the plugin meets torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.config import Settings
    from wan_trt_core.pytest_plugin.session import WanSession
    from wan_trt_core.records import Measurement

SEED = 0
"""The same for every case, so that a case gives the same numbers alone and among others."""

_DRIVER = Path("/proc/driver/nvidia/version")


def measure(case: Case, suite: Suite, session: WanSession) -> Measurement:
    """Measure one case with reference and candidate side by side."""
    import torch

    from wan_trt_core.comparison import measure_case

    torch.manual_seed(SEED)
    return measure_case(case, suite, session.context)


def hardware_key(settings: Settings) -> str:
    """This machine's key for the device that both arms run on."""
    from wan_trt_core.measure.environment import hardware_key

    return hardware_key(device_of(settings))


def device_of(settings: Settings) -> Literal["cpu", "cuda"]:
    """Where both arms run; PyTorch is asked only where there is an NVIDIA driver at all."""
    if settings.device != "auto":
        return settings.device
    if not _DRIVER.exists():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
