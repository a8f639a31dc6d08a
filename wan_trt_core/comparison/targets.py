"""What a case compares: the reference arm, the candidate arm, and the tensors that both start from.

An arm covers exactly what diffusers' own call does: it starts from the tensors that this call receives and stops
at its output. What the candidate adds (modulation, RoPE tables, casts, copies) is inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from wan_trt_core.backends.base import Engine, EngineBackend, ModuleBackend
from wan_trt_core.backends.registry import get_backend
from wan_trt_core.cases import Case
from wan_trt_core.comparison.blocks import Divergence, trace
from wan_trt_core.comparison.context import COMPOSITES, Context, precision_of
from wan_trt_core.models.components import get_component
from wan_trt_core.models.profiles import POINTS


@dataclass(frozen=True)
class Outputs:
    """What an arm returned: named tensors, a video, or the latents after each denoising step beside it.

    Attributes:
        video: (frames, height, width, 3) float32 in [0, 1].
        latents: one tensor (1, 16, frames, height, width) a denoising step.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    video: Any = None
    latents: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        call: from call tensors to outputs.
        once: work done once a prompt or run and not in each call, to be timed apart.
        forbidden: PyTorch modules that this arm must not run, by name: a candidate that falls back to the
            reference would compare the reference with itself.
    """

    call: Callable[[Any], Outputs]
    once: Callable[[], object] | None = None
    forbidden: Mapping[str, nn.Module] = field(default_factory=dict)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """The names of forbidden modules that run meanwhile."""
        ran: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *_: ran.append(name)

        with ExitStack() as hooks:
            for name, module in self.forbidden.items():
                hooks.callback(module.register_forward_pre_hook(note(name)).remove)
            yield ran


class Target(ABC):
    """The two arms of one case. Engines are exported, built and loaded when first needed."""

    fps: float = 16.0
    steps: int = 1

    def __init__(self, case: Case, context: Context) -> None:
        self.case, self.context = case, context
        self.model = context.model(case)
        self.profile = self.model.profile(case.profile)
        self.components = COMPOSITES.get(case.component, (case.component,))

    @property
    @abstractmethod
    def reference(self) -> Arm:
        """Stock diffusers."""

    @property
    @abstractmethod
    def candidate(self) -> Arm:
        """The case's backend."""

    @abstractmethod
    def perf_inputs(self) -> Any:
        """What one timed call starts from, at the profile's tuned-for size."""

    def parity_inputs(self) -> Mapping[str, Any]:
        """What parity starts from, by name of the point in the profile."""
        return {"opt": self.perf_inputs()}

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on, for the record."""
        engines = {name: engine.memory() for name, engine in self._loaded().items()}
        return {
            "reference": f"diffusers eager, {self._reference_precisions()}",
            "backend_versions": get_backend(self.case.backend).versions(),
            "engines": engines,
        }

    def divergences(self) -> dict[str, Divergence]:
        """Every component of the case with each block's output beside the reference's."""
        if not isinstance(get_backend(self.case.backend), EngineBackend):
            return {}
        return {name: self._divergence(name) for name in self.components}

    def precision(self, component: str) -> str:
        """Precision of a component in the candidate."""
        return precision_of(self.case.precision, component)

    def reference_precision(self, component: str) -> str:
        """Precision of a component in the reference."""
        return precision_of(self.case.reference_precision or self.case.precision, component)

    def engine(self, component: str, *, block_outputs: bool = False) -> Engine:
        """The loaded engine of a component."""
        return self.context.engines.load(
            component,
            self.model,
            self.profile,
            self.precision(component),
            self.case.backend,
            block_outputs=block_outputs,
        )

    def _loaded(self) -> dict[str, Engine]:
        if not isinstance(get_backend(self.case.backend), EngineBackend):
            return {}
        return {name: self.engine(name) for name in self.components}

    def _reference_precisions(self) -> str:
        return ", ".join(f"{name} {self.reference_precision(name)}" for name in self.components)

    def _divergence(self, name: str) -> Divergence:
        component, checkpoint = get_component(name), self.model.checkpoint
        prepare = component.prepare(checkpoint, self.precision(name))
        engine = self.engine(name, block_outputs=True)
        return trace(
            component.reference_blocks(checkpoint, self.reference_precision(name)),
            lambda call: engine.run(prepare(call)),
            component.call_tensors(checkpoint, self.profile.opt),
            component.blocks(checkpoint),
            self.precision(name),
        )


class ComponentTarget(Target):
    """One component: diffusers' own forward against prepare and engine."""

    @cached_property
    def reference(self) -> Arm:
        component = get_component(self.case.component)
        run = component.reference(self.model.checkpoint, self.reference_precision(component.name))
        return Arm(lambda call: Outputs(run(call)))

    @cached_property
    def candidate(self) -> Arm:
        component, checkpoint = get_component(self.case.component), self.model.checkpoint
        precision = self.precision(component.name)
        prepare, engine = component.prepare(checkpoint, precision), self.engine(component.name)
        return Arm(
            lambda call: Outputs(engine.run(prepare(call))),
            once=getattr(prepare, "once", None),
            forbidden=_stock_blocks(self, component.part),
        )

    def perf_inputs(self) -> Any:
        component = get_component(self.case.component)
        return component.call_tensors(self.model.checkpoint, self.profile.opt)

    def parity_inputs(self) -> Mapping[str, Any]:
        component = get_component(self.case.component)
        return {
            point: component.call_tensors(self.model.checkpoint, self.profile.at(point), seed=index)
            for index, point in enumerate(POINTS)
        }
