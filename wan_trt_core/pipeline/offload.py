"""Components that take turns on the device: each holds memory there only during its own stage of the pipeline.

A stage is named by the part of the checkpoint that it runs (``text_encoder``, ``transformer``, ``vae``). Modules wait
in host memory, pinned, so that they come back at the speed of the bus while the host goes on; they are never copied
out, for their weights do not change. Engines are closed, and loaded again from the cache, whose files the system keeps
in host memory while there is room: another thread does it while the stage before is still at work, where the device
then holds no more than it does in another stage anyway (:func:`fits_beside`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from wan_trt_core.backends.base import Engine, EngineError

if TYPE_CHECKING:
    from diffusers import WanPipeline

NO_GPU = -1
"""What PyTorch takes for no change of the current GPU."""

logger = logging.getLogger(__name__)

Release = Callable[[], object]
"""Gives the device memory of one component back; it comes again when it is used."""


def give_back_cached() -> None:
    """Give the driver what PyTorch's allocator only keeps: engines, their builders and other
    processes take theirs past it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Needs:
    """What a stage holds on the device, bytes: its weights, and what else it needs at work as far as that is known."""

    weights: int
    working: int = 0


def fits_beside(stages: Sequence[Needs]) -> tuple[bool, ...]:
    """For each stage but the last, in their order: whether the weights of the next may come while it is at work, so
    that all of it together is no more than the stage that needs most holds by itself."""
    most = max((stage.weights + stage.working for stage in stages), default=0)
    return tuple(now.weights + now.working + next.weights <= most for now, next in pairwise(stages))


class Turns:
    """Whose turn it is: where one stage begins, what the others hold on the device is given back."""

    def __init__(self) -> None:
        self._members: list[tuple[str, Release]] = []
        self._now: str | None = None

    def join(self, stage: str, release: Release) -> None:
        """Know a component of a stage."""
        self._members.append((stage, release))

    def take(self, stage: str) -> bool:
        """Begin a stage, unless it has begun; returns whether it begins now."""
        if stage == self._now:
            return False
        for other, release in self._members:
            if other != stage:
                release()
        self._now = stage
        give_back_cached()
        return True


class _Member:
    """Of a stage: a component that takes turns, or one that stays and works in a turn of its own."""

    needs = Needs(0)
    followers: tuple[OffloadedEngine, ...] = ()
    """The engines of the next stage, where they may come while this one is at work."""

    def follow(self) -> None:
        """Let the followers come."""
        for engine in self.followers:
            engine.come()


class OffloadedEngine(_Member, Engine):
    """An engine that is loaded when it runs, or in the stage before, and closed while other stages do.

    Args:
        load: loads it; called now, to know its inputs and outputs, and once for each of its turns. It may be called
            from another thread while other engines run.
    """

    def __init__(self, load: Callable[[], Engine], turns: Turns, stage: str) -> None:
        self._load, self._turns, self._stage = load, turns, stage
        self._engine: Engine | None = None
        self._coming: Future[Engine] | None = None
        self._closed = False
        self._without_graphs = 0
        self._gpu = NO_GPU
        engine = self._loaded()
        if torch.cuda.is_initialized():
            self._gpu = torch.cuda.current_device()  # to which it comes back, whichever is current then
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._holds = tuple(holds := engine.memory())
        self._problems = engine.problems
        self.needs = Needs(holds.get("weights", 0), engine.working)
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
        engine = self._engine or self._came()
        return engine.memory() if engine else dict.fromkeys(self._holds, 0)

    @property
    def graphs(self) -> int:
        """As the engine's own; none while it is not loaded."""
        return self._engine.graphs if self._engine else 0

    @property
    def working(self) -> int:
        """As the engine's own, loaded or not."""
        return self.needs.working

    def come(self) -> None:
        """Begin to load it in another thread, unless it is loaded; called where the stage before its own begins."""
        if self._engine is None and self._coming is None and not self._closed:
            thread = ThreadPoolExecutor(1, "onload")
            self._coming = thread.submit(self._loaded_here)
            thread.shutdown(wait=False)  # it ends with what it does

    def stay_away(self) -> None:
        """Release it, unless it has run since it came."""
        if self._coming is not None:
            self.release()

    def bring(self) -> Engine:
        """Load it, which is not loaded, or wait for the thread that does; called when it is to run."""
        if self._coming is not None:
            try:
                self._engine = self._coming.result()
            except Exception as error:  # of whichever stage: there may be room, or a file, now
                logger.warning("an engine could not be loaded ahead and is loaded now: %s", error)
            self._coming = None
        self._engine = self._engine or self._loaded_here()
        return self._engine

    def release(self) -> None:
        """Close it, which is loaded or will be, until it is to run again; called where another's turn begins."""
        if self._coming is not None and self._coming.exception() is None:
            self._engine = self._coming.result()
        self._coming = None
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
        begins = self._turns.take(self._stage)
        engine = self._engine or self.bring()
        if begins:
            self.follow()
        return engine

    def _loaded_here(self) -> Engine:
        with torch.cuda.device(self._gpu):
            return self._load()

    def _came(self) -> Engine | None:
        """What another thread has loaded, if it has done so."""
        coming = self._coming
        if coming is None or not coming.done() or coming.exception() is not None:
            return None
        return coming.result()

    def _leave(self) -> None:
        if self._engine is not None or self._coming is not None:
            self.release()


class OffloadedModule(_Member, ModelHook):  # type: ignore[misc]
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
        self.needs = Needs(sum(host.nbytes for _, host in self._weights))
        self._turns.join(self._stage, self._leave)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the turn, and bring the weights unless they are there."""
        begins = self._turns.take(self._stage)
        if not self._here:
            self.bring()
        if begins:
            self.follow()
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


class _Staying(_Member, ModelHook):  # type: ignore[misc]
    """Of a module that stays where it is while others take turns: diffusers looks for the device that a pipeline works
    on in the first module without a hook. It has a turn too, in which the device holds nothing of the others'."""

    execution_device = None

    def __init__(self, turns: Turns, stage: str) -> None:
        self._turns, self._stage = turns, stage

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Take the turn."""
        if self._turns.take(self._stage):
            self.follow()
        return args, kwargs


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
            hook = (
                _Staying(turns, name) if name in stay else OffloadedModule(turns, name, torch.device(device))
            )
            add_hook_to_module(module, hook)


def overlap(*parts: Any) -> None:
    """Let the engines of each part come while the part before is at work, where :func:`fits_beside` says so. Those that
    were to come before, for a video of another size, go.

    Args:
        parts: those of a pipeline in the order in which they work, with engines or under :func:`offload`; what takes no
            turns follows nothing, and nothing follows it.
    """
    stages = [_members(part) for part in parts]
    needs = [
        Needs(
            sum(each.needs.weights for each in stage), max((each.needs.working for each in stage), default=0)
        )
        for stage in stages
    ]
    for (now, following), fits in zip(pairwise(stages), fits_beside(needs), strict=True):
        engines = tuple(each for each in following if isinstance(each, OffloadedEngine)) if fits else ()
        for member in now:
            for engine in member.followers:
                if engine not in engines:
                    engine.stay_away()
            member.followers = engines


def _members(part: Any) -> Sequence[_Member]:
    hook = getattr(part, "_hf_hook", None)
    if isinstance(hook, _Member):
        return [hook]
    return [engine for engine in getattr(part, "engines", ()) if isinstance(engine, OffloadedEngine)]


def take_off(module: nn.Module) -> None:
    """Undo :func:`offload` for one module, which is in host memory then; others are left alone."""
    if isinstance(getattr(module, "_hf_hook", None), OffloadedModule | _Staying):
        remove_hook_from_module(module)
