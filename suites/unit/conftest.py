"""Fixtures of the unit tests: the embedded checkpoint and settings that touch no user folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import wan_trt_core

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def tiny_wan_folder() -> Path:
    """The embedded checkpoint (another folder of the same configuration may be named while training)."""
    embedded = Path(wan_trt_core.__file__).parent / "models" / "tiny_wan"
    return Path(os.environ.get("WAN_TRT_TEST_CHECKPOINT", embedded))
