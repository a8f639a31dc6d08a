"""The memory events of a run of a ``WanPipeline``, stock or with engines: who is loaded, and where a stage begins."""

from __future__ import annotations

import gc
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wan_trt_core.measure.memory_events import Place
from wan_trt_core.measure.memory_recorder import Holdings, MemoryRecorder, Meter, Told
from wan_trt_core.models.checkpoint import DTYPES
from wan_trt_core.pipeline.offload import OffloadedEngine, OffloadedModule
from wan_trt_core.pipeline.stages import Stage, stages, through

if TYPE_CHECKING:
    from diffusers import WanPipeline
    from torch import nn

    from wan_trt_core.backends.base import Device, Engine
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.profiles import ShapeProfile
    from wan_trt_core.pipeline.engines import EngineStore

logger = logging.getLogger(__name__)


@contextmanager
def recorded_run(
    path: Path | None, device: Device, run: Mapping[str, Any], in_use: int | None = None
) -> Iterator[RunRecording]:
    """Record a run into ``path``, whatever it comes to; without a path nothing is.

    Args:
        device: that it runs on.
        run: what runs, for the file.
        in_use: bytes in use on the device before this process came (see :class:`DeviceMemory`).

    Raises:
        OSError: at once, when the file cannot be written.
    """
    if path is None:
        yield RunRecording(None)
        return
    from wan_trt_core.measure.device_memory import current_device_memory
    from wan_trt_core.measure.environment import hardware_key

    meter = Meter(current_device_memory(in_use) if device == "cuda" else None)
    with MemoryRecorder(path, meter, hardware_key=hardware_key(device), run=run) as recorder:
        try:
            yield RunRecording(recorder, device)
        except BaseException:
            logger.warning("what was held up to the failure is in %s", path)
            raise


class RunRecording:
    """What to put around the loading and the generating of a run so that its memory is recorded.

    Args:
        recorder: takes the events; without one nothing is recorded and nothing is touched.
        device: on which the engines run, ``cpu`` or ``cuda``.
    """

    def __init__(self, recorder: MemoryRecorder | None, device: str = "cpu") -> None:
        self._recorder = recorder
        self._owners = _Owners(device)
        self._built: set[str] = set()
        self._loading: Callable[[], AbstractContextManager[object]] = nullcontext
        if recorder is not None:
            recorder.own(self._owners.note)

    @contextmanager
    def loads(self, checkpoint: Checkpoint, store: EngineStore) -> Iterator[None]:
        """Meanwhile, and while :meth:`stages` are recorded, every module that the checkpoint loads, or one made apart
        of it meanwhile, and every engine that the store does is a stage, and an owner from then on. An engine is built
        in a stage of its own, which is short where the cache has it. The unloading of these engines is one whenever it
        comes, and of one that is offloaded every coming and going."""
        recorder = self._recorder
        if recorder is None:
            yield
            return

        @contextmanager
        def loading() -> Iterator[None]:
            with (
                through(checkpoint, "fresh", partial(self._load_module, recorder)),
                through(store, "build", partial(self._build_engine, recorder)),
                through(store, "load", partial(self._load_engine, recorder)),
            ):
                yield

        self._loading = loading
        with loading():
            yield

    @contextmanager
    def stages(self, pipe: WanPipeline) -> Iterator[None]:
        """Meanwhile one call of ``pipe`` is recorded: text encoder, denoising steps, latent frames decoded (the whole
        decode as one where a VAE decodes in tiles or several latent frames a step), and what makes frames of that. The
        coming and going of modules that are offloaded interrupts them."""
        recorder = self._recorder
        if recorder is None:
            yield
            return

        def begin(stage: Stage, index: int | None) -> None:
            recorder.begin(stage, index=1 if stage == "decode" and _by_frame(pipe.vae) else index)

        with (
            self._loading(),
            _turns_recorded(recorder, pipe),
            _frames_recorded(recorder, pipe.vae),
            recorder.ending(),
            stages(pipe, begin),
        ):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Meanwhile the video's file is written."""
        if self._recorder is None:
            yield
            return
        with self._recorder.stage("write"):
            yield

    def unload(self, checkpoint: Checkpoint) -> None:
        """Let go of the modules that the checkpoint keeps, each in a stage of its own; whoever has a pipeline of them
        gives it up before. Those that are offloaded are gone from the device by then."""
        if self._recorder is None:
            return
        for part in self._owners.parts():
            with self._recorder.interrupting("unload", part):
                checkpoint.release(part)
                gc.collect()  # diffusers' hooks and their module hold each other

    def _load_module(
        self,
        recorder: MemoryRecorder,
        original: Callable[..., nn.Module],
        part: str,
        *args: Any,
        **kwargs: Any,
    ) -> nn.Module:
        with recorder.stage("load", part):
            module = original(part, *args, **kwargs)
            recorder.precise(self._owners.add_module(part, module))
        return module

    def _build_engine(
        self,
        recorder: MemoryRecorder,
        original: Callable[..., None],
        component: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        name = f"{component} engine"
        if name in self._built or self._owners.has_engine(name):  # there is nothing to do
            return original(component, *args, **kwargs)
        with recorder.interrupting("build", name):
            original(component, *args, **kwargs)
        self._built.add(name)

    def _load_engine(
        self,
        recorder: MemoryRecorder,
        original: Callable[..., Engine],
        component: str,
        model: ResolvedModel,
        profile: ShapeProfile,
        precision: str,
        *args: Any,
        **kwargs: Any,
    ) -> Engine:
        name, loaded = f"{component} engine", False
        built = name in self._built
        if self._owners.has_engine(name):  # which the store gives again
            return original(component, model, profile, precision, *args, **kwargs)

        def begin_load() -> None:
            if not loaded and not built:  # of one that is offloaded it is told at every onload too
                recorder.begin("load", name)

        with recorder.interrupting("load" if built else "build", name):
            engine = original(component, model, profile, precision, *args, **kwargs, built=begin_load)
            recorder.precise(self._owners.add_engine(name, engine, precision))
        loaded, offloaded = True, isinstance(engine, OffloadedEngine)

        def close(original: Callable[[], None]) -> None:
            with nullcontext() if offloaded else recorder.interrupting("unload", name):
                original()
                self._owners.drop_engine(name)
            unwatched.close()

        def keep(original: Callable[[int], None], caches: int) -> None:
            recorder.note()  # a decode in tiles, and the last frame of any, ends without its caches
            original(caches)

        unwatched = ExitStack()
        unwatched.enter_context(through(engine, "close", close))
        unwatched.enter_context(through(engine, "keep", keep))
        if offloaded:
            unwatched.enter_context(_moves_recorded(recorder, engine, name))
        return engine


class _Owners:
    """The modules and engines that hold memory. Modules are only watched: they live as long as others hold them."""

    def __init__(self, device: str) -> None:
        self._inside: Place = "allocator" if device == "cuda" else "host"
        self._outside: Place = "device" if device == "cuda" else "host"
        self._modules: dict[str, dict[int, tuple[weakref.ref[nn.Module], int]]] = {}
        self._engines: dict[str, Engine] = {}

    def add_module(self, part: str, module: nn.Module) -> dict[str, str]:
        """Know a module, which moves between devices as a whole; returns the precision of most of its weights."""
        sizes: Counter[str] = Counter()
        for tensor in (*module.parameters(), *module.buffers()):
            name = str(tensor.dtype).removeprefix("torch.")
            sizes[_PRECISIONS.get(name, name)] += tensor.nbytes
        self._modules.setdefault(part, {})[id(module)] = weakref.ref(module), sizes.total()
        return {f"{part} weights": max(sizes, key=sizes.__getitem__, default="")}

    def parts(self) -> tuple[str, ...]:
        """Those of which a module is still there."""
        return tuple(
            part
            for part, known in self._modules.items()
            if any(module() is not None for module, _ in known.values())
        )

    def add_engine(self, name: str, engine: Engine, precision: str) -> dict[str, str]:
        """Know an engine; returns the precision of its weights."""
        self._engines[name] = engine
        return {f"{name} weights": precision}

    def has_engine(self, name: str) -> bool:
        """Whether an engine of that name is known."""
        return name in self._engines

    def drop_engine(self, name: str) -> None:
        """Forget an engine that was closed."""
        self._engines.pop(name, None)

    def note(self) -> Told:
        """What they hold now. Asked only: :meth:`_told` sorts it, when there is time."""
        modules = [
            (part, _place(module), size)
            for part, known in self._modules.items()
            for found, size in known.values()
            if (module := found()) is not None
        ]
        engines = [
            (name, engine.memory(), engine.caches, engine.graphs) for name, engine in self._engines.items()
        ]
        return partial(self._told, modules, engines)

    def _told(
        self, modules: list[tuple[str, Place, int]], engines: list[tuple[str, dict[str, int], int, int]]
    ) -> Holdings:
        """An engine's weights lie outside PyTorch's allocator, what else it holds inside. The scratch memory is lent to
        one engine at a time: together they hold the largest."""
        together: dict[Place, dict[str, int]] = {}

        def add(place: Place, owner: str, size: int) -> None:
            sizes = together.setdefault(place, {})
            sizes[owner] = max(sizes.get(owner, 0), size) if owner == _SCRATCH else sizes.get(owner, 0) + size

        for part, place, size in modules:
            add(place, f"{part} weights", size)
        for name, memory, caches, _ in engines:
            for what, size in memory.items():
                place = self._outside if what == "weights" else self._inside
                add(place, _SCRATCH if what == "scratch" else f"{name} {what}", size)
            if caches:
                add(self._inside, f"{name} caches", caches)
        return together, {name: graphs for name, *_, graphs in engines}


_SCRATCH = "engines' shared scratch"
_PRECISIONS = {name: precision for precision, name in DTYPES.items()}


def _place(module: nn.Module) -> Place:
    first = next(module.parameters(), None)
    return "allocator" if first is not None and first.is_cuda else "host"


def _by_frame(vae: Any) -> bool:
    """Whether the latent frames that a VAE decodes can be told apart: not in tiles, nor where a step has several."""
    from torch import nn

    decoder = getattr(vae, "decoder", None)
    return getattr(decoder, "latents_per_step", 0) == 1 or (
        isinstance(decoder, nn.Module) and not getattr(vae, "use_tiling", False)
    )


@contextmanager
def _moves_recorded(recorder: MemoryRecorder, member: Any, name: str) -> Iterator[None]:
    """Meanwhile the coming and going of an engine or module that is offloaded are stages."""

    def moved(stage: Literal["onload", "unload"], original: Callable[[], Any]) -> Any:
        with recorder.interrupting(stage, name):
            return original()

    with (
        through(member, "bring", partial(moved, "onload")),
        through(member, "release", partial(moved, "unload")),
    ):
        yield


@contextmanager
def _turns_recorded(recorder: MemoryRecorder, pipe: WanPipeline) -> Iterator[None]:
    """As :func:`_moves_recorded` for all modules of a pipeline that are offloaded."""
    with ExitStack() as watched:
        for name, part in pipe.components.items():
            hook = getattr(part, "_hf_hook", None)
            if isinstance(hook, OffloadedModule):
                watched.enter_context(_moves_recorded(recorder, hook, name))
        yield


@contextmanager
def _frames_recorded(recorder: MemoryRecorder, vae: Any) -> Iterator[None]:
    """Meanwhile each latent frame that ``vae`` decodes after the first is a stage of its own."""
    if not _by_frame(vae):
        yield
    elif hasattr(vae.decoder, "decode_steps"):

        def steps(original: Callable[[Any], Iterator[Any]], latents: Any) -> Iterator[Any]:
            for done, frames in enumerate(original(latents), 1):
                yield frames
                if done < latents.shape[2]:
                    recorder.begin("decode", index=done + 1)

        with through(vae.decoder, "decode_steps", steps):
            yield
    else:
        frame = count(1)

        def before(*_: Any) -> None:
            if (index := next(frame)) > 1:
                recorder.begin("decode", index=index)

        hook = vae.decoder.register_forward_pre_hook(before)
        try:
            yield
        finally:
            hook.remove()
