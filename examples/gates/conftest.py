"""Measurements by hand: ``measured.yaml`` says what each case measures, and no engine runs."""

from __future__ import annotations

from pathlib import Path

import yaml

from wan_trt_core.backends.base import BackendUnavailable
from wan_trt_core.cases import Case, Suite
from wan_trt_core.records import Measurement


def pytest_wan_hardware_key() -> str:
    """The baselines are those of no machine."""
    return "by-hand"


def pytest_wan_measure(case: Case, suite: Suite) -> Measurement:
    """What the file has for the case; a text is the error that measuring ends with."""
    found = yaml.safe_load(Path(__file__).with_name("measured.yaml").read_text())[case.id]
    if isinstance(found, str):
        raise BackendUnavailable(found)
    return Measurement.model_validate(found)


def pytest_wan_explain() -> tuple[str, ...]:
    """There is no engine whose blocks could be compared."""
    return ()
