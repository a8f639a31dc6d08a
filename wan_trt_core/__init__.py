"""Validation and regression suite for the Wan text-to-video models on TensorRT and ONNX Runtime.

``accelerate`` and ``restore`` put engines into a diffusers pipeline and take them out again; see docs/accelerate.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_trt_core.accelerating import accelerate, restore

__version__ = "0.1.0"
__all__ = ["accelerate", "restore"]


def __getattr__(name: str) -> Any:
    """What needs PyTorch is imported when it is first asked for: the plugin of this package is loaded by every pytest
    run of its environment."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wan_trt_core import accelerating

    return getattr(accelerating, name)
