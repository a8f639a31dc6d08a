"""The measurements unless another plugin supplies them: the one place where the plugin meets torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.config import Settings
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.pytest_plugin.session import WanSession
    from wan_trt_core.records import Measurement

SEED = 0
"""The same for every case, so that a case gives the same numbers alone and among others."""


def measure(case: Case, suite: Suite, session: WanSession) -> Measurement:
    """Measure one case with reference and candidate side by side."""
    import torch

    from wan_trt_core.backends.registry import device_of
    from wan_trt_core.comparison import measure_case
    from wan_trt_core.comparison.memory import start_server

    if "memory" in session.selected and device_of(session.context.settings, case.backend) == "cpu":
        start_server()
    torch.manual_seed(SEED)
    return measure_case(case, suite, session.context)


def explain(
    case: Case, suite: Suite, session: WanSession, measurement: Measurement, baseline: BaselineEntry | None
) -> tuple[str, ...]:
    """Lines for a person that say why a measured case failed."""
    from wan_trt_core.comparison import explain_case

    return explain_case(case, suite, session.context, measurement, baseline)


def hardware_key(settings: Settings, backend: str) -> str:
    """This machine's key for the device that both arms of a backend's cases run on."""
    from wan_trt_core.measure.environment import hardware_key_of

    return hardware_key_of(settings.model_copy(update={"backend": backend}))
