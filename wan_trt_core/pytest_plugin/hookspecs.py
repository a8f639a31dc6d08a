"""Hooks of this plugin, for projects that measure by their own means and for tests that need no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.pytest_plugin.session import WanSession
    from wan_trt_core.records import Measurement


@pytest.hookspec(firstresult=True)
def pytest_wan_measure(case: Case, suite: Suite, session: WanSession) -> Measurement | None:
    """Measure one case for one suite; ``None`` leaves it to the next plugin.

    An exception becomes a record with the verdict ``invalid``, and fails the item.
    """


@pytest.hookspec(firstresult=True)
def pytest_wan_explain(
    case: Case, suite: Suite, session: WanSession, measurement: Measurement, baseline: BaselineEntry | None
) -> tuple[str, ...] | None:
    """Say why a case failed, in lines for a person; ``None`` leaves it to the next plugin.

    ``measurement`` is the one that failed, ``baseline`` what it was held against, if anything is stored of the case.
    An exception becomes such a line: the verdict stands whatever happens here.
    """


@pytest.hookspec(firstresult=True)
def pytest_wan_hardware_key(session: WanSession) -> str | None:
    """The name under which this machine's baselines are stored; ``None`` leaves it to the next plugin.

    Raises:
        RuntimeError: when the device asked for is not there; nothing is run then.
    """
