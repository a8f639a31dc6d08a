"""``python -m wan_trt_core.cli``: the same as ``wan-trt``."""

from __future__ import annotations

from wan_trt_core.cli.app import main

main()
