"""Engines that run PyTorch modules: the core does not notice, and nothing has to be exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wan_trt_core.backends._tensors import check_inputs
from wan_trt_core.backends.base import Engine, TensorInfo
from wan_trt_core.config import Settings
from wan_trt_core.models.catalogue import ResolvedModel
from wan_trt_core.models.checkpoint import DTYPES, Checkpoint
from wan_trt_core.models.component import TensorSpec
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import ShapeProfile


class ModuleEngine(Engine):
    """Counts its runs, and remembers where its last inputs were."""

    def __init__(
        self, module: nn.Module, inputs: Mapping[str, TensorInfo], outputs: Mapping[str, TensorInfo]
    ) -> None:
        self.module, self.inputs, self.outputs = module, inputs, outputs
        self.runs = 0
        self.closed = False

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_inputs("module", self.inputs, inputs)
        self.runs += 1
        with torch.no_grad():
            results = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))

    def memory(self) -> dict[str, int]:
        return {"weights": sum(tensor.nbytes for tensor in self.module.parameters())}

    def close(self) -> None:
        self.closed = True


def component_engine(
    name: str, checkpoint: Checkpoint, precision: str = "fp32", *, block_outputs: bool = False
) -> ModuleEngine:
    """A component's own graph as an engine."""
    component = get_component(name)

    def infos(specs: tuple[TensorSpec, ...]) -> dict[str, TensorInfo]:
        return {
            spec.name: TensorInfo(DTYPES[precision] if spec.dtype == "precision" else spec.dtype, spec.axes)
            for spec in specs
        }

    blocks = component.blocks(checkpoint) if block_outputs else ()
    return ModuleEngine(
        component.graph(checkpoint, precision, block_outputs=block_outputs),
        infos(component.inputs(checkpoint)),
        infos(component.outputs(checkpoint)) | {name: TensorInfo(DTYPES[precision], ()) for name in blocks},
    )


class Loads:
    """In the place of ``load_engine``: PyTorch runs the very graphs that would be exported."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.engines: list[ModuleEngine] = []
        self.error: Exception | None = None
        self.settings: Settings | None = None

    def __call__(
        self,
        component: str,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: str,
        backend: str,
        settings: Settings,
        **_: Any,
    ) -> ModuleEngine:
        self.settings = settings
        if self.error is not None:
            raise self.error
        self.asked.append((component, profile.name, precision))
        self.engines.append(component_engine(component, model.checkpoint, precision))
        return self.engines[-1]

    def runs(self) -> int:
        return sum(engine.runs for engine in self.engines)
