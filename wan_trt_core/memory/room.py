"""Whether a GPU has room for a video, said before anything is exported, built or loaded for it."""

from __future__ import annotations

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.memory.plan import plan
from wan_trt_core.memory.prediction import Choice, Workload, predict

PREDICTED_WITHIN = 1.1
"""What a prediction of memory may be over the truth: no video is refused that would fit."""


def lacking(work: Workload, choice: Choice, free: int) -> str:
    """What a GPU lacks for a video, and the settings that fit, in words; empty where it has room.

    Args:
        free: bytes that the video may take.
    """
    budget, needed = round(free * PREDICTED_WITHIN), predict(work, choice)
    if needed.peak <= budget:
        return ""
    fits = " or ".join(setting.name for setting in plan(work, choice, budget).fitting[:3])
    return (
        f"such a video needs {quantity(needed.peak, 'B', 3)} of the GPU at its most ({needed.peak_stage}), and"
        f" {quantity(free, 'B', 3)} are free. "
        + (f"What fits: {fits}" if fits else "No settings fit: make a smaller video, or take a larger GPU")
        + " (wan-trt memory plan)"
    )
