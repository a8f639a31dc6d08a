"""The pytest plugin ``wan_trt``: parity, performance and memory suites for Wan models.

Hooks only: state is in ``session``, each step in a module of its own, and nothing heavy (torch, diffusers,
pydantic) is imported before a test needs it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from wan_trt_core.pytest_plugin import collecting, hookspecs, judging, measuring, options, reporting, xdist
from wan_trt_core.pytest_plugin.fixtures import (
    wan_baselines,
    wan_case,
    wan_engines,
    wan_judge,
    wan_measure,
    wan_model,
    wan_settings,
)
from wan_trt_core.pytest_plugin.session import SESSION, WanSession

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.records import Measurement

__all__ = [
    "wan_baselines",
    "wan_case",
    "wan_engines",
    "wan_judge",
    "wan_measure",
    "wan_model",
    "wan_settings",
]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare ``pytest_wan_measure``, ``pytest_wan_explain`` and ``pytest_wan_hardware_key``."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options ``--wan-…``."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, the state, and (not in xdist's workers) the collector of results."""
    options.add_markers(config)
    session = config.stash[SESSION] = WanSession(config)
    if not xdist.is_worker(config):
        config.pluginmanager.register(reporting.Collector(session), "wan_trt_collector")
        xdist.register(session)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is judged, on what, and whether it gates; a worker has nobody to tell, and no device yet."""
    return [] if xdist.is_worker(config) else reporting.header(config.stash[SESSION])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``wan_case`` once for each case of its suite."""
    collecting.parametrize(metafunc, metafunc.config.stash[SESSION])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stop before anything runs when the case file is wrong or the selection cannot be judged."""
    collecting.check(config.stash[SESSION], items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send the case's record with the report, and fail an item that nothing judged."""
    report = yield
    judging.attach(item, call, report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_wan_measure(case: Case, suite: Suite, session: WanSession) -> Measurement:
    """Measure the case with its engines, unless another plugin did."""
    return measuring.measure(case, suite, session)


@pytest.hookimpl(trylast=True)
def pytest_wan_explain(
    case: Case, suite: Suite, session: WanSession, measurement: Measurement, baseline: BaselineEntry | None
) -> tuple[str, ...]:
    """Say why a case failed, unless another plugin did."""
    return measuring.explain(case, suite, session, measurement, baseline)


@pytest.hookimpl(trylast=True)
def pytest_wan_hardware_key(session: WanSession) -> str:
    """Name this machine, unless another plugin did."""
    return measuring.hardware_key(session.settings, session.backend)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Release the engines."""
    if SESSION in config.stash:
        config.stash[SESSION].close()
