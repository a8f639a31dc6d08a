"""Component to ONNX, and the checks on what came out. Importing this package imports no framework."""

from __future__ import annotations

from wan_trt_core.export.errors import ExportError
from wan_trt_core.export.exporter import export_component

__all__ = ["ExportError", "export_component"]
