"""The repository's own: its tests may run from a source tree that is not installed."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

_PLUGIN = "wan_trt_core.pytest_plugin"


def _registered_by_entry_point() -> bool:
    """Whether pytest has loaded the plugin already; registering it twice is an error."""
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        return False
    return any(point.value == _PLUGIN for point in entry_points(group="pytest11"))


pytest_plugins = ["pytester"] if _registered_by_entry_point() else ["pytester", _PLUGIN]
