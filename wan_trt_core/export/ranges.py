"""Whether half precision has the range for a model: the largest activation of every layer, before it is exported.

FP16 ends at 65,504. A model that comes near it on one input leaves it on another, and what was an activation is
infinite from there on; no comparison of two FP16 results shows how near they came.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from wan_trt_core.export.errors import ExportError
from wan_trt_core.models.checkpoint import torch_dtype
from wan_trt_core.models.component import Component

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import Sizes

FP16_LIMIT = 3e4
"""Largest activation that FP16 is used for: less than half of its largest number, for inputs that were not tried."""


def largest_activations(
    component: Component,
    checkpoint: Checkpoint,
    precision: str,
    video: Sizes,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The largest absolute value that each layer of the stock module puts out, in the order of computation.

    Over the component's calibration calls, by the reference in its own precision: what diffusers keeps in float32 there
    has no limit and is left out. Infinite where a layer left the precision's range (NaN included).
    """
    import torch

    dtype, largest = torch_dtype(precision), dict[str, float]()

    def note(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, torch.Tensor) and output.dtype == dtype:
            value = float(output.abs().amax())
            largest[name] = max(largest.get(name, 0.0), math.inf if math.isnan(value) else value)

    calls = component.calibration_calls(checkpoint, video)  # before: what encodes the prompt goes again
    module = checkpoint.load(component.part, precision, device)
    run = component.reference(checkpoint, precision)
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in module.named_modules():
            hooks.callback(_watch(layer, name, note).remove)
        for call in calls:
            run({name: value.to(device) for name, value in call.items()})
    return largest


def require_fp16_range(
    what: str, largest: Mapping[str, float], precisions: Collection[str], *, caches_only: bool = False
) -> None:
    """Raise unless FP16 has the range for these activations.

    Args:
        largest: as :func:`largest_activations`.
        precisions: that the component has, for the way out.
        caches_only: nothing but its caches is to be FP16, for the way out.

    Raises:
        ExportError: when no layer was seen, or one is over :data:`FP16_LIMIT`, naming the first that is and the way
            out.
    """
    if not largest:
        raise ExportError(f"{what}: no layer of the stock module puts out FP16, so its range is not known")
    for layer, value in largest.items():
        if value > FP16_LIMIT:
            reached = f"reaches {value:,.0f}" if math.isfinite(value) else "leaves FP16's range"
            wider = "bf16, which has the range of float32, or " if "bf16" in precisions else ""
            way_out = (
                "turn pipeline.vae_lean off, whose caches are FP16" if caches_only else f"use {wider}fp32"
            )
            raise ExportError(
                f"{what}: {layer} {reached}; FP16 ends at 65,504 and is refused over {FP16_LIMIT:,.0f}: {way_out}"
                " (export.check_range: false exports FP16 all the same)"
            )


def _watch(layer: nn.Module, name: str, note: Any) -> Any:
    return layer.register_forward_hook(lambda _module, _inputs, output: note(name, output))
