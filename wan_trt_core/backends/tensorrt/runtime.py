"""A loaded plan: bound by name, run on a stream of its own, replayed as a CUDA graph.

What a call costs beside the kernels decides whether small engines gain anything, so three things are kept:

* an execution context for each set of input shapes, with its own bindings;
* buffers for the small inputs and for the small outputs that the caller gives no room for. Small inputs are copied
  into them in one kernel: their addresses then never change, and one graph serves every call. Large tensors (the
  VAE's caches) are read and written where the caller has them, or in new ones that become the caller's;
* a CUDA graph for each context and set of addresses that comes twice, the least recently used given back first.

The engines of a process on one GPU share a stream and their scratch memory: they run one after the other, whatever
threads and streams they are called from.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from wan_trt_core.backends._tensors import check_devices, check_inputs, check_outputs, output_shape, within
from wan_trt_core.backends.base import Engine, EngineError
from wan_trt_core.backends.tensorrt.cuda import CaptureRefused, free_memory
from wan_trt_core.backends.tensorrt.plan import Description, Shapes
from wan_trt_core.backends.tensorrt.verification import Layer, layers_of
from wan_trt_core.gates.formatting import GIB

if TYPE_CHECKING:
    from wan_trt_core.config import TensorRtSettings

STAGED_BYTES = 8 << 20
"""Inputs under this size are copied (in microseconds) to an address that never changes: every latent of a transformer
up to 81 frames of 480p, and not the VAE's caches, of which there would be copies for every shape of tiles."""

ALIGNMENT = 256
"""Bytes to which TensorRT wants the address of a tensor aligned."""

OWN_OUTPUT_BYTES = 8 << 20
"""Outputs under this size are written to a buffer of the engine's own and copied out: the address never changes, so one
graph serves every call. From this size on the copy would cost memory that counts (the first step of the VAE leaves
3.8 GB of caches at 480p, each under 64 MiB in tiles), so they are written into a new tensor. Its address is the one
that PyTorch's allocator gives: mostly the same again in a loop, and where it is not the call is enqueued without a
graph."""

MAX_CONTEXTS = 4
"""Sets of shapes for which a context is kept."""

_log = logging.getLogger(__name__)


class Graph(Protocol):
    """Work recorded on a stream."""

    def launch(self) -> None: ...
    def close(self) -> None: ...


class Scratch:
    """Working memory on one GPU, lent to whichever engine runs. It only grows; growing moves it.

    The last engine to leave gives it back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None
        self._users = 0

    @property
    def bytes(self) -> int:
        """Allocated now."""
        return 0 if self._memory is None else self._memory.nbytes

    def join(self) -> None:
        """One more engine uses it."""
        self._users += 1

    def leave(self) -> None:
        """One engine less."""
        self._users -= 1
        if self._users == 0:
            self._memory = None

    def address(self, size: int) -> int:
        """Where ``size`` bytes lie, aligned; 0 for none.

        Raises:
            EngineError: when the GPU has no room; with what was asked and what is free.
        """
        if size == 0:
            return 0
        if self._memory is None or self._memory.numel() < size + ALIGNMENT:
            if self._memory is not None:
                self._memory = None  # before the new one is asked for: both may not fit
                torch.cuda.empty_cache()  # or it would stay with PyTorch's allocator, too small to serve again
            self._memory = allocate((size + ALIGNMENT,), torch.uint8, self._device, "scratch memory")
        return -(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, what: str) -> Tensor:
    """An empty tensor, or an error that says what was asked and what was free.

    It outlives the call: made in inference mode, it could not be written to once that mode has ended.

    Raises:
        EngineError: when the device has no room.
    """
    try:
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError as error:
        asked = torch.empty(shape, dtype=dtype, device="meta").nbytes
        raise EngineError(
            f"out of memory: {what} of {asked / GIB:.2f} GiB was asked for, {free_memory(device)}"
        ) from error


class TensorRtEngine(Engine):
    """A plan that reads its inputs where they are and writes its outputs where they are wanted.

    Args:
        description: what was built.
        engine: TensorRT's ``ICudaEngine``.
        stream: a :class:`~wan_trt_core.backends.tensorrt.cuda.CudaStream` of the GPU it was loaded on, shared by the
            engines there.
        scratch: shared by them as well.
        weights: bytes of the plan.
        log: of the runtime that loaded it (see ``api.message_log``).
    """

    def __init__(
        self,
        description: Description,
        engine: Any,
        stream: Any,
        scratch: Scratch,
        settings: TensorRtSettings,
        weights: int,
        log: Any,
    ) -> None:
        self.name = f"engine {description.name}"
        self.description = description
        self.inputs, self.outputs = description.inputs, description.outputs
        self.device: torch.device = stream.device
        self._engine: Any | None = engine
        self._stream = stream
        self._scratch = scratch
        self._settings = settings
        self._weights = weights
        self._scratch_asked = 0
        self.log = log
        self._contexts: OrderedDict[tuple[Any, ...], _Context] = OrderedDict()
        self._graphs = _Graphs(settings.max_graphs)
        self._use_graphs = settings.cuda_graphs
        self._layer_clock: Any | None = None
        scratch.join()

    @property
    def problems(self) -> tuple[str, ...]:
        """The attentions that were not fused, and the products that are not computed in the graph's precision."""
        return self.description.problems

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the outputs are new tensors on the engine's GPU.

        Raises:
            EngineError: for a missing, superfluous, wrongly typed, shaped or placed tensor, by name; for shapes
                outside every profile; for a closed engine; for what TensorRT or CUDA refuses; where memory runs out.
        """
        return self.run_into(inputs, {})

    def run_into(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As :meth:`run`, the named outputs written into the given tensors without a copy."""
        self._require_open()
        sizes = check_inputs(self.name, self.inputs, inputs)
        check_outputs(self.name, self.outputs, outputs, sizes, inputs)
        check_devices(self.name, self.device, inputs, outputs)
        with self._stream.turn():
            self._require_open()  # another thread may have closed it while this one waited for its turn
            context = self._context(inputs, sizes)
            try:
                context.take(inputs, outputs)
                self._stream.after_caller()
                try:
                    self._execute(context)
                finally:  # what was asked of the GPU before an error or Ctrl-C still reads and writes these tensors
                    self._stream.before_caller()
                return context.give(outputs)
            except (
                torch.OutOfMemoryError
            ) as error:  # of a copy; PyTorch tells what was asked and what is free
                raise EngineError(f"{self.name}: {error}") from error
            finally:
                context.let_go()

    @contextmanager
    def without_graphs(self) -> Iterator[None]:
        """Meanwhile every call is enqueued; the graphs that were captured stay, for afterwards."""
        use, self._use_graphs = self._use_graphs, False
        try:
            yield
        finally:
            self._use_graphs = use

    @contextmanager
    def profiled(self) -> Iterator[list[tuple[str, float]]]:
        """Meanwhile TensorRT times every layer: nothing is replayed as a graph, and every call waits for its end.

        Yields:
            A list that grows by the name and the milliseconds of every layer that has run.
        """
        from wan_trt_core.backends.tensorrt.api import layer_clock

        times: list[tuple[str, float]] = []
        self._drop_contexts()  # those that come are made with the clock
        self._layer_clock = layer_clock(lambda name, ms: times.append((name, ms)))
        try:
            with self.without_graphs():
                yield times
        finally:
            self._drop_contexts()
            self._layer_clock = None

    def layers(self) -> tuple[Layer, ...]:
        """What the inspector tells of every layer."""
        from wan_trt_core.backends.tensorrt.api import layer_report

        return layers_of(layer_report(self._engine))

    def memory(self) -> dict[str, int]:
        """What it holds now. ``weights``: bytes of the plan, which TensorRT keeps outside PyTorch's allocator;
        ``scratch``: the most it has asked of the memory that it shares with other engines, so that together they
        hold the largest and not the sum (``own_scratch`` where the settings do not let it be shared); ``buffers``:
        inputs and outputs that it owns. Both are PyTorch's."""
        scratch = "scratch" if self._settings.share_scratch else "own_scratch"
        if self._engine is None:
            return {"weights": 0, scratch: 0, "buffers": 0}
        buffers = sum(context.bytes for context in self._contexts.values())
        return {"weights": self._weights, scratch: self._scratch_asked, "buffers": buffers}

    @property
    def working(self) -> int:
        """Scratch memory at the shapes that it was tuned for."""
        return self.description.scratch

    @property
    def graphs(self) -> int:
        """CUDA graphs held now."""
        return len(self._graphs)

    def close(self) -> None:
        """Release graphs, contexts, buffers and the plan, and leave the shared scratch memory."""
        with self._stream.turn():
            if self._engine is None:
                return
            self._drop_contexts()
            self._engine = None
            self._scratch.leave()

    def _require_open(self) -> None:
        if self._engine is None:
            raise EngineError(f"{self.name} is closed")

    def _drop_contexts(self) -> None:
        with self._stream.turn():
            self._stream.synchronize()
            self._graphs.clear()
            self._contexts.clear()

    def _execute(self, context: _Context) -> None:
        """Enqueue, the second time for the same addresses as a graph, from then on replayed."""
        address = self._scratch.address(context.scratch)
        self._scratch_asked = max(self._scratch_asked, context.scratch)
        context.bind(address)
        key = (context.shapes, context.addresses, address)
        graph = self._graphs.get(key) if self._use_graphs else None
        if graph is not None:
            graph.launch()
            return
        if self._use_graphs and self._graphs.seen(key):
            try:
                graph = self._stream.capture(lambda: context.enqueue(self._stream.handle))
            except CaptureRefused as refused:
                self._use_graphs = False
                _log.warning("%s runs without CUDA graphs: %s", self.name, refused)
            else:
                self._graphs.keep(key, graph)
                graph.launch()
                return
        if not context.enqueue(self._stream.handle):
            raise EngineError(
                f"{self.name}: TensorRT refused to run: {context.reasons()}; {free_memory(self.device)}"
            )

    def _context(self, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> _Context:
        shapes = tuple((name, tuple(inputs[name].shape)) for name in self.inputs)
        if shapes in self._contexts:
            self._contexts.move_to_end(shapes)
            return self._contexts[shapes]
        profile = self._profile(dict(shapes))
        context = _Context(self, self._engine, profile, shapes, sizes, self._stream, self._layer_clock)
        self._contexts[shapes] = context
        while len(self._contexts) > MAX_CONTEXTS:
            oldest, _ = self._contexts.popitem(last=False)
            self._stream.synchronize()
            self._graphs.drop(oldest)
        return context

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first profile that contains the shapes; one made for a single video comes before a range."""
        profiles = self.description.profiles
        fitting = [index for index, profile in enumerate(profiles) if _contains(profile, shapes)]
        if fitting:
            return min(fitting, key=lambda index: _in_range(profiles[index]))
        raise EngineError(
            f"{self.name}: no profile contains "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + "; the engine has "
            + " and ".join(_told(profile) for profile in profiles)
        )


class _Context:
    """An execution context for one set of input shapes, with the buffers that it owns."""

    def __init__(
        self,
        owner: TensorRtEngine,
        engine: Any,
        profile: int,
        shapes: tuple[tuple[str, tuple[int, ...]], ...],
        sizes: Mapping[str, int],
        stream: Any,
        layer_clock: Any | None,
    ) -> None:
        from wan_trt_core.backends.tensorrt.api import tensorrt

        self.shapes = shapes
        self._owner = owner
        strategy = tensorrt().ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise EngineError(
                f"{owner.name}: TensorRT made no execution context: {self.reasons()}; {free_memory(owner.device)}"
            )
        if layer_clock is not None:
            self._context.profiler = layer_clock
        if not self._context.set_optimization_profile_async(profile, stream.handle):
            raise EngineError(f"{owner.name}: profile {profile} was refused: {self.reasons()}")
        for name, shape in shapes:
            if not self._context.set_input_shape(name, shape):
                raise EngineError(
                    f"{owner.name}: input {name!r} of shape {shape} was refused: {self.reasons()}"
                )
        unknown = self._context.infer_shapes()
        if unknown:
            raise EngineError(f"{owner.name}: TensorRT cannot tell the shapes of {', '.join(unknown)}")
        self.scratch = int(self._context.update_device_memory_size_for_shapes())
        given = dict(shapes)
        self._staged = {
            name: self._buffer(given[name], info.dtype)
            for name, info in owner.inputs.items()
            if _bytes(given[name], info.dtype) < STAGED_BYTES
        }
        self._output_shapes = {
            name: output_shape(info, sizes) or tuple(self._context.get_tensor_shape(name))
            for name, info in owner.outputs.items()
        }
        self._own_outputs: dict[str, Tensor] = {}
        self._bound: dict[str, Tensor] = {}
        self._addresses: dict[str, int] = {}
        self._scratch_address: int | None = None

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where every tensor of this call lies."""
        return tuple(tensor.data_ptr() for tensor in self._bound.values())

    @property
    def bytes(self) -> int:
        """Of the buffers that it owns."""
        return sum(tensor.nbytes for tensor in (*self._staged.values(), *self._own_outputs.values()))

    def take(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Choose where each tensor of a call lies, and copy the small inputs there."""
        staged = list(self._staged)
        if staged:
            torch._foreach_copy_([self._staged[name] for name in staged], [inputs[name] for name in staged])
        self._bound = {
            name: self._staged[name] if name in self._staged else _readable(inputs[name])
            for name in self._owner.inputs
        }
        for name in self._owner.outputs:
            given = outputs.get(name)
            self._bound[name] = given if given is not None and _aligned(given) else self._room(name)

    def give(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the call just enqueued: the caller's own tensors, new ones, or copies of this context's."""
        results = {}
        for name in self._owner.outputs:
            written, wanted = self._bound[name], outputs.get(name)
            if wanted is None:
                results[name] = written.clone() if name in self._own_outputs else written
            else:
                results[name] = wanted if wanted is written else wanted.copy_(written)
        return results

    def let_go(self) -> None:
        """Keep nothing of the caller's: between two videos the VAE's caches would stay allocated."""
        self._bound = {}

    def bind(self, scratch: int) -> None:
        """Tell TensorRT the addresses that changed since the last call."""
        if scratch != self._scratch_address:
            self._context.set_device_memory(scratch, self.scratch)
            self._scratch_address = scratch
        for name, tensor in self._bound.items():
            address = tensor.data_ptr()
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise EngineError(
                        f"{self._owner.name}: the address of {name!r} was refused: {self.reasons()}"
                    )
                self._addresses[name] = address

    def enqueue(self, stream: int) -> bool:
        """Ask for the work on a stream; whether TensorRT took it."""
        return bool(self._context.execute_async_v3(stream))

    def reasons(self) -> str:
        """What TensorRT said last."""
        from wan_trt_core.backends.tensorrt.api import reasons

        return reasons(self._owner.log)

    def _room(self, name: str) -> Tensor:
        """Where an output goes that the caller gave no usable room for."""
        if name in self._own_outputs:
            return self._own_outputs[name]
        room = self._buffer(self._output_shapes[name], self._owner.outputs[name].dtype)
        if room.nbytes < OWN_OUTPUT_BYTES:
            self._own_outputs[name] = room
        return room

    def _buffer(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return allocate(shape, getattr(torch, dtype), self._owner.device, f"a buffer of {self._owner.name}")


class _Graphs:
    """CUDA graphs by what they have fixed in them, the least recently used given back first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()
        self._seen: OrderedDict[tuple[Any, ...], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: tuple[Any, ...]) -> Graph | None:
        """The graph for a key, if it was captured."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def seen(self, key: tuple[Any, ...]) -> bool:
        """Whether the key came before. The first call with new shapes must be enqueued before it is captured."""
        if key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > 4 * self._most:
            self._seen.popitem(last=False)
        return False

    def keep(self, key: tuple[Any, ...], graph: Graph) -> None:
        """Keep a captured graph."""
        self._graphs[key] = graph
        while len(self._graphs) > self._most:
            oldest, given_up = self._graphs.popitem(last=False)
            given_up.close()
            # or one set of addresses too many would have every call captured anew
            self._seen.pop(oldest, None)

    def drop(self, shapes: tuple[Any, ...]) -> None:
        """Give back the graphs of a context that goes."""
        for key in [key for key in self._graphs if key[0] == shapes]:
            self._graphs.pop(key).close()
        for key in [key for key in self._seen if key[0] == shapes]:
            del self._seen[key]

    def clear(self) -> None:
        """Give back all graphs."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._seen.clear()


def _contains(profile: Shapes, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(within(shape, profile[name][0], profile[name][2]) for name, shape in shapes.items())


def _in_range(profile: Shapes) -> int:
    """Inputs of more than one shape."""
    return sum(least != most for least, _, most in profile.values())


def _told(profile: Shapes) -> str:
    return "; ".join(f"{name} {least} to {most}" for name, (least, _, most) in profile.items())


def _aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


def _readable(tensor: Tensor) -> Tensor:
    """The tensor itself where TensorRT can read it in place, else a copy."""
    tensor = tensor.contiguous()
    return tensor if _aligned(tensor) else tensor.clone()


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(torch.empty(shape, dtype=getattr(torch, dtype), device="meta").nbytes)
