"""The PyTorch module that an ONNX node was exported from."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

MODULE_NAMES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter notes on each node the modules that it came from, outermost first, the operation last."""


def module_of(node: NodeProto) -> str:
    """The innermost of them, as ``blocks.3.attn1``; empty where it is not known."""
    noted = {entry.key: entry.value for entry in node.metadata_props}.get(MODULE_NAMES, "[]")
    return next((name for name in reversed(modules_of(noted)) if name), "")


def modules_of(noted: str) -> list[str]:
    """The modules in what the exporter noted, outermost first, the empty name of the model itself among them."""
    try:
        names: list[str] = ast.literal_eval(noted)
    except (SyntaxError, ValueError):
        return []
    return names[:-1]
