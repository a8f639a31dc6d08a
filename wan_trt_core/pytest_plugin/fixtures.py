"""Fixtures; the state behind them is the session's, and heavy imports happen inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from wan_trt_core.pytest_plugin import judging
from wan_trt_core.pytest_plugin.collecting import NoCases, suite_of
from wan_trt_core.pytest_plugin.session import SESSION, Stored, WanSession

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.pipeline.engines import EngineStore
    from wan_trt_core.records import CaseRecord, Measurement


def _session(request: pytest.FixtureRequest) -> WanSession:
    return request.config.stash[SESSION]


@pytest.fixture(scope="session")
def wan_settings(request: pytest.FixtureRequest) -> Settings:
    """The validated settings: config.yaml, then WAN_TRT_* variables, then the --wan- options."""
    return _session(request).settings


@pytest.fixture
def wan_case(request: pytest.FixtureRequest) -> Case:
    """A case of the suite that the test is marked with (parity, perf, memory): one test for each."""
    case: Case | NoCases = request.param
    if isinstance(case, NoCases):
        pytest.fail(case.message, pytrace=False)
    return case


@pytest.fixture(scope="session")
def wan_model(request: pytest.FixtureRequest) -> Callable[[Case], ResolvedModel]:
    """Open the checkpoint of a case: wan_model(wan_case). Each is opened once a session."""
    return lambda case: _session(request).context.model(case)


@pytest.fixture(scope="session")
def wan_engines(request: pytest.FixtureRequest) -> EngineStore:
    """The engines of this session: built or taken from the cache when first asked for, then kept loaded."""
    return _session(request).context.engines


@pytest.fixture(scope="session")
def wan_baselines(request: pytest.FixtureRequest) -> Callable[[Case, Suite], Stored]:
    """What is stored for a case on this hardware: wan_baselines(wan_case, "parity")."""
    return _session(request).stored


@pytest.fixture
def wan_measure(request: pytest.FixtureRequest) -> Callable[[Case, Suite], Measurement]:
    """Measure a case: wan_measure(wan_case, "parity"). Numbers only; wan_judge makes the verdict of them."""
    session = _session(request)

    def measure(case: Case, suite: Suite) -> Measurement:
        from wan_trt_core.records import Interrupted

        request.node.stash[judging.STARTED] = time.perf_counter()
        measurement: Measurement
        try:
            measurement = session.config.hook.pytest_wan_measure(case=case, suite=suite, session=session)
        except Interrupted as interrupted:  # the numbers are there; a verdict on them, and then the end
            measurement = interrupted.measurement
            request.session.shouldstop = "interrupted"
        return measurement

    return measure


@pytest.fixture
def wan_judge(request: pytest.FixtureRequest, wan_case: Case) -> Callable[[Measurement], CaseRecord]:
    """Judge a measurement of this test's case, record it, and fail the test unless the verdict is pass."""
    session = _session(request)

    def judge(measurement: Measurement) -> CaseRecord:
        __tracebackhide__ = True
        return judging.judge_item(request.node, session, wan_case, suite_of(request.node), measurement)

    return judge
