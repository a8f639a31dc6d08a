"""What goes wrong while a component becomes ONNX."""

from __future__ import annotations


class ExportError(RuntimeError):
    """A component could not be exported, or what came out is wrong; the message names it and the tensor."""


class BlocksDifferError(ExportError):
    """Blocks that are not alike: each has to be traced."""
