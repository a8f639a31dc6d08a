"""``wan-trt``: every step of the main job as a command, one module a group of verbs.

Exit codes: 0 done; 1 it failed, or a verdict did; 2 wrong usage; 3 wrong input (settings, checkpoint, file,
a video's size); 130 interrupted; 143 ended by SIGTERM. Results go to standard output, everything else to standard
error.
"""

from __future__ import annotations

from wan_trt_core.cli.app import app, main

__all__ = ["app", "main"]
