"""What pytest-xdist changes: workers collect and run, the controller reports, and time cannot be shared.

The controller collects nothing, so a refusal found by a worker travels to it in ``workeroutput``; there it
becomes a usage error (exit code 4) instead of a run of no tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wan_trt_core.pytest_plugin.session import WanSession

REFUSAL = "wan_trt_refusal"


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def register(session: WanSession) -> None:
    """Listen to workers, where there is xdist."""
    if session.config.pluginmanager.hasplugin("xdist"):
        session.config.pluginmanager.register(Controller(session), "wan_trt_xdist")


def perf_refusal(config: pytest.Config, perf_items: Sequence[str]) -> str | None:
    """Why these performance tests cannot be timed here; ``None`` when they can.

    Workers share the machine, and whoever shares it measures the others as well.
    """
    if not perf_items or not is_worker(config):
        return None
    return (
        f"performance cannot be measured under pytest-xdist, whose workers disturb each other's times: "
        f"{len(perf_items)} perf tests are selected ({perf_items[0]} …). Run them alone with "
        "'pytest -m perf -n0' (or '-p no:xdist'), and the others with 'pytest -m \"not perf\"'"
    )


def refuse(session: WanSession, items: list[pytest.Item], message: str) -> None:
    """Stop before anything runs.

    Raises:
        pytest.UsageError: unless this is a worker, which tells its controller and runs nothing.
    """
    session.refusal = message
    if not is_worker(session.config):
        raise pytest.UsageError(message)
    output: dict[str, Any] = session.config.workeroutput  # type: ignore[attr-defined]
    output[REFUSAL] = message
    items.clear()


class Controller:
    """Hooks that exist only where xdist is installed."""

    def __init__(self, session: WanSession) -> None:
        self.session = session
        self._distributed = session.config.getoption("dist", "no") != "no"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over a worker's refusal; a worker that died left no output."""
        message = getattr(node, "workeroutput", {}).get(REFUSAL)
        if message:
            self.session.refusal = message

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A worker's refusal is a usage error of the whole run."""
        if self.session.refusal:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say why nothing ran."""
        if self._distributed and self.session.refusal:
            terminalreporter.write_line(f"ERROR: {self.session.refusal}", red=True)
