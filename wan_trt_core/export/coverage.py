"""Which ONNX operators a model uses: what a backend must be able to run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto


def operator_counts(path: Path) -> dict[str, int]:
    """Operators and how often each occurs, subgraphs included, most frequent first.

    An operator outside the standard domain is named with its domain, as ``com.microsoft::Gelu``.
    """
    import onnx

    counts: Counter[str] = Counter()
    _count(onnx.load(str(path), load_external_data=False).graph, counts)
    return dict(counts.most_common())


def _count(graph: GraphProto, counts: Counter[str]) -> None:
    for node in graph.node:
        counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                _count(subgraph, counts)
