"""Rules that turn measurements into verdicts: opinion only, pure functions, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wan_trt_core.gates.verdict import Check, Reason, Verdict, decide

if TYPE_CHECKING:
    from wan_trt_core.gates.judging import gate_backends, gate_bands, judge

__all__ = ["Check", "Reason", "Verdict", "decide", "gate_backends", "gate_bands", "judge"]


def __getattr__(name: str) -> Any:
    """Load the rules on first use: the plugin imports the verdicts in every pytest run."""
    if name not in {"gate_backends", "gate_bands", "judge"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wan_trt_core.gates import judging

    return getattr(judging, name)
