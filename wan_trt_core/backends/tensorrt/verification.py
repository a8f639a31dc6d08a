"""Is the built engine what was meant? Fused attention and precisions, read off the engine inspector's report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FUSED = "mha"
"""Part of the name of every fused attention kernel (``_gemm_mha_v2``)."""

_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
"""A source in a layer's metadata; what stands between two of them differs (0x1f within a fused kernel, else 0x1e)."""

_FORMATS = {
    "BFloat16": "bfloat16",  # before "Float", which is part of it
    "BF16": "bfloat16",
    "Half": "float16",
    "FP16": "float16",
    "Float": "float32",
    "FP32": "float32",
}


@dataclass(frozen=True)
class Layer:
    """One layer of a built engine.

    Attributes:
        sources: names of the ONNX nodes that it computes.
        dtype: of its first output, by PyTorch's name; empty where the inspector does not say.
        taken: dtypes of its inputs.
        beside: dtypes of its other outputs, which a fused kernel may have.
        tactic: the kernel that was chosen, where the inspector says.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    dtype: str
    taken: tuple[str, ...] = ()
    tactic: str = ""
    beside: tuple[str, ...] = ()


def layers_of(report: str) -> tuple[Layer, ...]:
    """The layers in the JSON of ``EngineInspector.get_engine_information`` (10.x and 11.x), all profiles together."""
    entries = json.loads(report).get("Layers", [])
    return tuple(_layer(entry) for entry in entries if isinstance(entry, Mapping))


def unfused_attentions(layers: Iterable[Layer], softmaxes: Iterable[str]) -> tuple[str, ...]:
    """The softmax nodes of the graph's attentions that no fused kernel computes, each with the layer that does."""
    layers = tuple(layers)
    fused = {source for layer in layers if FUSED in layer.name.lower() for source in layer.sources}
    owners = {source: layer.name for layer in layers for source in layer.sources}
    return tuple(
        f"{node} (in layer {owners[node]})" if node in owners else node
        for node in softmaxes
        if node not in fused
    )


def unplanned_precisions(layers: Iterable[Layer], planned: Mapping[str, str]) -> tuple[str, ...]:
    """The graph's products that are computed in another dtype than the graph's, each with the layer that does.

    A layer may take or give another dtype where a cast or a sum in float32 is fused to it, so it is enough that one of
    its outputs or inputs has the planned one.

    Args:
        planned: dtype of each matrix product and convolution, by the name of its node.
    """
    known = _told_of(layers, planned)
    if planned and not known:
        return ("no layer of the inspector's report tells of any product",)
    return tuple(
        f"{node} is {planned[node]} in the graph, and {' and '.join(dict.fromkeys(layer.taken))} to {layer.dtype} "
        f"in layer {layer.name}"
        for node, layer in known
        if planned[node] not in (layer.dtype, *layer.beside, *layer.taken)
    )


def untold_products(layers: Iterable[Layer], planned: Mapping[str, str]) -> tuple[str, ...]:
    """The graph's products of which no layer tells the dtype: :func:`unplanned_precisions` has not seen them.

    Args:
        planned: as there.
    """
    told = {node for node, _ in _told_of(layers, planned)}
    return tuple(node for node in planned if node not in told)


def computed_in(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers compute in each dtype."""
    return dict(Counter(layer.dtype for layer in layers if layer.dtype))


def _told_of(layers: Iterable[Layer], planned: Mapping[str, str]) -> list[tuple[str, Layer]]:
    """The planned products of which a layer tells the dtype, each with every layer that does."""
    return [
        (node, layer)
        for layer in layers
        if layer.dtype or layer.taken
        for node in layer.sources
        if node in planned
    ]


def _layer(entry: Mapping[str, Any]) -> Layer:
    sources = tuple(_SOURCE.findall(str(entry.get("Metadata", ""))))
    dtype, *beside = map(_dtype, entry.get("Outputs") or [{}])
    taken = tuple(filter(None, map(_dtype, entry.get("Inputs") or ())))
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    tactic = str(entry.get("TacticName", ""))
    return Layer(name, kind, sources, dtype, taken, tactic, beside=tuple(filter(None, beside)))


def _dtype(tensor: Mapping[str, Any]) -> str:
    told = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "")
    return next((name for sign, name in _FORMATS.items() if sign in told), "")
