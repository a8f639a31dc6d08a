"""Components that take turns on the device: each holds memory there only during its own stage of the pipeline.

A stage is named by the part of the checkpoint that it runs (``text_encoder``, ``transformer``, ``vae``). Modules wait
in host memory, pinned, so that they come back at the speed of the bus while the host goes on; they are never copied
out, for their weights do not change. Engines are closed, and loaded again from the cache, whose files the system keeps
in host memory while there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from wan_trt_core.backends.base import Engine, EngineError

if TYPE_CHECKING:
    from diffusers import WanPipeline

NO_GPU = -1
"""What PyTorch takes for no change of the current GPU."""

Release = Callable[[], object]
"""Gives the device memory of one component back; it comes again when it is used."""


def give_back_cached() -> None:
    """Give the driver what PyTorch's allocator only keeps: engines, their builders and other
    processes take theirs past it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Turns:
    """Whose turn it is: where one stage begins, what the others hold on the device is given back."""

    def __init__(self) -> None:
        self._members: list[tuple[str, Release]] = []
        self._now: str | None = None

    def join(self, stage: str, release: Release) -> None:
        """Know a component of a stage."""
        self._members.append((stage, release))

    def take(self, stage: str) -> None:
        """Begin a stage, unless it has begun."""
        if stage == self._now:
            return
        for other, release in self._members:
            if other != stage:
                release()
        self._now = stage
        give_back_cached()


class OffloadedEngine(Engine):
    """An engine that is loaded when it runs, and closed while other stages do.

    Args:
        load: loads it; called now, to know its inputs and outputs, and at the first run of each of its turns.
    """

    def __init__(self, load: Callable[[], Engine], turns: Turns, stage: str) -> None:
        self._load, self._turns, self._stage = load, turns, stage
        self._engine: Engine | None = None
        self._closed = False
        self._without_graphs = 0
        self._gpu = NO_GPU
        engine = self._loaded()
        if torch.cuda.is_initialized():
            self._gpu = torch.cuda.current_device()  # to which it comes back, whichever is current then
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._holds = tuple(engine.memory())
        self._problems = engine.problems
        turns.join(stage, self._leave)

    @property
    def problems(self) -> tuple[str, ...]:
        """As the engine's own."""
        return self._problems

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the engine's own, which is loaded first where it is not."""
        return self.run_into(inputs, {})

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the engine's own, which is loaded first where it is not."""
        engine = self._loaded()
        with engine.without_graphs() if self._without_graphs else nullcontext():
            return engine.run_into(inputs, outputs)

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """As the engine's own, of however many turns."""
        self._without_graphs += 1
        try:
            yield
        finally:
            self._without_graphs -= 1

    def memory(self) -> dict[str, int]:
        """As the engine's own; nothing while it is not loaded."""
        return self._engine.memory() if self._engine else dict.fromkeys(self._holds, 0)

    @property
    def graphs(self) -> int:
        """As the engine's own; none while it is not loaded."""
        return self._engine.graphs if self._engine else 0

    def bring(self) -> Engine:
        """Load it, which is not loaded; called when it is to run."""
        with torch.cuda.device(self._gpu):
            self._engine = self._load()
        return self._engine

    def release(self) -> None:
        """Close it, which is loaded, until it is to run again; called where another's turn begins."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        give_back_cached()

    def close(self) -> None:
        """Release it for good."""
        self._leave()
        self._closed = True

    def _loaded(self) -> Engine:
        if self._closed:
            raise EngineError("the engine is closed")
        self._turns.take(self._stage)
        return self._engine or self.bring()

    def _leave(self) -> None:
        if self._engine is not None:
            self.release()


class OffloadedModule(ModelHook):  # type: ignore[misc]
    """Accelerate's hook, as diffusers calls it before ``forward`` and ``decode``: it brings the weights."""

    def __init__(self, turns: Turns, stage: str, device: torch.device) -> None:
        self.execution_device = device
        self._turns, self._stage = turns, stage
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._here = False

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Move the module to host memory."""
        for tensor in (*module.parameters(), *module.buffers()):
            host = tensor.data.cpu()
            self._weights.append(
                (tensor, host.pin_memory() if self.execution_device.type == "cuda" else host)
            )
        self._to_host()
        self._turns.join(self._stage, self._leave)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the turn, and bring the weights unless they are there."""
        self._turns.take(self._stage)
        if not self._here:
            self.bring()
        return args, kwargs

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Leave the module in host memory."""
        self._leave()
        return module

    def bring(self) -> None:
        """Move the module to the device, where it is not; called when it is to run."""
        try:
            with torch.inference_mode(False):  # or whoever takes the hook off could never change them again
                for tensor, host in self._weights:
                    tensor.data = host.to(self.execution_device, non_blocking=True, copy=True)
        except BaseException:  # no room for all of them: what came would stay
            self._to_host()
            raise
        self._here = True

    def release(self) -> None:
        """Move the module to host memory until it is to run again; called where another's turn begins."""
        self._to_host()
        give_back_cached()

    def _leave(self) -> None:
        if self._here:
            self.release()

    def _to_host(self) -> None:
        for tensor, host in self._weights:
            tensor.data = host
        self._here = False


class _Staying(ModelHook):  # type: ignore[misc]
    """Of a module that stays where it is while others take turns: diffusers looks for the device that a pipeline works
    on in the first module without a hook."""

    execution_device = None


def offload(
    pipe: WanPipeline,
    turns: Turns,
    device: torch.device | str,
    *,
    stay: Collection[str] = (),
    leave: Collection[str] = (),
) -> None:
    """Let the modules of a pipeline take turns on ``device``; they wait in host memory.

    The modules are changed: they must be this pipeline's alone. Those with a hook of accelerate's are left to it.
    :func:`take_off` undoes it.

    Args:
        stay: parts that run where they are.
        leave: parts that engines will take the place of.
    """
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module) and name not in leave and not hasattr(module, "_hf_hook"):
            hook = _Staying() if name in stay else OffloadedModule(turns, name, torch.device(device))
            add_hook_to_module(module, hook)


def take_off(module: nn.Module) -> None:
    """Undo :func:`offload` for one module, which is in host memory then; others are left alone."""
    if isinstance(getattr(module, "_hf_hook", None), OffloadedModule | _Staying):
        remove_hook_from_module(module)
